"""The verbs that change an account: expire trials, undo that, and activate, extend and cancel one account.

Every verb is one conditional ``UPDATE`` (for a run and its undo: one for each slice), so it is decided by what the row
says at that moment, never by what was read before. This module knows nothing of Celery or of the command line; both
call it.
"""

import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from django.conf import settings
from django.db import DatabaseError, Error, connection, transaction
from django.db.models import Count, F, Max, Min, Value, Window
from django.db.models.functions import Coalesce, Greatest, Now, RowNumber
from django.dispatch import Signal
from django.utils import timezone

from accounts.log import Fields
from accounts.models import Account, AccountQuerySet, ExpiryRun
from accounts.retention import prune_ledger

logger = logging.getLogger(__name__)

BATCH_SIZE = 10_000
"""Accounts in a slice: 70 to 90 ms of locks on PostgreSQL, and as fast as one statement for all."""

SILENT_FOR = timedelta(minutes=10)
"""A run that has committed no slice for this long is taken for dead. Should it live after all, it goes on unharmed."""

trials_expired = Signal()
"""Sent with ``run``, an ExpiryRun, when a run has succeeded; at most once for each run.

A receiver that raises is logged and cannot fail the run. A process killed at that moment sends nothing, so what must
not be lost is better derived from the accounts that point to the run.
"""


