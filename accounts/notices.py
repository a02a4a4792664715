"""Derives from the accounts who is owed which mail about the end of a trial, and queues it as a notice.

``accounts.delivery`` sends the notices. The callers check ``settings.TRIAL_NOTICES`` first.
"""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import zip_longest

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, F, OuterRef, Q, Value
from django.db.models.functions import Now

from accounts.log import Fields
from accounts.models import Account, AccountQuerySet, ExpiryRun, Notice, grace_cutoff
from accounts.retry import with_retries
from accounts.slices import Position, within

logger = logging.getLogger(__name__)


class TooManyNotices(Exception):  # noqa: N818 (it says what happened, as TooManyDue does)
    """The fuse: more mails are owed than allowed. Nothing was queued."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Queue:
    """The number of mails of each kind."""

    ending_soon: int = 0
    ended: int = 0

    @property
    def total(self) -> int:
        """The number of both kinds."""
        return self.ending_soon + self.ended

    def __str__(self) -> str:
        return f"{self.ending_soon} ending soon, {self.ended} ended"


def reminder_windows() -> dict[int, int]:
    """When the window of each reminder of ``TRIAL_REMINDER_DAYS`` opens and closes, in days before the trial's end.

    The window of the last reminder closes when the trial ends. Any other closes a day before the next one opens: so a
    missed day delays a reminder instead of losing it, and no customer gets two at once. Each window is open for at
    least a day, so that a daily schedule never misses one. For 7 and 1: the first from 7 days to 2 days before the end,
    the second from 1 day before the end to the end.
    """
    days = settings.TRIAL_REMINDER_DAYS
    return {
        opens: 0 if following is None else min(opens - 1, following + 1)
        for opens, following in zip_longest(days, days[1:])
    }


def ending_soon(now: datetime, *, days_before: int) -> AccountQuerySet:
    """Accounts that are in the window of the reminder ``days_before`` the end at ``now`` (see ``reminder_windows``).

    A trial that was never longer than ``days_before`` gets no such reminder. A trial whose end is moved into the window
    gets it soon after; the mail says how much time is really left.
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
    """Accounts that a run expired within ``TRIAL_NOTICE_WINDOW_DAYS`` before ``now``, and that are still expired.

    Excludes accounts that were undone, paid for, cancelled or extended, or were due before ``TRIAL_NOTICES_SINCE``.
    """
    # Filters by the run's time, which is that of its accounts: a week has few runs, and an index finds their accounts.
    accounts = Account.objects.filter(
        status=Account.TRIAL_EXPIRED,
        expiry_run__as_of__gte=now - timedelta(days=settings.TRIAL_NOTICE_WINDOW_DAYS),
        user__is_active=True,
    ).exclude(expiry_run__status=ExpiryRun.Status.UNDONE)
    since = settings.TRIAL_NOTICES_SINCE
    return accounts if since is None else accounts.filter(trial_ends_at__gte=grace_cutoff(since))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mail:
    """A mail, and the accounts of which it is true."""

    kind: Notice.Kind
    days_before: int
    accounts: AccountQuerySet
    order: tuple[str, ...]
    """The fields to walk the accounts by; an index has them in this order."""

    def owed(self) -> AccountQuerySet:
        """The accounts that have no notice of this mail, or a skipped one."""
        same = Notice.objects.filter(
            account=OuterRef("pk"),
            kind=self.kind,
            trial_ends_at=OuterRef("trial_ends_at"),
            days_before=self.days_before,
        )
        return self.accounts.exclude(Exists(same.exclude(status=Notice.Status.SKIPPED)))


def _mails(now: datetime) -> Iterator[_Mail]:
    """Every mail that may be owed at ``now``, in the order in which they are queued and delivered."""
    for days in reminder_windows():  # the reminders first, because they lapse
        accounts = ending_soon(now, days_before=days)
        order = ("trial_ends_at", "pk")
        yield _Mail(kind=Notice.Kind.ENDING_SOON, days_before=days, accounts=accounts, order=order)
    opens = now - timedelta(days=settings.TRIAL_NOTICE_WINDOW_DAYS)
    runs = ExpiryRun.objects.filter(as_of__range=(opens, now), expired_count__gt=0)
    for run in runs.exclude(status=ExpiryRun.Status.UNDONE).order_by("pk"):
        accounts = ended(now).filter(expiry_run=run)
        yield _Mail(kind=Notice.Kind.ENDED, days_before=0, accounts=accounts, order=("pk",))


