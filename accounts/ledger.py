"""The ledger: open, count, close and prune runs, detect dead ones, and send the signals.

``accounts.services`` writes to it; everything else only reads.
"""

import logging
import socket
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import DatabaseError, Error, connection
from django.db.models import F, Max, Sum, Value
from django.db.models.functions import Coalesce, Greatest, Now
from django.dispatch import Signal
from django.utils import timezone

from accounts.log import Fields, one_line
from accounts.models import CLOCKS_MAY_DIFFER, ExpiryRun, grace_cutoff
from accounts.slices import AIM, FIRST, Counted, next_size

logger = logging.getLogger(__name__)

SILENT_FOR = timedelta(minutes=10)
"""A run that has committed no slice for this long is marked interrupted. If its process is alive, it continues."""

ALIVE_FOR = timedelta(seconds=15)
"""A run that has committed a slice this lately is alive, and no second one of its path starts beside it. A slice takes
a tenth of a second; one that waits for a locked table, or is throttled, some six seconds more."""

MANY_EXPIRED = 10_000
"""After more than this within ``UNVACUUMED``, questions begin at the low-water mark: the entries of expired accounts
stay in the index until a VACUUM, and to read these takes about five milliseconds."""

UNVACUUMED = timedelta(days=30)
"""The longest that these entries are expected to stay, because a forgotten session or replica still needs them."""

LOOK_AT_ALL_EVERY = timedelta(hours=6)
"""How often a run looks at all trials even so."""

LONGEST_ERROR = 2000
"""The number of characters of an error that the ledger stores."""

trials_expired = Signal()
"""Sent with ``run``, an ExpiryRun, when a run has succeeded; at most once for each run.

An exception in a receiver is logged and does not fail the run. A process that is killed at that moment sends nothing:
derive what must not be lost from the accounts that point to the run.
"""

expiry_undone = Signal()
"""Sent with ``run`` and ``undone``, a number of accounts, when an undo has put accounts back on trial.

The guarantees are those of ``trials_expired``. A second undo of the same run that puts back more sends it again.
"""


def database_now() -> datetime:
    """The current time by the database's clock, which all processes share."""
    if connection.vendor != "postgresql":
        return timezone.now()  # SQLite runs in this process
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        (moment,) = cursor.fetchone()
    return moment  # type: ignore[no-any-return]


def clocks_agree(here: datetime, there: datetime) -> bool:
    """Whether the clocks of this process and of the database, read at one moment, differ by no more than they may."""
    return abs(here - there) <= CLOCKS_MAY_DIFFER


def new_run(*, path: ExpiryRun.Path, now: datetime, **more: Any) -> ExpiryRun:
    """A new run, not stored yet. It fixes ``cutoff`` and ``floor``, which every slice applies."""
    return ExpiryRun(path=path, as_of=now, cutoff=grace_cutoff(now), host=socket.gethostname()[:255], **more)


def low_water_mark(*, now: datetime) -> datetime | None:
    """The moment before which no trial that ended is left to expire, as far as the ledger knows; None: look at all.

    There is a mark only after ``MANY_EXPIRED`` within ``UNVACUUMED``. A run that succeeded and skipped no locked
    account is done with every trial that ended before its cutoff. After any other, the next one looks again from where
    that one began. What gets below the mark by another way, such as an end that somebody set into the past, is found
    by the run that looks at all: every ``LOOK_AT_ALL_EVERY``, and after an undo, until a run has begun ``SILENT_FOR``
    after the undo's last slice.

    Args:
        now: the time by the database's clock.
    """
    unvacuumed = ExpiryRun.objects.filter(started__gt=now - UNVACUUMED)
    if (unvacuumed.aggregate(expired=Sum("expired_count"))["expired"] or 0) <= MANY_EXPIRED:
        return None
    latest = ExpiryRun.objects.exclude(status=ExpiryRun.Status.REFUSED).order_by("pk").last()
    if latest is None:
        return None
    lately = ExpiryRun.objects.filter(status=ExpiryRun.Status.SUCCEEDED, started__gt=now - LOOK_AT_ALL_EVERY)
    undone = ExpiryRun.objects.filter(undone_at__isnull=False, heartbeat__gt=latest.started - SILENT_FOR)
    if not lately.filter(floor=None).exists() or undone.exists():
        return None
    if latest.status != ExpiryRun.Status.SUCCEEDED or latest.skipped:
        return latest.floor
    return max(latest.cutoff, latest.floor or latest.cutoff)


