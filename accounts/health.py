"""The freshness check: the age of the last successful run, by either path, and accounts that are due for too long."""

from datetime import datetime, timedelta

from accounts.models import Account, ExpiryRun

UNSUCCESSFUL = [ExpiryRun.Status.FAILED, ExpiryRun.Status.REFUSED, ExpiryRun.Status.INTERRUPTED]


def problems(*, now: datetime, max_age: timedelta) -> list[str]:
    """The problems of trial expiry, one sentence each; empty when there are none.

    Args:
        now: the moment to check at, by the database's clock.
        max_age: how long ago the last successful run may be, and how long a due account may stay trialing. A few times
            the interval of the schedule, so that one failure raises no alert.
    """
    found = []
    fresh = ExpiryRun.objects.succeeded_since(now - max_age, now=now)
    if not fresh:
        found.append(f"No run has succeeded within {max_age / timedelta(hours=1):g} hours; {last_success()}.")
    unsuccessful = ExpiryRun.objects.filter(status__in=UNSUCCESSFUL).exclude(error="")
    if fresh:
        # A refusal is reported at once, because the next tick will be refused too.
        unsuccessful = unsuccessful.filter(status=ExpiryRun.Status.REFUSED, pk__gt=fresh.pk)
    if latest := unsuccessful.order_by("-pk").first():
        found.append(f"The latest {latest.status} run, {latest.pk} by {latest.path}, says: {latest.error}")
    oldest = Account.objects.due(now - max_age).order_by("trial_ends_at").first()
    if oldest:
        found.append(
            f"Account {oldest.pk}, whose trial ended at {oldest.trial_ends_at:%Y-%m-%d %H:%M} UTC, should have expired "
            f"long ago, and {Account.objects.due(now).count()} account(s) are due in all."
        )
    if broken := Account.objects.off_calendar().values_list("pk", flat=True)[:1000]:
        found.append(
            f"{len(broken)} account(s), such as {broken[0]}, have a trial end outside the years 1 to 9999. No run "
            "expires them: give them another trial end."
        )
    return found


def last_success() -> str:
    """When a run last succeeded, in words."""
    run = ExpiryRun.objects.filter(status=ExpiryRun.Status.SUCCEEDED).order_by("as_of", "pk").last()
    return f"the last one, by {run.path}, was as of {run.as_of:%Y-%m-%d %H:%M} UTC" if run else "none ever has"
