"""Old notices are deleted."""

from datetime import timedelta

from django.conf import settings
from django.db.models import Value
from django.db.models.functions import Now

from accounts.models import Notice

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
