"""Runs concurrently with locks, deadlocks and other runs. tests/test_interleavings.py has pairs of the verbs."""

import threading
from datetime import datetime, timedelta
from functools import partial

import pytest
from django.db import DatabaseError, connection
from django.db.models import Sum

from accounts import ledger, services
from accounts.models import Account, ExpiryRun
from accounts.slices import ATTEMPTS
from tests.factories import AccountFactory, make_accounts
from tests.locks import Sql, meanwhile, trigger_on_update, wait_until_blocked
from tests.runs import assert_ledger_is_true, expire

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]


def overdue(now: datetime) -> Account:
    return AccountFactory.create(created=now - timedelta(days=90))


def test_several_runs_at_once_expire_every_account_exactly_once(now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "ALIVE_FOR", timedelta(0))  # none waits for another
    make_accounts(500, ended=timedelta(days=10), now=now)
    start = threading.Barrier(4)

    def run(batch_size: int, jobs: int = 1) -> ExpiryRun:
        start.wait()
        return expire(now, batch_size=batch_size, run_slices=partial(services.run_here, jobs=jobs))

    with meanwhile(lambda: run(7, jobs=3)) as a, meanwhile(lambda: run(50)) as b, meanwhile(lambda: run(500)) as c:
        d = [run(13, jobs=2)]

    statuses = {finished.status for finished in (*a, *b, *c, *d)}
    assert statuses == {ExpiryRun.Status.SUCCEEDED}
    assert Account.objects.filter(status=Account.TRIAL_EXPIRED).count() == 500
    assert ExpiryRun.objects.aggregate(total=Sum("expired_count"))["total"] == 500


def test_whoever_sits_on_a_due_account_delays_only_that_account(now: datetime, other: Sql) -> None:
    make_accounts(5, ended=timedelta(days=10), now=now)
    held = Account.objects.order_by("pk")[2]
    other.execute("SELECT FROM accounts_account WHERE id = %s FOR UPDATE", [held.pk])

    run = expire(now)

    assert (run.status, run.due_count, run.expired_count, run.skipped) == (ExpiryRun.Status.SUCCEEDED, 5, 4, True)
    assert list(Account.objects.due(now)) == [held]
    other.rollback()
    assert expire(now).expired_count == 1
    assert_ledger_is_true()


def test_a_payer_waits_for_one_slice_when_the_ledger_is_locked(now: datetime, other: Sql) -> None:
    account = overdue(now)
    run = ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, as_of=now)
    (keys,) = services.slices_of(run)
    other.execute("SELECT FROM accounts_expiryrun FOR UPDATE")

    with meanwhile(lambda: services.expire_slice(run=run, keys=keys)) as expired:
        wait_until_blocked('UPDATE "accounts_expiryrun"')
        # The lock on the ledger is still held: the slice is rolled back, long before the payment times out.
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '4s'")
        assert services.activate(account_id=account.pk)
        with connection.cursor() as cursor:
            cursor.execute("RESET lock_timeout")
        other.commit()

    account.refresh_from_db()
    assert (expired, account.status) == ([0], Account.ACTIVE)
    assert_ledger_is_true()


