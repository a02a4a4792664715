"""Who is owed which mail about the end of a trial, and sending it.

Two steps, each safe to repeat, to kill, and to run beside itself: ``queue_notices`` derives from the accounts who is
owed what and writes it down, and ``deliver_notices`` sends what is written down. Nothing here knows of Celery or of the
command line, and nothing here runs unless ``settings.TRIAL_NOTICES`` is on: both callers ask.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from email.utils import parseaddr
from itertools import zip_longest
from smtplib import (
    SMTP,
    SMTPNotSupportedError,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPSenderRefused,
    SMTPServerDisconnected,
)

from django.conf import settings
from django.core.mail import EmailMultiAlternatives, get_connection
from django.core.mail.backends.base import BaseEmailBackend
from django.db import connection, transaction
from django.db.models import Exists, F, OuterRef
from django.db.models.functions import Now
from django.template.loader import render_to_string

from accounts.log import Fields
from accounts.models import Account, AccountQuerySet, ExpiryRun, Notice
from accounts.retention import prune_notices

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
"""A mail that was refused for good this often is given up. With ``backoff`` that takes 21 hours and a quarter."""

RETRY_AFTER = timedelta(minutes=15)
"""When to try a mail again: after a refusal that may pass, and after the first of those for good."""

RETRY_UNANSWERED_AFTER = timedelta(hours=4)
"""When to try a mail again that got no answer in time. It may well have arrived, so few repeats are worth the wait."""

TROUBLE_IN_A_ROW = 3
"""After so many mails in a row that were put off, it is the server and not the mail: the delivery ends."""


def backoff(attempts: int) -> timedelta:
    """How long to wait after so many refusals for good: 15 minutes, 1, 4 and 16 hours."""
    return RETRY_AFTER * math.pow(4, attempts - 1)


# --- Who is owed what ---


class TooManyNotices(Exception):  # noqa: N818 (it says what happened, as TooManyDue does)
    """The fuse: more mails are owed than allowed. Nothing was queued."""

    def __init__(self, owed: int, limit: int) -> None:
        super().__init__(owed, limit)
        self.owed = owed
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"Refused: {self.owed} mails are owed and at most {self.limit} are allowed. Nothing was queued or sent. "
            f"If the number is right, allow it with --max-notices {self.owed}; if not, look at TRIAL_REMINDER_DAYS, "
            "TRIAL_NOTICE_WINDOW_DAYS and the clock."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Queue:
    """How many mails, of each kind."""

    ending_soon: int = 0
    ended: int = 0

    @property
    def total(self) -> int:
        """Of both kinds."""
        return self.ending_soon + self.ended

    def __str__(self) -> str:
        return f"{self.ending_soon} ending soon, {self.ended} ended"


def reminder_windows() -> dict[int, int]:
    """Each reminder of ``TRIAL_REMINDER_DAYS`` and how late it may come, both in days before the end of the trial.

    The last one may come until the trial ends. Any other may come until a day before the next one, so that a missed day
    sends late rather than never, and no customer gets two at once; but for a day at least, so that a daily schedule
    meets every window. For 7 and 1: the first from 7 days to 2 days before the end, the second from then to the end.
    """
    days = settings.TRIAL_REMINDER_DAYS
    return {
        opens: 0 if following is None else min(opens - 1, following + 1)
        for opens, following in zip_longest(days, days[1:])
    }


def ending_soon(now: datetime, *, days_before: int) -> AccountQuerySet:
    """Accounts of which the reminder of so many days is true, and neither too early nor overtaken, at ``now``.

    A trial that from its beginning was no longer than that gets no such reminder. One extended to an end that is nearer
    gets it soon after, late by the rule of ``reminder_windows``; the mail says how much time is really left.
    """
    windows = reminder_windows()
    if days_before not in windows:
        return Account.objects.none()
    opens, closes = timedelta(days=days_before), timedelta(days=windows[days_before])
    return Account.objects.filter(
        status=Account.TRIALING,
        trial_ends_at__gt=now + closes,
        trial_ends_at__lte=now + opens,
        created__lt=F("trial_ends_at") - opens,
        user__is_active=True,
    )


def ended() -> AccountQuerySet:
    """Accounts that a recorded run expired and that have stayed so: not undone, paid for, cancelled or extended."""
    return Account.objects.filter(status=Account.TRIAL_EXPIRED, expiry_run__isnull=False, user__is_active=True).exclude(
        expiry_run__status=ExpiryRun.Status.UNDONE
    )


def _owed(now: datetime) -> Iterator[tuple[Notice.Kind, int, AccountQuerySet]]:
    """Kind, days before, and the accounts that are owed this mail and have no notice of it, or only a skipped one."""
    # By the run's time, which is that of its accounts: a week has few runs, and an index leads to their accounts.
    since = now - timedelta(days=settings.TRIAL_NOTICE_WINDOW_DAYS)
    told = ended().filter(expiry_run__as_of__gte=since, expiry_run__as_of__lte=now)
    # The reminders first, as they are delivered: they lapse.
    mails = [(Notice.Kind.ENDING_SOON, days, ending_soon(now, days_before=days)) for days in reminder_windows()]
    mails += [(Notice.Kind.ENDED, 0, told)]
    for kind, days, accounts in mails:
        same = Notice.objects.filter(
            account=OuterRef("pk"), kind=kind, trial_ends_at=OuterRef("trial_ends_at"), days_before=days
        )
        yield kind, days, accounts.exclude(Exists(same.exclude(status=Notice.Status.SKIPPED)))


def count_owed(*, now: datetime) -> Queue:
    """How many mails ``queue_notices`` would queue at ``now``."""
    counts = dict.fromkeys(Notice.Kind, 0)
    for kind, _, accounts in _owed(now):
        counts[kind] += accounts.count()
    return Queue(**{kind.value: count for kind, count in counts.items()})


def queue_notices(*, now: datetime, max_notices: int | None = None) -> Queue:
    """Write down who is owed which mail at ``now``, one statement for each mail; returns how many were new.

    Owed are the reminders of ``TRIAL_REMINDER_DAYS`` (see ``ending_soon``) and, to accounts that a run expired within
    the last ``TRIAL_NOTICE_WINDOW_DAYS``, the notice that the trial has ended (see ``ended``).

    A mail is sent once for each end of a trial. So an account whose expiry was undone after its mail, and that expires
    again at the same end, gets no second one. A notice that was skipped is queued again when it is true again.

    Args:
        now: the moment to apply the rule to, with a time zone.
        max_notices: refuse when more mails than this would then wait to be sent.

    Raises:
        TooManyNotices: nothing was queued.
    """
    if max_notices is not None:
        owed = count_owed(now=now).total + Notice.objects.pending().count()
        if owed > max_notices:
            raise TooManyNotices(owed, max_notices)
    counts = dict.fromkeys(Notice.Kind, 0)
    for kind, days, accounts in _owed(now):
        counts[kind] += _insert(kind, days, accounts, now)
    queued = Queue(**{kind.value: count for kind, count in counts.items()})
    prune_notices()
    logger.info(Fields("queue_notices", as_of=now.isoformat(), **asdict(queued)))
    return queued


def _insert(kind: Notice.Kind, days: int, accounts: AccountQuerySet, now: datetime) -> int:
    # In the database, because the ORM has no INSERT ... SELECT and a million accounts should not travel through Python.
    # A notice that another process wrote in the meantime stays as it is.
    # Sorted by what no index knows, so that PostgreSQL has the whole answer before it writes the first row. Without,
    # and with a table that was empty when last analyzed, it reads for every account all that it has written so far.
    owed, parameters = accounts.order_by(F("id") + 0).values_list("id", "trial_ends_at").query.sql_with_params()
    statement = f"""
        INSERT INTO accounts_notice (account_id, trial_ends_at, kind, days_before, next_attempt)
        SELECT owed.id, owed.trial_ends_at, %s, %s, %s FROM ({owed}) AS owed WHERE true
        ON CONFLICT (account_id, kind, trial_ends_at, days_before) DO UPDATE
        SET status = 'pending', attempts = 0, last_error = '', next_attempt = excluded.next_attempt
        WHERE accounts_notice.status = 'skipped'
        """  # noqa: S608 (the one part that is not written here comes from the ORM)
    with connection.cursor() as cursor:
        cursor.execute(statement, [kind.value, days, connection.ops.adapt_datetimefield_value(now), *parameters])
        return int(cursor.rowcount)


# --- Sending it ---


@dataclass(kw_only=True, slots=True)
class Delivery:
    """What became of the notices that one delivery took up."""

    sent: int = 0
    skipped: int = 0
    """No longer true when their turn came."""
    refused: int = 0
    """Refused for good, or without a usable address; tried again later."""
    given_up: int = 0
    """The same, for the last time."""
    put_off: int = 0
    """Refused for the moment, cut off, or failed for a reason that is not this mail's; tried again later."""
    trouble: str = ""
    """Why the delivery ended early: what is wrong with the mail server."""
    finished: bool = False
    """Nothing was left to deliver."""

    @property
    def taken_up(self) -> int:
        """How many notices this delivery had in its hands."""
        return self.sent + self.skipped + self.refused + self.given_up + self.put_off

    def __str__(self) -> str:
        numbers = {name: number for name, number in asdict(self).items() if name not in {"trouble", "finished"}}
        return ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in numbers.items())


