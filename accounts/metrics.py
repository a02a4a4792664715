"""Metrics for Prometheus, computed from the database at each request, so that every process answers the same."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from django.apps import apps
from django.conf import settings
from django.db.models import Count, Max, Min, Q, Sum
from django.db.models.functions import Coalesce
from django.http import Http404, HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_safe
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from accounts import access, decisions, health, ledger
from accounts.absence import answered_without_database
from accounts.counts import counts
from accounts.gate import trial_not_required
from accounts.health import MANY
from accounts.models import CLOCKS_MAY_DIFFER, Account, ExpiryRun, Notice, grace_cutoff
from accounts.tokens import PERIOD, brings_token, is_throttled
from accounts.words import number

IN_A_ROW = timedelta(days=3)
"""Failures in a row are counted for so long: a path that is out of use is no alarm for ever."""


@trial_not_required
@require_safe
@answered_without_database
def metrics(request: HttpRequest) -> HttpResponse:
    """Serve the metrics to a request with the bearer token ``METRICS_TOKEN``; 404 when that setting is empty."""
    if not settings.METRICS_TOKEN:
        raise Http404
    if not brings_token(request):
        if is_throttled(request):
            return refusal("Too many wrong tokens. Try again in a minute.", 429, {"Retry-After": str(PERIOD)})
        return refusal("Send METRICS_TOKEN as a bearer token.", 401, {"WWW-Authenticate": "Bearer"})
    registry = CollectorRegistry()
    registry.register(TrialExpiry(ledger.database_now()))
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(registry), content_type=content_type, headers={"Cache-Control": "no-store"})


def refusal(why: str, status: int, headers: dict[str, str]) -> HttpResponse:
    """An error response in plain text."""
    return HttpResponse(f"{why}\n", status=status, content_type="text/plain; charset=utf-8", headers=headers)


class TrialExpiry:
    """Collects what the database knows. No query reads more than a bounded number of accounts, and none asks a broker.

    A site whose worker is dead, or whose broker is away or full, shows by its effect: beat has sent a tick, and no run
    has come of it.
    """

    def __init__(self, now: datetime) -> None:
        """Args: now: the moment at which due accounts are counted."""
        self.now = now

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering the collector sends no query."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        yield from self.problems()
        yield from self.runs()
        yield from self.backlog()
        yield from self.pause()
        if apps.is_installed("django_celery_beat"):
            yield from self.beat()
        if settings.TRIAL_NOTICES:
            yield from self.notices()

    def problems(self) -> Iterator[Metric]:
        """Yield what ``check_expiry`` raises the alarm for, so that an alert follows the settings of the site."""
        problem = GaugeMetricFamily(
            "trial_expiry_problem",
            "1 for each problem that check_expiry reports; none when all is well. Row: that of /admin/what-to-do/.",
            labels=["row"],
        )
        found = health.check(now=self.now, max_age=timedelta(hours=settings.TRIAL_RUN_MAX_AGE_HOURS))
        for row in sorted({finding.row for finding in found.problems}):
            problem.add_metric([row], 1)
        yield problem

    def runs(self) -> Iterator[Metric]:
        """Yield the metrics of the runs, by path."""
        by_status = GaugeMetricFamily(
            "trial_expiry_runs",
            "Runs in the ledger. A gauge: a run changes its status, and old ones that expired none are pruned.",
            labels=["path", "status"],
        )
        last = GaugeMetricFamily(
            "trial_expiry_last_run_timestamp_seconds",
            "When the latest run of this path and status began.",
            labels=["path", "status"],
        )
        totals = dict.fromkeys(ExpiryRun.Path.values, (0, 0))
        succeeded = dict.fromkeys(ExpiryRun.Path.values, 0)
        groups = ExpiryRun.objects.values_list("path", "status").annotate(
            Count("pk"), Max("started"), Max("pk"), Sum("expired_count"), Sum("undone_count")
        )
        for path, status, runs, latest, key, *sums in groups:
            by_status.add_metric([path, status], runs)
            last.add_metric([path, status], latest.timestamp())
            totals[path] = (totals[path][0] + sums[0], totals[path][1] + sums[1])
            if status == ExpiryRun.Status.SUCCEEDED:
                succeeded[path] = key
        expired = CounterMetricFamily("trial_expiry_accounts_expired", "Accounts expired.", labels=["path"])
        undone = CounterMetricFamily(
            "trial_expiry_accounts_undone", "Accounts that an undo put back on trial.", labels=["path"]
        )
        in_a_row = GaugeMetricFamily(
            "trial_expiry_failures_in_a_row",
            f"Runs that failed or died since the latest success of this path, in the last {IN_A_ROW.days} days.",
            labels=["path"],
        )
        failures = self._failures(succeeded)
        for path, (sum_expired, sum_undone) in totals.items():
            expired.add_metric([path], sum_expired)
            undone.add_metric([path], sum_undone)
            in_a_row.add_metric([path], failures.get(path, 0))
        yield from (by_status, last, expired, undone, in_a_row)

    def _failures(self, succeeded: dict[str, int]) -> dict[str, int]:
        """Count the failures of each path after its latest success, of which ``succeeded`` has the keys."""
        since_success = Q(pk__in=())
        for path, key in succeeded.items():
            since_success |= Q(path=path, pk__gt=key)
        failed = ExpiryRun.objects.filter(
            since_success,
            status__in=[ExpiryRun.Status.FAILED, ExpiryRun.Status.INTERRUPTED],
            started__gt=self.now - IN_A_ROW,
        )
        return dict(failed.values_list("path").annotate(Count("pk")))

    def backlog(self) -> Iterator[Metric]:
        """Yield the metrics of the due accounts."""
        due = Account.objects.due(self.now).above(ledger.low_water_mark(now=self.now))
        yield GaugeMetricFamily(
            "trial_expiry_due_accounts",
            f"Accounts that the next run will expire; {number(MANY)} at the most.",
            due.count_to(MANY),
        )
        earliest = due.first_end()
        waiting = grace_cutoff(self.now) - earliest if earliest else timedelta(0)
        yield GaugeMetricFamily(
            "trial_expiry_oldest_due_seconds",
            "How long the oldest due account has been due; 0 when none is.",
            waiting.total_seconds(),
        )

    def pause(self) -> Iterator[Metric]:
        """Yield whether an operator has paused the runs, until when, and whether the gate lets ended trials in."""
        paused = decisions.paused(now=self.now)
        yield GaugeMetricFamily("trial_expiry_paused", "1 while an operator has paused the runs, else 0.", bool(paused))
        yield GaugeMetricFamily(
            "trial_expiry_paused_until_timestamp_seconds",
            "When the pause in force ends by itself; 0 when runs are not paused.",
            paused.until.timestamp() if paused and paused.until else 0,
        )
        yield GaugeMetricFamily(
            "trial_expiry_access_on_hold",
            "1 while accounts whose trial is over still have access, by a pause, the fuse or a wrong clock, else 0.",
            access.on_hold(timezone.now()),  # by the clock of the gate, which has looked in this minute already
        )

    def beat(self) -> Iterator[Metric]:
        """Yield what beat's schedule says of beat, and the ledger of what becomes of its ticks.

        Nothing while the schedule has no enabled entry that expires trials.
        """
        from accounts.admin.schedule import schedule  # imports Celery, which a project may not have

        found = schedule(now=self.now)
        if not found or not found.next_tick:
            return
        tick = found.entry.last_run_at
        if tick:
            yield GaugeMetricFamily(
                "trial_expiry_beat_last_tick_timestamp_seconds",
                "When beat last sent the tick that expires trials. Beat stores it within three minutes.",
                tick.timestamp(),
            )
        yield GaugeMetricFamily(
            "trial_expiry_beat_overdue", "1 while a tick is missing that beat should have sent, else 0.", found.late
        )
        yield GaugeMetricFamily(
            "trial_expiry_tick_without_run",
            "1 while no run by Celery has come of the latest tick of beat, else 0. After minutes of 1 no worker lives, "
            "or the broker is away or full.",
            bool(tick) and not self._is_answered(tick),
        )

    def _is_answered(self, tick: datetime) -> bool:
        """Whether a run by Celery has done anything since ``tick``, or a pause has prevented it."""
        since = tick - CLOCKS_MAY_DIFFER  # it is from the clock of beat's machine
        active = ExpiryRun.objects.filter(path=ExpiryRun.Path.CELERY).aggregate(
            last=Max(Coalesce("finished", "heartbeat"))
        )["last"]
        return (active is not None and active >= since) or any(decisions.pauses(now=self.now, since=since))

    def notices(self) -> Iterator[Metric]:
        """Yield the number of notices by status, and for how long the first of them has waited."""
        by_status = GaugeMetricFamily(
            "trial_expiry_notices",
            f"Notices by status, {number(MANY)} of each at the most. A gauge: a notice changes its status, and old "
            "ones are pruned.",
            labels=["status"],
        )
        of_status = (Notice.objects.filter(status=status).order_by("pk") for status in Notice.Status.values)
        for status, count in zip(Notice.Status.values, counts(*of_status, most=MANY), strict=True):
            by_status.add_metric([status], count)
        yield by_status
        oldest = Notice.objects.pending().aggregate(first=Min("queued"))["first"]
        yield GaugeMetricFamily(
            "trial_expiry_oldest_notice_seconds",
            "For how long the oldest pending notice has waited to be sent; 0 when none does.",
            (self.now - oldest).total_seconds() if oldest else 0,
        )
