"""Who is owed which mail, and that it arrives once: through a real mail server that answers as it is told."""

import os
import signal
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.conf import settings as django_settings
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.backends.smtp import EmailBackend
from django.db import IntegrityError, connection, transaction
from django.utils import timezone
from pytest_django import Settings

from accounts import notices, services, tasks
from accounts.models import Account, ExpiryRun, Notice
from accounts.notices import MAX_ATTEMPTS, Delivery, Queue
from sandbox.mail_server import Mailbox
from sandbox.servers import wait_for
from tests.factories import AccountFactory, NoticeFactory, make_accounts
from users.models import User

pytestmark = pytest.mark.django_db

DAY, HOUR, SECOND = timedelta(days=1), timedelta(hours=1), timedelta(seconds=1)


def trialing(left: timedelta, now: datetime, **fields: Any) -> Account:
    """An account whose trial has so much time left."""
    return AccountFactory.create(created=now + left - 60 * DAY, **fields)


def expired(now: datetime, **fields: Any) -> Account:
    """An account that a run expired at ``now``, two days after its trial ended."""
    account = trialing(-2 * DAY, now, **fields)
    services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)
    account.refresh_from_db()
    return account


def queued() -> list[tuple[str, int]]:
    return list(Notice.objects.order_by("pk").values_list("kind", "days_before"))


