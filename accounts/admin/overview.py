"""The figures of the overview: accounts by state, whether the schedule works, and the performance of each path.

The page is admin/overview.html. All queries together take a few hundred milliseconds with a million accounts: an index
serves the counts of trials, runs are few, and a bounded sample serves lateness. Expired accounts have no index, because
it would slow down every run; counting them reads the table, about 80 ms for a million.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import takewhile
from statistics import median_low
from typing import TYPE_CHECKING

from django.apps import apps
from django.conf import settings
from django.db.models import Count
from django.db.models.functions import TruncDate

from accounts import health
from accounts.access import why_on_hold
from accounts.admin.charts import Chart, stacked_bars
from accounts.models import Account, AccountQuerySet, ExpiryRun, grace_cutoff

if TYPE_CHECKING:
    from accounts.admin.schedule import Processes, Schedule

DAYS = 30
"""The overview shows the runs of the last 30 days and the trials that end within the next 30 days."""

SOON = timedelta(days=7)

SAMPLE = 10_000
"""Lateness is computed from at most this many accounts of each path, those that expired last."""


def ending(*, start: datetime, end: datetime) -> AccountQuerySet:
    """Trialing accounts whose trial ends between ``start``, included, and ``end``, not included."""
    return Account.objects.filter(status=Account.TRIALING, trial_ends_at__gte=start, trial_ends_at__lt=end)


def in_grace(now: datetime) -> AccountQuerySet:
    """Trialing accounts whose trial has ended, but whose grace has not."""
    return ending(start=grace_cutoff(now), end=now)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trials:
    """The number of accounts in each state."""

    trialing: int
    """All accounts on trial, including those that are due, in grace or ending soon."""
    due: int
    """The next run expires them."""
    in_grace: int
    ending_soon: int
    """The trial ends within 7 days."""
    expired: int


def trials(*, now: datetime) -> Trials:
    """Count the accounts by what the rule says of them at ``now``."""
    return Trials(
        trialing=Account.objects.filter(status=Account.TRIALING).count(),
        due=Account.objects.due(now).count(),
        in_grace=in_grace(now).count(),
        ending_soon=ending(start=now, end=now + SOON).count(),
        expired=Account.objects.filter(status=Account.TRIAL_EXPIRED).count(),
    )


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
    median_duration: timedelta | None
    worst_duration: timedelta | None
    accounts_per_second: float | None
    """All accounts divided by all seconds of the runs that expired any account."""
    median_lateness: timedelta | None
    """The time from an account becoming due to the run that expired it, for the latest 10,000 accounts."""
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
        expired=sum(run.expired_count for run in runs),
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


def expired_by_day(ledger: Iterable[ExpiryRun], *, now: datetime) -> Chart:
    """The accounts that each path expired, minus those undone, on each of the last 30 days and today."""
    counts: dict[str, Counter[date]] = {path.value: Counter() for path in ExpiryRun.Path}
    for run in ledger:
        counts[run.path][run.as_of.astimezone(UTC).date()] += run.expired_count - run.undone_count
    today = now.astimezone(UTC).date()
    return stacked_bars((today - timedelta(days=ago) for ago in range(DAYS, -1, -1)), counts)


def ending_by_day(*, now: datetime) -> Chart:
    """The trials that end in the rest of today and on each of the next 30 days."""
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    counts = (
        ending(start=now, end=midnight + timedelta(days=DAYS + 1))
        .values_list(TruncDate("trial_ends_at", tzinfo=UTC))
        .annotate(number=Count("*"))
        .order_by()
    )
    days = (midnight.date() + timedelta(days=ahead) for ahead in range(DAYS + 1))
    return stacked_bars(days, {"trials": dict(counts)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """Everything on the page."""

    now: datetime
    problems: list[str]
    """The sentences that ``check_expiry`` reports."""
    refused: int
    """The number of runs refused since the last successful run."""
    on_hold: str
    """Why accounts whose trial is over still have access; empty when they do not."""
    trials: Trials
    has_beat: bool
    """Whether django_celery_beat is installed. Without it the page does not mention Celery."""
    schedule: "Schedule | None"
    processes: "Processes | None"
    """None when beat has no enabled entry: then no process is pinged."""
    paths: list[PathFigures]
    expired: Chart
    ending: Chart


def collect(*, now: datetime) -> Overview:
    """Compute every figure of the overview, as of ``now``."""
    ledger = list(ExpiryRun.objects.filter(as_of__gt=now - timedelta(days=DAYS)).order_by("-pk"))
    unsuccessful = takewhile(lambda run: run.status != ExpiryRun.Status.SUCCEEDED, ledger)
    has_beat = apps.is_installed("django_celery_beat")
    schedule, processes = celery(now=now) if has_beat else (None, None)
    return Overview(
        now=now,
        problems=health.problems(now=now, max_age=timedelta(hours=settings.TRIAL_RUN_MAX_AGE_HOURS)),
        refused=sum(run.status == ExpiryRun.Status.REFUSED for run in unsuccessful),
        on_hold=why_on_hold(now),
        trials=trials(now=now),
        has_beat=has_beat,
        schedule=schedule,
        processes=processes,
        paths=[path_figures(path, ledger) for path in ExpiryRun.Path],
        expired=expired_by_day(ledger, now=now),
        ending=ending_by_day(now=now),
    )


def celery(*, now: datetime) -> "tuple[Schedule | None, Processes | None]":
    """The schedule and, when it has an enabled entry, the running processes."""
    from accounts.admin.schedule import processes, schedule  # imports Celery, which a project may not have

    ticks = schedule(now=now)
    return ticks, processes() if ticks and ticks.next_tick else None
