"""A mail that is owed arrives, and arrives once: with a real mail server whose replies the tests choose."""

import html as html_module
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from smtplib import SMTPDataError, SMTPNotSupportedError, SMTPServerDisconnected
from typing import Any
from unittest.mock import Mock

import psycopg
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.conf import settings as django_settings
from django.core.mail import EmailMultiAlternatives
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.backends.smtp import EmailBackend
from django.db import connection, transaction
from django.utils import timezone
from pytest_django import Settings

from accounts import delivery, notices, services, tasks
from accounts import mailer as mailer_module
from accounts.delivery import LEASE, MAX_ATTEMPTS, RETRY_AFTER, Delivery
from accounts.models import Account, ExpiryRun, Notice
from sandbox.mail_server import Mailbox
from sandbox.servers import wait_for
from tests.factories import make_accounts
from tests.locks import trigger_on_update
from tests.runs import DAY
from tests.trials import HOUR, SECOND, expired, trialing, undo
from users.models import User

pytestmark = pytest.mark.django_db


def deliver_notices(**options: Any) -> Delivery:
    """Deliver at most a hundred, so that a delivery that never comes to an end fails its test."""
    return delivery.deliver_notices(**{"limit": 100, **options})


def test_the_mails_arrive_over_one_connection_and_are_recorded(now: datetime, mailbox: Mailbox) -> None:
    reminded, told = trialing(7 * DAY, now), expired(now)
    notices.queue_notices(now=now)

    assert deliver_notices(now=now) == Delivery(sent=2, finished=True)

    assert mailbox.connections == 1
    assert {str(mail["To"]): mail["Subject"] for mail in mailbox.mails} == {
        reminded.user.email: "Your Trial expiry trial ends in 7 days",
        told.user.email: "Your Trial expiry trial has ended",
    }
    assert not Notice.objects.exclude(status=Notice.Status.SENT, sent__isnull=False).exists()
    assert deliver_notices(now=now) == Delivery(finished=True)


def test_a_mail_tells_the_end_and_the_time_left_in_text_and_html(
    now: datetime, mailbox: Mailbox, settings: Settings
) -> None:
    settings.SITE_URL = "https://www.example.com"
    trialing(4 * DAY + 2 * HOUR, now, user__first_name="Ada & <b>")
    notices.queue_notices(now=now)
    deliver_notices(now=now)

    (received,) = mailbox.mails
    text, html = (part.get_content().replace("\r\n", "\n") for part in received.iter_parts())

    assert received["From"] == "Trials <trials@example.com>"
    assert "Hello Ada & <b>,\n" in text
    assert "ends in 4 days, on 5 March 2026, 14:00 UTC" in text
    assert "https://www.example.com/trial/\n" in text
    assert f">{received['Subject']}</h1>" in html
    assert "Hello Ada &amp; &lt;b&gt;," in html
    assert "<strong>in 4 days</strong>, on 5 March 2026, 14:00 UTC" in html
    assert 'href="https://www.example.com/trial/"' in html


def test_text_and_html_of_a_mail_say_the_same_and_whom_to_ask(
    now: datetime, mailbox: Mailbox, settings: Settings
) -> None:
    settings.SUPPORT_EMAIL = "help@example.com"
    trialing(DAY, now), expired(now)
    notices.queue_notices(now=now)
    deliver_notices(now=now)

    for mail in mailbox.mails:
        text, html = (part.get_content() for part in mail.iter_parts())
        _, _, body = html.partition("<h1")
        said = html_module.unescape(re.sub(r"<a .*?</a>|<h1.*?</h1>|<[^>]+>", "", "<h1" + body, flags=re.DOTALL))
        assert said.split() == text.replace("http://localhost:8000/trial/", "").split()
        assert "because there is a trial of Trial expiry for this address" in text
        assert "Write to help@example.com." in text
    assert len(mailbox.mails) == 2


@pytest.mark.parametrize(
    ("left", "words"),
    [(DAY, "in 24 hours"), (13 * HOUR, "in 13 hours"), (90 * SECOND, "in 1 minute")],
)
def test_the_last_reminder_says_so_in_words(now: datetime, mailbox: Mailbox, left: timedelta, words: str) -> None:
    trialing(left, now)
    notices.queue_notices(now=now)
    deliver_notices(now=now)

    assert mailbox.mails[0]["Subject"] == f"Your Trial expiry trial ends {words}"


def test_a_mail_is_marked_automatic_and_a_reminder_says_how_to_unsubscribe(
    now: datetime, mailbox: Mailbox, settings: Settings
) -> None:
    settings.TRIAL_NOTICE_UNSUBSCRIBE = "mailto:stop@example.com"
    reminded, _ = trialing(DAY, now), expired(now)
    notices.queue_notices(now=now)
    deliver_notices(now=now)

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
    deliver_notices(now=now)

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

    assert deliver_notices(now=now) == Delivery(skipped=1, finished=True)

    assert mailbox.mails == []
    assert Notice.objects.get().status == Notice.Status.SKIPPED