def count_owed(*, now: datetime) -> Queue:
    """How many mails ``queue_notices`` would queue at ``now``."""
    counts = dict.fromkeys(Notice.Kind, 0)
    for mail in _mails(now):
        counts[mail.kind] += mail.owed().count()
    return Queue(**{kind.value: count for kind, count in counts.items()})


def _are_more_than(most: int, *, now: datetime) -> bool:
    """Whether more than ``most`` mails are pending or owed; counts no further than that."""
    left = most + 1 - Notice.objects.pending()[: most + 1].count()
    for mail in _mails(now):
        left -= mail.owed()[:left].count()
    return not left


SLICE = 5_000
"""The accounts that one transaction queues a mail for. That takes a tenth of a second."""


def queue_notices(*, now: datetime, max_notices: int | None = None) -> Queue:
    """Queue the mails that are owed at ``now`` as notices; returns how many were new.

    These are the reminders of ``TRIAL_REMINDER_DAYS`` (see ``ending_soon``) and the notice that the trial has ended
    (see ``ended``). A mail is sent once for each end of a trial: an account whose expiry was undone after its mail, and
    that expires again at the same end, gets no second one. A skipped notice is queued again when it is true again.

    They are queued in transactions of at most ``SLICE`` accounts. What was queued stays when the process is killed, and
    the next run queues the rest.

    Args:
        now: the moment to apply the rule to, with a time zone.
        max_notices: refuse when more mails than this would then be pending.

    Raises:
        TooManyNotices: nothing was queued.
    """
    if max_notices is not None and _are_more_than(max_notices, now=now):
        owed = count_owed(now=now).total + Notice.objects.pending().count()
        raise TooManyNotices(
            f"Refused: {owed} mails are owed and at most {max_notices} are allowed. Nothing was queued or sent. "
            f"If the number is right, allow it with --max-notices {owed}; if not, look at TRIAL_REMINDER_DAYS, "
            "TRIAL_NOTICE_WINDOW_DAYS and the clock."
        )
    counts = dict.fromkeys(Notice.Kind, 0)
    for mail in _mails(now):
        counts[mail.kind] += _queue(mail, now)
    queued = Queue(**{kind.value: count for kind, count in counts.items()})
    prune_notices()
    logger.info(Fields("queue_notices", as_of=now.isoformat(), **asdict(queued)))
    return queued


def _queue(mail: _Mail, now: datetime) -> int:
    """Queue one mail for every account that is owed it; returns for how many."""
    # Most ticks owe a few of these mails or none, and then PostgreSQL reads whole tables once, which is fastest.
    owed = mail.owed().count()
    if owed <= SLICE:
        return with_retries(partial(_insert, mail, mail.owed(), now)) if owed else 0
    queued, after, is_last = 0, None, False
    while not is_last:
        new, upto = with_retries(partial(_queue_slice, mail, after, now))
        queued, after, is_last = queued + new, upto, upto is None
    return queued


def _queue_slice(mail: _Mail, after: Position | None, now: datetime) -> tuple[int, Position | None]:
    """Queue the mail for those of the next accounts that are owed it.

    Returns for how many, and the position to go on after; None when these were the last accounts.
    """
    with transaction.atomic(durable=True):
        _look_up_by_index()
        rest = within(mail.accounts, mail.order, after=after)
        upto = rest.order_by(*mail.order).values_list(*mail.order)[SLICE - 1 : SLICE].first()
        return _insert(mail, within(mail.owed(), mail.order, after=after, upto=upto), now), upto


