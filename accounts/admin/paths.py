"""The performance of each path, from the ledger: the table of the overview."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from statistics import median_low

from accounts.models import Account, ExpiryRun

SAMPLE = 1_000
"""Lateness is computed from at most this many accounts of each path, those that expired last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PathFigures:
    """The runs of one path in the last 30 days. Durations are None when there was nothing to measure."""

    path: ExpiryRun.Path
    last: ExpiryRun | None
    """The latest run, however old."""
    runs: int
    failed: int
    """Runs that failed or were interrupted."""
    refused: int
    expired: int
    """Accounts, less those that an undo put back."""
    median_duration: timedelta | None
    worst_duration: timedelta | None
    accounts_per_second: float | None
    """All accounts divided by all seconds of the runs that expired any account."""
    median_lateness: timedelta | None
    """The time from an account becoming due to the run that expired it, for the latest 1,000 accounts."""
    worst_lateness: timedelta | None


def path_figures(path: ExpiryRun.Path, ledger: Iterable[ExpiryRun]) -> PathFigures:
    """Sum up the runs of ``path`` in ``ledger``, which is sorted latest first."""
    runs = [run for run in ledger if run.path == path]
    durations = [run.finished - run.started for run in runs if run.finished]
    worked = [run for run in runs if run.expired_count and run.finished]
    seconds = sum((run.finished - run.started).total_seconds() for run in worked if run.finished)
    late = lateness(worked)
    return PathFigures(
        path=path,
        last=runs[0] if runs else ExpiryRun.objects.filter(path=path).order_by("-pk").first(),
        runs=len(runs),
        failed=sum(run.status in (ExpiryRun.Status.FAILED, ExpiryRun.Status.INTERRUPTED) for run in runs),
        refused=sum(run.status == ExpiryRun.Status.REFUSED for run in runs),
        expired=sum(run.expired_count - run.undone_count for run in runs),
        median_duration=median_low(durations) if durations else None,
        worst_duration=max(durations, default=None),
        accounts_per_second=sum(run.expired_count for run in worked) / seconds if seconds else None,
        median_lateness=median_low(late) if late else None,
        worst_lateness=max(late, default=None),
    )


def lateness(runs: Iterable[ExpiryRun]) -> list[timedelta]:
    """The lateness of the accounts of ``runs``, which are sorted latest first; at most ``SAMPLE`` accounts."""
    cutoffs, found = {}, 0
    for run in runs:
        if found < SAMPLE:
            cutoffs[run.pk] = run.cutoff
            found += run.expired_count
    expired = Account.objects.filter(expiry_run__in=cutoffs).values_list("expiry_run", "trial_ends_at")
    return [cutoffs[run] - ended for run, ended in expired[:SAMPLE]] if cutoffs else []
