"""What is old is deleted, and what the ledger still has to account for is kept."""

from datetime import timedelta

from django.conf import settings
from django.db.models import Max, Value
from django.db.models.functions import Now

from accounts.models import ExpiryRun, Notice


def prune_ledger() -> int:
    """Delete the runs that began more than ``TRIAL_LEDGER_DAYS`` ago and expired nobody; returns how many.

    Most runs of an hourly schedule are such. A run that expired somebody stays, also when no account points to it any
    more: it is the answer to "why was I expired?", and the sums of the ledger stay true. So does the latest success of
    each path, which tells since when a path is not in use.
    """
    latest = ExpiryRun.objects.filter(status=ExpiryRun.Status.SUCCEEDED).order_by().values("path").annotate(Max("pk"))
    old = ExpiryRun.objects.filter(
        expired_count=0,
        started__lt=Now() - Value(timedelta(days=settings.TRIAL_LEDGER_DAYS)),
    )
    _, deleted = old.exclude(pk__in=latest.values("pk__max")).delete()
    return deleted.get(ExpiryRun._meta.label, 0)


NOTICES_AT_ONCE = 10_000


def prune_notices() -> int:
    """Delete notices, of the oldest 10,000, that are done with and older than ``TRIAL_LEDGER_DAYS``; returns how many.

    Done with are those sent, skipped and given up. Older means queued before that, for the end of a trial before that:
    a mail that could still be owed keeps the notice that says it was sent.
    """
    days = max(settings.TRIAL_LEDGER_DAYS, settings.TRIAL_NOTICE_WINDOW_DAYS)
    before = Now() - Value(timedelta(days=days))
    # By key, which is by age, so that the query reads these few however large the table is; the next run goes on.
    oldest = Notice.objects.order_by("pk").values("pk")[:NOTICES_AT_ONCE]
    old = Notice.objects.filter(pk__in=oldest, queued__lt=before, trial_ends_at__lt=before)
    deleted, _ = old.exclude(status=Notice.Status.PENDING).delete()
    return deleted
