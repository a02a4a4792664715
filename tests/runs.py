"""A run, as most tests need one, and what must be true of the ledger after any."""

from datetime import datetime, timedelta
from typing import Any

from accounts import services
from accounts.models import ExpiryRun

DAY = timedelta(days=1)


def expire(now: datetime, **options: Any) -> ExpiryRun:
    """Expire what is due at ``now``, by the command's path unless ``options`` say otherwise."""
    return services.expire_trials(**{"path": ExpiryRun.Path.COMMAND, "now": now, **options})


def assert_ledger_is_true(*, extended: int = 0) -> None:
    """Assert that every run counted what it expired; each has ``extended`` accounts that were extended one by one."""
    for run in ExpiryRun.objects.all():
        assert run.expired_count == run.accounts.count() + run.undone_count + extended
