"""The low-water mark: where a question begins after many accounts have expired, and when all trials are looked at."""

from collections.abc import Callable
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.cache import cache
from django.core.management import call_command
from django.db import DatabaseError, connection
from django.utils import timezone

from accounts import health, ledger, services
from accounts.models import Account, AccountQuerySet, ExpiryRun
from tests.factories import AccountFactory, fill_tables, make_accounts
from tests.locks import Sql, trigger_on_update
from tests.runs import DAY, expire

pytestmark = pytest.mark.django_db

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@pytest.fixture
def _after_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """One account that expired today is many."""
    monkeypatch.setattr(ledger, "MANY_EXPIRED", 0)


after_many = pytest.mark.usefixtures("_after_many")


def mark() -> datetime | None:
    return ledger.low_water_mark(now=ledger.database_now())


def aged(hours: float) -> None:
    """Move every run and its undo into the past."""
    for run in ExpiryRun.objects.all():
        ExpiryRun.objects.filter(pk=run.pk).update(
            started=run.started - hours * HOUR, heartbeat=run.heartbeat - hours * HOUR
        )


def set_back(now: datetime) -> Account:
    """An account whose trial end somebody has set to a moment that earlier runs were done with."""
    return AccountFactory.create(trial_ends_at=now - 20 * DAY)


