"""Delivery of the mails that are owed: claim a notice, send its mail, record the outcome.

Independent of Celery and of the command line. The callers check ``settings.TRIAL_NOTICES`` first.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from email.utils import parseaddr
from functools import partial
from itertools import count
from typing import Any
from urllib.parse import urljoin

from django.conf import settings
from django.core.mail import EmailMultiAlternatives, get_connection
from django.core.mail.backends.base import BaseEmailBackend
from django.db import transaction
from django.db.models.functions import Now
from django.template.loader import render_to_string

from accounts import customer
from accounts.log import Fields
from accounts.mailer import Failure, MailServerAwayError, meaning, open_connection, reason, send, was_dropped
from accounts.models import Notice
from accounts.notices import is_true
from accounts.retry import with_retries
from accounts.slices import Position, within
from accounts.threads import Results, side_by_side
from accounts.words import time_left

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
"""A mail is given up after this many permanent refusals or attempts without an answer, within a day of the first."""

RETRY_AFTER = timedelta(minutes=15)
"""When to retry a mail after a temporary failure, and after its first permanent refusal."""

LEASE = timedelta(hours=4)
"""When to retry a mail that may have arrived, because no answer came or the process died.

Two processes never send the same notice, because sending one takes less than this: a process that used half of it
before it sends the mail stops, and the mail itself takes four answers of at most ``settings.EMAIL_TIMEOUT`` seconds.
"""

TROUBLE_IN_A_ROW = 3
"""The delivery ends after this many deferred mails in a row, because then the cause is the server and not the mail."""


def backoff(attempts: int) -> timedelta:
    """The wait after this many permanent refusals: 15 minutes, 1, 4 and 16 hours."""
    return RETRY_AFTER * math.pow(4, attempts - 1)


@dataclass(kw_only=True, slots=True)
class Delivery:
    """The outcome of one delivery, as numbers of notices."""

    sent: int = 0
    skipped: int = 0
    """No longer true when they were claimed."""
    refused: int = 0
    """Permanently refused, without a usable address, or impossible to compose; retried later."""
    given_up: int = 0
    """Failed for the last time."""
    deferred: int = 0
    """Temporarily refused, disconnected, or failed for a reason that this mail did not cause; retried later."""
    trouble: str = ""
    """What is wrong with the mail server, when that ended the delivery early."""
    finished: bool = False
    """Whether nothing was left to deliver."""

    @property
    def taken_up(self) -> int:
        """How many notices this delivery claimed."""
        return self.sent + self.skipped + self.refused + self.given_up + self.deferred

    def __str__(self) -> str:
        numbers = {name: number for name, number in asdict(self).items() if name not in {"trouble", "finished"}}
        return ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in numbers.items())


def deliver_notices(
    *,
    now: datetime,
    limit: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    interrupts: tuple[type[Exception], ...] = (),
    jobs: int = 1,
) -> Delivery:
    """Send the notices whose next attempt is due at ``now``. Any number of processes may do so.

    An attempt is recorded before the mail is sent, and no transaction is open while the mail server answers. Each mail
    is checked again when the connection is open, and skipped when it is no longer true. When the server cannot be
    reached, or three mails in a row are deferred, the delivery ends and says so in ``trouble``. docs/operations.md,
    "Mails", lists the failures, and when each is retried.

    Args:
        now: the moment to apply the rules to, with a time zone. It advances while the delivery lasts.
        limit: the most notices to claim.
        stop: called before every mail, in any of the threads; True ends the delivery.
        interrupts: exceptions of the caller, such as a time limit, that may be raised while a mail is sent. They end
            the delivery; that mail may have arrived.
        jobs: how many mails to send at a time, each in a thread with connections of its own to the mail server and the
            database.

    With ``settings.TRIAL_NOTICE_RATE``, this process sends at most that many mails per minute.

    Raises:
        ValueError: ``jobs`` is below 1, or above 1 on SQLite.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs!r}.")
    delivery = Delivery()
    in_a_row = 0
    began = time.monotonic()

    def clock() -> datetime:
        return now + timedelta(seconds=time.monotonic() - began)

    turns = _turns(limit=limit, stop=lambda: bool(delivery.trouble) or delivery.finished or stop())
    send_in_turn = partial(_send_in_turn, claims=_Claims(), delivery=delivery, clock=clock, interrupts=interrupts)
    try:
        with closing(side_by_side(send_in_turn, turns, jobs=jobs)) as outcomes:
            for outcome in outcomes:
                setattr(delivery, outcome, getattr(delivery, outcome) + 1)
                if outcome != "skipped":
                    in_a_row = in_a_row + 1 if outcome == "deferred" else 0
                if in_a_row == TROUBLE_IN_A_ROW:
                    delivery.trouble = f"The mail server deferred {in_a_row} mails in a row; see their notices for why."
    finally:
        delivery.finished = delivery.finished and not delivery.trouble
        logger.info(Fields("deliver_notices", **asdict(delivery)))
    return delivery