def living_run(*, path: ExpiryRun.Path | None = None) -> ExpiryRun | None:
    """A run, of this path if one is given, that is running and has committed a slice within ``ALIVE_FOR``."""
    alive = ExpiryRun.objects.filter(status=ExpiryRun.Status.RUNNING, heartbeat__gt=Now() - Value(ALIVE_FOR))
    return (alive.filter(path=path) if path else alive).order_by("-pk").first()


def next_slice_size(run: ExpiryRun) -> int | None:
    """How many accounts the next slice of the run should have; None when it expires no more, or was deleted."""
    found = ExpiryRun.objects.filter(pk=run.pk, status__in=TAKES_ACCOUNTS).only("batch_size", "slice_size").first()
    return found.size if found else None


def refuse(run: ExpiryRun, why: str) -> None:
    """Store the run as refused."""
    run.status, run.error, run.finished = ExpiryRun.Status.REFUSED, why, Now()
    run.save()
    run.refresh_from_db()
    log_run(run, _level(run, logging.WARNING))


def record_jobs(run: ExpiryRun, jobs: int) -> None:
    """Store how many threads work on the run."""
    ExpiryRun.objects.filter(pk=run.pk).update(jobs=jobs)


def undo_slice_size(run: ExpiryRun) -> int | None:
    """How many accounts the next slice of the run's undo should have; None when the run was deleted."""
    return ExpiryRun.objects.filter(pk=run.pk).values_list("slice_size", flat=True).first()


TAKES_ACCOUNTS = [ExpiryRun.Status.RUNNING, ExpiryRun.Status.INTERRUPTED, ExpiryRun.Status.FAILED]
"""A run that was marked interrupted may still be alive, and one that failed has slices that continue. Any other expires
no more accounts: a message redelivered after its run succeeded must not expire accounts put back on trial since."""


def count_expired(run: ExpiryRun, slice_: Counted) -> bool:
    """Add a slice to the run, in the slice's transaction; False when the run expires no more, or was deleted."""
    counted = ExpiryRun.objects.filter(pk=run.pk, status__in=TAKES_ACCOUNTS).update(
        expired_count=F("expired_count") + slice_.rows,
        due_count=Greatest(F("due_count"), F("expired_count") + slice_.rows),
        slice_count=F("slice_count") + 1,
        longest_slice=Greatest(F("longest_slice"), Value(slice_.locked)),
        **_progress(slice_),
    )
    return counted == 1


def count_undone(run: ExpiryRun, slice_: Counted) -> bool:
    """Add a slice of an undo to the run, in the slice's transaction; False when the run was deleted."""
    undone_count = F("undone_count") + slice_.rows
    return ExpiryRun.objects.filter(pk=run.pk).update(undone_count=undone_count, **_progress(slice_)) == 1


def _progress(slice_: Counted) -> dict[str, Any]:
    size = next_size(slice_.rows, slice_.locked)
    progress: dict[str, Any] = {
        "heartbeat": Now(),
        # A slice whose accounts were mostly changed by another is short, which does not mean that it should be.
        "slice_size": size if slice_.locked > AIM else Greatest(F("slice_size"), size),
    }
    return progress | {"skipped": True} if slice_.skipped else progress


def mark_undone(run: ExpiryRun, *, by: str) -> None:
    """Mark the run undone, so that its slices expire no more. Keeps who undid it first; a refused run stays refused."""
    once = ExpiryRun.objects.filter(pk=run.pk).exclude(status__in=[ExpiryRun.Status.REFUSED, ExpiryRun.Status.UNDONE])
    once.update(
        status=ExpiryRun.Status.UNDONE,
        finished=Coalesce("finished", Now()),
        undone_at=Now(),
        undone_by=by,
        slice_size=FIRST,  # an account takes longer to put back than to expire
    )


