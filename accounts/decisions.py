"""What operators decide about the runs: pause them, allow one that the fuse refused, run now. Both paths obey.

Every decision is a row with who and why; the admin shows them.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import QuerySet

from accounts.ledger import database_now
from accounts.models import Decision, ExpiryRun
from accounts.words import moment

LONGEST_PAUSE = timedelta(days=30)
"""A pause for longer is a decision about the schedule: switch that off instead."""

ALLOWANCE_LASTS = timedelta(days=1)
"""An allowance that no run used by then lapses."""


class NotPossible(Exception):  # noqa: N818 (it says what happened, as RunRefused does)
    """The decision does not fit the state of the runs. Nothing was recorded; the message says why."""


def _pauses_and_resumes() -> QuerySet[Decision]:
    return Decision.objects.filter(kind__in=[Decision.Kind.PAUSE, Decision.Kind.RESUME]).order_by("pk")


def paused(*, now: datetime) -> Decision | None:
    """The pause in force at ``now``, by the database's clock; None when runs may start."""
    latest = _pauses_and_resumes().last()
    return latest if latest and latest.until and latest.until > now else None


def in_words(pause: Decision) -> str:
    """A sentence about a pause."""
    return f"Paused until {moment(pause.until)} by {pause.by}: {pause.reason.rstrip('.')}."


def pauses(*, now: datetime, since: datetime) -> Iterator[tuple[datetime, datetime]]:
    """When runs were paused, from and to, oldest first: the pauses that ended after ``since``, or last at ``now``.

    A pause ends when it said, or earlier by the next pause or resume.
    """
    # One that began long ago may have ended only now.
    found = _pauses_and_resumes().filter(at__gt=since - LONGEST_PAUSE)
    ends: datetime | None = None
    begun = now
    for decision in [*found, None]:
        if ends:
            end = min(ends, decision.at if decision else now)
            if end > since:
                yield begun, end
        if decision:
            begun, ends = decision.at, decision.until


def may_last(*, until: datetime, now: datetime) -> bool:
    """Whether a pause that begins at ``now`` may end at ``until``."""
    return now < until <= now + LONGEST_PAUSE


def pause(*, until: datetime, by: str, reason: str) -> Decision:
    """Let no run start before ``until``, by either path. A run in progress goes on: an undo is what stops one.

    Raises:
        NotPossible: ``until`` is past, or further away than ``LONGEST_PAUSE``.
    """
    if not may_last(until=until, now=database_now()):
        raise NotPossible(f"A pause ends within {LONGEST_PAUSE.days} days from now. Nothing was changed.")
    return Decision.objects.create(kind=Decision.Kind.PAUSE, by=by, reason=reason, until=until)


def resume(*, by: str, reason: str) -> Decision:
    """End the pause in force.

    Raises:
        NotPossible: none is.
    """
    if not paused(now=database_now()):
        raise NotPossible("Runs are not paused. Nothing was changed.")
    return Decision.objects.create(kind=Decision.Kind.RESUME, by=by, reason=reason)


def run_now(*, by: str, reason: str) -> Decision:
    """Record that an operator starts a run."""
    return Decision.objects.create(kind=Decision.Kind.RUN_NOW, by=by, reason=reason)


def record_run(decision: Decision, run: ExpiryRun) -> None:
    """Record the run that was started."""
    Decision.objects.filter(pk=decision.pk).update(run=run)


def allow(*, run: ExpiryRun, by: str, reason: str) -> Decision:
    """Let one run, by either path, expire as many accounts as were due when ``run`` was refused.

    Raises:
        NotPossible: the fuse did not refuse this run, a run has succeeded since, or the number is allowed already.
    """
    with transaction.atomic():
        ExpiryRun.objects.select_for_update().get(pk=run.pk)  # of two clicks at once, the second sees the first
        if not can_be_allowed(run):
            raise NotPossible("The fuse did not refuse this run, or a run has succeeded since. Nothing was changed.")
        now = database_now()
        if allowance(now=now, due=run.due_count):
            raise NotPossible("The next run may expire that many already. Nothing was changed.")
        return Decision.objects.create(
            kind=Decision.Kind.ALLOW, by=by, reason=reason, until=now + ALLOWANCE_LASTS, max_accounts=run.due_count
        )


def can_be_allowed(run: ExpiryRun) -> bool:
    """Whether the fuse refused the run, and none has succeeded since. One refused for its clock counted no accounts."""
    succeeded = ExpiryRun.objects.filter(pk__gt=run.pk, status=ExpiryRun.Status.SUCCEEDED)
    return run.status == ExpiryRun.Status.REFUSED and run.due_count > 0 and not succeeded.exists()


def allowance(*, now: datetime, due: int = 0) -> Decision | None:
    """The smallest allowance that no run has used, and that is for ``due`` accounts or more."""
    unused = Decision.objects.filter(kind=Decision.Kind.ALLOW, run=None, until__gt=now, max_accounts__gte=due)
    return unused.order_by("max_accounts", "pk").first()


def use_allowance(run: ExpiryRun) -> bool:
    """Store ``run`` as the one that uses an allowance for its due accounts; False when there is none.

    Of several runs at once only one gets it: the UPDATE asks again.
    """
    found = allowance(now=database_now(), due=run.due_count)
    if not found:
        return False
    run.save()
    return Decision.objects.filter(pk=found.pk, run=None).update(run=run) == 1