def _look_up_by_index() -> None:
    """Make PostgreSQL look up each account of a slice by index, until the transaction ends.

    Left to itself, it joins each slice with all users and all notices, because that takes no longer for one slice. With
    67 slices of a million accounts it took more than twice as long.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config(way, 'off', true) FROM unnest(%s::text[]) AS way", [READ_WHOLE_TABLES])


READ_WHOLE_TABLES = ["enable_hashjoin", "enable_mergejoin", "enable_seqscan", "enable_bitmapscan"]
"""The settings of PostgreSQL's planner for the ways to read many rows at once."""


def _insert(mail: _Mail, accounts: AccountQuerySet, now: datetime) -> int:
    """Queue the mail for these accounts; returns for how many."""
    # Raw SQL, because the ORM has no INSERT ... SELECT and a million accounts should not be loaded into Python.
    # A notice that another process wrote in the meantime does not change.
    # Sorted by an expression without an index, so that PostgreSQL completes the SELECT before it inserts the first row.
    # Otherwise, if the table was empty when last analyzed, it scans for every account all rows inserted so far.
    owed, parameters = accounts.order_by(F("id") + 0).values_list("id", "trial_ends_at").query.sql_with_params()
    if connection.features.has_select_for_update_skip_locked:
        # An account that is being deleted would fail the whole statement. Accounts that are locked are left to the next
        # run. The lock costs nothing: the foreign key takes it anyway.
        owed += " FOR KEY SHARE OF accounts_account SKIP LOCKED"
    statement = f"""
        INSERT INTO accounts_notice (account_id, trial_ends_at, kind, days_before, next_attempt)
        SELECT owed.id, owed.trial_ends_at, %s, %s, %s FROM ({owed}) AS owed WHERE true
        ON CONFLICT (account_id, kind, trial_ends_at, days_before) DO UPDATE
        SET status = 'pending', queued = excluded.queued, next_attempt = excluded.next_attempt,
            attempts = 0, last_error = ''
        WHERE accounts_notice.status = 'skipped'
        """  # noqa: S608 (the interpolated part comes from the ORM)
    with connection.cursor() as cursor:
        moment = connection.ops.adapt_datetimefield_value(now)
        cursor.execute(statement, [mail.kind.value, mail.days_before, moment, *parameters])
        return int(cursor.rowcount)


def retry(*, notice_id: int, now: datetime) -> bool:
    """Make a notice that is pending or given up due at once, with all its attempts again.

    False when it was sent or skipped (a skipped one that is true again is queued anyway), or a process is sending it.
    """
    unsent = Notice.objects.filter(pk=notice_id, status__in=[Notice.Status.PENDING, Notice.Status.GIVEN_UP])
    unclaimed = unsent.filter(Q(claimed=None) | Q(next_attempt__lte=now))
    return unclaimed.update(status=Notice.Status.PENDING, queued=Now(), attempts=0, next_attempt=now, claimed=None) == 1


def is_true(notice: Notice, *, now: datetime) -> bool:
    """Whether the notice is still true of its account at ``now``, and its window has not closed."""
    reminder = notice.kind == Notice.Kind.ENDING_SOON
    accounts = ending_soon(now, days_before=notice.days_before) if reminder else ended(now)
    return accounts.filter(pk=notice.account_id, trial_ends_at=notice.trial_ends_at).exists()


PRUNED_AT_ONCE = 10_000
"""The number of notices that one run checks for age."""


def prune_notices() -> int:
    """Delete closed notices older than ``TRIAL_LEDGER_DAYS``, among the oldest 10,000; returns how many.

    Closed notices are sent, skipped or given up. Both the notice and the end of the trial must be older, so that a mail
    that could still be owed keeps the notice that records it as sent.
    """
    days = max(settings.TRIAL_LEDGER_DAYS, settings.TRIAL_NOTICE_WINDOW_DAYS)
    before = Now() - Value(timedelta(days=days))
    # Sorted by key, which is by age, so that the query reads only these, however large the table is.
    oldest = Notice.objects.order_by("pk").values("pk")[:PRUNED_AT_ONCE]
    old = Notice.objects.filter(pk__in=oldest, queued__lt=before, trial_ends_at__lt=before)
    deleted, _ = old.exclude(status=Notice.Status.PENDING).delete()
    return deleted