class MailServerAwayError(Exception):
    """There is no connection to the mail server, or it takes no mail for now. No notice was lost."""


def deliver_notices(
    *,
    now: datetime,
    limit: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    interrupts: tuple[type[Exception], ...] = (),
) -> Delivery:
    """Send the notices that are due for an attempt at ``now``, one after the other, each in a transaction of its own.

    May run beside itself on any number of processes: a notice is claimed by the lock on its row, which PostgreSQL gives
    back when the process dies. A process killed between the server's answer and the commit repeats that one mail, with
    the same Message-ID. (SQLite has one lock for all: there one process sends at a time, and the others wait.)

    Every mail is checked once more just before it is sent, and skipped when it is no longer true.

    A mail refused for good (5xx), or to an address that no server would take, fails alone: it is tried again after
    15 minutes, 1, 4 and 16 hours, since also a 5xx can be a mistake of the server, and then given up. One refused for
    the moment (4xx), cut off by a dropped connection, or failed for a reason that is not its own, such as a refused
    sender or a fault in the mail backend, is put off for 15 minutes, however often. One that gets no answer within
    ``settings.EMAIL_TIMEOUT`` is put off for 4 hours: it may have arrived, and nobody can know. When the server cannot
    be reached, or three mails in a row are put off, the delivery ends and says so in ``trouble``.

    Args:
        now: the moment to judge by, with a time zone. It moves on while the delivery lasts.
        limit: the most notices to take up.
        stop: asked before every mail whether to end here.
        interrupts: exceptions of the caller's, such as a time limit, that may strike in the middle of a mail. They end
            the delivery and say nothing of that mail, which stays as it was.

    With ``settings.TRIAL_NOTICE_RATE``, this process sends at most so many mails a minute.
    """
    delivery = Delivery()
    in_a_row = 0
    pause = 60 / settings.TRIAL_NOTICE_RATE if settings.TRIAL_NOTICE_RATE else 0
    mailer = get_connection()
    began = time.monotonic()
    try:
        while (limit is None or delivery.taken_up < limit) and not stop():
            started = time.monotonic()
            outcome = _deliver_next(now + timedelta(seconds=started - began), mailer, interrupts)
            if outcome is None:
                delivery.finished = True
                break
            setattr(delivery, outcome, getattr(delivery, outcome) + 1)
            if outcome == "put_off":
                in_a_row += 1
                if in_a_row == TROUBLE_IN_A_ROW:
                    delivery.trouble = f"The mail server put off {in_a_row} mails in a row; see their notices for why."
                    break
            elif outcome != "skipped":
                in_a_row = 0
            if pause and outcome != "skipped":
                time.sleep(max(0.0, started + pause - time.monotonic()))
    except MailServerAwayError as error:
        delivery.trouble = str(error)
    finally:
        with suppress(OSError):  # a server that does not even take a goodbye has no say in what was sent
            mailer.close()
        logger.info(Fields("deliver_notices", **asdict(delivery)))
    return delivery