# --- Who is owed a reminder ---


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (7 * DAY + SECOND, []),
        (7 * DAY, [7]),
        (7 * DAY - SECOND, [7]),
        (2 * DAY + SECOND, [7]),  # days were missed: late rather than never
        (2 * DAY, []),  # but not on the heels of the next
        (DAY + SECOND, []),
        (DAY, [1]),
        (DAY - SECOND, [1]),
        (SECOND, [1]),
        (timedelta(0), []),
        (-SECOND, []),
    ],
)
def test_a_reminder_is_owed_from_its_day_until_the_next_is_near_or_the_trial_ends(
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
def test_every_window_is_at_least_a_day_long_and_ends_a_day_before_the_next_if_it_can(
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


# --- Who is told that it has ended ---


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


def undo(account: Account) -> None:
    Account.objects.filter(pk=account.pk).update(status=Account.TRIALING, trial_expired_at=None, expiry_run=None)


def test_who_was_told_is_not_told_again_when_the_expiry_is_undone_and_happens_again(
    now: datetime, mailbox: Mailbox
) -> None:
    account = expired(now)
    for moment in (now, now + DAY):
        notices.queue_notices(now=moment)
        notices.deliver_notices(now=moment)
        undo(account)
        services.expire_trials(path=ExpiryRun.Path.COMMAND, now=moment + HOUR)

    assert len(mailbox.mails) == 1


def test_who_was_not_told_because_it_was_undone_is_told_when_it_happens_again(now: datetime, mailbox: Mailbox) -> None:
    account = expired(now)
    notices.queue_notices(now=now)
    undo(account)
    assert notices.deliver_notices(now=now).skipped == 1
    assert notices.queue_notices(now=now).total == 0
    services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now + DAY)

    assert notices.queue_notices(now=now + DAY) == Queue(ended=1)

    assert notices.deliver_notices(now=now + DAY).sent == 1
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


# --- Delivery ---


def test_the_mails_arrive_over_one_connection_and_are_recorded(now: datetime, mailbox: Mailbox) -> None:
    reminded, told = trialing(7 * DAY, now), expired(now)
    notices.queue_notices(now=now)

    assert notices.deliver_notices(now=now) == Delivery(sent=2, finished=True)

    assert mailbox.connections == 1
    assert {str(mail["To"]): mail["Subject"] for mail in mailbox.mails} == {
        reminded.user.email: "Your Trial expiry trial ends in 7 days",
        told.user.email: "Your Trial expiry trial has ended",
    }
    assert not Notice.objects.exclude(status=Notice.Status.SENT, sent__isnull=False).exists()
    assert notices.deliver_notices(now=now) == Delivery(finished=True)


def test_a_mail_tells_the_end_and_the_time_that_is_really_left_in_text_and_html(
    now: datetime, mailbox: Mailbox, settings: Settings
) -> None:
    settings.SITE_URL = "https://www.example.com/?a=1&b=2"
    trialing(4 * DAY + 2 * HOUR, now, user__first_name="Ada & <b>")
    notices.queue_notices(now=now)
    notices.deliver_notices(now=now)

    (received,) = mailbox.mails
    text, html = (part.get_content().replace("\r\n", "\n") for part in received.iter_parts())

    assert received["From"] == "Trials <trials@example.com>"
    assert "Hello Ada & <b>,\n" in text
    assert "ends in 4 days, on 5 March 2026 at 14:00 UTC" in text
    assert "https://www.example.com/?a=1&b=2\n" in text
    assert "Hello Ada &amp; &lt;b&gt;," in html
    assert "<strong>in 4 days</strong>, on 5 March 2026 at 14:00&nbsp;UTC" in html
    assert 'href="https://www.example.com/?a=1&amp;b=2"' in html


@pytest.mark.parametrize(
    ("left", "words"),
    [(DAY, "in 1 day"), (13 * HOUR, "in 1 day"), (11 * HOUR, "within hours"), (SECOND, "within hours")],
)
def test_the_last_reminder_says_so_in_words(now: datetime, mailbox: Mailbox, left: timedelta, words: str) -> None:
    trialing(left, now)
    notices.queue_notices(now=now)
    notices.deliver_notices(now=now)

    assert mailbox.mails[0]["Subject"] == f"Your Trial expiry trial ends {words}"


def test_a_mail_says_that_a_machine_wrote_it_and_a_reminder_how_to_be_rid_of_them(
    now: datetime, mailbox: Mailbox, settings: Settings
) -> None:
    settings.TRIAL_NOTICE_UNSUBSCRIBE = "mailto:stop@example.com"
    reminded, _ = trialing(DAY, now), expired(now)
    notices.queue_notices(now=now)
    notices.deliver_notices(now=now)

    assert [mail["Auto-Submitted"] for mail in mailbox.mails] == ["auto-generated", "auto-generated"]
    assert {mail["To"]: mail["List-Unsubscribe"] for mail in mailbox.mails if mail["List-Unsubscribe"]} == {
        reminded.user.email: "<mailto:stop@example.com>"
    }


def test_a_project_can_write_its_own_mails(now: datetime, mailbox: Mailbox, settings: Settings, tmp_path: Path) -> None:
    template = tmp_path / "accounts" / "notices" / "ended_subject.txt"
    template.parent.mkdir(parents=True)
    template.write_text("Goodbye,\n {{ user.username }}\n")
    settings.TEMPLATES = [{**django_settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    account = expired(now)
    notices.queue_notices(now=now)
    notices.deliver_notices(now=now)

    assert mailbox.mails[0]["Subject"] == f"Goodbye, {account.user.username}"


def pay(account: Account, now: datetime) -> None:
    services.activate(account_id=account.pk)


def cancel(account: Account, now: datetime) -> None:
    services.cancel(account_id=account.pk)


def extend(account: Account, now: datetime) -> None:
    services.extend_trial(account_id=account.pk, days=1, now=now)


def be_undone(account: Account, now: datetime) -> None:
    undo(account)


def have_its_run_undone(account: Account, now: datetime) -> None:
    ExpiryRun.objects.update(status=ExpiryRun.Status.UNDONE)


def be_switched_off(account: Account, now: datetime) -> None:
    User.objects.update(is_active=False)


@pytest.mark.parametrize("happen", [pay, cancel, extend, be_undone, have_its_run_undone, be_switched_off])
def test_who_is_no_longer_expired_when_the_mail_s_turn_comes_is_not_told(
    now: datetime, mailbox: Mailbox, happen: Any
) -> None:
    account = expired(now)
    notices.queue_notices(now=now)
    happen(account, now)

    assert notices.deliver_notices(now=now) == Delivery(skipped=1, finished=True)

    assert mailbox.mails == []
    assert Notice.objects.get().status == Notice.Status.SKIPPED


@pytest.mark.parametrize("happen", [pay, cancel, extend, be_switched_off])
def test_who_is_no_longer_at_that_end_of_a_trial_is_not_reminded(now: datetime, mailbox: Mailbox, happen: Any) -> None:
    account = trialing(6 * DAY, now)
    notices.queue_notices(now=now)
    happen(account, now)

    assert notices.deliver_notices(now=now) == Delivery(skipped=1, finished=True)
    assert mailbox.mails == []


@pytest.mark.parametrize(
    ("left", "late", "outcome"),
    [
        (7 * DAY, 5 * DAY - SECOND, "sent"),
        (7 * DAY, 5 * DAY, "skipped"),  # the next one is near
        (DAY, DAY - SECOND, "sent"),
        (DAY, DAY, "skipped"),  # the trial is over
    ],
)
def test_a_reminder_that_waited_until_the_next_one_or_the_end_overtook_it_is_skipped(
    now: datetime, mailbox: Mailbox, left: timedelta, late: timedelta, outcome: str
) -> None:
    trialing(left, now)
    notices.queue_notices(now=now)

    delivery = notices.deliver_notices(now=now + late)

    assert getattr(delivery, outcome) == delivery.taken_up == 1


def test_a_notice_that_it_has_ended_is_not_lost_to_a_mail_server_that_was_away_for_weeks(
    now: datetime, mailbox: Mailbox
) -> None:
    expired(now)
    notices.queue_notices(now=now)

    assert notices.deliver_notices(now=now + 30 * DAY).sent == 1


def test_the_limit_and_whoever_says_stop_end_a_delivery_between_two_mails(now: datetime, mailbox: Mailbox) -> None:
    make_accounts(4, ended=-DAY, now=now)
    notices.queue_notices(now=now)

    assert notices.deliver_notices(now=now, limit=1) == Delivery(sent=1)
    assert notices.deliver_notices(now=now, stop=lambda: len(mailbox.raw) == 3) == Delivery(sent=2)
    assert notices.deliver_notices(now=now, stop=lambda: True) == Delivery()
    assert notices.deliver_notices(now=now) == Delivery(sent=1, finished=True)
    assert len(set(mailbox.recipients)) == 4


def test_with_a_rate_mails_are_spread_over_the_minute(
    now: datetime, mailbox: Mailbox, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.TRIAL_NOTICE_RATE = 6
    slept: list[float] = []
    monkeypatch.setattr("accounts.notices.time.sleep", slept.append)
    make_accounts(3, ended=-DAY, now=now)
    notices.queue_notices(now=now)

    notices.deliver_notices(now=now)

    assert len(slept) == 3
    assert all(0 < seconds < 10 for seconds in slept)


# --- Refused for good ---


def at_recipient(mailbox: Mailbox, account: Account, answer: str) -> None:
    mailbox.at_recipient = {account.user.email: answer}.get


def at_end(mailbox: Mailbox, account: Account, answer: str) -> None:
    mailbox.at_end = {account.user.email: answer}.get


def address(mailbox: Mailbox, account: Account, address: str) -> None:
    User.objects.filter(pk=account.user_id).update(email=address)


@pytest.mark.parametrize(
    ("arrange", "what", "error"),
    [
        (at_recipient, "550 5.1.1 no such user", "550 5.1.1 no such user"),
        (at_end, "554 5.7.1 it looks like spam", "554 5.7.1 it looks like spam"),
        (address, "", "ValueError: The user has no e-mail address."),
        (address, "a@b.example, c@d.example", "ValueError: Invalid address"),
        (address, "a@b.example\nBcc: c@d.example", "ValueError: Invalid address"),
    ],
    ids=["recipient", "mail", "no address", "bad address", "header injection"],
)
def test_a_mail_that_is_refused_for_good_fails_alone_and_is_given_up_after_five_attempts_in_a_day(
    now: datetime, mailbox: Mailbox, arrange: Any, what: str, error: str
) -> None:
    bad, good = expired(now), expired(now)
    notices.queue_notices(now=now)
    arrange(mailbox, bad, what)

    assert notices.deliver_notices(now=now) == Delivery(sent=1, refused=1, finished=True)
    assert mailbox.recipients == [good.user.email]

    notice = Notice.objects.get(account=bad)
    assert (notice.status, notice.attempts) == (Notice.Status.PENDING, 1)
    assert notice.last_error.startswith(error)

    waits = []
    moment = now
    for _ in range(MAX_ATTEMPTS - 1):
        assert notices.deliver_notices(now=notice.next_attempt - SECOND).taken_up == 0
        waits.append(round((notice.next_attempt - moment) / HOUR, 2))
        moment = notice.next_attempt + SECOND
        last = notices.deliver_notices(now=moment)
        notice.refresh_from_db()

    assert waits == [0.25, 1, 4, 16]
    assert last == Delivery(given_up=1, finished=True)
    assert (notice.status, notice.attempts, notice.sent) == (Notice.Status.GIVEN_UP, 5, None)
    assert notices.queue_notices(now=moment).total == 0
    assert notices.deliver_notices(now=moment + 30 * DAY).taken_up == 0
    assert len(mailbox.mails) == 1


# --- Refused for now ---


def test_a_mail_that_is_put_off_is_tried_again_after_a_quarter_of_an_hour_and_never_given_up(
    now: datetime, mailbox: Mailbox
) -> None:
    account, other = expired(now), expired(now)
    notices.queue_notices(now=now)
    at_recipient(mailbox, account, "450 4.2.1 mailbox busy")

    assert notices.deliver_notices(now=now) == Delivery(sent=1, put_off=1, finished=True)
    for quarter in range(1, 10):
        moment = now + quarter * notices.RETRY_AFTER + quarter * SECOND
        assert notices.deliver_notices(now=moment) == Delivery(put_off=1, finished=True)

    notice = Notice.objects.get(account=account)
    assert (notice.status, notice.attempts, notice.last_error) == ("pending", 0, "450 4.2.1 mailbox busy")

    mailbox.at_recipient = lambda address: None
    assert notices.deliver_notices(now=now + DAY).sent == 1
    assert mailbox.recipients == [other.user.email, account.user.email]
    notice.refresh_from_db()
    assert notice.last_error == ""


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        ("at_end", "421 4.3.2 shutting down"),
        ("at_end", "451 4.7.0 too many"),
        ("at_end", "drop"),
        ("at_sender", "530 5.7.0 Authentication required"),  # for good, but not because of the mail
    ],
)
def test_three_mails_put_off_in_a_row_end_the_delivery_and_leave_the_others_as_they_were(
    now: datetime, mailbox: Mailbox, step: str, answer: str
) -> None:
    make_accounts(5, ended=-DAY, now=now)
    notices.queue_notices(now=now)
    setattr(mailbox, step, lambda address: answer)

    delivery = notices.deliver_notices(now=now)

    assert (delivery.put_off, delivery.taken_up, delivery.finished) == (3, 3, False)
    assert delivery.trouble == "The mail server put off 3 mails in a row; see their notices for why."
    assert Notice.objects.deliverable(now).count() == 2
    assert Notice.objects.pending().filter(attempts=0).count() == 5

    setattr(mailbox, step, lambda address: None)
    assert notices.deliver_notices(now=now + HOUR) == Delivery(sent=5, finished=True)
    assert len(set(mailbox.recipients)) == len(mailbox.recipients) == 5


def test_a_server_that_closes_after_a_few_mails_is_called_again_at_once(now: datetime, mailbox: Mailbox) -> None:
    make_accounts(5, ended=-DAY, now=now)
    notices.queue_notices(now=now)
    mailbox.per_connection = 2

    assert notices.deliver_notices(now=now) == Delivery(sent=5, finished=True)

    assert mailbox.connections == 3
    assert len(set(mailbox.recipients)) == len(mailbox.recipients) == 5


def test_a_server_that_is_away_changes_nothing_and_is_named_as_the_trouble(
    now: datetime, mailbox: Mailbox, settings: Settings
) -> None:
    expired(now)
    notices.queue_notices(now=now)
    before = Notice.objects.values().get()
    settings.EMAIL_PORT = 1

    delivery = notices.deliver_notices(now=now)

    assert delivery.taken_up == 0
    assert delivery.trouble.startswith("The mail server cannot be used: ConnectionRefusedError")
    assert Notice.objects.values().get() == before

    settings.EMAIL_PORT = mailbox.port
    assert notices.deliver_notices(now=now).sent == 1


@pytest.fixture
def slow(mailbox: Mailbox) -> Iterator[threading.Event]:
    """Set, the mail server answers the whole of its second mail; until then it thinks about it."""
    answer = threading.Event()

    def think(address: str) -> None:
        if len(mailbox.raw) == 1:
            answer.wait(20)

    mailbox.at_end = think
    yield answer
    answer.set()


def test_a_mail_that_gets_no_answer_in_time_may_have_arrived_and_is_sent_again_hours_later_not_at_once(
    now: datetime, mailbox: Mailbox, settings: Settings, slow: threading.Event
) -> None:
    settings.EMAIL_TIMEOUT = 0.5
    make_accounts(2, ended=-DAY / 2, now=now)
    notices.queue_notices(now=now)

    assert notices.deliver_notices(now=now) == Delivery(sent=1, put_off=1, finished=True)
    slow.set()
    wait_for("the server to have taken the mail after all", lambda: len(mailbox.raw) == 2)

    notice = Notice.objects.pending().get()
    assert (notice.attempts, notice.last_error) == (
        0,
        "SMTPServerDisconnected: Connection unexpectedly closed: timed out",
    )
    assert notices.deliver_notices(now=now + 4 * HOUR - SECOND) == Delivery(finished=True)
    assert notices.deliver_notices(now=now + 4 * HOUR + 10 * SECOND) == Delivery(sent=1, finished=True)
    assert mailbox.connections == 2
    assert mailbox.mails[1]["Message-ID"] == mailbox.mails[2]["Message-ID"]


def test_a_time_limit_that_strikes_in_the_middle_of_a_mail_ends_the_task_and_leaves_that_mail_as_it_was(
    mailbox: Mailbox, settings: Settings, slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strike(signum: int, frame: Any) -> None:
        raise SoftTimeLimitExceeded

    def think(address: str) -> None:
        if len(mailbox.raw) == 1:
            os.kill(os.getpid(), signal.SIGUSR1)  # as the pool does to a process
            slow.wait(20)

    settings.TRIAL_NOTICES = True
    mailbox.at_end = think
    make_accounts(3, ended=-DAY / 2, now=timezone.now())
    notices.queue_notices(now=timezone.now())
    monkeypatch.setattr(tasks.deliver_notices, "apply_async", lambda **options: None)
    before = {notice["id"]: notice for notice in Notice.objects.values()}
    usual = signal.signal(signal.SIGUSR1, strike)
    try:
        with pytest.raises(SoftTimeLimitExceeded):
            tasks.deliver_notices.run()
    finally:
        signal.signal(signal.SIGUSR1, usual)

    pending = list(Notice.objects.pending().values())
    assert pending == [before[notice["id"]] for notice in pending]
    assert len(pending) == 2


class Faulty(EmailBackend):
    """Fails, once, in the middle of a mail, for a reason of its own."""

    failed = False

    def _send(self, email_message: Any) -> bool:
        if not Faulty.failed:
            Faulty.failed = True
            assert self.connection
            self.connection.putcmd("NOOP")  # its answer is still to come
            raise KeyError("api_key")
        return bool(super()._send(email_message))  # type: ignore[misc]


def test_a_fault_in_the_mail_backend_counts_against_no_mail_and_leaves_no_answer_to_be_taken_for_another(
    now: datetime, mailbox: Mailbox, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EMAIL_BACKEND = f"{__name__}.Faulty"
    monkeypatch.setattr(Faulty, "failed", False)
    first, second = expired(now), expired(now)
    notices.queue_notices(now=now)
    at_end(mailbox, second, "554 5.7.1 it looks like spam")

    assert notices.deliver_notices(now=now) == Delivery(put_off=1, refused=1, finished=True)

    notice = Notice.objects.get(account=first)
    assert (notice.status, notice.attempts, notice.last_error) == ("pending", 0, "KeyError: 'api_key'")
    assert notices.deliver_notices(now=now + HOUR / 4 + SECOND) == Delivery(sent=1, refused=1, finished=True)
    assert mailbox.recipients == [first.user.email]


class ApiError(OSError):
    """As AnymailRequestsAPIError, which is one by way of requests."""

    def __init__(self, status_code: int) -> None:
        super().__init__(f"API response {status_code}")
        self.status_code = status_code


AnymailRecipientsRefused = type("AnymailRecipientsRefused", (Exception,), {})


class HttpBackend(BaseEmailBackend):
    """Sends by the API of a mail provider, which answers with ``error``."""

    error: Exception

    def send_messages(self, email_messages: Any) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ApiError(400), Delivery(refused=1, finished=True)),
        (ApiError(422), Delivery(refused=1, finished=True)),
        (AnymailRecipientsRefused("All message recipients were rejected"), Delivery(refused=1, finished=True)),
        (ApiError(401), Delivery(put_off=1, finished=True)),
        (ApiError(429), Delivery(put_off=1, finished=True)),
        (ApiError(503), Delivery(put_off=1, finished=True)),
    ],
    ids=["bad request", "unprocessable", "recipients", "our key", "too many", "away"],
)
def test_of_what_a_mail_provider_answers_only_a_refusal_of_the_mail_counts_against_it(
    now: datetime, settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: Delivery
) -> None:
    settings.EMAIL_BACKEND = f"{__name__}.HttpBackend"
    monkeypatch.setattr(HttpBackend, "error", error, raising=False)
    expired(now)
    notices.queue_notices(now=now)

    assert notices.deliver_notices(now=now) == outcome


def test_every_attempt_at_a_mail_carries_the_same_message_id(now: datetime, mailbox: Mailbox) -> None:
    expired(now)
    notices.queue_notices(now=now)
    notices.deliver_notices(now=now)
    Notice.objects.update(status=Notice.Status.PENDING, sent=None)  # as after a crash before the commit
    notices.deliver_notices(now=now)

    first, second = mailbox.mails
    assert first["Message-ID"] == second["Message-ID"]
    assert first["Message-ID"].endswith("@example.com>")


def test_a_broken_template_fails_loudly_and_counts_against_no_mail(
    now: datetime, mailbox: Mailbox, settings: Settings, tmp_path: Path
) -> None:
    template = tmp_path / "accounts" / "notices" / "ended.txt"
    template.parent.mkdir(parents=True)
    template.write_text("{% nonsense %}")
    settings.TEMPLATES = [{**django_settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    expired(now)
    notices.queue_notices(now=now)

    with pytest.raises(Exception, match="nonsense"):
        notices.deliver_notices(now=now)

    assert (Notice.objects.get().status, Notice.objects.get().attempts) == (Notice.Status.PENDING, 0)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_notice_that_one_process_is_sending_is_left_to_it_and_the_next_one_taken(
    now: datetime, mailbox: Mailbox
) -> None:
    make_accounts(2, ended=-DAY, now=now)
    notices.queue_notices(now=now)
    first = Notice.objects.deliverable(now)[0]
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '2s'")  # for whoever would wait
    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute("SELECT id FROM accounts_notice WHERE id = %s FOR UPDATE", [first.pk])

        assert notices.deliver_notices(now=now) == Delivery(sent=1, finished=True)
        other.rollback()  # as PostgreSQL does when the process dies

    with connection.cursor() as cursor:
        cursor.execute("RESET lock_timeout")
    assert Notice.objects.deliverable(now).get() == first
    assert notices.deliver_notices(now=now).sent == 1
    assert len(set(mailbox.recipients)) == len(mailbox.recipients) == 2