@pytest.mark.parametrize("happen", [pay, cancel, extend, be_switched_off])
def test_who_is_no_longer_at_that_end_of_a_trial_is_not_reminded(now: datetime, mailbox: Mailbox, happen: Any) -> None:
    account = trialing(6 * DAY, now)
    notices.queue_notices(now=now)
    happen(account, now)

    assert deliver_notices(now=now) == Delivery(skipped=1, finished=True)
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
def test_a_reminder_overtaken_by_the_next_or_the_end_is_skipped(
    now: datetime, mailbox: Mailbox, left: timedelta, late: timedelta, outcome: str
) -> None:
    trialing(left, now)
    notices.queue_notices(now=now)

    delivery = deliver_notices(now=now + late)

    assert getattr(delivery, outcome) == delivery.taken_up == 1


@pytest.mark.parametrize(
    ("late", "outcome"), [(7 * DAY - SECOND, "sent"), (7 * DAY, "sent"), (7 * DAY + SECOND, "skipped")]
)
def test_a_notice_that_it_has_ended_is_skipped_once_its_window_is_over(
    now: datetime, mailbox: Mailbox, late: timedelta, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accounts.delivery.time.monotonic", lambda: 0.0)  # exactly at the boundary
    expired(now)
    notices.queue_notices(now=now)

    delivery = deliver_notices(now=now + late)

    assert getattr(delivery, outcome) == delivery.taken_up == 1
    assert len(mailbox.mails) == delivery.sent


class PayWhileConnecting(EmailBackend):
    """A backend whose connection takes so long that a customer pays meanwhile."""

    def open(self) -> bool | None:
        for account in Account.objects.all():
            services.activate(account_id=account.pk)
        return super().open()


def test_whether_a_mail_is_still_true_is_asked_when_the_connection_is_open(
    now: datetime, mailbox: Mailbox, settings: Settings
) -> None:
    settings.EMAIL_BACKEND = f"{__name__}.PayWhileConnecting"
    expired(now)
    notices.queue_notices(now=now)

    assert deliver_notices(now=now) == Delivery(skipped=1, finished=True)
    assert mailbox.mails == []


def test_the_limit_and_whoever_says_stop_end_a_delivery_between_two_mails(now: datetime, mailbox: Mailbox) -> None:
    make_accounts(4, ended=-DAY, now=now)
    notices.queue_notices(now=now)

    assert deliver_notices(now=now, limit=1) == Delivery(sent=1)
    assert deliver_notices(now=now, stop=lambda: len(mailbox.received) == 3) == Delivery(sent=2)
    assert deliver_notices(now=now, stop=lambda: True) == Delivery()
    assert deliver_notices(now=now) == Delivery(sent=1, finished=True)
    assert len(set(mailbox.recipients)) == 4


class Clock:
    """Takes the place of the module ``time``: a sleep moves it at once, and nothing else does."""

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        self.looks += 1
        assert self.looks < 1000, "whoever waits looks at the clock and never sleeps"
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(delivery, "time", clock)
    return clock


def test_with_a_rate_mails_are_spread_over_the_minute(
    now: datetime, mailbox: Mailbox, settings: Settings, clock: Clock
) -> None:
    settings.TRIAL_NOTICE_RATE = 6
    make_accounts(4, ended=-DAY, now=now)
    notices.queue_notices(now=now)
    services.activate(account_id=Account.objects.latest("pk").pk)  # its mail is skipped, which takes up no time

    assert deliver_notices(now=now) == Delivery(sent=3, skipped=1, finished=True)

    assert clock.slept == [1] * 30


def test_without_a_rate_no_mail_waits_for_another(now: datetime, mailbox: Mailbox, clock: Clock) -> None:
    make_accounts(2, ended=-DAY, now=now)
    notices.queue_notices(now=now)

    assert deliver_notices(now=now) == Delivery(sent=2, finished=True)

    assert clock.slept == []


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_rate_holds_for_all_threads_together(
    now: datetime, mailbox: Mailbox, settings: Settings, clock: Clock
) -> None:
    settings.TRIAL_NOTICE_RATE = 6
    make_accounts(4, ended=-DAY, now=now)
    notices.queue_notices(now=now)

    assert deliver_notices(now=now, jobs=3) == Delivery(sent=4, finished=True)

    assert 40 <= sum(clock.slept) <= 60  # ten seconds after each mail, and until each thread finds that none is left


def test_whoever_says_stop_need_not_wait_until_the_rate_allows_the_next(
    now: datetime, mailbox: Mailbox, settings: Settings, clock: Clock
) -> None:
    settings.TRIAL_NOTICE_RATE = 1
    make_accounts(2, ended=-DAY, now=now)
    notices.queue_notices(now=now)

    assert deliver_notices(now=now, stop=lambda: len(clock.slept) == 2) == Delivery(sent=1)
    assert clock.slept == [1, 1]


# --- Permanent refusals ---


def on_rcpt(mailbox: Mailbox, account: Account, answer: str) -> None:
    mailbox.on_rcpt = {account.user.email: answer}.get


def on_data(mailbox: Mailbox, account: Account, answer: str) -> None:
    mailbox.on_data = {account.user.email: answer}.get


def address(mailbox: Mailbox, account: Account, address: str) -> None:
    User.objects.filter(pk=account.user_id).update(email=address)


@pytest.mark.parametrize(
    ("arrange", "what", "error"),
    [
        (on_rcpt, "550 5.1.1 no such user", "550 5.1.1 no such user"),
        (on_data, "554 5.7.1 it looks like spam", "554 5.7.1 it looks like spam"),
        (address, "", "ValueError: The user has no e-mail address."),
        (address, "a@b.example, c@d.example", "ValueError: Invalid address"),
        (address, "a@b.example\nBcc: c@d.example", "ValueError: Invalid address"),
    ],
    ids=["recipient", "mail", "no address", "bad address", "header injection"],
)
def test_a_mail_refused_for_good_fails_alone_and_is_given_up_in_a_day(
    now: datetime, mailbox: Mailbox, arrange: Any, what: str, error: str
) -> None:
    bad, good = expired(now), expired(now)
    notices.queue_notices(now=now)
    arrange(mailbox, bad, what)

    assert deliver_notices(now=now) == Delivery(sent=1, refused=1, finished=True)
    assert mailbox.recipients == [good.user.email]

    notice = Notice.objects.get(account=bad)
    assert (notice.status, notice.attempts) == (Notice.Status.PENDING, 1)
    assert notice.last_error.startswith(error)

    waits = []
    moment = now
    for _ in range(MAX_ATTEMPTS - 1):
        assert deliver_notices(now=notice.next_attempt - SECOND).taken_up == 0
        waits.append(round((notice.next_attempt - moment) / HOUR, 2))
        moment = notice.next_attempt + SECOND
        last = deliver_notices(now=moment)
        notice.refresh_from_db()

    assert waits == [0.25, 1, 4, 16]
    assert last == Delivery(given_up=1, finished=True)
    assert (notice.status, notice.attempts, notice.sent) == (Notice.Status.GIVEN_UP, 5, None)
    assert notices.queue_notices(now=moment).total == 0
    assert deliver_notices(now=moment + 30 * DAY).taken_up == 0
    assert len(mailbox.mails) == 1


# --- Temporary refusals ---


def test_a_mail_put_off_is_tried_again_in_15_minutes_and_never_given_up(now: datetime, mailbox: Mailbox) -> None:
    account, other = expired(now), expired(now)
    notices.queue_notices(now=now)
    on_rcpt(mailbox, account, "450 4.2.1 mailbox busy")

    assert deliver_notices(now=now) == Delivery(sent=1, deferred=1, finished=True)
    for quarter in range(1, 10):
        moment = now + quarter * RETRY_AFTER + quarter * SECOND
        assert deliver_notices(now=moment) == Delivery(deferred=1, finished=True)

    notice = Notice.objects.get(account=account)
    assert (notice.status, notice.attempts, notice.last_error) == ("pending", 0, "450 4.2.1 mailbox busy")

    mailbox.on_rcpt = lambda address: None
    assert deliver_notices(now=now + DAY).sent == 1
    assert mailbox.recipients == [other.user.email, account.user.email]
    notice.refresh_from_db()
    assert notice.last_error == ""


@pytest.mark.parametrize(
    ("step", "answer", "attempts"),
    [
        ("on_data", "421 4.3.2 shutting down", 0),
        ("on_data", "451 4.7.0 too many", 0),
        ("on_rcpt", "drop", 0),
        ("on_data", "drop", 1),  # the mail may have arrived
        ("on_mail", "530 5.7.0 Authentication required", 0),  # for good, but not because of the mail
    ],
)
def test_three_mails_put_off_in_a_row_end_the_delivery(
    now: datetime, mailbox: Mailbox, step: str, answer: str, attempts: int
) -> None:
    make_accounts(5, ended=-DAY, now=now)
    notices.queue_notices(now=now)
    setattr(mailbox, step, lambda address: answer)

    delivery = deliver_notices(now=now)

    assert (delivery.deferred, delivery.taken_up, delivery.finished) == (3, 3, False)
    assert delivery.trouble == "The mail server deferred 3 mails in a row; see their notices for why."
    assert Notice.objects.deliverable(now).count() == 2
    assert Notice.objects.pending().filter(attempts=0).count() == (2 if attempts else 5)
    assert Notice.objects.pending().filter(attempts=attempts, claimed=None, next_attempt__gt=now).count() == 3

    setattr(mailbox, step, lambda address: None)
    assert deliver_notices(now=now + 5 * HOUR) == Delivery(sent=5, finished=True)
    assert len(set(mailbox.recipients)) == len(mailbox.recipients) == 5


def test_a_server_that_closes_after_a_few_mails_is_called_again_at_once(now: datetime, mailbox: Mailbox) -> None:
    make_accounts(5, ended=-DAY, now=now)
    notices.queue_notices(now=now)
    mailbox.mails_per_connection = 2

    assert deliver_notices(now=now) == Delivery(sent=5, finished=True)

    assert mailbox.connections == 3
    assert len(set(mailbox.recipients)) == len(mailbox.recipients) == 5


def test_a_server_that_is_away_changes_nothing_and_is_named_as_the_trouble(
    now: datetime, mailbox: Mailbox, settings: Settings
) -> None:
    expired(now)
    notices.queue_notices(now=now)
    before = Notice.objects.values().get()
    settings.EMAIL_PORT = 1

    delivery = deliver_notices(now=now)

    assert delivery.taken_up == 0
    assert delivery.trouble.startswith("The mail server cannot be used: ConnectionRefusedError")
    assert Notice.objects.values().get() == before

    settings.EMAIL_PORT = mailbox.port
    assert deliver_notices(now=now).sent == 1


@pytest.fixture
def slow(mailbox: Mailbox) -> Iterator[threading.Event]:
    """An event before which the mail server does not answer its second mail."""
    answer = threading.Event()

    def think(address: str) -> None:
        if len(mailbox.received) == 1:
            answer.wait(20)

    mailbox.on_data = think
    yield answer
    answer.set()


def test_a_mail_without_an_answer_in_time_is_sent_again_hours_later(
    now: datetime, mailbox: Mailbox, settings: Settings, slow: threading.Event
) -> None:
    settings.EMAIL_TIMEOUT = 0.5
    make_accounts(2, ended=-DAY / 2, now=now)
    notices.queue_notices(now=now)

    assert deliver_notices(now=now) == Delivery(sent=1, deferred=1, finished=True)
    slow.set()
    wait_for("the server to have taken the mail after all", lambda: len(mailbox.received) == 2)

    notice = Notice.objects.pending().get()
    assert (notice.attempts, notice.last_error) == (
        1,
        "SMTPServerDisconnected: Connection unexpectedly closed: timed out",
    )
    assert deliver_notices(now=now + 4 * HOUR - SECOND) == Delivery(finished=True)
    assert deliver_notices(now=now + 4 * HOUR + 10 * SECOND) == Delivery(sent=1, finished=True)
    assert mailbox.connections == 2
    assert mailbox.mails[1]["Message-ID"] == mailbox.mails[2]["Message-ID"]


def test_a_server_that_cuts_off_after_a_mail_receives_it_five_times(now: datetime, mailbox: Mailbox) -> None:
    good, bad = expired(now), expired(now)
    notices.queue_notices(now=now)
    received: list[str] = []

    def take_and_cut(address: str) -> str | None:
        received.append(address)
        return "drop" if address == bad_address else None

    bad_address = bad.user.email
    mailbox.on_data = take_and_cut
    assert deliver_notices(now=now) == Delivery(sent=1, deferred=1, finished=True)
    for attempt in range(2, MAX_ATTEMPTS):
        assert deliver_notices(now=now + attempt * (LEASE + HOUR)) == Delivery(deferred=1, finished=True)
    assert deliver_notices(now=now + 2 * DAY) == Delivery(given_up=1, finished=True)

    assert deliver_notices(now=now + 3 * DAY) == Delivery(finished=True)
    assert received == [good.user.email, *[bad.user.email] * MAX_ATTEMPTS]
    assert Notice.objects.get(account=bad).last_error == "SMTPServerDisconnected: Connection unexpectedly closed"


def test_a_time_limit_in_the_middle_of_a_mail_ends_the_task_and_puts_it_off(
    mailbox: Mailbox, settings: Settings, slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strike(signum: int, frame: Any) -> None:
        raise SoftTimeLimitExceeded

    def think(address: str) -> None:
        if len(mailbox.received) == 1:
            os.kill(os.getpid(), signal.SIGUSR1)  # as the pool does to a process
            slow.wait(20)

    settings.TRIAL_NOTICES = True
    mailbox.on_data = think
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

    pending = {notice["id"]: notice for notice in Notice.objects.pending().values()}
    cut_off = pending.pop(Notice.objects.get(attempts=1, status="pending").pk)
    assert pending == {number: before[number] for number in pending}
    assert len(pending) == 1
    assert cut_off["next_attempt"] > timezone.now() + LEASE - HOUR
    slow.set()
    assert deliver_notices(now=timezone.now()) == Delivery(sent=1, finished=True)


class Faulty(EmailBackend):
    """A backend that fails once while it sends a mail, for a reason that the mail did not cause."""

    failed = False

    def _send(self, email_message: Any) -> bool:
        if not Faulty.failed:
            Faulty.failed = True
            assert self.connection
            self.connection.putcmd("NOOP")  # its answer is still to come
            raise KeyError("api_key")
        return bool(super()._send(email_message))  # type: ignore[misc]


def test_a_fault_in_the_mail_backend_counts_against_no_mail(
    now: datetime, mailbox: Mailbox, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EMAIL_BACKEND = f"{__name__}.Faulty"
    monkeypatch.setattr(Faulty, "failed", False)
    first, second = expired(now), expired(now)
    notices.queue_notices(now=now)
    on_data(mailbox, second, "554 5.7.1 it looks like spam")

    assert deliver_notices(now=now) == Delivery(deferred=1, refused=1, finished=True)

    notice = Notice.objects.get(account=first)
    assert (notice.status, notice.attempts, notice.last_error) == ("pending", 0, "KeyError: 'api_key'")
    assert deliver_notices(now=now + HOUR / 4 + SECOND) == Delivery(sent=1, refused=1, finished=True)
    assert mailbox.recipients == [first.user.email]


class ApiError(OSError):
    """Like AnymailRequestsAPIError, which inherits from an exception of requests."""

    def __init__(self, status_code: int) -> None:
        super().__init__(f"API response {status_code}")
        self.status_code = status_code


AnymailRecipientsRefused = type("AnymailRecipientsRefused", (Exception,), {})


class NoJson(OSError, ValueError):  # noqa: N818 (the name says what is missing)
    """Like JSONDecodeError of requests, when a proxy answers instead of the provider."""


class HttpBackend(BaseEmailBackend):
    """A backend for the API of a mail provider, which answers with ``error``."""

    error: Exception

    def send_messages(self, email_messages: Any) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ApiError(400), Delivery(refused=1, finished=True)),
        (ApiError(422), Delivery(refused=1, finished=True)),
        (AnymailRecipientsRefused("All message recipients were rejected"), Delivery(refused=1, finished=True)),
        (ApiError(401), Delivery(deferred=1, finished=True)),
        (ApiError(429), Delivery(deferred=1, finished=True)),
        (ApiError(503), Delivery(deferred=1, finished=True)),
        (SMTPNotSupportedError("SMTPUTF8 not supported by server"), Delivery(refused=1, finished=True)),
        (NoJson("Expecting value"), Delivery(deferred=1, finished=True)),
        (SMTPServerDisconnected("Connection unexpectedly closed"), Delivery(deferred=1, finished=True)),
    ],
    ids=[
        "bad request",
        "unprocessable",
        "recipients",
        "our key",
        "too many",
        "away",
        "address",
        "no JSON",
        "cut twice",
    ],
)
def test_of_a_provider_s_answers_only_a_refusal_counts_against_a_mail(
    now: datetime, settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: Delivery
) -> None:
    settings.EMAIL_BACKEND = f"{__name__}.HttpBackend"
    monkeypatch.setattr(HttpBackend, "error", error, raising=False)
    expired(now)
    notices.queue_notices(now=now)

    assert deliver_notices(now=now) == outcome