def test_an_end_set_into_the_past_is_found_at_once_unless_many_expired_lately(
    now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    expire(now)
    set_back(now)
    assert mark() is None
    monkeypatch.setattr(ledger, "MANY_EXPIRED", 3)
    assert mark() is None

    monkeypatch.setattr(ledger, "MANY_EXPIRED", 2)
    assert expire(now + HOUR).expired_count == 0

    aged(30 * 24)
    assert expire(now + 2 * HOUR).expired_count == 1


@after_many
def test_the_next_run_begins_where_the_last_was_done(now: datetime) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    first = expire(now)
    make_accounts(2, ended=-HOUR, now=now)

    second = expire(now + 2 * HOUR + DAY)
    earlier = expire(now - 5 * DAY)

    assert (first.floor, second.floor, second.expired_count) == (None, first.cutoff, 2)
    assert (earlier.floor, earlier.expired_count, mark()) == (second.cutoff, 0, second.cutoff)


@after_many
def test_every_six_hours_a_run_looks_at_all(now: datetime) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    expire(now)
    account = set_back(now)
    aged(5.9)
    assert expire(now + 6 * HOUR).expired_count == 0

    aged(0.2)
    assert expire(now + 7 * HOUR).expired_count == 1

    account.refresh_from_db()
    assert account.status == Account.TRIAL_EXPIRED
    assert mark() is not None


@after_many
@pytest.mark.parametrize("options", [{"as_of": "2026-03-01T00:00:00Z"}, {}], ids=["as of", "without"])
def test_a_command_that_names_a_moment_looks_at_all(now: datetime, options: dict[str, str]) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    expire(now)
    set_back(now)
    output = StringIO()

    call_command("expire_trials", stdout=output, **options)

    assert f"Expired {1 if options else 0} trial(s)" in output.getvalue()


@after_many
def test_after_an_undo_a_run_looks_at_all_until_one_began_well_after_it(now: datetime) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    run = expire(now)
    assert mark() == run.cutoff

    services.undo_run(run=run, now=now, by="ann")
    assert mark() is None
    # As if this run had begun before the last slice of the undo was committed.
    assert expire(now).expired_count == 3
    assert mark() is None

    aged(0.25)
    assert expire(now + HOUR).floor is None
    assert mark() is not None


@after_many
@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_a_run_that_was_not_done_is_followed_by_one_that_begins_there(now: datetime, status: str) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    done = expire(now)
    ExpiryRun.objects.create(
        path="celery", status=status, as_of=now + HOUR, floor=done.cutoff, finished=None if status == "running" else now
    )
    assert mark() == done.cutoff

    ExpiryRun.objects.create(
        path="celery", status=status, as_of=now + HOUR, floor=None, finished=None if status == "running" else now
    )
    assert mark() is None


@after_many
def test_a_refused_run_leaves_the_mark_where_it_was(now: datetime) -> None:
    make_accounts(1, ended=10 * DAY, now=now)
    run = expire(now)
    make_accounts(3, ended=DAY - HOUR, now=now)

    with pytest.raises(services.TooManyDue, match="3 accounts are due"):
        expire(now + 2 * HOUR, max_accounts=2)

    assert mark() == run.cutoff
    assert expire(now + 2 * HOUR).expired_count == 3


@after_many
@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_an_account_left_out_because_it_was_locked_is_taken_by_the_next_run(now: datetime, other: Sql) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    expire(now - 9 * DAY)
    make_accounts(2, ended=5 * DAY, now=now)
    held = Account.objects.filter(status=Account.TRIALING).order_by("pk")[0]
    other.execute("SELECT FROM accounts_account WHERE id = %s FOR UPDATE", [held.pk])

    first = expire(now)
    other.rollback()
    second = expire(now + HOUR)

    assert (first.expired_count, first.skipped, second.floor) == (4, True, first.floor)
    assert (second.expired_count, second.skipped, mark()) == (1, False, second.cutoff)


@after_many
@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_accounts_of_a_slice_that_failed_are_taken_by_the_next_run(now: datetime) -> None:
    make_accounts(4, ended=10 * DAY, now=now)
    poison = Account.objects.order_by("pk")[1]
    with trigger_on_update(poison, "RAISE EXCEPTION 'not this one';"), pytest.raises(DatabaseError):
        expire(now, batch_size=2)

    assert expire(now).expired_count == 2


@after_many
def test_health_finds_what_lies_below_the_mark_once_an_hour(now: datetime) -> None:
    make_accounts(1, ended=10 * DAY, now=now)
    expire(now)

    def found() -> list[str]:
        return [
            finding.row for finding in health.check(now=ledger.database_now(), max_age=timedelta(days=3650)).problems
        ]

    assert found() == []
    AccountFactory.create(trial_ends_at=now - 3651 * DAY)
    assert found() == []

    cache.clear()
    assert found() == ["overdue"]
    assert found() == ["overdue"]


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_the_questions_pass_by_the_dead_entries_of_those_who_expired(
    now: datetime, other: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "MANY_EXPIRED", 1000)
    fill_tables(1000)
    make_accounts(3000, ended=10 * DAY, now=timezone.now())
    make_accounts(1000, ended=-10 * DAY, now=timezone.now())
    other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    other.execute("SELECT count(*) FROM accounts_account")  # an old snapshot: the entries must stay
    run = expire(timezone.now())
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE accounts_account")
    due = Account.objects.due(timezone.now())

    for ask in (AccountQuerySet.first_end, is_there_a_fifth, first_row):
        assert pages_read(ask, due) > 30
        assert pages_read(ask, due.above(run.cutoff)) <= 8


def is_there_a_fifth(accounts: AccountQuerySet) -> bool:
    return accounts.count_to(5) == 5


def first_row(accounts: AccountQuerySet) -> Account | None:
    return accounts.order_by("trial_ends_at").first()


def pages_read(ask: Callable[[AccountQuerySet], Any], accounts: AccountQuerySet) -> int:
    """How many pages of the accounts and their index a question touches."""
    seen: list[int] = []

    def look(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        with context["connection"].connection.cursor() as cursor:
            cursor.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + sql, params)
            ((found,),) = cursor.fetchall()
        seen.append(found[0]["Plan"]["Shared Hit Blocks"] + found[0]["Plan"]["Shared Read Blocks"])
        return execute(sql, params, many, context)

    with connection.execute_wrapper(look):
        ask(accounts)
    return sum(seen)
