"""slices.py on another model: invitations that lapse, with integer or UUID keys."""

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

from accounts.slices import ATTEMPTS, PAUSE, Change, Slice, plan


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
        self.change = Change(
            rows=still_open(model), values={"open": False, "lapsed": True}, count=self.count, log=self.log
        )
        self.logged: list[str] = []

    def count(self, changed: int, locked: timedelta) -> bool:
        assert locked > timedelta(0)
        self.counted += 0 if self.closed else changed
        return not self.closed

    def log(self, level: int, event: str, **fields: Any) -> None:
        self.logged.append(event)


def test_a_few_lines_let_invitations_of_another_model_lapse(model: Model) -> None:
    invite(model, 7)
    invite(model, 2, open=False)
    lapse = Lapse(model)
    slices, count = plan(lapse.change.rows, size=3)

    assert (len(slices), count, lapse.change.on_each(slices)) == (3, 7, 7)

    assert (lapse.counted, model._default_manager.filter(lapsed=True).count()) == (7, 7)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize("every", [1, 2, 4])
def test_slices_cover_every_row_once_and_none_is_too_large(model: Model, size: int, every: int) -> None:
    for number in range(4 * every):
        invite(model, 1, open=number % every == 0)
    rows = still_open(model)

    slices, count = plan(rows, size=size)

    covered = [list(rows.filter(pk__gte=keys.first, pk__lte=keys.last).order_by("pk")) for keys in slices]
    assert [row for part in covered for row in part] == list(rows.order_by("pk"))
    assert count == 4
    assert max(map(len, covered)) <= size
    assert all(keys == Slice(part[0].pk, part[-1].pk) for keys, part in zip(slices, covered, strict=True))


def test_nothing_to_change_has_no_slices(model: Model) -> None:
    invite(model, 2, open=False)

    assert plan(still_open(model), size=3) == ([], 0)


def test_a_slice_that_is_not_counted_changes_nothing(model: Model) -> None:
    invite(model, 3)
    lapse = Lapse(model)
    (keys,), _ = plan(lapse.change.rows, size=3)
    lapse.closed = True

    assert lapse.change.on(keys) == 0

    assert still_open(model).count() == 3


def test_progress_is_told_after_each_slice_and_may_stop_them(model: Model) -> None:
    invite(model, 6)
    slices, _ = plan(still_open(model), size=2)

    def stop(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Lapse(model).change.on_each(slices, after_slice=stop)

    assert still_open(model).count() == 2


def test_an_error_of_the_count_rolls_back_its_slice_and_no_other(model: Model) -> None:
    invite(model, 6)
    calls = []

    def fail_at_first(changed: int, locked: timedelta) -> bool:
        calls.append(changed)
        if len(calls) == 1:
            raise DatabaseError("not this one")
        return True

    change = Change(rows=still_open(model), values={"open": False}, count=fail_at_first)
    slices, _ = plan(change.rows, size=2)

    with pytest.raises(DatabaseError, match="not this one"):
        change.on_each(slices)

    assert (calls, still_open(model).count()) == ([2, 2, 2], 2)


def test_a_slice_refuses_to_run_inside_a_transaction_of_its_caller(model: Model) -> None:
    invite(model, 1)
    (keys,), _ = plan(still_open(model), size=1)

    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        Lapse(model).change.on(keys)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_slice_leaves_the_lock_timeout_of_its_connection_as_it_was(model: Model) -> None:
    invite(model, 1)
    (keys,), _ = plan(still_open(model), size=1)

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
    (keys,), _ = plan(lapse.change.rows, size=1)

    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute(f"LOCK TABLE {model._meta.db_table}")
        with pytest.raises(DatabaseError, match="lock timeout"):
            lapse.change.on(keys)

    # At first the lock may be on a row: it is skipped, without a pause.
    assert pauses == [PAUSE] * (ATTEMPTS - 2)
    assert lapse.logged == ["slice_retried"] * (ATTEMPTS - 1) + ["slice_failed"]


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
                slices, count = plan(lapse.change.rows, size=number)
                planned += slices
                assert count == sum(expected.values())
            case "slice" if planned:
                chosen = planned[number % len(planned)]
                inside = [key for key in keys if chosen.first <= key <= chosen.last and expected[key]]
                assert lapse.change.on(chosen) == len(inside)
                expected.update(dict.fromkeys(inside, False))
                lapsed += len(inside)
            case "accept" | "reopen":
                expected[keys[number]] = event == "reopen"
                model._default_manager.filter(pk=keys[number]).update(open=event == "reopen")

    assert dict(model._default_manager.values_list("pk", "open")) == expected
    assert lapse.counted == lapsed
