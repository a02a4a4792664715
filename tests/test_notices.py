"""Who is owed which mail about the end of a trial."""

from datetime import datetime, timedelta

import psycopg
import pytest
from django.db import IntegrityError, connection, transaction
from pytest_django import Settings

from accounts import delivery, notices, services
from accounts.delivery import Delivery
from accounts.models import Account, ExpiryRun, Notice
from accounts.notices import Queue
from sandbox.mail_server import Mailbox
from tests.factories import AccountFactory, NoticeFactory
from tests.runs import DAY
from tests.trials import HOUR, SECOND, expired, trialing, undo

pytestmark = pytest.mark.django_db


def queued() -> list[tuple[str, int]]:
    return list(Notice.objects.order_by("pk").values_list("kind", "days_before"))


# --- Reminders ---


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (7 * DAY + SECOND, []),
        (7 * DAY, [7]),
        (7 * DAY - SECOND, [7]),
        (2 * DAY + SECOND, [7]),  # days were missed: late rather than never
        (2 * DAY, []),  # but not right before the next
        (DAY + SECOND, []),
        (DAY, [1]),
        (DAY - SECOND, [1]),
        (SECOND, [1]),
        (timedelta(0), []),
        (-SECOND, []),
    ],
)
def test_a_reminder_is_owed_from_its_day_until_the_next_or_the_end(
    now: datetime, left: timedelta, expected: list[int]
) -> None:
    account = trialing(left, now)

    assert notices.count_owed(now=now) == notices.queue_notices(now=now) == Queue(ending_soon=len(expected))

    assert list(Notice.objects.values_list("account", "kind", "days_before", "trial_ends_at")) == [
        (account.pk, "ending_soon", days, account.trial_ends_at) for days in expected
    ]


@pytest.mark.parametrize(
    ("days", "windows"),
    [
        ([7, 1], {7: 2, 1: 0}),
        ([3, 2, 1], {3: 2, 2: 1, 1: 0}),
        ([14, 12], {14: 13, 12: 0}),
        ([14], {14: 0}),
        ([], {}),
    ],
)
def test_a_window_is_at_least_a_day_and_ends_before_the_next_reminder(
    settings: Settings, days: list[int], windows: dict[int, int]
) -> None:
    settings.TRIAL_REMINDER_DAYS = days

    assert notices.reminder_windows() == windows


@pytest.mark.parametrize(("length", "expected"), [(7 * DAY, []), (7 * DAY + SECOND, [("ending_soon", 7)])])
def test_a_trial_no_longer_than_the_reminder_s_days_gets_no_such_reminder(
    now: datetime, length: timedelta, expected: list[tuple[str, int]]
) -> None:
    created = now - length + 6 * DAY
    AccountFactory.create(created=created, trial_ends_at=created + length)

    notices.queue_notices(now=now)

    assert queued() == expected


@pytest.mark.parametrize("status", [status for status in Account.Status if status != Account.TRIALING])
def test_nobody_but_who_is_trialing_is_reminded(now: datetime, status: Account.Status) -> None:
    trialing(DAY, now, status=status)

    assert notices.queue_notices(now=now) == Queue()


def test_a_rerun_queues_nothing_twice_and_neither_does_one_beside_it(now: datetime) -> None:
    trialing(DAY, now)
    accounts = notices.ending_soon(now, days_before=1)
    assert notices.queue_notices(now=now).total == 1

    assert notices.queue_notices(now=now + HOUR).total == 0
    assert notices._insert(Notice.Kind.ENDING_SOON, 1, accounts, now) == 0

    assert queued() == [("ending_soon", 1)]


def test_the_database_itself_refuses_to_owe_a_mail_twice(now: datetime) -> None:
    notice = NoticeFactory.create(account=trialing(DAY, now), next_attempt=now)

    with pytest.raises(IntegrityError), transaction.atomic():
        NoticeFactory.create(account=notice.account, next_attempt=now)


def test_an_extended_trial_earns_new_reminders_for_its_new_end(now: datetime) -> None:
    account = trialing(DAY, now)
    notices.queue_notices(now=now)
    services.extend_trial(account_id=account.pk, days=30, now=now)

    for day in range(32):
        notices.queue_notices(now=now + day * DAY)

    assert queued() == [("ending_soon", 1), ("ending_soon", 7), ("ending_soon", 1)]
    assert Notice.objects.values("trial_ends_at").distinct().count() == 2


def test_users_who_are_switched_off_are_told_nothing(now: datetime) -> None:
    trialing(DAY, now, user__is_active=False)
    expired(now, user__is_active=False)

    assert notices.queue_notices(now=now) == Queue()


# --- The notice that the trial has ended ---


def test_who_was_expired_by_a_run_is_told_once(now: datetime) -> None:
    account = expired(now)

    assert notices.queue_notices(now=now) == Queue(ended=1)
    assert notices.queue_notices(now=now + HOUR) == Queue()

    assert queued() == [("ended", 0)]
    assert Notice.objects.get().trial_ends_at == account.trial_ends_at