class TooManyDue(Exception):  # noqa: N818 (it says what happened, as DoesNotExist does)
    """The fuse: more accounts are due than one run may expire. Nothing was changed but the ledger."""

    def __init__(self, run: ExpiryRun, limit: int) -> None:
        super().__init__(run, limit)
        self.run = run
        self.limit = limit

    def __repr__(self) -> str:
        # What Celery's log and its monitors show.
        return f"{type(self).__name__}({str(self)!r})"

    def __str__(self) -> str:
        return (
            f"Refused: {self.run.due_count} accounts are due and at most {self.limit} may expire in one run. "
            f"Nothing was changed. If the number is right, allow it once with ./manage.py expire_trials "
            f"--max-accounts {self.run.due_count}, or raise TRIAL_EXPIRY_MAX; if not, look at TRIAL_DAYS, "
            f"TRIAL_GRACE_DAYS, the trial ends of these accounts and the clock."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """A half-open range of primary keys. It names no accounts: which of them are due is asked when it runs."""

    after: int
    """The range begins above this key ..."""
    upto: int
    """... and ends with this one."""


RunSlices = Callable[[ExpiryRun, Sequence[Slice]], None]
"""Runs every slice with ``expire_slice`` and then sees to ``finish_run``: here and now, or by somebody else later."""


def expire_trials(
    *,
    path: ExpiryRun.Path,
    now: datetime,
    batch_size: int = BATCH_SIZE,
    max_accounts: int | None = None,
    task_id: str = "",
    run_slices: RunSlices | None = None,
) -> ExpiryRun:
    """Move every due account (``Account.objects.due(now)``) from trialing to trial expired, and record the run.

    Safe to call at any time, twice, or beside itself: the rule is asked again inside each UPDATE, so an account that
    is paid for, extended or cancelled in the meantime stays as it is, and none is expired or counted twice.

    Args:
        path: which of the two ways called, for the ledger.
        now: the moment to apply the rule to, with a time zone; becomes the run's ``as_of``.
        batch_size: accounts in a slice, 1 or more.
        max_accounts: refuse when more are due; without it ``settings.TRIAL_EXPIRY_MAX`` is the limit.
        task_id: Celery's id of the calling task, for the ledger.
        run_slices: how to run the slices; by default one after the other in this process.

    Returns:
        The run as it stands in the ledger: succeeded, or still running where ``run_slices`` left that to others.

    Raises:
        ValueError: ``now`` is naive, or a number is below 1.
        TooManyDue: the limit was exceeded; the run is recorded as refused.
        Exception: whatever made a slice fail; the run is recorded as failed, and what it did remains done.
    """
    if timezone.is_naive(now):
        raise ValueError(f"now must have a time zone, got {now!r}.")
    limit = settings.TRIAL_EXPIRY_MAX if max_accounts is None else max_accounts
    for name, number in (("batch_size", batch_size), ("max_accounts", limit)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number!r}.")

    mark_dead_runs_interrupted()
    due = Account.objects.due(now)
    slices, due_count = plan_slices(due, batch_size=batch_size) if Account.objects.any_due(now) else ([], 0)
    run = ExpiryRun(
        path=path,
        as_of=now,
        due_count=due_count,
        slice_count=len(slices),
        host=socket.gethostname(),
        task_id=task_id,
    )
    if limit is not None and due_count > limit:
        refusal = TooManyDue(run, limit)
        run.status, run.error, run.finished = ExpiryRun.Status.REFUSED, str(refusal), Now()
        run.save()
        run.refresh_from_db()
        _log(run, logging.WARNING)
        raise refusal
    run.save()
    try:
        (run_slices or in_turn)(run, slices)
    except KeyboardInterrupt:
        _close_run(run.pk, logging.INFO, ExpiryRun.Status.INTERRUPTED, "Stopped by a signal.")
        raise
    except Exception as error:
        fail_run(run_id=run.pk, error=error)
        raise
    run.refresh_from_db()
    return run


def mark_dead_runs_interrupted() -> None:
    """Close the runs that have been silent for ``SILENT_FOR``.

    Their accounts need no repair: what they expired is counted, and what they left is due for whoever runs next.
    """
    silent = ExpiryRun.objects.filter(status=ExpiryRun.Status.RUNNING, heartbeat__lt=Now() - Value(SILENT_FOR))
    for run in silent:
        marked = silent.filter(pk=run.pk).update(
            status=ExpiryRun.Status.INTERRUPTED,
            finished=F("heartbeat"),
            error="Died, or lost its last message, before every slice was done. The next run takes what it left.",
        )
        if marked:
            run.refresh_from_db()
            _log(run, logging.WARNING)


def plan_slices(accounts: AccountQuerySet, *, batch_size: int) -> tuple[list[Slice], int]:
    """Cut the accounts into slices of at most ``batch_size``, by primary key, and count them.

    What comes back from the database grows with the number of slices, not of accounts.
    """
    keys = accounts.aggregate(count=Count("pk"), first=Min("pk"), last=Max("pk"))
    count: int = keys["count"]
    if not count:
        return [], 0
    before, last = keys["first"] - 1, keys["last"]
    if count <= batch_size:
        cuts = [last]
    elif last - before <= 2 * count:
        # A range of so many keys cannot hold more accounts, and where most keys count it holds almost as many. To
        # number 800,000 rows, as below, takes half a second more, a tenth of the whole run.
        cuts = [*range(before + batch_size, last, batch_size), last]
    else:
        numbered = accounts.annotate(number=Window(RowNumber(), order_by="pk"))
        every_nth = numbered.annotate(remainder=F("number") % batch_size).filter(remainder=0)
        cuts = [*every_nth.order_by("pk").values_list("pk", flat=True), last]
    return [Slice(after=after, upto=upto) for after, upto in pairwise([before, *cuts]) if after < upto], count


AfterSlice = Callable[[int, int], None]
"""Called with the number of slices done and of all slices: to show progress, or to stop by raising."""


def in_turn(run: ExpiryRun, slices: Sequence[Slice], *, after_slice: AfterSlice = lambda done, total: None) -> None:
    """Run the slices here, one after the other, then finish the run. See ``expire_slices``."""
    expire_slices(run=run, slices=slices, after_slice=after_slice)
    finish_run(run_id=run.pk)


def expire_slices(
    *, run: ExpiryRun, slices: Sequence[Slice], after_slice: AfterSlice = lambda done, total: None
) -> int:
    """Run some slices of a run, one after the other; returns how many accounts expired.

    A slice that fails does not keep the others from running; the first error is raised when all have had their turn.
    With the connection gone there is nothing to go on with, and the error is raised at once.
    """
    return _each_in_turn(slices, lambda part: expire_slice(run=run, part=part), after_slice)


def _each_in_turn(slices: Sequence[Slice], change: Callable[[Slice], int], after_slice: AfterSlice) -> int:
    changed = 0
    errors: list[DatabaseError] = []
    for done, part in enumerate(slices, start=1):
        try:
            changed += change(part)
        except DatabaseError as error:
            if not connection.is_usable():
                raise
            errors.append(error)
        after_slice(done, len(slices))
    if errors:
        raise errors[0]
    return changed


def expire_slice(*, run: ExpiryRun, part: Slice) -> int:
    """Expire the accounts of one slice that are still due, in one short transaction; returns how many.

    May run twice, late, or beside another run. Once the run was undone it changes nothing. A deadlock or serialization
    failure is tried again. When somebody sits on an account of this slice for longer than a moment, the others are
    expired without it; it is left to the next run.

    Raises:
        DatabaseError: the slice failed for good, and changed nothing.
    """

    def record(expired: int, took: timedelta) -> int:
        # A run that was undone, or pruned, takes no more accounts.
        still_counts = ExpiryRun.objects.filter(pk=run.pk).exclude(status__in=CHANGES_NOTHING)
        return still_counts.update(
            expired_count=F("expired_count") + expired,
            longest_slice=Greatest(F("longest_slice"), Value(took)),
            heartbeat=Now(),
        )

    return _change_slice(
        run,
        part,
        Account.objects.due(run.as_of),
        {"status": Account.TRIAL_EXPIRED, "trial_expired_at": run.as_of, "expiry_run": run},
        record,
    )


CHANGES_NOTHING = [ExpiryRun.Status.REFUSED, ExpiryRun.Status.UNDONE]

LOCK_NOT_AVAILABLE = "55P03"
TRY_AGAIN = {"40P01", "40001"}  # deadlock detected, serialization failure
ATTEMPTS = 5

# How long a slice waits for a lock. For a busy row less than PostgreSQL's deadlock_timeout (1 s), so that a payment is
# not made the victim of a deadlock with us; after that the slice goes on without the row, and waits only for the table.
ROW_LOCK_TIMEOUT = "200ms"
TABLE_LOCK_TIMEOUT = "5s"

Record = Callable[[int, timedelta], int]
"""Adds the number of accounts and the time they were locked to the run; how many rows of the ledger that changed."""


def _change_slice(
    run: ExpiryRun, part: Slice, accounts: AccountQuerySet, changes: dict[str, Any], record: Record
) -> int:
    """Change those of ``accounts`` that lie in the slice, and count them, as ``expire_slice`` describes it."""
    accounts = accounts.filter(pk__gt=part.after, pk__lte=part.upto)
    skip_locked = False
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _change_at_once(accounts, changes, record, skip_locked=skip_locked)
        except DatabaseError as error:
            state = getattr(error.__cause__, "sqlstate", None)
            locked = state == LOCK_NOT_AVAILABLE and not skip_locked
            again = attempt < ATTEMPTS and (locked or state in TRY_AGAIN)
            fields = Fields(
                "slice_tried_again" if again else "slice_failed",
                run=run.pk,
                path=run.path,
                task_id=run.task_id,
                after=part.after,
                upto=part.upto,
                attempt=attempt,
                error=type(error).__name__,
                sqlstate=state,
            )
            logger.log(logging.INFO if again else logging.WARNING, fields)
            if not again:
                raise
            skip_locked = skip_locked or locked
    raise AssertionError("unreachable")


def _change_at_once(accounts: AccountQuerySet, changes: dict[str, Any], record: Record, *, skip_locked: bool) -> int:
    # durable: inside somebody else's transaction the locks would be held, and the count unseen, until that one ends.
    with transaction.atomic(durable=True):
        started = time.monotonic()
        if connection.vendor == "postgresql":
            lock_timeout = TABLE_LOCK_TIMEOUT if skip_locked else ROW_LOCK_TIMEOUT
            with connection.cursor() as cursor:
                cursor.execute("SELECT set_config('lock_timeout', %s, true)", [lock_timeout])
        if skip_locked:  # 2.8 times the work, so only where it is needed
            accounts = Account.objects.filter(pk__in=accounts.select_for_update(skip_locked=True).values("pk"))
        changed = accounts.update(**changes)
        # Last, because slices that run at the same moment wait for each other here, until the commit.
        if not record(changed, timedelta(seconds=time.monotonic() - started)):
            transaction.set_rollback(True)
            return 0
    return changed


def finish_run(*, run_id: int) -> bool:
    """Record that every slice of the run was done, and send ``trials_expired``; False when it was closed before.

    Prunes the ledger as well: here, because every run of either path comes by when it has succeeded.
    """
    run = _close_run(run_id, logging.INFO, ExpiryRun.Status.SUCCEEDED)
    if run:
        trials_expired.send_robust(sender=ExpiryRun, run=run)
        try:
            prune_ledger()
        except DatabaseError as error:  # nothing depends on it, and the next run tries again
            logger.warning(Fields("ledger_not_pruned", error=type(error).__name__))
    return run is not None


def fail_run(*, run_id: int, error: BaseException) -> None:
    """Record that the run failed, and why. What it expired so far remains expired and counted.

    Does not raise: where the database cannot be told, the log is, and a later run will mark this one interrupted.
    """
    try:
        if not connection.in_atomic_block and not connection.is_usable():
            connection.close()  # it may be what failed the run; the next statement opens another
        _close_run(run_id, logging.ERROR, ExpiryRun.Status.FAILED, f"{type(error).__name__}: {error}".strip())
    except Error as why:
        # Without its traceback: cron would mail that, and the caller reports the error itself.
        logger.error(Fields("failure_not_recorded", run=run_id, error=type(why).__name__))  # noqa: TRY400


def _close_run(run_id: int, level: int, status: ExpiryRun.Status, error: str = "") -> ExpiryRun | None:
    # Also out of INTERRUPTED: a run that was only slow, and taken for dead, ends as what it was.
    still_open = [ExpiryRun.Status.RUNNING, ExpiryRun.Status.INTERRUPTED]
    closed = ExpiryRun.objects.filter(pk=run_id, status__in=still_open).update(
        status=status, finished=Now(), error=error
    )
    if not closed:
        return None
    run = ExpiryRun.objects.get(pk=run_id)
    _log(run, level)
    return run


def _log(run: ExpiryRun, level: int, *, seconds: float | None = None, **more: Any) -> None:
    """One line for the end of a run, or of its undo."""
    if seconds is None and run.finished:
        seconds = (run.finished - run.started).total_seconds()
    fields = Fields(
        "expiry_run",
        run=run.pk,
        path=run.path,
        status=run.status,
        due=run.due_count,
        expired=run.expired_count,
        slices=run.slice_count,
        seconds=None if seconds is None else round(seconds, 3),
        task_id=run.task_id,
        **more,
    )
    logger.log(level, fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class UndoPreview:
    """What undoing a run would do, as things stand."""

    would_return: int
    """Accounts that this run expired and that are still expired: they would be back on trial."""
    due_again: int
    """Those of them that the rule would expire again at the next tick, unless they are extended in the same step."""
    moved_on: int
    """Accounts that this run expired and that have paid, or were cancelled, since. They stay as they are."""
    extended: int
    """Accounts that this run expired and that were extended one by one since, or deleted. They stay as they are."""

    @property
    def left_alone(self) -> int:
        """Accounts that this run expired and that an undo would not touch."""
        return self.moved_on + self.extended


def preview_undo(*, run: ExpiryRun, now: datetime) -> UndoPreview:
    """Say what ``undo_run`` would do; changes nothing. Exact while nobody changes the accounts at the same moment.

    Args:
        run: as just read from the database.
        now: the moment that ``due_again`` is judged at, with a time zone.
    """
    pointing = Account.objects.filter(expiry_run=run).count()
    expired = Account.objects.still_expired_by(run)
    would_return = expired.count()
    return UndoPreview(
        would_return=would_return,
        due_again=expired.over(now).count(),
        moved_on=pointing - would_return,
        extended=max(0, run.expired_count - run.undone_count - pointing),
    )


def undo_run(
    *,
    run: ExpiryRun,
    now: datetime,
    by: str,
    extend_days: int | None = None,
    batch_size: int = BATCH_SIZE,
    after_slice: AfterSlice = lambda done, total: None,
) -> int:
    """Put every account that the run expired, and that is still expired, back on trial; returns how many.

    The run is marked undone first, so that none of its slices that is still to come expires anybody: undoing a run that
    is under way also stops it. A refused run stays refused. An account that paid or was cancelled stays as it is.

    Safe to call at any time, twice, or beside itself, runs and payments; killed, it is called again and goes on. Where
    somebody sits on an account, that one is left out, and the next call takes it.

    Args:
        now: the moment an extension is counted from, with a time zone.
        by: who undoes it, for the ledger, which keeps who was first.
        extend_days: let the trials end so many days later, counted from their end or from ``now``, whichever is later.
            Without it the rule expires most of the accounts again at the next tick.
        batch_size: accounts in a slice, 1 or more.
        after_slice: called with the number of slices done and of all slices; what it raises stops the undo.

    Raises:
        ValueError: ``now`` is naive, or a number is out of range.
        DatabaseError: a slice failed for good, and changed nothing; the others are done.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size!r}.")
    back_on_trial = _back_on_trial(extend_days, now)
    started = time.monotonic()
    ExpiryRun.objects.filter(pk=run.pk).exclude(status__in=CHANGES_NOTHING).update(
        status=ExpiryRun.Status.UNDONE, finished=Coalesce("finished", Now()), undone_at=Now(), undone_by=by
    )
    # From here on nobody is added to these: a slice that was about to commit did so before the mark, or never will.
    expired = Account.objects.still_expired_by(run)

    def record(undone: int, took: timedelta) -> int:
        return ExpiryRun.objects.filter(pk=run.pk).update(undone_count=F("undone_count") + undone)

    slices, _ = plan_slices(expired, batch_size=batch_size)
    undone = _each_in_turn(slices, lambda part: _change_slice(run, part, expired, back_on_trial, record), after_slice)
    run.refresh_from_db()
    _log(run, logging.INFO, seconds=time.monotonic() - started, undone=undone)
    return undone


def activate(*, account_id: int) -> bool:
    """Make a trialing or expired account active: what a payment does. False when it was neither."""
    return _change(account_id, Account.TRIALING, Account.TRIAL_EXPIRED, status=Account.ACTIVE)


def extend_trial(*, account_id: int, days: int, now: datetime) -> bool:
    """Let a trial end ``days`` later, counted from its end or from ``now``, whichever is later.

    An expired account is back on trial with it. False when the account was neither trialing nor expired.

    Raises:
        ValueError: ``days`` is below 1 or above ``LONGEST_EXTENSION``, or ``now`` is naive.
    """
    return _change(account_id, Account.TRIALING, Account.TRIAL_EXPIRED, **_back_on_trial(days, now))


LONGEST_EXTENSION = 3650
"""Days. More is a slip of the keyboard, and much more is no date."""


def _back_on_trial(extend_days: int | None, now: datetime) -> dict[str, Any]:
    if timezone.is_naive(now):
        raise ValueError(f"now must have a time zone, got {now!r}.")
    changes: dict[str, Any] = {"status": Account.TRIALING, "trial_expired_at": None, "expiry_run": None}
    if extend_days is not None:
        if extend_days < 1:
            raise ValueError(f"days must be at least 1, got {extend_days!r}.")
        if extend_days > LONGEST_EXTENSION:
            raise ValueError(f"days must be at most {LONGEST_EXTENSION}, got {extend_days!r}.")
        changes["trial_ends_at"] = Greatest(F("trial_ends_at"), Value(now)) + Value(timedelta(days=extend_days))
    return changes


def cancel(*, account_id: int) -> bool:
    """Cancel a trialing, expired, active or past-due account. False when there was nothing to cancel."""
    return _change(
        account_id,
        Account.TRIALING,
        Account.TRIAL_EXPIRED,
        Account.ACTIVE,
        Account.PAST_DUE,
        status=Account.CANCELED,
    )


def _change(account_id: int, *from_statuses: Account.Status, **to: Any) -> bool:
    return Account.objects.filter(pk=account_id, status__in=from_statuses).update(**to) == 1
