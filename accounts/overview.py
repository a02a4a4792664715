"""What an operator looks at first: how the trials stand, whether the schedule lives, and how the two paths do.

Figures only; the page is admin/overview.html. All of it together takes a few hundred milliseconds with a million
accounts: trials are counted in the index of the rule, runs are few, and lateness is taken from a bounded sample. Only
the accounts that are expired by now have no index of their own, which would slow down every run; they are counted by
reading the table, about 80 ms for a million.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import takewhile
from statistics import median_low

from celery import current_app
from django.conf import settings
from django.core.cache import cache
from django.db.models import Count
from django.db.models.functions import TruncDate
from django_celery_beat.models import PeriodicTask

from accounts import health, tasks
from accounts.models import Account, AccountQuerySet, ExpiryRun

DAYS = 30
"""How far the overview looks back, at runs, and ahead, at trials that end."""

SOON = timedelta(days=7)

SAMPLE = 10_000
"""Accounts of each path, those that expired last, that lateness is taken from."""


def ending(*, start: datetime, end: datetime) -> AccountQuerySet:
    """Trialing accounts whose trial ends between ``start``, included, and ``end``, not included."""
    return Account.objects.filter(status=Account.TRIALING, trial_ends_at__gte=start, trial_ends_at__lt=end)


def in_grace(now: datetime) -> AccountQuerySet:
    """Trialing accounts whose trial has ended, and that are not due yet."""
    return ending(start=now - timedelta(days=settings.TRIAL_GRACE_DAYS), end=now)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trials:
    """How many accounts are where."""

    trialing: int
    """On trial: all of them, also those that are due, in grace or ending soon."""
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
class Schedule:
    """The entry in beat's schedule that expires trials."""

    entry: PeriodicTask
    next_tick: datetime | None
    """None when the entry is disabled."""
    late: bool
    """Beat has ticked before, and the tick that should have come by now has not."""


BEAT_MAY_LAG = timedelta(minutes=5)


def schedule(*, now: datetime) -> Schedule | None:
    """When beat ticks next, and whether it has missed a tick; None when the schedule has no entry for it."""
    entries = PeriodicTask.objects.select_related("crontab", "interval", "solar", "clocked")
    entry = entries.filter(task=tasks.expire_trials.name).order_by("-enabled", "pk").first()
    if not entry:
        return None
    if not entry.enabled:
        return Schedule(entry=entry, next_tick=None, late=False)
    ticks = entry.schedule
    ticks.nowfun = lambda: now
    next_tick = now + timedelta(seconds=ticks.is_due(entry.last_run_at or now).next)
    ticks.nowfun = lambda: now - BEAT_MAY_LAG
    late = entry.last_run_at is not None and ticks.is_due(entry.last_run_at).is_due
    return Schedule(entry=entry, next_tick=next_tick.replace(microsecond=0), late=late)


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """Who answered a ping through the broker."""

    broker: bool
    """Whether the broker itself could be reached."""
    beats: int = 0
    workers: int = 0


PING_SECONDS = 0.5


def processes() -> Processes:
    """Ask every worker and beat for a sign of life. Takes a second at most, and is asked at most every 15 seconds."""
    return cache.get_or_set("accounts.overview.processes", _ping, 15) or Processes(broker=False)


def _ping() -> Processes:
    # Waiting twice, to connect and to be answered, is all that a page may do for a broker that is away.
    impatient = {"socket_connect_timeout": PING_SECONDS, "socket_timeout": PING_SECONDS, "max_retries": 0}
    try:
        with current_app.connection_for_write(transport_options=impatient) as broker:
            answers = current_app.control.ping(timeout=PING_SECONDS, connection=broker)
    except Exception:  # whatever is wrong with the broker or its URL, the page must come
        return Processes(broker=False)
    names = [name for answer in answers or () for name in answer]
    beats = sum(name.startswith("celerybeat@") for name in names)
    return Processes(broker=True, beats=beats, workers=len(names) - beats)


@dataclass(frozen=True, kw_only=True, slots=True)
class PathFigures:
    """How one of the two paths did in the last 30 days. Durations are None where there was nothing to measure."""

    path: ExpiryRun.Path
    last: ExpiryRun | None
    """Its latest run, however old."""
    runs: int
    failed: int
    """Failed, or interrupted."""
    refused: int
    expired: int
    median_duration: timedelta | None
    worst_duration: timedelta | None
    accounts_per_second: float | None
    """Of the runs that expired anybody: all their accounts by all their seconds."""
    median_lateness: timedelta | None
    """From the moment an account was due to the moment of the run that expired it, for the latest 10,000."""
    worst_lateness: timedelta | None


