"""Who is owed which mail about the end of a trial."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import psycopg
import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction
from pytest_django import Settings

from accounts import delivery, notices, services
from accounts.delivery import Delivery
from accounts.models import Account, ExpiryRun, Notice
from accounts.notices import Queue
from sandbox.mail_server import Mailbox
from tests.factories import AccountFactory, NoticeFactory, make_accounts
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
    (mail,) = (mail for mail in notices._mails(now) if mail.days_before == 1)
    assert notices.queue_notices(now=now).total == 1

    assert notices.queue_notices(now=now + HOUR).total == 0
    assert notices._insert(mail, mail.accounts, now) == 0

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


@pytest.mark.parametrize("pending", [0, 1, 2, 4])
def test_the_fuse_is_exact_whatever_part_is_pending(now: datetime, pending: int) -> None:
    if pending:
        make_accounts(pending, ended=-DAY, now=now)
        notices.queue_notices(now=now)
    make_accounts(2 - min(pending, 2), ended=-DAY, now=now)
    make_accounts(2 - max(pending - 2, 0), ended=2 * DAY, now=now)
    services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)

    with pytest.raises(notices.TooManyNotices, match="4 mails are owed and at most 3 are allowed"):
        notices.queue_notices(now=now, max_notices=3)

    notices.queue_notices(now=now, max_notices=4)
    assert Notice.objects.pending().count() == 4


# --- Slices ---


@pytest.fixture
def in_slices_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "SLICE", 2)


@pytest.mark.usefixtures("in_slices_of_two")
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_in_slices_everybody_is_owed_each_mail_once(now: datetime, count: int) -> None:
    make_accounts(count, ended=2 * DAY, now=now)
    services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)
    make_accounts(count, ended=3 * DAY, now=now)
    services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)
    make_accounts(count, ended=-DAY, now=now)  # all at the same moment
    for number in range(count):
        make_accounts(1, ended=-(6 - number / 5) * DAY, now=now)

    assert notices.queue_notices(now=now) == Queue(ending_soon=2 * count, ended=2 * count)
    assert notices.queue_notices(now=now) == Queue()

    assert set(Notice.objects.values_list("account", flat=True)) == set(Account.objects.values_list("pk", flat=True))
    assert Notice.objects.count() == 4 * count


@pytest.mark.usefixtures("in_slices_of_two")
def test_a_slice_whose_mails_were_queued_before_keeps_no_later_one_from_its_turn(now: datetime) -> None:
    make_accounts(4, ended=-DAY, now=now)
    notices.queue_notices(now=now)
    make_accounts(3, ended=-DAY, now=now)

    assert notices.queue_notices(now=now) == Queue(ending_soon=3)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("in_slices_of_two")
def test_what_was_queued_stays_when_the_process_dies_and_the_next_run_queues_the_rest(now: datetime) -> None:
    make_accounts(7, ended=-DAY, now=now)
    fourth = Account.objects.order_by("pk")[3]
    with trigger_before("INSERT", f"NEW.account_id = {fourth.pk}", "RAISE EXCEPTION 'gone';"):
        with pytest.raises(DatabaseError, match="gone"):
            notices.queue_notices(now=now)
        assert Notice.objects.count() == 2

    assert notices.queue_notices(now=now) == Queue(ending_soon=5)


@pytest.mark.postgres
def test_a_slice_reads_its_own_accounts_and_no_whole_table(now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "SLICE", 100)
    make_accounts(500, ended=2 * DAY, now=now)
    services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)
    (mail,) = (mail for mail in notices._mails(now) if mail.kind == Notice.Kind.ENDED)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")  # PostgreSQL would rather read 500 users than find 100

    before = rows_read_one_after_the_other()
    queued, upto = notices._queue_slice(mail, None, now)

    assert (queued, rows_read_one_after_the_other() - before) == (100, 0)
    assert upto == (Account.objects.order_by("pk")[99].pk,)


def rows_read_one_after_the_other() -> int:
    """Rows of users, accounts and notices that this transaction has read by reading the table."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT sum(seq_tup_read) FROM pg_stat_xact_user_tables "
            "WHERE relname IN ('users_user', 'accounts_account', 'accounts_notice')"
        )
        return int(cursor.fetchone()[0])


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
    try:
        with trigger_before("INSERT", "nextval('tries') = 1", "RAISE EXCEPTION 'once' USING ERRCODE = '40001';"):
            assert notices.queue_notices(now=now) == Queue(ending_soon=1)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP SEQUENCE tries")


@contextmanager
def trigger_before(what: str, when: str, body: str) -> Iterator[None]:
    """Add a trigger to the notices that runs ``body`` for a row of which ``when`` is true."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE FUNCTION trap() RETURNS trigger AS $$ BEGIN IF {when} THEN {body} END IF; RETURN NEW; END $$ "
            "LANGUAGE plpgsql"
        )
        cursor.execute(f"CREATE TRIGGER trap BEFORE {what} ON accounts_notice FOR EACH ROW EXECUTE FUNCTION trap()")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION trap CASCADE")