def mark_dead_runs_interrupted() -> None:
    """Close the runs that have committed no slice for ``SILENT_FOR``.

    Their accounts need no repair: what they expired is counted, and what they left is still due for the next run.
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
            log_run(run, logging.WARNING)


def finish_run(*, run_id: int) -> bool:
    """Record that every slice of the run was done, and send ``trials_expired``; False when it was closed before.

    Also prunes the ledger, because every successful run of either path ends here.
    """
    run = _close(run_id, logging.INFO, ExpiryRun.Status.SUCCEEDED)
    if run:
        trials_expired.send_robust(sender=ExpiryRun, run=run)
        try:
            prune_ledger()
        except DatabaseError as error:  # nothing depends on it, and the next run retries it
            logger.warning(Fields("ledger_not_pruned", error=type(error).__name__))
    return run is not None


A_SLICE_FAILED = "A slice failed; the log of its worker says why."


def interrupt_run(*, run_id: int, why: str) -> None:
    """Record that the run was stopped before its end, and why."""
    _close(run_id, logging.INFO, ExpiryRun.Status.INTERRUPTED, why)


def fail_run(*, run_id: int, error: BaseException) -> None:
    """Record that the run failed, and why. What it expired so far remains expired and counted.

    Raises nothing: when the database cannot store it, the error is logged, and a later run marks this one interrupted.
    """
    try:
        if not connection.in_atomic_block and not connection.is_usable():
            connection.close()  # a lost connection may have failed the run; the next statement opens another
        why = one_line(f"{type(error).__name__}: {error}", most=LONGEST_ERROR)
        if not _close(run_id, logging.ERROR, ExpiryRun.Status.FAILED, why):
            ExpiryRun.objects.filter(pk=run_id, status=ExpiryRun.Status.FAILED, error=A_SLICE_FAILED).update(error=why)
    except Error as reason:
        # Without its traceback, which cron would mail: the caller reports the error itself.
        logger.error(Fields("failure_not_recorded", run=run_id, error=type(reason).__name__))  # noqa: TRY400


def record_failed_slice(*, run_id: int) -> None:
    """Record that a slice of the run failed; ``fail_run``, which may come later, adds why."""
    _close(run_id, logging.ERROR, ExpiryRun.Status.FAILED, A_SLICE_FAILED)


def _close(run_id: int, level: int, status: ExpiryRun.Status, error: str = "") -> ExpiryRun | None:
    # INTERRUPTED included: a run that was only slow, and marked interrupted, still gets its real outcome.
    still_open = [ExpiryRun.Status.RUNNING, ExpiryRun.Status.INTERRUPTED]
    closed = ExpiryRun.objects.filter(pk=run_id, status__in=still_open).update(
        status=status, finished=Now(), error=error
    )
    if not closed:
        return None
    run = ExpiryRun.objects.get(pk=run_id)
    log_run(run, _level(run, level))
    return run


def log_run(run: ExpiryRun, level: int, *, seconds: float | None = None, **more: Any) -> None:
    """Log one line for the end of a run, or of its undo."""
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
        jobs=run.jobs if run.jobs > 1 else None,
        seconds=None if seconds is None else round(seconds, 3),
        task_id=run.task_id,
        **more,
    )
    logger.log(level, fields)


def log_slice(run: ExpiryRun, level: int, event: str, **fields: Any) -> None:
    """Log one line about a slice of the run."""
    logger.log(_level(run, level), Fields(event, run=run.pk, path=run.path, task_id=run.task_id, **fields))


def _level(run: ExpiryRun, level: int) -> int:
    """INFO for a run of the command, because the command reports a refusal or a failure itself, on stderr."""
    return logging.INFO if run.path == ExpiryRun.Path.COMMAND else level


def prune_ledger() -> int:
    """Delete the runs that began more than ``TRIAL_LEDGER_DAYS`` ago and expired no account; returns how many.

    Most runs of an hourly schedule expire none. A run that expired accounts stays, even when no account points to it
    any more: it answers "why was I expired?", and the sums of the ledger stay correct. The latest success of each path
    stays too: it shows since when a path is not in use.
    """
    latest = ExpiryRun.objects.filter(status=ExpiryRun.Status.SUCCEEDED).order_by().values("path").annotate(Max("pk"))
    old = ExpiryRun.objects.filter(
        expired_count=0,
        started__lt=Now() - Value(timedelta(days=settings.TRIAL_LEDGER_DAYS)),
    )
    _, deleted = old.exclude(pk__in=latest.values("pk__max")).delete()
    return deleted.get(ExpiryRun._meta.label, 0)