@dataclass(slots=True)
class _Turn:
    """The permission to claim one notice."""

    began: float
    skipped: bool = False


def _turns(*, limit: int | None, stop: Callable[[], bool]) -> Iterator[_Turn]:
    """At most ``limit`` turns, as fast as ``settings.TRIAL_NOTICE_RATE`` allows. A skipped mail takes up no time."""
    pause = 60 / settings.TRIAL_NOTICE_RATE if settings.TRIAL_NOTICE_RATE else 0
    for _ in count() if limit is None else range(limit):
        if stop():
            return
        turn = _Turn(time.monotonic())
        yield turn
        while (left := turn.began + pause - time.monotonic()) > 0 and not turn.skipped and not stop():
            time.sleep(min(left, 1))


@dataclass(slots=True)
class _Claims:
    """Claims one notice after the other, for all threads of a delivery.

    Each claim begins above the one before. Entries of notices that were sent stay at the low end of the index until a
    VACUUM, or while another session holds an old snapshot: with a million of them, a claim that began there took 600 ms
    instead of 1.
    """

    after: Position | None = None

    def next(self, now: datetime) -> Notice | None:
        """Claim the next notice; None when none is left."""
        notice = with_retries(partial(_claim, now, after=self.after))
        if notice is None and self.after is not None:
            # From the low end once more: another process may have given a notice back.
            notice = with_retries(partial(_claim, now))
        if notice is not None:
            self.after = (notice.next_attempt, notice.pk)
        return notice


def _claim(now: datetime, *, after: Position | None = None) -> Notice | None:
    """Record an attempt at the next notice, and return the notice as it was before; None when there is none.

    Args:
        now: the moment of the attempt.
        after: look only behind this position in the order of ``deliverable``.
    """
    # durable: the attempt must be committed, and its lock released, before the mail is sent.
    with transaction.atomic(durable=True):
        deliverable = within(Notice.objects.deliverable(now), ("next_attempt", "pk"), after=after)
        notice = deliverable.select_for_update(skip_locked=True).first()
        if notice is not None:
            notice.claimed = now
            Notice.objects.filter(pk=notice.pk).update(
                claimed=now, attempts=notice.attempts + 1, next_attempt=now + LEASE
            )
    return notice


def _send_in_turn(
    turns: Iterator[_Turn],
    *,
    claims: _Claims,
    delivery: Delivery,
    clock: Callable[[], datetime],
    interrupts: tuple[type[Exception], ...],
) -> Results[str]:
    """Claim and deliver one notice for each turn, over one connection to the mail server; yields each outcome.

    Sets ``finished`` when nothing is left, and ``trouble`` when the server is away.
    """
    mailer = get_connection()
    try:
        for turn in turns:
            notice = claims.next(clock())
            if notice is None:
                delivery.finished = True
                return
            outcome = _deliver(notice, mailer, clock, interrupts)
            turn.skipped = outcome == "skipped"
            yield outcome
    except MailServerAwayError as error:
        delivery.trouble = str(error)
    finally:
        with suppress(OSError):  # a failed QUIT does not change what was sent
            mailer.close()


def _record(claim: Notice, **values: Any) -> None:
    """End the claim and record its outcome, unless another process has claimed the notice since."""
    mine = Notice.objects.filter(pk=claim.pk, claimed=claim.claimed)
    with_retries(lambda: mine.update(claimed=None, **values))


def _deliver(
    claim: Notice, mailer: BaseEmailBackend, clock: Callable[[], datetime], interrupts: tuple[type[Exception], ...]
) -> str:
    """Deliver a claimed notice; returns the field of Delivery that counts it."""
    if claim.attempts >= MAX_ATTEMPTS:
        error = f"Given up after {claim.attempts} attempts; the process of the last one died or was stopped."
        _record(claim, status=Notice.Status.GIVEN_UP, attempts=claim.attempts, last_error=error)
        return "given_up"
    try:
        return _send(claim, mailer, clock, interrupts)
    except MailServerAwayError:
        _record(claim, attempts=claim.attempts, next_attempt=claim.next_attempt)
        raise