class ConnectTimeout(OSError):  # noqa: N818 (the name is what it is known by)
    """Like the exception of requests, whose cause is the timeout of the socket."""

    def __init__(self) -> None:
        super().__init__("timed out")
        self.__context__ = TimeoutError()


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(TimeoutError(), 1), (ConnectionResetError(), 1), (ConnectionRefusedError(), 0), (ConnectTimeout(), 0)],
    ids=["no answer", "cut off", "refused", "never connected"],
)
def test_a_mail_may_have_arrived_only_when_the_provider_was_reached(
    now: datetime, settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception, attempts: int
) -> None:
    settings.EMAIL_BACKEND = f"{__name__}.HttpBackend"
    monkeypatch.setattr(HttpBackend, "error", error, raising=False)
    expired(now)
    notices.queue_notices(now=now)

    assert deliver_notices(now=now) == Delivery(deferred=1, finished=True)
    notice = Notice.objects.get()
    assert notice.attempts == attempts
    assert (notice.next_attempt > now + HOUR) == (attempts == 1)


def test_every_attempt_at_a_mail_carries_the_same_message_id(now: datetime, mailbox: Mailbox) -> None:
    expired(now)
    notices.queue_notices(now=now)
    deliver_notices(now=now)
    Notice.objects.update(
        status=Notice.Status.PENDING, sent=None, next_attempt=now
    )  # as after a crash before the commit
    deliver_notices(now=now)

    first, second = mailbox.mails
    assert first["Message-ID"] == second["Message-ID"]
    assert first["Message-ID"].endswith("@example.com>")


