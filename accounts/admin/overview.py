"""The figures of the overview: accounts by state, whether the schedule works, and the performance of each path.

The page is admin/overview.html. No query reads more than a bounded number of accounts, however many there are: counts
stop at many, begin above the entries that expired accounts left in the index, and lateness is that of a sample. Expired
accounts have no index, because it would slow down every run; the ledger knows how many there are.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from django.apps import apps
from django.conf import settings
from django.db.models import F, Sum
from django.urls import reverse

from accounts import decisions, health, ledger
from accounts.access import why_on_hold
from accounts.admin.charts import Chart, stacked_bars
from accounts.admin.findings import Link, links, of_overview
from accounts.admin.paths import PathFigures, path_figures
from accounts.admin.ticks import Tick, last_ticks
from accounts.counts import counts
from accounts.health import MANY
from accounts.models import Account, AccountQuerySet, Decision, ExpiryRun, Notice, grace_cutoff

if TYPE_CHECKING:
    from accounts.admin.schedule import Processes, Schedule

DAYS = 30
"""The overview shows the runs of the last 30 days and the trials that end within the next 30 days."""

SOON = timedelta(days=7)

MANY_A_DAY = 1_000
"""The chart of the trials that end counts so many of each day; there are 31 days, so it reads 31,000 at the most."""


def ending(*, start: datetime, end: datetime) -> AccountQuerySet:
    """Trialing accounts whose trial ends between ``start``, included, and ``end``, not included."""
    return Account.objects.filter(status=Account.TRIALING, trial_ends_at__gte=start, trial_ends_at__lt=end)


def ending_on(day: date, *, now: datetime) -> AccountQuerySet:
    """Trialing accounts whose trial ends on ``day`` in UTC; of today those whose trial has not ended yet."""
    return ending(start=max(now, _midnight(day)), end=_midnight(day) + timedelta(days=1))


def expired_on(day: date) -> AccountQuerySet:
    """Accounts that still point to a run as of ``day`` in UTC."""
    runs = ExpiryRun.objects.filter(as_of__gte=_midnight(day), as_of__lt=_midnight(day) + timedelta(days=1))
    # A list, because the index of expired accounts serves it whatever the statistics say.
    return Account.objects.filter(expiry_run__in=list(runs.values_list("pk", flat=True)))


def in_grace(now: datetime) -> AccountQuerySet:
    """Trialing accounts whose trial has ended, but whose grace has not."""
    return ending(start=grace_cutoff(now), end=now)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trials:
    """The number of accounts in each state; of those on trial, ``MANY`` at the most."""

    trialing: int
    """All accounts on trial, including those that are due, in grace or ending soon."""
    due: int
    """The next run expires them."""
    in_grace: int
    ending_soon: int
    """The trial ends within 7 days."""
    expired: int
    """By every run in the ledger, less those that an undo put back."""


def trials(*, now: datetime) -> Trials:
    """Count the accounts by what the rule says of them at ``now``."""
    mark = ledger.low_water_mark(now=now)
    trialing, due, in_grace_now, ending_soon = counts(
        *(
            rows.order_by("trial_ends_at")
            for rows in (
                Account.objects.filter(status=Account.TRIALING).above(mark),
                Account.objects.due(now).above(mark),
                in_grace(now),
                ending(start=now, end=now + SOON),
            )
        ),
        most=MANY,
    )
    expired = ExpiryRun.objects.aggregate(number=Sum(F("expired_count") - F("undone_count"), default=0))["number"]
    return Trials(trialing=trialing, due=due, in_grace=in_grace_now, ending_soon=ending_soon, expired=expired)


def expired_by_day(lately: Iterable[ExpiryRun], *, now: datetime) -> Chart:
    """The accounts that each path expired, minus those undone, on each of the last 30 days and today."""
    by_path: dict[str, Counter[date]] = {path.value: Counter() for path in ExpiryRun.Path}
    for run in lately:
        by_path[run.path][_day(run.as_of)] += run.expired_count - run.undone_count
    today = _day(now)
    return stacked_bars(
        (today - timedelta(days=ago) for ago in range(DAYS, -1, -1)),
        by_path,
        url=lambda day: accounts_url(expired_on=day.isoformat()),
    )


def accounts_url(**query: object) -> str:
    """The list of accounts, filtered."""
    return reverse("admin:accounts_account_changelist", query=query)


def ending_by_day(*, now: datetime) -> Chart:
    """The trials that end in the rest of today and on each of the next 30 days, ``MANY_A_DAY`` of a day at the most."""
    days = [_day(now) + timedelta(days=ahead) for ahead in range(DAYS + 1)]
    rows = (ending_on(day, now=now).order_by("trial_ends_at") for day in days)
    return stacked_bars(
        days,
        {"trials": dict(zip(days, counts(*rows, most=MANY_A_DAY), strict=True))},
        url=lambda day: accounts_url(ends_on=day.isoformat()),
        most=MANY_A_DAY,
    )


def _day(at: datetime) -> date:
    return at.astimezone(UTC).date()


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mails:
    """The mails to customers that are not sent yet, ``MANY`` of each at the most."""

    waiting: int
    oldest: Notice | None
    """The one that waits longest."""
    given_up: int


def mails() -> Mails:
    """Count the notices, by index."""
    pending = Notice.objects.pending()
    given_up = Notice.objects.filter(status=Notice.Status.GIVEN_UP)
    waiting, gone = counts(pending.order_by("queued"), given_up.order_by("next_attempt"), most=MANY)
    return Mails(waiting=waiting, oldest=pending.order_by("queued").first(), given_up=gone)


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """Everything on the page."""

    now: datetime
    findings: list[tuple[health.Finding, list[Link]]]
    """What ``check_expiry`` reports, problems first, and whether accounts are on hold; with links."""
    is_well: bool
    """Whether trials are being expired, and nothing is wrong."""
    is_new: bool
    """Whether no run was ever started."""
    pause: Decision | None
    """The pause in force."""
    allowance: Decision | None
    """The allowance that waits for a run."""
    trials: Trials
    mails: Mails | None
    """None when TRIAL_NOTICES is off."""
    ticks: list[Tick]
    has_beat: bool
    """Whether django_celery_beat is installed. Without it the page does not mention Celery."""
    schedule: "Schedule | None"
    processes: "Processes | None"
    """None when beat has no enabled entry: then no process is pinged."""
    paths: list[PathFigures]
    expired: Chart
    ending: Chart
    many: int
    """Where the counts of trials and mails stopped."""


def collect(*, now: datetime) -> Overview:
    """Compute every figure of the overview, as of ``now``."""
    first = _midnight(_day(now) - timedelta(days=DAYS))  # a whole day, as the list is to which its bar leads
    lately = list(ExpiryRun.objects.filter(as_of__gte=first).order_by("-pk"))
    found = health.check(now=now, max_age=timedelta(hours=settings.TRIAL_RUN_MAX_AGE_HOURS))
    has_beat = apps.is_installed("django_celery_beat")
    schedule, processes = celery(now=now) if has_beat else (None, None)
    return Overview(
        now=now,
        findings=[(finding, links(finding)) for finding in of_overview(found, on_hold=why_on_hold(now))],
        is_well=found.is_well,
        is_new=any(finding.row == "new" for finding in found.findings),
        pause=decisions.paused(now=now),
        allowance=decisions.allowance(now=now),
        trials=trials(now=now),
        mails=mails() if settings.TRIAL_NOTICES else None,
        ticks=last_ticks(now=now),
        has_beat=has_beat,
        schedule=schedule,
        processes=processes,
        paths=[path_figures(path, lately) for path in ExpiryRun.Path],
        expired=expired_by_day(lately, now=now),
        ending=ending_by_day(now=now),
        many=MANY,
    )


def celery(*, now: datetime) -> "tuple[Schedule | None, Processes | None]":
    """The schedule and, when it has an enabled entry, the running processes."""
    from accounts.admin.schedule import processes, schedule  # imports Celery, which a project may not have

    ticks = schedule(now=now)
    return ticks, processes() if ticks and ticks.next_tick else None
