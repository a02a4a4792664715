"""Sending the mails that are owed: claim a notice, send its mail, record what became of it.

Nothing here knows of Celery or of the command line, and nothing here runs unless ``settings.TRIAL_NOTICES`` is on: both
callers ask.
"""

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from email.utils import parseaddr
from typing import Any

from django.conf import settings
from django.core.mail import EmailMultiAlternatives, get_connection
from django.core.mail.backends.base import BaseEmailBackend
from django.db import transaction
from django.db.models.functions import Now
from django.template.loader import render_to_string

from accounts.log import Fields
from accounts.mailer import Failure, MailServerAwayError, meaning, open_connection, reason, send, was_dropped
from accounts.models import Notice
from accounts.notices import is_true
from accounts.retry import with_retries

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
"""A mail that was refused for good, or may have arrived, this often is given up, within a day of the first attempt."""

RETRY_AFTER = timedelta(minutes=15)
"""When to try a mail again: after a failure that may pass, and after its first refusal for good."""

LEASE = timedelta(hours=4)
"""When to try a mail again that may have arrived, because no answer came or the process died.

Two processes never send the same notice, because sending one takes less than this: a process that has used half of it
before the mail gives up, and the mail itself takes four answers of at most ``settings.EMAIL_TIMEOUT`` seconds.
"""

TROUBLE_IN_A_ROW = 3
"""After so many mails in a row that were put off, it is the server and not the mail: the delivery ends."""


def backoff(attempts: int) -> timedelta:
    """How long to wait after so many refusals for good: 15 minutes, 1, 4 and 16 hours."""
    return RETRY_AFTER * math.pow(4, attempts - 1)


@dataclass(kw_only=True, slots=True)
class Delivery:
    """What became of the notices that one delivery took up."""

    sent: int = 0
    skipped: int = 0
    """No longer true when their turn came."""
    refused: int = 0
    """Refused for good, without a usable address, or impossible to compose; tried again later."""
    given_up: int = 0
    """Failed for the last time."""
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


def deliver_notices(
    *,
    now: datetime,
    limit: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    interrupts: tuple[type[Exception], ...] = (),
) -> Delivery:
    """Send the notices that are due for an attempt at ``now``, one after the other; on any number of processes at once.

    An attempt is recorded before the mail server is talked to, and no transaction is open while it is. So a process
    that is killed, or a database that is gone, costs at most one mail a repeat, with the same Message-ID, four hours
    later; the others have their turn. docs/operations.md, "Mails", lists what fails how, and when it is tried again.

    Every mail is checked once more when the connection is open, and skipped when it is no longer true. When the server
    cannot be reached, or three mails in a row are put off, the delivery ends and says so in ``trouble``.

    Args:
        now: the moment to judge by, with a time zone. It moves on while the delivery lasts.
        limit: the most notices to take up.
        stop: asked before every mail whether to end here.
        interrupts: exceptions of the caller's, such as a time limit, that may strike in the middle of a mail. They end
            the delivery; that mail may have arrived.

    With ``settings.TRIAL_NOTICE_RATE``, this process sends at most so many mails a minute.
    """
    delivery = Delivery()
    in_a_row = 0
    pause = 60 / settings.TRIAL_NOTICE_RATE if settings.TRIAL_NOTICE_RATE else 0
    mailer = get_connection()
    began = time.monotonic()

    def clock() -> datetime:
        return now + timedelta(seconds=time.monotonic() - began)

    try:
        while (limit is None or delivery.taken_up < limit) and not stop():
            started = time.monotonic()
            notice = with_retries(lambda: _claim(clock()))
            if notice is None:
                delivery.finished = True
                break
            outcome = _deliver(notice, mailer, clock, interrupts)
            setattr(delivery, outcome, getattr(delivery, outcome) + 1)
            if outcome == "put_off":
                in_a_row += 1
                if in_a_row == TROUBLE_IN_A_ROW:
                    delivery.trouble = f"The mail server put off {in_a_row} mails in a row; see their notices for why."
                    break
            elif outcome != "skipped":
                in_a_row = 0
            if pause and outcome != "skipped":
                _wait(started + pause - time.monotonic(), stop)
    except MailServerAwayError as error:
        delivery.trouble = str(error)
    finally:
        with suppress(OSError):  # a server that does not even take a goodbye has no say in what was sent
            mailer.close()
        logger.info(Fields("deliver_notices", **asdict(delivery)))
    return delivery


