"""Metrics for Prometheus, computed from the database at each request, so that every process answers the same."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Count, Max, Min, Sum
from django.http import Http404, HttpRequest, HttpResponse
from django.views.decorators.http import require_safe
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from accounts import decisions
from accounts.absence import answered_without_database
from accounts.gate import trial_not_required
from accounts.ledger import database_now
from accounts.models import Account, ExpiryRun, Notice, grace_cutoff
from accounts.tokens import PERIOD, brings_token, is_throttled


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
    registry.register(TrialExpiry(database_now()))
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(registry), content_type=content_type, headers={"Cache-Control": "no-store"})


def refusal(why: str, status: int, headers: dict[str, str]) -> HttpResponse:
    """An error response in plain text."""
    return HttpResponse(f"{why}\n", status=status, content_type="text/plain; charset=utf-8", headers=headers)


class TrialExpiry:
    """Collects the metrics of the ledger and the backlog, in four queries: of runs, decisions and due accounts."""

    def __init__(self, now: datetime) -> None:
        """Args: now: the moment at which due accounts are counted."""
        self.now = now

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering the collector sends no query."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        yield from self.ledger()
        yield from self.backlog()
        yield from self.pause()
        if settings.TRIAL_NOTICES:
            yield from self.notices()

    def ledger(self) -> Iterator[Metric]:
        """Yield the metrics of the runs, by path."""
        by_status = GaugeMetricFamily(
            "trial_expiry_runs",
            "Runs in the ledger. A gauge: a run changes its status, and old ones that expired none are pruned.",
            labels=["path", "status"],
        )
        last = GaugeMetricFamily(
            "trial_expiry_last_run_timestamp_seconds",
            "When the latest run of this path and status began; alert on the age of status=succeeded.",
            labels=["path", "status"],
        )
        expired = CounterMetricFamily("trial_expiry_accounts_expired", "Accounts expired.", labels=["path"])
        undone = CounterMetricFamily(
            "trial_expiry_accounts_undone", "Accounts that an undo put back on trial.", labels=["path"]
        )
        for path, status, runs, latest in ExpiryRun.objects.values_list("path", "status").annotate(
            Count("pk"), Max("started")
        ):
            by_status.add_metric([path, status], runs)
            last.add_metric([path, status], latest.timestamp())
        totals = dict.fromkeys(ExpiryRun.Path.values, (0, 0)) | {
            path: sums
            for path, *sums in ExpiryRun.objects.values_list("path").annotate(Sum("expired_count"), Sum("undone_count"))
        }
        for path, (sum_expired, sum_undone) in totals.items():
            expired.add_metric([path], sum_expired)
            undone.add_metric([path], sum_undone)
        yield from (by_status, last, expired, undone)

    def backlog(self) -> Iterator[Metric]:
        """Yield the metrics of the due accounts."""
        due = Account.objects.due(self.now).aggregate(count=Count("pk"), earliest=Min("trial_ends_at"))
        yield GaugeMetricFamily("trial_expiry_due_accounts", "Accounts that the next run will expire.", due["count"])
        waiting = timedelta(0)
        if due["earliest"]:
            waiting = grace_cutoff(self.now) - due["earliest"]
        yield GaugeMetricFamily(
            "trial_expiry_oldest_due_seconds",
            "How long the oldest due account has been due; 0 when none is.",
            waiting.total_seconds(),
        )

    def pause(self) -> Iterator[Metric]:
        """Yield whether an operator has paused the runs, and until when."""
        paused = decisions.paused(now=self.now)
        yield GaugeMetricFamily("trial_expiry_paused", "1 while an operator has paused the runs, else 0.", bool(paused))
        yield GaugeMetricFamily(
            "trial_expiry_paused_until_timestamp_seconds",
            "When the pause in force ends by itself; 0 when runs are not paused.",
            paused.until.timestamp() if paused and paused.until else 0,
        )

    def notices(self) -> Iterator[Metric]:
        """Yield the number of notices by status, and for how long the first of them has waited."""
        by_status = GaugeMetricFamily(
            "trial_expiry_notices",
            "Notices by status. A gauge: a notice changes its status, and old ones are pruned.",
            labels=["status"],
        )
        counts = dict(Notice.objects.order_by().values_list("status").annotate(Count("pk")))
        for status in Notice.Status.values:
            by_status.add_metric([status], counts.get(status, 0))
        yield by_status
        oldest = Notice.objects.pending().aggregate(first=Min("queued"))["first"]
        yield GaugeMetricFamily(
            "trial_expiry_oldest_notice_seconds",
            "For how long the oldest pending notice has waited to be sent; 0 when none does.",
            (self.now - oldest).total_seconds() if oldest else 0,
        )