@pytest.mark.parametrize(("ago", "count"), [(7 * DAY - SECOND, 1), (7 * DAY, 1), (7 * DAY + SECOND, 0)])
def test_who_was_expired_before_the_window_is_told_nothing(now: datetime, ago: timedelta, count: int) -> None:
    expired(now - ago)

    assert notices.queue_notices(now=now) == Queue(ended=count)


def test_who_was_not_expired_by_a_recorded_run_is_told_nothing(now: datetime) -> None:
    trialing(-2 * DAY, now, status=Account.TRIAL_EXPIRED, trial_expired_at=now)

    assert notices.queue_notices(now=now) == Queue()


def test_who_was_expired_by_a_run_that_is_being_undone_is_told_nothing(now: datetime) -> None:
    expired(now)
    ExpiryRun.objects.update(status=ExpiryRun.Status.UNDONE)

    assert notices.queue_notices(now=now) == Queue()


def test_who_was_told_is_not_told_again_after_an_undo_and_a_new_expiry(now: datetime, mailbox: Mailbox) -> None:
    account = expired(now)
    for moment in (now, now + DAY):
        notices.queue_notices(now=moment)
        delivery.deliver_notices(now=moment)
        undo(account)
        services.expire_trials(path=ExpiryRun.Path.COMMAND, now=moment + HOUR)

    assert len(mailbox.mails) == 1


def test_who_was_skipped_after_an_undo_is_told_after_a_new_expiry(now: datetime, mailbox: Mailbox) -> None:
    account = expired(now)
    notices.queue_notices(now=now)
    undo(account)
    assert delivery.deliver_notices(now=now).skipped == 1
    assert notices.queue_notices(now=now).total == 0
    services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now + DAY)

    assert notices.queue_notices(now=now + DAY) == Queue(ended=1)

    assert delivery.deliver_notices(now=now + DAY).sent == 1
    assert len(mailbox.mails) == Notice.objects.count() == 1


# --- The fuse ---


def test_the_fuse_counts_what_is_new_and_what_waits_and_queues_nothing(now: datetime) -> None:
    trialing(DAY, now)
    notices.queue_notices(now=now)
    trialing(DAY, now)

    with pytest.raises(notices.TooManyNotices, match="2 mails are owed and at most 1 are allowed"):
        notices.queue_notices(now=now, max_notices=1)
    assert Notice.objects.count() == 1

    assert notices.queue_notices(now=now, max_notices=2).total == 1


# --- The cut-off moment, for after a restore ---


@pytest.mark.parametrize(("since", "count"), [(-SECOND, 1), (timedelta(0), 1), (SECOND, 0)])
def test_a_mail_that_fell_due_before_the_cutoff_is_neither_queued_nor_sent(
    now: datetime, mailbox: Mailbox, settings: Settings, since: timedelta, count: int
) -> None:
    trialing(7 * DAY, now)  # the reminder becomes due now
    trialing(-DAY, now)  # and this trial's grace ends now
    services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now + HOUR)
    notices.queue_notices(now=now + HOUR)
    Notice.objects.filter(kind=Notice.Kind.ENDED).delete()

    settings.TRIAL_NOTICES_SINCE = now + since
    assert notices.queue_notices(now=now + HOUR) == Queue(ended=count)

    assert delivery.deliver_notices(now=now + HOUR) == Delivery(sent=2 * count, skipped=1 - count, finished=True)


# --- Concurrency ---


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_an_account_that_is_being_deleted_keeps_no_other_from_being_queued(now: datetime) -> None:
    deleted, kept = trialing(DAY, now), trialing(DAY, now)
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '2s'")  # a statement that waits for the lock fails
    try:
        with psycopg.connect(**connection.get_connection_params()) as other:
            other.execute("DELETE FROM accounts_account WHERE id = %s", [deleted.pk])
            assert notices.queue_notices(now=now) == Queue(ending_soon=1)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET lock_timeout")

    assert Notice.objects.get().account == kept
    assert notices.queue_notices(now=now) == Queue()


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_serialization_failure_while_notices_are_queued_is_tried_again(now: datetime) -> None:
    trialing(DAY, now)
    with connection.cursor() as cursor:
        cursor.execute("CREATE SEQUENCE tries")
        cursor.execute(
            "CREATE FUNCTION trap() RETURNS trigger AS $$ BEGIN IF nextval('tries') = 1 THEN "
            "RAISE EXCEPTION 'once' USING ERRCODE = '40001'; END IF; RETURN NEW; END $$ LANGUAGE plpgsql"
        )
        cursor.execute("CREATE TRIGGER trap BEFORE INSERT ON accounts_notice FOR EACH ROW EXECUTE FUNCTION trap()")
    try:
        assert notices.queue_notices(now=now) == Queue(ending_soon=1)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION trap CASCADE; DROP SEQUENCE tries")
