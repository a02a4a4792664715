"""Who is owed which mail about the end of a trial: derived from the accounts, and written down as notices.

``accounts.delivery`` sends them. Nothing here runs unless ``settings.TRIAL_NOTICES`` is on: the callers ask.
"""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import zip_longest

from django.conf import settings
from django.db import connection
from django.db.models import Exists, F, OuterRef, Q, Value
from django.db.models.functions import Now

from accounts.log import Fields
from accounts.models import Account, AccountQuerySet, ExpiryRun, Notice, grace_cutoff
from accounts.retry import with_retries

logger = logging.getLogger(__name__)


class TooManyNotices(Exception):  # noqa: N818 (it says what happened, as TooManyDue does)
    """The fuse: more mails are owed than allowed. Nothing was queued."""


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
    accounts = Account.objects.filter(
        status=Account.TRIALING,
        trial_ends_at__gt=now + closes,
        trial_ends_at__lte=now + opens,
        created__lt=F("trial_ends_at") - opens,
        user__is_active=True,
    )
    since = settings.TRIAL_NOTICES_SINCE
    return accounts if since is None else accounts.filter(trial_ends_at__gte=since + opens)


def ended(now: datetime) -> AccountQuerySet:
    """Accounts that a run expired within ``TRIAL_NOTICE_WINDOW_DAYS`` of ``now``, and that have stayed so.

    Not those undone, paid for, cancelled or extended, nor those that were due before ``TRIAL_NOTICES_SINCE``.
    """
    # By the run's time, which is that of its accounts: a week has few runs, and an index leads to their accounts.
    accounts = Account.objects.filter(
        status=Account.TRIAL_EXPIRED,
        expiry_run__as_of__gte=now - timedelta(days=settings.TRIAL_NOTICE_WINDOW_DAYS),
        user__is_active=True,
    ).exclude(expiry_run__status=ExpiryRun.Status.UNDONE)
    since = settings.TRIAL_NOTICES_SINCE
    return accounts if since is None else accounts.filter(trial_ends_at__gte=grace_cutoff(since))


def _owed(now: datetime) -> Iterator[tuple[Notice.Kind, int, AccountQuerySet]]:
    """Kind, days before, and the accounts that are owed this mail and have no notice of it, or only a skipped one."""
    # The reminders first, as they are delivered: they lapse.
    mails = [(Notice.Kind.ENDING_SOON, days, ending_soon(now, days_before=days)) for days in reminder_windows()]
    mails += [(Notice.Kind.ENDED, 0, ended(now).filter(expiry_run__as_of__lte=now))]
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

    Owed are the reminders of ``TRIAL_REMINDER_DAYS`` (see ``ending_soon``) and the notice that the trial has ended (see
    ``ended``).

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
            raise TooManyNotices(
                f"Refused: {owed} mails are owed and at most {max_notices} are allowed. Nothing was queued or sent. "
                f"If the number is right, allow it with --max-notices {owed}; if not, look at TRIAL_REMINDER_DAYS, "
                "TRIAL_NOTICE_WINDOW_DAYS and the clock."
            )
    counts = dict.fromkeys(Notice.Kind, 0)
    for kind, days, accounts in _owed(now):
        counts[kind] += with_retries(partial(_insert, kind, days, accounts, now))
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
    if connection.features.has_select_for_update_skip_locked:
        # An account that is being deleted would fail the whole statement. One that changes is left to the next run. It
        # costs nothing: the foreign key takes this lock anyway.
        owed += " FOR KEY SHARE OF accounts_account SKIP LOCKED"
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


def retry(*, notice_id: int, now: datetime) -> bool:
    """Let a notice that waits or was given up be tried again at once, as if for the first time.

    False when it was sent or skipped (what is true again is queued by itself), and while a process is sending it.
    """
    waiting = Notice.objects.filter(pk=notice_id, status__in=[Notice.Status.PENDING, Notice.Status.GIVEN_UP])
    at_rest = waiting.filter(Q(claimed=None) | Q(next_attempt__lte=now))
    return at_rest.update(status=Notice.Status.PENDING, attempts=0, next_attempt=now, claimed=None) == 1


def is_true(notice: Notice, *, now: datetime) -> bool:
    """Whether what the notice says is true of its account at ``now``, and no later reminder or the end overtook it."""
    reminder = notice.kind == Notice.Kind.ENDING_SOON
    accounts = ending_soon(now, days_before=notice.days_before) if reminder else ended(now)
    return accounts.filter(pk=notice.account_id, trial_ends_at=notice.trial_ends_at).exists()


PRUNED_AT_ONCE = 10_000
"""Notices that one run looks at, to delete those that are old."""


def prune_notices() -> int:
    """Delete notices, of the oldest 10,000, that are done with and older than ``TRIAL_LEDGER_DAYS``; returns how many.

    Done with are those sent, skipped and given up. Older means queued before that, for the end of a trial before that:
    a mail that could still be owed keeps the notice that says it was sent.
    """
    days = max(settings.TRIAL_LEDGER_DAYS, settings.TRIAL_NOTICE_WINDOW_DAYS)
    before = Now() - Value(timedelta(days=days))
    # By key, which is by age, so that the query reads these few however large the table is; the next run goes on.
    oldest = Notice.objects.order_by("pk").values("pk")[:PRUNED_AT_ONCE]
    old = Notice.objects.filter(pk__in=oldest, queued__lt=before, trial_ends_at__lt=before)
    deleted, _ = old.exclude(status=Notice.Status.PENDING).delete()
    return deleted