def _deliver_next(now: datetime, mailer: BaseEmailBackend, interrupts: tuple[type[Exception], ...]) -> str | None:
    """Claim the next notice and see to it; returns the field of Delivery to count it in, or None for no notice."""
    # One transaction for each mail, and durable: what was sent must be on record before the next one is.
    with transaction.atomic(durable=True):
        notice = (
            Notice.objects.deliverable(now)
            .select_related("account__user")
            .select_for_update(of=("self",), skip_locked=True)
            .first()
        )
        if notice is None:
            return None
        if not is_true(notice, now=now):
            notice.status = Notice.Status.SKIPPED
            notice.save(update_fields=["status"])
            return "skipped"
        message = compose(notice, now=now, mailer=mailer)
        try:
            _send(message, mailer)
        except interrupts:
            raise
        except MailServerAwayError:
            raise
        except Exception as error:  # mail backends raise what they like
            return _record_failure(notice, error, now)
        notice.status, notice.sent, notice.last_error = Notice.Status.SENT, Now(), ""
        notice.save(update_fields=["status", "sent", "last_error"])
        return "sent"


def retry(*, notice_id: int, now: datetime) -> bool:
    """Let a notice that waits or was given up be tried again at once, as if for the first time.

    False when it was sent or skipped: what was sent is not sent again, and what is true again is queued by itself.
    """
    waiting = Notice.objects.filter(pk=notice_id, status__in=[Notice.Status.PENDING, Notice.Status.GIVEN_UP])
    return waiting.update(status=Notice.Status.PENDING, attempts=0, next_attempt=now) == 1


