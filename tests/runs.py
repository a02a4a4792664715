"""Helpers that start a run and check the ledger."""

from datetime import datetime, timedelta
from typing import Any

from accounts import services
from accounts.models import ExpiryRun

DAY = timedelta(days=1)


def expire(now: datetime, **options: Any) -> ExpiryRun:
    """Expire the accounts that are due at ``now``, by default as a run of the command."""
    return services.expire_trials(**{"path": ExpiryRun.Path.COMMAND, "now": now, **options})


def assert_ledger_is_true(*, extended: int = 0) -> None:
    """Assert that the counts of every run are correct; each has ``extended`` accounts that were extended one by one."""
    for run in ExpiryRun.objects.all():
        assert run.expired_count == run.accounts.count() + run.undone_count + extended
