"""Helpers for the tests of the mails: trials with a given time left, or expired by a run."""

from datetime import datetime, timedelta
from typing import Any

from accounts import services
from accounts.models import Account, ExpiryRun
from tests.factories import AccountFactory
from tests.runs import DAY

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)


def trialing(left: timedelta, now: datetime, **fields: Any) -> Account:
    """An account whose trial has this much time left."""
    return AccountFactory.create(created=now + left - 60 * DAY, **fields)


def expired(now: datetime, **fields: Any) -> Account:
    """An account that a run expired at ``now``, two days after its trial ended."""
    account = trialing(-2 * DAY, now, **fields)
    services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)
    account.refresh_from_db()
    return account


def undo(account: Account) -> None:
    Account.objects.filter(pk=account.pk).update(status=Account.TRIALING, trial_expired_at=None, expiry_run=None)
