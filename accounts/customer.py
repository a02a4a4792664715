"""What a customer is told of the trial: on the customer's page, in the banner and in the mails."""

from dataclasses import dataclass
from datetime import datetime
from email.utils import parseaddr

from django.conf import settings

from accounts.access import may_use, status_at
from accounts.models import Account, grace_end
from accounts.words import time_left


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """What customers are shown of the site."""

    name: str
    billing_url: str
    """Where a customer chooses a plan; empty when there is no such page."""
    trial_url: str
    """The path of the customer's page."""
    support_email: str
    """Whom to ask."""


def site() -> Site:
    """The site as the settings describe it."""
    return Site(
        name=settings.SITE_NAME,
        billing_url=settings.BILLING_URL,
        trial_url=settings.TRIAL_URL,
        support_email=settings.SUPPORT_EMAIL or parseaddr(settings.DEFAULT_FROM_EMAIL)[1],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A customer's account at a moment."""

    account: Account
    state: str
    """running, grace, ended, cancelled, past_due, or open, which is any other status that may use the product."""
    time_left: str
    closes: datetime | None
    """In grace: when access ends; None while accounts are on hold, because then nobody knows."""


def trial(account: Account, now: datetime) -> Trial:
    """What the customer is told at ``now``."""
    status, ends = status_at(account, now), account.trial_ends_at
    if status == Account.TRIALING:
        state = "running" if ends > now else "grace"
    elif status == Account.TRIAL_EXPIRED:
        state = "grace" if may_use(account, now) else "ended"
    else:
        state = {Account.CANCELED: "cancelled", Account.PAST_DUE: "past_due"}.get(status, "open")
    return Trial(
        account=account,
        state=state,
        time_left=time_left(now, ends),
        closes=grace_end(ends) if state == "grace" and status == Account.TRIALING else None,
    )