def test_a_mail_repeated_after_a_restore_carries_the_same_message_id(now: datetime, mailbox: Mailbox) -> None:
    trialing(7 * DAY, now), expired(now), expired(now)

    for moment in (now, now + HOUR):
        notices.queue_notices(now=moment)
        deliver_notices(now=moment)
        Notice.objects.all().delete()  # the dump is older

    ids = [mail["Message-ID"] for mail in mailbox.mails]
    assert sorted(ids[:3]) == sorted(ids[3:])
    assert len(set(ids)) == 3


@pytest.fixture
def broken_template(settings: Settings, tmp_path: Path) -> None:
    template = tmp_path / "accounts" / "notices" / "ending_soon.txt"
    template.parent.mkdir(parents=True)
    template.write_text("{% nonsense %}")
    settings.TEMPLATES = [{**django_settings.TEMPLATES[0], "DIRS": [tmp_path]}]


@pytest.fixture
def broken_header(settings: Settings) -> None:
    settings.TRIAL_NOTICE_UNSUBSCRIBE = "https://example.com/\nBcc: c@d.example"


@pytest.mark.parametrize(
    ("broken", "error"),
    [("broken_template", "Invalid block tag"), ("broken_header", "Header values")],
)
def test_a_mail_that_cannot_be_composed_fails_alone_and_is_given_up(
    now: datetime, mailbox: Mailbox, request: pytest.FixtureRequest, broken: str, error: str
) -> None:
    request.getfixturevalue(broken)
    trialing(7 * DAY, now), expired(now)
    notices.queue_notices(now=now)

    assert deliver_notices(now=now) == Delivery(sent=1, refused=1, finished=True)
    notice = Notice.objects.get(kind=Notice.Kind.ENDING_SOON)
    assert (notice.status, notice.attempts, notice.claimed) == (Notice.Status.PENDING, 1, None)
    assert notice.next_attempt - now >= RETRY_AFTER
    assert error in notice.last_error

    outcomes = [deliver_notices(now=now + hours * HOUR) for hours in (1, 3, 8, 25)]
    assert outcomes == [Delivery(refused=1, finished=True)] * 3 + [Delivery(given_up=1, finished=True)]


