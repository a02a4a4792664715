"""Decides what an account may do now. The stored status says what happened; a run records it, perhaps hours later.

Access follows the rule of ``Account.objects.due``, so it needs no run, no broker and no schedule to be right. It also
follows the fuse: see ``on_hold``.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import ceil

from django.conf import settings
from django.utils import timezone

from accounts import decisions
from accounts.ledger import clocks_agree, database_now, low_water_mark
from accounts.models import EARLIEST_END, Account, ExpiryRun, grace_cutoff
from accounts.words import plural

MAY_USE = frozenset(Account.Status) - {Account.Status.TRIAL_EXPIRED, Account.Status.CANCELED}
"""The statuses whose accounts may use the product."""


def account_of(user: object) -> Account | None:
    """The user's account, loaded once for each user object; None when the user has none."""
    return getattr(user, "account", None)  # what Django raises is an AttributeError, too


def status_at(account: Account, now: datetime) -> Account.Status:
    """The status that a run at ``now`` would leave. ``Account.objects.with_status_at`` in Python."""
    due = account.status == Account.TRIALING and EARLIEST_END <= account.trial_ends_at < grace_cutoff(now)
    return Account.TRIAL_EXPIRED if due else Account.Status(account.status)


def may_use(account: Account, now: datetime) -> bool:
    """Whether the account may use the product at ``now``.

    Exempt, beta, active and past due accounts may. A trialing account may until its trial and its grace are over, and
    longer while accounts are on hold. An expired or cancelled account may not.
    """
    if status_at(account, now) in MAY_USE:
        return True
    return account.status == Account.TRIALING and on_hold(now)


def on_hold(now: datetime) -> bool:
    """Whether accounts that only the clock has ended stay in at ``now``: see ``why_on_hold``.

    Looks once for each minute of ``now``, in each process: so a clock that jumps is noticed at once. Only an account
    that is due asks.
    """
    return _is_on_hold(minute=int(now.timestamp()) // 60)


@lru_cache(maxsize=1)
def _is_on_hold(*, minute: int) -> bool:
    return why_on_hold(datetime.fromtimestamp(minute * 60, UTC)) != ""


def why_on_hold(now: datetime) -> str:
    """Why accounts that only the clock has ended stay in at ``now``, in one sentence; empty when they do not.

    They stay in while runs are paused, and while the fuse or a wrong clock would stop a run: nobody has decided that so
    many customers go. That is so while the latest run stands refused, while more accounts are due than ``_most_due``,
    and while the clock of this process differs from the database's.
    """
    there = database_now()
    if decisions.paused(now=there):
        return "runs are paused"
    latest = ExpiryRun.objects.order_by("-pk").only("status").first()
    if latest and latest.status == ExpiryRun.Status.REFUSED:
        return f"run {latest.pk} was refused, and no run has been allowed since"
    if not clocks_agree(timezone.now(), there):
        return "the clocks of this process and of the database differ"
    most = _most_due(now)
    if most is not None and Account.objects.due(now).above(low_water_mark(now=there)).count_to(most + 1) > most:
        return f"more than {plural(most, 'account is', 'accounts are')} due, and a run would be refused"
    return ""


LONGEST_SILENCE = timedelta(days=7)
"""For so long without a successful run, what falls due is put down to a job that is dead, and not to a wrong clock."""


def _most_due(now: datetime) -> int | None:
    """With more due accounts at ``now`` than this the clock is in doubt; None: no fuse is set.

    ``TRIAL_EXPIRY_MAX`` is for an ordinary run. Without one, accounts go on falling due: so it grows by as much for
    each half of ``TRIAL_RUN_MAX_AGE_HOURS`` since the last success, for ``LONGEST_SILENCE``.
    """
    most = settings.TRIAL_EXPIRY_MAX
    if most is None:
        return None
    last = ExpiryRun.objects.last_success()
    if last is None:
        return most
    silence = min(now - last.as_of, LONGEST_SILENCE)
    return most * max(1, ceil(2 * silence / timedelta(hours=settings.TRIAL_RUN_MAX_AGE_HOURS)))
