"""The constraints of the database, and the rule that defines which accounts are due."""

from datetime import datetime, timedelta

import pytest
from django.db import IntegrityError, connection, models, transaction
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from accounts.models import Account, ExpiryRun
from tests.factories import AccountFactory, UserFactory, make_accounts

pytestmark = pytest.mark.django_db

INSTANT = timedelta(microseconds=1)
SIXTY_ONE_DAYS = timedelta(days=61)


def test_a_trial_ends_sixty_days_after_the_account_was_created(now: datetime) -> None:
    assert AccountFactory.create(created=now).trial_ends_at == now + timedelta(days=60)


def test_bulk_created_accounts_get_their_trial_end_as_well(now: datetime) -> None:
    Account.objects.bulk_create([Account(user=UserFactory.create(), created=now)])

    assert Account.objects.get().trial_ends_at == now + timedelta(days=60)


def test_a_given_trial_end_is_kept(now: datetime) -> None:
    assert AccountFactory.create(created=now, trial_ends_at=now + timedelta(days=5)).trial_ends_at == now + timedelta(
        days=5
    )


def test_a_changed_setting_does_not_rewrite_a_promise_already_made(now: datetime, settings: Settings) -> None:
    account = AccountFactory.create(created=now)
    settings.TRIAL_DAYS = 6

    account.save()
    account.refresh_from_db()

    assert account.trial_ends_at == now + timedelta(days=60)
    assert AccountFactory.create(created=now).trial_ends_at == now + timedelta(days=6)


@pytest.mark.parametrize(
    ("age", "due"),
    [(SIXTY_ONE_DAYS - INSTANT, False), (SIXTY_ONE_DAYS, False), (SIXTY_ONE_DAYS + INSTANT, True)],
    ids=["just before", "exactly at", "just after"],
)
def test_an_account_is_due_when_it_is_older_than_sixty_one_days(now: datetime, age: timedelta, due: bool) -> None:
    AccountFactory.create(created=now - age)

    assert Account.objects.due(now).exists() is (Account.objects.due(now).first_end() is not None) is due


@pytest.mark.parametrize("status", [status for status in Account.Status if status != Account.TRIALING])
def test_only_trialing_accounts_are_due(now: datetime, status: Account.Status) -> None:
    AccountFactory.create(created=now - timedelta(days=1000), status=status)

    assert not Account.objects.due(now).exists()
    assert Account.objects.due(now).first_end() is None


def test_grace_is_a_setting(now: datetime, settings: Settings) -> None:
    AccountFactory.create(created=now - timedelta(days=60, hours=1))
    assert not Account.objects.due(now).exists()

    settings.TRIAL_GRACE_DAYS = 0

    assert Account.objects.due(now).exists()


def test_every_status_is_also_a_name_on_the_account() -> None:
    assert {getattr(Account, status.name) for status in Account.Status} == set(Account.Status)


@pytest.mark.parametrize("status", Account.Status)
def test_the_database_knows_every_status(status: Account.Status) -> None:
    AccountFactory.create(status=status)


@pytest.mark.parametrize("status", ExpiryRun.Status)
@pytest.mark.parametrize("path", ExpiryRun.Path)
def test_the_database_knows_every_kind_of_run(path: ExpiryRun.Path, status: ExpiryRun.Status, now: datetime) -> None:
    ExpiryRun.objects.create(
        path=path, status=status, as_of=now, finished=None if status == ExpiryRun.Status.RUNNING else now
    )


@pytest.mark.parametrize(
    ("model", "change"),
    [
        (Account, {"status": "trial-expired"}),
        (Account, {"trial_expired_at": datetime.fromisoformat("2026-01-01T00:00:00Z")}),
        (Account, {"trial_ends_at": None}),
        (ExpiryRun, {"path": "by hand"}),
        (ExpiryRun, {"status": "done"}),
        (ExpiryRun, {"status": "succeeded"}),
        (ExpiryRun, {"expired_count": -1}),
        (ExpiryRun, {"due_count": -1}),
        (ExpiryRun, {"slice_count": -1}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(*value.items()),
)
def test_the_database_refuses_what_cannot_be_true(
    model: type[models.Model], change: dict[str, object], now: datetime
) -> None:
    AccountFactory.create()
    ExpiryRun.objects.create(path=ExpiryRun.Path.COMMAND, as_of=now)

    with pytest.raises(IntegrityError), transaction.atomic():
        model._default_manager.update(**change)


def test_a_run_that_an_account_points_to_cannot_be_deleted(now: datetime) -> None:
    run = ExpiryRun.objects.create(path=ExpiryRun.Path.COMMAND, as_of=now)
    AccountFactory.create(status=Account.TRIAL_EXPIRED, expiry_run=run, trial_expired_at=now)

    with pytest.raises(models.ProtectedError):
        run.delete()


def test_the_query_for_due_accounts_uses_its_partial_index(now: datetime) -> None:
    make_accounts(50, ended=timedelta(days=-30), now=now)
    make_accounts(3000, status=Account.ACTIVE, ended=timedelta(days=30), now=now)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE accounts_account")
        # What other tests have left in the index makes it look dear beside this small table.
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")

    plan = Account.objects.due(now).explain()

    assert "accounts_account_trials" in plan


@pytest.mark.postgres
def test_that_nothing_is_due_is_seen_in_the_first_entry_of_the_index(now: datetime) -> None:
    make_accounts(500, ended=timedelta(days=-30), now=now)
    make_accounts(3000, status=Account.ACTIVE, ended=timedelta(days=30), now=now)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE accounts_account")
        with CaptureQueriesContext(connection) as asked:
            assert Account.objects.due(now).first_end() is None
        cursor.execute("EXPLAIN " + asked.captured_queries[0]["sql"])
        plan = " ".join(line for (line,) in cursor.fetchall())

    assert "Limit" in plan
    assert "Index Only Scan using accounts_account_trials" in plan or "Index Scan using accounts_account_trials" in plan