# --- Claims ---


def before_the_first_mail(monkeypatch: pytest.MonkeyPatch, happen: Callable[[Notice], None]) -> None:
    """Run ``action`` while a process has claimed a notice, just before its mail is sent."""

    def send(message: EmailMultiAlternatives, mailer: BaseEmailBackend) -> None:
        monkeypatch.undo()
        happen(Notice.objects.filter(status=Notice.Status.PENDING, claimed__isnull=False).latest("claimed"))
        mailer_module.send(message, mailer)

    monkeypatch.setattr(delivery, "send", send)


def test_a_notice_in_hand_is_left_alone_and_its_attempt_is_on_record(
    now: datetime, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_accounts(2, ended=-DAY, now=now)
    notices.queue_notices(now=now)
    seen: list[Any] = []

    def look(in_hand: Notice) -> None:
        seen.append((in_hand.attempts, in_hand.next_attempt >= now + LEASE))
        seen.append(notices.retry(notice_id=in_hand.pk, now=now + HOUR))
        seen.append(deliver_notices(now=now + HOUR))

    before_the_first_mail(monkeypatch, look)
    assert deliver_notices(now=now) == Delivery(sent=1, finished=True)

    assert seen == [(1, True), False, Delivery(sent=1, finished=True)]
    assert len(set(mailbox.recipients)) == len(mailbox.recipients) == 2
    assert not Notice.objects.exclude(status=Notice.Status.SENT, claimed=None)


@pytest.mark.postgres
def test_a_claim_does_not_pass_the_notices_that_were_sent_before(
    now: datetime, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their entries stay in the index as long as a transaction sees what was before; that of this test does."""
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    make_accounts(40, ended=-DAY, now=now)
    notices.queue_notices(now=now)
    with connection.cursor() as cursor:
        for other_plan in ("seqscan", "bitmapscan", "sort"):  # as if there were many
            cursor.execute(f"SET LOCAL enable_{other_plan} = off")

    assert deliver_notices(now=now, limit=30) == Delivery(sent=30)

    before = index_entries_read()
    assert deliver_notices(now=now, limit=1) == Delivery(sent=1)
    first = index_entries_read() - before
    assert deliver_notices(now=now) == Delivery(sent=9, finished=True)
    others = index_entries_read() - before - first
    assert first >= 31  # these are the entries that a claim begins above from then on
    assert others < 4 * first, (first, others)  # at the beginning and at the end, and not for each


def index_entries_read() -> int:
    """How many entries of the index of deliverable notices this transaction has read, dead ones included."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_get_xact_tuples_returned('accounts_notice_deliverable'::regclass)")
        return int(cursor.fetchone()[0])


def test_a_notice_given_back_below_the_last_claim_is_found_before_the_delivery_ends(
    now: datetime, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_accounts(3, ended=-DAY, now=now)
    notices.queue_notices(now=now)
    held = delivery._claim(now)  # by another process, whose mail server is away
    assert held

    def give_back(in_hand: Notice) -> None:
        delivery._record(held, attempts=held.attempts, next_attempt=held.next_attempt)

    before_the_first_mail(monkeypatch, give_back)

    assert deliver_notices(now=now) == Delivery(sent=3, finished=True)
    assert len(set(mailbox.recipients)) == 3


def test_a_process_that_lost_its_notice_while_it_connected_does_not_send_it(
    now: datetime, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_slow(mailer: EmailBackend) -> bool:
        Notice.objects.update(claimed=now + 5 * HOUR, next_attempt=now + 9 * HOUR)  # by another process
        return True

    monkeypatch.setattr(EmailBackend, "open", be_slow)
    expired(now)
    notices.queue_notices(now=now)

    assert deliver_notices(now=now) == Delivery(skipped=1, finished=True)

    assert Notice.objects.get(status=Notice.Status.PENDING).claimed == now + 5 * HOUR
    assert mailbox.mails == []


def test_a_process_that_connects_too_slowly_gives_its_notice_back(
    now: datetime, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired(now)
    notices.queue_notices(now=now)
    before = Notice.objects.values().get()
    monkeypatch.setattr(delivery, "LEASE", timedelta(0))

    delivered = deliver_notices(now=now)

    assert delivered.trouble == "The mail server cannot be used: connecting took more than 0:00:00."
    assert Notice.objects.values().get() == before
    assert mailbox.mails == []


def test_a_notice_whose_process_always_dies_is_given_up(now: datetime, mailbox: Mailbox) -> None:
    deadly, other = trialing(7 * DAY, now), trialing(7 * DAY, now)
    notices.queue_notices(now=now)
    for attempt in range(MAX_ATTEMPTS):
        claim = delivery._claim(now + attempt * LEASE)  # and the process dies
        assert claim
        assert claim.account == deadly
        if not attempt:
            assert deliver_notices(now=now) == Delivery(sent=1, finished=True)

    assert deliver_notices(now=now + MAX_ATTEMPTS * LEASE) == Delivery(given_up=1, finished=True)

    notice = Notice.objects.get(account=deadly)
    assert (notice.status, notice.attempts, notice.claimed) == (Notice.Status.GIVEN_UP, MAX_ATTEMPTS, None)
    assert notice.last_error == "Given up after 5 attempts; the process of the last one died or was stopped."
    assert mailbox.recipients == [other.user.email]
    assert notices.retry(notice_id=notice.pk, now=now + DAY)
    assert deliver_notices(now=now + DAY).sent == 1


Ask = Callable[[str], Any]


@pytest.fixture
def ask_about_the_sender(transactional_db: None) -> Ask:
    """Query PostgreSQL, also from the mail server's thread, about the connection of the sender."""
    # Except connections of earlier queries, which PostgreSQL may still be closing.
    where = "datname = current_database() AND backend_type = 'client backend' AND application_name <> 'asking'"
    parameters = {**connection.get_connection_params(), "application_name": "asking"}

    def ask(what: str) -> Any:
        with psycopg.connect(**parameters, autocommit=True) as other:
            return other.execute(f"SELECT {what} FROM pg_stat_activity WHERE {where}").fetchall()  # noqa: S608

    return ask


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_no_transaction_is_open_while_the_mail_server_answers(
    now: datetime, mailbox: Mailbox, ask_about_the_sender: Ask
) -> None:
    states: list[Any] = []

    def look(address: str) -> None:
        states.extend(ask_about_the_sender("state"))

    expired(now), expired(now)
    notices.queue_notices(now=now)
    mailbox.on_mail = mailbox.on_rcpt = mailbox.on_data = look

    assert deliver_notices(now=now) == Delivery(sent=2, finished=True)
    assert states == [("idle",)] * 6


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_mail_is_recorded_although_postgresql_ended_the_connection(
    now: datetime, mailbox: Mailbox, ask_about_the_sender: Ask
) -> None:
    ended: list[Any] = []

    def end_it(address: str) -> None:
        ended.extend(ask_about_the_sender("pg_terminate_backend(pid, 10000)"))

    expired(now), expired(now)
    notices.queue_notices(now=now)
    mailbox.on_mail = mailbox.on_data = end_it

    assert deliver_notices(now=now) == Delivery(sent=2, finished=True)
    assert Notice.objects.filter(status=Notice.Status.SENT).count() == len(mailbox.mails) == 2
    assert ended == [(True,)] * 2


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_a_serialization_failure_or_a_deadlock_costs_a_mail_nothing(
    now: datetime, mailbox: Mailbox, state: str
) -> None:
    """Make the claim and the record fail once each, as with REPEATABLE READ as the role's default."""
    expired(now)
    notices.queue_notices(now=now)
    with connection.cursor() as cursor:
        cursor.execute("CREATE SEQUENCE tries")
    fail = f"IF nextval('tries') % 2 = 1 THEN RAISE EXCEPTION 'once' USING ERRCODE = '{state}'; END IF;"
    try:
        with trigger_on_update(Notice.objects.get(), fail):
            assert deliver_notices(now=now) == Delivery(sent=1, finished=True)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP SEQUENCE tries")
    assert len(mailbox.mails) == 1


def test_an_answer_with_control_characters_is_stored_as_one_short_line(
    now: datetime, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired(now)
    notices.queue_notices(now=now)
    answer = SMTPDataError(550, b"no\x00 \x1b[31m\r\n" + b"x" * 10_000_000)
    monkeypatch.setattr("accounts.delivery.send", Mock(side_effect=answer))

    assert deliver_notices(now=now).refused == 1

    error = Notice.objects.get().last_error
    assert (error[:14], len(error)) == ("550 no [31m xx", 500)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_notice_that_is_locked_is_passed_over_and_the_next_one_taken(now: datetime, mailbox: Mailbox) -> None:
    make_accounts(2, ended=-DAY, now=now)
    notices.queue_notices(now=now)
    first = Notice.objects.deliverable(now)[0]
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '2s'")  # a statement that waits for the lock fails
    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute("SELECT id FROM accounts_notice WHERE id = %s FOR UPDATE", [first.pk])

        assert deliver_notices(now=now) == Delivery(sent=1, finished=True)
        other.rollback()  # as PostgreSQL does when the process dies

    with connection.cursor() as cursor:
        cursor.execute("RESET lock_timeout")
    assert Notice.objects.deliverable(now).get() == first
    assert deliver_notices(now=now).sent == 1
    assert len(set(mailbox.recipients)) == len(mailbox.recipients) == 2


@pytest.mark.django_db(transaction=True)
def test_a_delivery_refuses_to_run_inside_a_transaction_of_its_caller(now: datetime, mailbox: Mailbox) -> None:
    trialing(DAY, now)
    notices.queue_notices(now=now)

    # Rolled back with the caller's, the record of what was sent would be lost, and the mail be sent again.
    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        deliver_notices(now=now)

    assert mailbox.mails == []


def test_only_mails_deferred_one_after_the_other_end_a_delivery(now: datetime, mailbox: Mailbox) -> None:
    make_accounts(6, ended=-DAY, now=now)
    notices.queue_notices(now=now)
    customers = list(User.objects.order_by("pk").values_list("email", flat=True))
    mailbox.on_rcpt = lambda address: None if address == customers[2] else "450 4.2.1 mailbox busy"

    delivery = deliver_notices(now=now)

    assert (delivery.deferred, delivery.sent) == (5, 1), "two, a success, and three in a row"
    assert delivery.trouble.startswith("The mail server deferred 3 mails in a row")


def test_a_skipped_mail_says_nothing_about_the_mail_server(now: datetime, mailbox: Mailbox) -> None:
    make_accounts(5, ended=-DAY, now=now)
    notices.queue_notices(now=now)
    third = Account.objects.order_by("pk")[2]
    services.activate(account_id=third.pk)
    mailbox.on_rcpt = lambda address: "450 4.2.1 mailbox busy"

    delivery = deliver_notices(now=now)

    assert (delivery.deferred, delivery.skipped) == (3, 1)
    assert delivery.trouble.startswith("The mail server deferred 3 mails in a row")


def test_mails_go_out_in_the_order_in_which_they_are_due(now: datetime, mailbox: Mailbox) -> None:
    first, second, third = (trialing(DAY, now) for _ in range(3))
    notices.queue_notices(now=now)
    Notice.objects.filter(account=first).update(next_attempt=now + SECOND)  # tried before, and put off

    deliver_notices(now=now + SECOND)

    assert mailbox.recipients == [account.user.email for account in (second, third, first)]


@pytest.mark.parametrize("arrange", [on_rcpt, on_data], ids=["recipient", "mail"])
@pytest.mark.parametrize(("code", "refused"), [(499, 0), (500, 1), (501, 1)])
def test_an_answer_is_permanent_from_500_on(
    now: datetime, mailbox: Mailbox, arrange: Any, code: int, refused: int
) -> None:
    account = expired(now)
    notices.queue_notices(now=now)
    arrange(mailbox, account, f"{code} no")

    assert deliver_notices(now=now) == Delivery(refused=refused, deferred=1 - refused, finished=True)


def test_a_mail_is_given_up_at_its_last_attempt_and_another_try_starts_anew(now: datetime, mailbox: Mailbox) -> None:
    account = expired(now)
    notices.queue_notices(now=now)
    on_rcpt(mailbox, account, "550 5.1.1 no such user")
    for day in range(MAX_ATTEMPTS):
        deliver_notices(now=now + day * DAY)
    notice = Notice.objects.get(status=Notice.Status.GIVEN_UP)
    assert timedelta(0) <= notice.next_attempt - (now + 4 * DAY) < HOUR  # what monitoring takes for the moment

    Notice.objects.update(queued=now)
    assert notices.retry(notice_id=notice.pk, now=now + 5 * DAY)
    notice.refresh_from_db()
    assert (notice.status, notice.attempts, notice.next_attempt) == (Notice.Status.PENDING, 0, now + 5 * DAY)
    assert notice.queued > now, "it waits from now on, and raises no alarm at once"
    assert deliver_notices(now=now + 5 * DAY) == Delivery(refused=1, finished=True)
    mailbox.on_rcpt = lambda address: None
    assert deliver_notices(now=now + 6 * DAY).sent == 1


def test_a_reminder_that_the_settings_no_longer_name_is_skipped(
    now: datetime, mailbox: Mailbox, settings: Settings
) -> None:
    trialing(7 * DAY, now)
    notices.queue_notices(now=now)
    settings.TRIAL_REMINDER_DAYS = [1]

    assert deliver_notices(now=now) == Delivery(skipped=1, finished=True)
    assert mailbox.mails == []


def test_a_delivery_by_no_thread_at_all_is_refused(now: datetime) -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        deliver_notices(now=now, jobs=0)