def _send(
    claim: Notice, mailer: BaseEmailBackend, clock: Callable[[], datetime], interrupts: tuple[type[Exception], ...]
) -> str:
    end_of_first_half = clock() + LEASE / 2
    for is_second_try in (False, True):
        is_new = open_connection(mailer)
        if clock() > end_of_first_half:
            raise MailServerAwayError(f"The mail server cannot be used: connecting took more than {LEASE / 2}.")
        notice = with_retries(lambda: _still_owed(claim, clock()))
        if notice is None:
            _record(claim, attempts=claim.attempts, status=Notice.Status.SKIPPED)
            return "skipped"
        message = None
        try:
            message = compose(notice, now=clock())
            send(message, mailer)
        except interrupts:
            raise
        except Exception as error:  # templates and mail backends may raise any exception
            if is_second_try or is_new or not was_dropped(error):
                return _record_failure(claim, error, meaning(error) if message else Failure.REFUSED, clock())
        else:
            break
    _record(claim, status=Notice.Status.SENT, sent=Now(), last_error="")
    return "sent"


def _still_owed(claim: Notice, now: datetime) -> Notice | None:
    """The notice and its customer as they are now, if this process still holds the claim and the notice is true."""
    notice = Notice.objects.select_related("account__user").filter(pk=claim.pk, claimed=claim.claimed).first()
    return notice if notice and is_true(notice, now=now) else None


def _record_failure(claim: Notice, error: Exception, failure: Failure, now: datetime) -> str:
    attempts = claim.attempts + (failure != Failure.DEFERRED)
    given_up = attempts >= MAX_ATTEMPTS
    wait = {Failure.REFUSED: backoff(attempts), Failure.UNANSWERED: LEASE, Failure.DEFERRED: RETRY_AFTER}[failure]
    _record(
        claim,
        attempts=attempts,
        next_attempt=now if given_up else now + wait,
        status=Notice.Status.GIVEN_UP if given_up else Notice.Status.PENDING,
        last_error=reason(error),
    )
    outcome = "given_up" if given_up else "refused" if failure == Failure.REFUSED else "deferred"
    # Without the text of the error, which may contain an address.
    logger.info(Fields("deliver_notices", notice=claim.pk, outcome=outcome, error=type(error).__name__))
    return outcome


def compose(notice: Notice, *, now: datetime) -> EmailMultiAlternatives:
    """Build the mail of a notice from the templates in ``accounts/notices/``, which a project can override."""
    user = notice.account.user
    if not user.email:
        raise ValueError("The user has no e-mail address.")
    context: dict[str, Any] = {
        "account": notice.account,
        "user": user,
        "trial_ends_at": notice.trial_ends_at,
        "time_left": time_left(now, notice.trial_ends_at),
        "trial_url": urljoin(settings.SITE_URL, settings.TRIAL_URL),
        "site": customer.site(),
    }
    template = f"accounts/notices/{notice.kind}"
    context["subject"] = " ".join(render_to_string(f"{template}_subject.txt", context).split())
    text, html = (render_to_string(f"{template}{part}", context) for part in (".txt", ".html"))
    headers = {"Message-ID": message_id(notice), "Auto-Submitted": "auto-generated"}  # no holiday replies
    if notice.kind == Notice.Kind.ENDING_SOON and settings.TRIAL_NOTICE_UNSUBSCRIBE:
        headers["List-Unsubscribe"] = f"<{settings.TRIAL_NOTICE_UNSUBSCRIBE}>"
    message = EmailMultiAlternatives(
        subject=context["subject"], body=text.strip() + "\n", to=[user.email], headers=headers
    )
    message.attach_alternative(html, "text/html")
    return message


def message_id(notice: Notice) -> str:
    """The Message-ID, built from what the mail says, so that a repeat has the same one, even after a restore."""
    domain = parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2]
    what = f"{notice.kind}-{notice.days_before}" if notice.days_before else notice.kind
    return f"<trial-{what}.{notice.account_id}.{notice.trial_ends_at:%Y%m%d%H%M%S%f}@{domain}>"