def test_a_table_locked_for_long_fails_the_run_within_bounded_time(
    now: datetime, other: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accounts.slices.PAUSE", 0.01)
    account = overdue(now)

    def lock_the_table(run: ExpiryRun) -> None:
        other.execute("LOCK TABLE accounts_account IN SHARE ROW EXCLUSIVE MODE")
        services.run_here(run)

    with pytest.raises(DatabaseError, match="lock timeout"):
        expire(now, run_slices=lock_the_table)

    assert ExpiryRun.objects.get().status == ExpiryRun.Status.FAILED
    other.rollback()
    assert expire(now).expired_count == 1
    account.refresh_from_db()
    assert account.status == Account.TRIAL_EXPIRED


def test_a_deadlock_is_tried_again(now: datetime, other: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accounts.slices.LOCK_TIMEOUT", "20s")
    first, second = overdue(now), overdue(now)
    other.execute("SET deadlock_timeout = '20s'")  # so that ours is the one that is cancelled
    other.execute("SELECT FROM accounts_account WHERE id = %s FOR UPDATE", [second.pk])

    with meanwhile(lambda: expire(now)) as run:
        wait_until_blocked('UPDATE "accounts_account"')
        other.execute("UPDATE accounts_account SET created = created WHERE id = %s", [first.pk])
        other.commit()

    assert (run[0].status, run[0].expired_count) == (ExpiryRun.Status.SUCCEEDED, 2)
    assert_ledger_is_true()


def test_a_serialization_failure_is_tried_again(now: datetime, other: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accounts.slices.LOCK_TIMEOUT", "20s")
    account = overdue(now)
    other.execute("UPDATE accounts_account SET created = created WHERE id = %s", [account.pk])

    def repeatable_read() -> ExpiryRun:
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        return expire(now)

    with meanwhile(repeatable_read) as run:
        wait_until_blocked('UPDATE "accounts_account"')
        other.commit()

    assert (run[0].status, run[0].expired_count) == (ExpiryRun.Status.SUCCEEDED, 1)
    assert_ledger_is_true()


def test_what_never_stops_deadlocking_fails_the_run_after_a_few_attempts(now: datetime) -> None:
    account = overdue(now)
    with connection.cursor() as cursor:
        cursor.execute("CREATE SEQUENCE attempts")  # a sequence is not rolled back

    try:
        deadlock = "PERFORM nextval('attempts'); RAISE EXCEPTION 'again and again' USING ERRCODE = '40P01';"
        with trigger_on_update(account, deadlock), pytest.raises(DatabaseError, match="again and again"):
            expire(now)
        with connection.cursor() as cursor:
            cursor.execute("SELECT last_value FROM attempts")
            assert cursor.fetchone() == (ATTEMPTS,)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP SEQUENCE attempts")

    assert ExpiryRun.objects.get().status == ExpiryRun.Status.FAILED


def test_a_slice_that_cannot_be_expired_does_not_keep_the_others_from_it(now: datetime) -> None:
    make_accounts(6, ended=timedelta(days=10), now=now)
    poison = Account.objects.order_by("pk")[1]

    with trigger_on_update(poison, "RAISE EXCEPTION 'not this one';"):
        with pytest.raises(DatabaseError, match="not this one"):
            expire(now, batch_size=2)

        run = ExpiryRun.objects.get()
        assert (run.status, run.expired_count) == (ExpiryRun.Status.FAILED, 4)
        assert "not this one" in run.error
        assert_ledger_is_true()

    assert expire(now).expired_count == 2


def test_a_lost_connection_fails_the_run_and_the_next_takes_the_rest(now: datetime, other: Sql) -> None:
    make_accounts(6, ended=timedelta(days=10), now=now)

    def cut_the_connection(done: int, total: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            other.execute("SELECT pg_terminate_backend(%s, 10000)", cursor.fetchone())

    with pytest.raises(DatabaseError):
        expire(now, batch_size=2, run_slices=partial(services.run_here, after_slice=cut_the_connection))

    run = ExpiryRun.objects.get()
    assert (run.status, run.expired_count) == (ExpiryRun.Status.FAILED, 2)
    assert expire(now).expired_count == 4
    assert_ledger_is_true()


def test_a_database_out_of_reach_ends_the_run_at_once(now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    make_accounts(6, ended=timedelta(days=10), now=now)
    done = []

    def lose_the_database(number: int, total: int) -> None:
        done.append(number)
        connection.close()
        patch.setitem(connection.settings_dict, "HOST", "/nowhere")

    with monkeypatch.context() as patch, pytest.raises(DatabaseError, match="/nowhere"):
        expire(now, batch_size=2, run_slices=partial(services.run_here, after_slice=lose_the_database))

    assert done == [2]
    run = ExpiryRun.objects.get()
    assert run.expired_count == 2
    ExpiryRun.objects.update(heartbeat=run.heartbeat - ledger.ALIVE_FOR)  # its failure could not be recorded
    assert expire(now).expired_count == 4
