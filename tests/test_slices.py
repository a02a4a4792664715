"""slices.py on another model: invitations that lapse, with integer or UUID keys."""

import logging
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connection, models, transaction
from django.db.models import QuerySet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_django import DjangoDbBlocker

from accounts.slices import ATTEMPTS, FEWEST, FIRST, MOST, PAUSE, Change, Counted, Slice, next_size


class NumberedInvitation(models.Model):
    lapsed = models.BooleanField(default=False)
    open = models.BooleanField(default=True)

    class Meta:
        app_label = "tests"

    def __str__(self) -> str:
        return f"invitation {self.pk}"


class Invitation(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    lapsed = models.BooleanField(default=False)
    open = models.BooleanField(default=True)

    class Meta:
        app_label = "tests"

    def __str__(self) -> str:
        return f"invitation {self.pk}"


Model = type[Invitation] | type[NumberedInvitation]


@pytest.fixture(scope="module")
def tables(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """The tables of the invitations, which no migration makes."""
    with django_db_blocker.unblock(), connection.schema_editor() as editor:
        editor.create_model(NumberedInvitation)
        editor.create_model(Invitation)
    yield
    with django_db_blocker.unblock(), connection.schema_editor() as editor:
        editor.delete_model(NumberedInvitation)
        editor.delete_model(Invitation)


@pytest.fixture(params=[NumberedInvitation, Invitation], ids=["numbers", "UUIDs"])
def model(request: pytest.FixtureRequest, tables: None, db: None) -> Model:
    """A kind of invitation; there are none of it yet."""
    chosen: Model = request.param
    chosen._default_manager.all().delete()
    return chosen


def invite(model: Model, count: int, **fields: bool) -> None:
    for _ in range(count):
        model._default_manager.create(**fields)


def still_open(model: Model) -> QuerySet[Any]:
    return model._default_manager.filter(open=True)


class Lapse:
    """Makes invitations lapse, and keeps the sum instead of a ledger."""

    def __init__(self, model: Model) -> None:
        self.counted = 0
        self.closed = False
        self.skipped = False
        self.change = Change(
            rows=still_open(model), values={"open": False, "lapsed": True}, count=self.count, log=self.log
        )
        self.logged: list[tuple[int, str]] = []

    def count(self, did: Counted) -> bool:
        assert did.locked > timedelta(0)
        self.counted += 0 if self.closed else did.rows
        self.skipped |= did.skipped
        return not self.closed

    def log(self, level: int, event: str, **fields: Any) -> None:
        self.logged.append((level, event))


def cut(rows: QuerySet[Any], size: int) -> list[Slice]:
    return list(Change(rows=rows, values={}, count=lambda did: True).walk(size=lambda: size))


def test_a_few_lines_let_invitations_of_another_model_lapse(model: Model) -> None:
    invite(model, 7)
    invite(model, 2, open=False)
    lapse = Lapse(model)
    slices = cut(lapse.change.rows, 3)

    assert ([keys.rows for keys in slices], lapse.change.on_each(slices)) == ([3, 3, 1], 7)

    assert (lapse.counted, model._default_manager.filter(lapsed=True).count()) == (7, 7)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize("every", [1, 2, 4])
def test_slices_cover_every_row_once_and_none_is_too_large(model: Model, size: int, every: int) -> None:
    for number in range(4 * every):
        invite(model, 1, open=number % every == 0)
    rows = still_open(model)

    slices = cut(rows, size)

    keys = list(rows.order_by("pk").values_list("pk"))
    parts = [keys[start : start + size] for start in range(0, 4, size)]
    begins = [None, *(part[-1] for part in parts[:-1])]
    assert slices == [Slice(after, part[-1], len(part)) for after, part in zip(begins, parts, strict=True)]


def test_rows_are_walked_by_two_fields_in_the_order_of_an_index(model: Model) -> None:
    for number in range(8):
        invite(model, 1, lapsed=number % 3 == 0)
    change = Change(rows=still_open(model), order=("lapsed", "pk"), values={"open": False}, count=lambda did: True)

    one, two, three = change.walk(size=lambda: 3)

    expected = list(still_open(model).order_by("lapsed", "pk").values_list("lapsed", "pk"))
    assert [one.upto, two.after, two.upto, three.after, three.upto] == [expected[at] for at in (2, 2, 5, 5, 7)]
    assert (change.on(two), still_open(model).count()) == (3, 5)
    assert list(still_open(model).order_by("lapsed", "pk").values_list("lapsed", "pk")) == expected[:3] + expected[6:]


def test_a_slice_is_cut_when_it_is_asked_for_and_as_large_as_then_said(model: Model) -> None:
    invite(model, 6)
    sizes = [1, 2]
    walk = Change(rows=still_open(model), values={}, count=lambda did: True).walk(size=lambda: sizes[-1])

    assert next(walk).rows == 2
    sizes.append(3)
    model._default_manager.filter(pk=still_open(model).order_by("pk")[2].pk).update(open=False)
    assert (next(walk).rows, list(walk)) == (3, [])


def test_the_walk_goes_on_where_another_slice_ended_and_ends_when_told(model: Model) -> None:
    invite(model, 4)
    change = Change(rows=still_open(model), values={}, count=lambda did: True)
    first, second, *_ = change.walk(size=lambda: 1)

    assert next(change.walk(size=lambda: 1, after=first.upto)) == second
    assert list(change.walk(size=lambda: None)) == []


MS = timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("rows", "locked", "size"),
    [
        (1000, 100 * MS, 1000),
        (1000, 400 * MS, 250),
        (1000, 50 * MS, 2000),
        (1000, MS, 4000),  # at most four times as many
        (2000, 399 * MS, 1000),  # and at least half as many, unless it is far too slow
        (700, 199 * MS, FIRST),
        (FIRST, 199 * MS, FIRST),
        (300, 199 * MS, 300),
        (FIRST, 201 * MS, FIRST // 2),
        (FEWEST, 10_000 * MS, FEWEST),
        (MOST, MS, MOST),
        (0, timedelta(0), FEWEST),
    ],
)
def test_the_next_slice_is_as_large_as_stays_locked_for_100_ms(rows: int, locked: timedelta, size: int) -> None:
    assert next_size(rows, locked) == size
    assert FEWEST < FIRST < MOST


def test_nothing_to_change_has_no_slices(model: Model) -> None:
    invite(model, 2, open=False)

    assert cut(still_open(model), 3) == []


def test_a_slice_that_is_not_counted_changes_nothing(model: Model) -> None:
    invite(model, 3)
    lapse = Lapse(model)
    (keys,) = cut(lapse.change.rows, 3)
    lapse.closed = True

    assert lapse.change.on(keys) == 0

    assert still_open(model).count() == 3


def test_progress_is_told_after_each_slice_and_may_stop_them(model: Model) -> None:
    invite(model, 6)
    slices = cut(still_open(model), 2)

    def stop(done: int, keys: Slice) -> None:
        assert keys == slices[done // 2 - 1]
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Lapse(model).change.on_each(slices, after_slice=stop)

    assert still_open(model).count() == 2


def test_an_error_of_the_count_rolls_back_its_slice_and_no_other(model: Model) -> None:
    invite(model, 6)
    calls = []

    def fail_at_first(did: Counted) -> bool:
        calls.append(did.rows)
        if len(calls) == 1:
            raise DatabaseError("not this one")
        return True

    change = Change(rows=still_open(model), values={"open": False}, count=fail_at_first)

    with pytest.raises(DatabaseError, match="not this one"):
        change.on_each(change.walk(size=lambda: 2))

    assert (calls, still_open(model).count()) == ([2, 2, 2], 2)


def test_a_slice_refuses_to_run_inside_a_transaction_of_its_caller(model: Model) -> None:
    invite(model, 1)
    (keys,) = cut(still_open(model), 1)

    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        Lapse(model).change.on(keys)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_slice_leaves_the_lock_timeout_of_its_connection_as_it_was(model: Model) -> None:
    invite(model, 1)
    (keys,) = cut(still_open(model), 1)

    Lapse(model).change.on(keys)

    with connection.cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("0",)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_locked_table_is_waited_for_between_attempts(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr("accounts.slices.LOCK_TIMEOUT", "20ms")
    invite(model, 1)
    lapse = Lapse(model)
    (keys,) = cut(lapse.change.rows, 1)

    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute(f"LOCK TABLE {model._meta.db_table}")
        with pytest.raises(DatabaseError, match="lock timeout"):
            lapse.change.on(keys)

    # At first the lock may be on a row: it is skipped, without a pause.
    assert pauses == [PAUSE] * (ATTEMPTS - 2)
    retried, failed = (logging.INFO, "slice_retried"), (logging.WARNING, "slice_failed")
    assert lapse.logged == [retried] * (ATTEMPTS - 1) + [failed]


events = st.lists(
    st.one_of(
        st.tuples(st.just("plan"), st.integers(1, 3)),
        st.tuples(st.just("slice"), st.integers(0, 9)),
        st.tuples(st.just("accept"), st.integers(0, 5)),
        st.tuples(st.just("reopen"), st.integers(0, 5)),
    ),
    max_size=20,
)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events)
def test_slices_in_any_order_and_again_change_what_still_qualifies(model: Model, events: list[tuple[str, int]]) -> None:
    model._default_manager.all().delete()
    invite(model, 6)
    keys = sorted(row.pk for row in model._default_manager.all())
    expected = dict.fromkeys(keys, True)  # whether it is open
    lapse, planned, lapsed = Lapse(model), list[Slice](), 0

    for event, number in events:
        match event:
            case "plan":
                slices = cut(lapse.change.rows, number)
                planned += slices
                assert sum(each.rows for each in slices) == sum(expected.values())
            case "slice" if planned:
                chosen = planned[number % len(planned)]
                passed = [key for key in keys if key <= chosen.upto[0] and expected[key]]
                inside = [key for key in passed if chosen.after is None or key > chosen.after[0]]
                assert lapse.change.on(chosen) == len(inside)
                expected.update(dict.fromkeys(inside, False))
                lapsed += len(inside)
            case "accept" | "reopen":
                expected[keys[number]] = event == "reopen"
                model._default_manager.filter(pk=keys[number]).update(open=event == "reopen")

    assert dict(model._default_manager.values_list("pk", "open")) == expected
    assert lapse.counted == lapsed