def is_true(notice: Notice, *, now: datetime) -> bool:
    """Whether what the notice says is true of its account at ``now``, and no later reminder or the end overtook it."""
    reminder = notice.kind == Notice.Kind.ENDING_SOON
    accounts = ending_soon(now, days_before=notice.days_before) if reminder else ended()
    return accounts.filter(pk=notice.account_id, trial_ends_at=notice.trial_ends_at).exists()


def compose(notice: Notice, *, now: datetime, mailer: BaseEmailBackend | None = None) -> EmailMultiAlternatives:
    """The mail of a notice, from the templates in ``accounts/notices/``, which a project can override."""
    user = notice.account.user
    context = {
        "account": notice.account,
        "user": user,
        "trial_ends_at": notice.trial_ends_at,
        "days_left": round((notice.trial_ends_at - now) / timedelta(days=1)),
        "site_name": settings.SITE_NAME,
        "site_url": settings.SITE_URL,
    }
    subject, text, html = (
        render_to_string(f"accounts/notices/{notice.kind}{part}", context) for part in ("_subject.txt", ".txt", ".html")
    )
    domain = parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2]
    headers = {
        # The same at every attempt: a mail that arrives twice can be told to be one.
        "Message-ID": f"<trial-notice-{notice.pk}.{notice.queued:%Y%m%d%H%M%S%f}@{domain}>",
        "Auto-Submitted": "auto-generated",  # no holiday replies
    }
    if notice.kind == Notice.Kind.ENDING_SOON and settings.TRIAL_NOTICE_UNSUBSCRIBE:
        headers["List-Unsubscribe"] = f"<{settings.TRIAL_NOTICE_UNSUBSCRIBE}>"
    message = EmailMultiAlternatives(
        subject=" ".join(subject.split()), body=text.strip() + "\n", to=[user.email], headers=headers, connection=mailer
    )
    message.attach_alternative(html, "text/html")
    return message