def path_figures(path: ExpiryRun.Path, ledger: Iterable[ExpiryRun]) -> PathFigures:
    """Sum up the runs of ``path`` among those of ``ledger``, which begins with the latest."""
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
    """How long after they were due the accounts of ``runs``, latest first, were expired; ``SAMPLE`` of them at most."""
    enough, found = [], 0
    for run in runs:
        if found < SAMPLE:
            enough.append(run.pk)
            found += run.expired_count
    expired = Account.objects.filter(expiry_run__in=enough).values_list("trial_expired_at", "trial_ends_at")
    grace = timedelta(days=settings.TRIAL_GRACE_DAYS)
    return [at - ended - grace for at, ended in expired[:SAMPLE] if at] if enough else []


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One series' share of a bar: a rectangle in a chart 1000 high and 10 wide for each day, counted from above."""

    series: str
    y: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A day of a chart."""

    day: date
    x: int
    counts: list[int]
    """Of each series."""
    parts: list[Part]
    """What there is to draw: nothing for a count of 0."""

    @property
    def count(self) -> int:
        """Of all series."""
        return sum(self.counts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A bar for each day."""

    bars: list[Bar]
    series: list[str]
    highest: int
    """The count of the highest bar."""
    total: int

    @property
    def width(self) -> int:
        """In the units of ``Bar.x``."""
        return 10 * len(self.bars)


def chart(days: Iterable[date], series: Mapping[str, Mapping[date, int]]) -> Chart:
    """Stack the counts of each series, the first at the bottom, for each of the days."""
    bars: list[tuple[date, list[int]]] = [(day, [counts.get(day, 0) for counts in series.values()]) for day in days]
    highest = max(sum(counts) for _, counts in bars)
    return Chart(
        bars=[
            Bar(day=day, x=10 * number, counts=counts, parts=_stack(series, counts, highest))
            for number, (day, counts) in enumerate(bars)
        ],
        series=list(series),
        highest=highest,
        total=sum(sum(counts) for _, counts in bars),
    )


def _stack(series: Iterable[str], counts: Iterable[int], highest: int) -> list[Part]:
    parts, top = [], 1000
    for name, count in zip(series, counts, strict=True):
        if count:
            height = max(round(1000 * count / highest), 10)  # never so low that it cannot be seen
            top -= height
            parts.append(Part(series=name, y=max(top, 0), height=height))
    return parts


def expired_by_day(ledger: Iterable[ExpiryRun], *, now: datetime) -> Chart:
    """Accounts that each path expired, less what was undone, on each of the last 30 days and today."""
    counts: dict[str, Counter[date]] = {path.value: Counter() for path in ExpiryRun.Path}
    for run in ledger:
        counts[run.path][run.as_of.astimezone(UTC).date()] += run.expired_count - run.undone_count
    today = now.astimezone(UTC).date()
    return chart((today - timedelta(days=ago) for ago in range(DAYS, -1, -1)), counts)


def ending_by_day(*, now: datetime) -> Chart:
    """Trials that end today, from now on, and on each of the coming 30 days."""
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    counts = (
        ending(start=now, end=midnight + timedelta(days=DAYS + 1))
        .values_list(TruncDate("trial_ends_at", tzinfo=UTC))
        .annotate(number=Count("*"))
        .order_by()
    )
    return chart((midnight.date() + timedelta(days=ahead) for ahead in range(DAYS + 1)), {"trials": dict(counts)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """Everything on the page."""

    now: datetime
    problems: list[str]
    """As ``check_expiry`` tells them."""
    refused: int
    """Runs that the fuse refused since a run last succeeded."""
    trials: Trials
    schedule: Schedule | None
    processes: Processes | None
    """None where beat has no work: then nobody is asked."""
    paths: list[PathFigures]
    expired: Chart
    ending: Chart


def look(*, now: datetime) -> Overview:
    """Take every figure of the overview, as of ``now``."""
    ledger = list(ExpiryRun.objects.filter(as_of__gt=now - timedelta(days=DAYS)).order_by("-pk"))
    unsuccessful = takewhile(lambda run: run.status != ExpiryRun.Status.SUCCEEDED, ledger)
    ticks = schedule(now=now)
    return Overview(
        now=now,
        problems=health.problems(now=now, max_age=timedelta(hours=settings.TRIAL_RUN_MAX_AGE_HOURS)),
        refused=sum(run.status == ExpiryRun.Status.REFUSED for run in unsuccessful),
        trials=trials(now=now),
        schedule=ticks,
        processes=processes() if ticks and ticks.next_tick else None,
        paths=[path_figures(path, ledger) for path in ExpiryRun.Path],
        expired=expired_by_day(ledger, now=now),
        ending=ending_by_day(now=now),
    )
