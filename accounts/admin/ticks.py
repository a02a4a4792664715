"""The strip of the overview: what became of the last 48 hourly ticks."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.urls import reverse

from accounts import decisions
from accounts.models import ExpiryRun

HOURS = 48
HOUR = timedelta(hours=1)

Status = ExpiryRun.Status
WORST_FIRST = (Status.FAILED, Status.REFUSED, Status.INTERRUPTED, Status.UNDONE, Status.RUNNING, Status.SUCCEEDED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """One hour, and the run in it that went worst."""

    hour: datetime
    """When the hour begins."""
    run: ExpiryRun | None
    runs: int
    """How many runs began in this hour."""
    expired: int
    """Accounts that they expired."""
    paused: bool
    """Whether runs were paused in this hour, for a part of it at least."""
    is_over: bool

    @property
    def kind(self) -> str:
        """A word for what became of it, which is also its class in the page."""
        if self.run:
            return str(self.run.status)
        return "paused" if self.paused else "missing" if self.is_over else "open"

    @property
    def url(self) -> str:
        """The page of the run; empty where there is none."""
        return reverse("admin:accounts_expiryrun_change", args=[self.run.pk]) if self.run else ""


def last_ticks(*, now: datetime) -> list[Tick]:
    """The hours up to the present one, oldest first."""
    current = now.replace(minute=0, second=0, microsecond=0)
    first = current - (HOURS - 1) * HOUR
    runs: dict[datetime, list[ExpiryRun]] = {}
    for run in ExpiryRun.objects.filter(started__gte=first).order_by("-pk"):
        runs.setdefault(run.started.replace(minute=0, second=0, microsecond=0), []).append(run)
    pauses = list(decisions.pauses(now=now, since=first))
    return [
        Tick(
            hour=hour,
            run=min(runs.get(hour, []), key=lambda run: WORST_FIRST.index(Status(run.status)), default=None),
            runs=len(runs.get(hour, [])),
            expired=sum(run.expired_count for run in runs.get(hour, [])),
            paused=any(begun < hour + HOUR and end > hour for begun, end in pauses),
            is_over=hour < current,
        )
        for hour in (first + number * HOUR for number in range(HOURS))
    ]