def _wait(seconds: float, stop: Callable[[], bool]) -> None:
    while seconds > 0 and not stop():
        time.sleep(min(seconds, 1))
        seconds -= 1


def _claim(now: datetime) -> Notice | None:
    """Put an attempt at the next notice on record, and return the notice as it was before that; None without one."""
    # durable: the attempt must be on record, and its lock gone, before the mail server is talked to.
    with transaction.atomic(durable=True):
        notice = Notice.objects.deliverable(now).select_for_update(skip_locked=True).first()
        if notice is not None:
            notice.claimed = now
            Notice.objects.filter(pk=notice.pk).update(
                claimed=now, attempts=notice.attempts + 1, next_attempt=now + LEASE
            )
    return notice


def _record(claim: Notice, **values: Any) -> None:
    """End the claim and write down its outcome, unless the notice is somebody else's by now."""
    mine = Notice.objects.filter(pk=claim.pk, claimed=claim.claimed)
    with_retries(lambda: mine.update(claimed=None, **values))


def _deliver(
    claim: Notice, mailer: BaseEmailBackend, clock: Callable[[], datetime], interrupts: tuple[type[Exception], ...]
) -> str:
    """See to a claimed notice; returns the field of Delivery to count it in."""
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
        except Exception as error:  # templates and mail backends raise what they like
            if is_second_try or is_new or not was_dropped(error):
                return _record_failure(claim, error, meaning(error) if message else Failure.REFUSED, clock())
        else:
            break
    _record(claim, status=Notice.Status.SENT, sent=Now(), last_error="")
    return "sent"


def _still_owed(claim: Notice, now: datetime) -> Notice | None:
    """The notice and its customer as they are now, if it is still ours, and still true."""
    notice = Notice.objects.select_related("account__user").filter(pk=claim.pk, claimed=claim.claimed).first()
    return notice if notice and is_true(notice, now=now) else None


def _record_failure(claim: Notice, error: Exception, failure: Failure, now: datetime) -> str:
    attempts = claim.attempts + (failure != Failure.PUT_OFF)
    given_up = attempts >= MAX_ATTEMPTS
    wait = {Failure.REFUSED: backoff(attempts), Failure.UNANSWERED: LEASE, Failure.PUT_OFF: RETRY_AFTER}[failure]
    _record(
        claim,
        attempts=attempts,
        next_attempt=now + wait,
        status=Notice.Status.GIVEN_UP if given_up else Notice.Status.PENDING,
        last_error=reason(error),
    )
    outcome = "given_up" if given_up else "refused" if failure == Failure.REFUSED else "put_off"
    # Not the words of the error: they may hold an address.
    logger.info(Fields("deliver_notices", notice=claim.pk, outcome=outcome, error=type(error).__name__))
    return outcome


def compose(notice: Notice, *, now: datetime) -> EmailMultiAlternatives:
    """The mail of a notice, from the templates in ``accounts/notices/``, which a project can override."""
    user = notice.account.user
    if not user.email:
        raise ValueError("The user has no e-mail address.")
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
    headers = {"Message-ID": message_id(notice), "Auto-Submitted": "auto-generated"}  # no holiday replies
    if notice.kind == Notice.Kind.ENDING_SOON and settings.TRIAL_NOTICE_UNSUBSCRIBE:
        headers["List-Unsubscribe"] = f"<{settings.TRIAL_NOTICE_UNSUBSCRIBE}>"
    message = EmailMultiAlternatives(
        subject=" ".join(subject.split()), body=text.strip() + "\n", to=[user.email], headers=headers
    )
    message.attach_alternative(html, "text/html")
    return message


def message_id(notice: Notice) -> str:
    """Made of what the mail says: a repeat is known as one, also after the database was restored from an older dump."""
    domain = parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2]
    what = f"{notice.kind}-{notice.days_before}" if notice.days_before else notice.kind
    return f"<trial-{what}.{notice.account_id}.{notice.trial_ends_at:%Y%m%d%H%M%S%f}@{domain}>"