def _send(message: EmailMultiAlternatives, mailer: BaseEmailBackend) -> None:
    """Send over the connection that is kept open; over a new one when the server has dropped that meanwhile.

    Raises:
        MailServerAwayError: no connection could be opened.
        Exception: whatever the mail backend raised about this mail.
    """
    if not message.to[0]:
        raise ValueError("The user has no e-mail address.")
    is_new = _open(mailer)
    try:
        _send_or_hang_up(message, mailer)
    except (SMTPServerDisconnected, ConnectionError) as error:
        if is_new or _is_unanswered(error):
            raise
        _open(mailer)
        _send_or_hang_up(message, mailer)


def _open(mailer: BaseEmailBackend) -> bool:
    try:
        return bool(mailer.open())
    except OSError as error:  # SMTPException is one, also for a wrong password
        raise MailServerAwayError(f"The mail server cannot be used: {_reason(error)}") from error


def _send_or_hang_up(message: EmailMultiAlternatives, mailer: BaseEmailBackend) -> None:
    try:
        mailer.send_messages([message])
    except (SMTPResponseException, SMTPRecipientsRefused):
        raise  # an answer: the connection is in order
    except BaseException:
        # The answer may be on its way, and must not be taken for that to the next mail. So no goodbye either.
        if isinstance(smtp := getattr(mailer, "connection", None), SMTP):
            smtp.close()
        with suppress(OSError):
            mailer.close()
        raise


def _record_failure(notice: Notice, error: Exception, now: datetime) -> str:
    refused = _is_refusal(error)
    notice.last_error = _reason(error)
    if refused:
        notice.attempts += 1
        if notice.attempts >= MAX_ATTEMPTS:
            notice.status = Notice.Status.GIVEN_UP
        notice.next_attempt = now + backoff(notice.attempts)
    else:
        notice.next_attempt = now + (RETRY_UNANSWERED_AFTER if _is_unanswered(error) else RETRY_AFTER)
    notice.save(update_fields=["last_error", "next_attempt", "attempts", "status"])
    outcome = "put_off" if not refused else "given_up" if notice.status == Notice.Status.GIVEN_UP else "refused"
    # Not the words of the error: they may hold an address.
    logger.info(Fields("deliver_notices", notice=notice.pk, outcome=outcome, error=type(error).__name__))
    return outcome


MAIL_REFUSED_BY_HTTP = {400, 422}
"""Bad Request and Unprocessable Content. Others, such as 401, 403 and 429, are about the account at the provider."""


def _is_refusal(error: Exception) -> bool:
    """Whether this mail, or its address, was refused for good. Anything else is the server's trouble, or ours."""
    if isinstance(error, SMTPRecipientsRefused):
        return all(code >= 500 for code, _ in error.recipients.values())
    if isinstance(error, SMTPResponseException):
        return error.smtp_code >= 500 and not isinstance(error, SMTPSenderRefused)
    # The backends of django-anymail, which send by HTTP, are known by what their errors carry.
    if (
        getattr(error, "status_code", None) in MAIL_REFUSED_BY_HTTP
        or type(error).__name__ == "AnymailRecipientsRefused"
    ):
        return True
    if isinstance(error, OSError):
        return isinstance(error, SMTPNotSupportedError)
    return isinstance(error, ValueError)  # Django's word for an address that no server would take


def _is_unanswered(error: BaseException | None) -> bool:
    """Whether a timeout is behind the error; smtplib makes a lost connection of it."""
    return isinstance(error, TimeoutError) or (error is not None and _is_unanswered(error.__context__))


def _reason(error: Exception) -> str:
    answers = [(error.smtp_code, error.smtp_error)] if isinstance(error, SMTPResponseException) else []
    if isinstance(error, SMTPRecipientsRefused):
        answers = list(error.recipients.values())
    words = [f"{code} {text.decode(errors='replace') if isinstance(text, bytes) else text}" for code, text in answers]
    return " ".join("; ".join(words or [f"{type(error).__name__}: {error}"]).split())[:500]
