"""What is old is deleted, and what the ledger still has to account for is kept."""

from datetime import timedelta

from django.conf import settings
from django.db.models import Max, Value
from django.db.models.functions import Now

from accounts.models import ExpiryRun


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
