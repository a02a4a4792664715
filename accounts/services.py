"""The services that change accounts: expire trials, undo a run, and activate, extend or cancel one account.

Every service is a conditional ``UPDATE`` (a run and its undo: one for each slice), so the state of the row at that
moment decides, never what was read before. All but a run add an ``AccountEvent`` in the same transaction. Celery and
the command line call this module; it imports neither.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from math import ceil
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Count, F, OuterRef, Q, Subquery, Value
from django.db.models.functions import Greatest
from django.utils import timezone

from accounts import decisions, events, ledger
from accounts.log import Fields
from accounts.models import (
    LATEST_END,
    Account,
    AccountEvent,
    AccountQuerySet,
    Decision,
    ExpiryRun,
    Notice,
    ended_before,
    grace_cutoff,
)
from accounts.slices import FIRST, Change, Position, Slice
from accounts.words import moment

logger = logging.getLogger(__name__)

COUNTED = 1_000_000
"""So many due accounts are counted before a run begins, in a tenth of a second; more of them as they expire."""

MOST_THROTTLE = 100.0

WALK = ("trial_ends_at", "pk")
"""The order in which a run walks through the due accounts: that of the index that serves the rule."""

LONGEST_EXTENSION = 3650
"""Days. More is a typing error, and dates overflow with far more."""


class RunRefused(Exception):  # noqa: N818 (it says what happened, as DoesNotExist does)
    """A run was refused. Nothing was changed except the ledger, which stores the run and this message."""


class TooManyDue(RunRefused):
    """The fuse: more accounts are due than one run may expire."""


class WrongClock(RunRefused):
    """The clock of this process differs from the database's, so it is uncertain which accounts are due."""


class NothingToDo(Exception):  # noqa: N818 (it says what happened, as RunRefused does)
    """No run was started, for a reason that is no failure. Nothing was changed, and nothing is recorded of it."""


class AlreadyRunning(NothingToDo):
    """A run of the same path is at work, and takes what is due."""

    def __init__(self, run: ExpiryRun) -> None:
        """Args: run: the run that is at work."""
        super().__init__(
            f"Run {run.pk} by {run.path} is at work since {moment(run.started)} and takes what is due. Nothing was "
            "changed. If its process was killed, another can start 15 seconds after its last slice."
        )


class RunPaused(NothingToDo):
    """An operator has paused the runs."""

    def __init__(self, pause: Decision) -> None:
        """Args: pause: the decision in force."""
        super().__init__(
            f"{decisions.in_words(pause)} Nothing was changed. Resume in the admin, or wait: a pause ends by itself."
        )


RunSlices = Callable[[ExpiryRun], None]
"""Runs the slices that ``slices_of`` cuts with ``expire_slice``, then calls ``ledger.finish_run``; in this process, or
later on workers."""

Progress = Callable[[int, int], None]
"""Called in the caller's thread after each slice with the number of accounts done and of all, the latter estimated when
they are more than ``COUNTED``. An exception from it stops the slices."""


def run_here(run: ExpiryRun, *, after_slice: Progress = lambda done, total: None, jobs: int = 1) -> None:
    """Run the slices in this process, then finish the run. Raises as ``Change.on_each`` does.

    Args:
        after_slice: see ``Progress``.
        jobs: how many slices to run at a time, each in a thread with a database connection of its own.
    """
    _require_at_least_one(jobs=jobs)
    if run.due_count:
        threads = min(jobs, ceil(run.due_count / run.size))  # no thread without a slice
        if threads > 1:
            ledger.record_jobs(run, threads)
        oldest: list[datetime] = []

        def tell(done: int, keys: Slice) -> None:
            ends = keys.upto[0]
            if not oldest:
                oldest.append(ends)
            passed, all_ = ends - oldest[0], run.cutoff - oldest[0]
            many = run.due_count > COUNTED
            after_slice(done, max(done, int(done * (all_ / passed)) if many and passed else run.due_count))

        expiry_by(run).on_each(slices_of(run), after_slice=tell, jobs=threads)
    ledger.finish_run(run_id=run.pk)


def expire_trials(
    *,
    path: ExpiryRun.Path,
    now: datetime,
    batch_size: int | None = None,
    max_accounts: int | None = None,
    throttle: float = 0,
    look_at_all: bool = False,
    task_id: str = "",
    run_slices: RunSlices = run_here,
) -> ExpiryRun:
    """Move every due account (``Account.objects.due(now)``) from trialing to trial expired, and record the run.

    Safe to call at any time, twice, or concurrently: each UPDATE applies the rule again, so an account that is paid
    for, extended or cancelled in the meantime does not change, and none is expired or counted twice.

    Args:
        path: the path that calls, for the ledger.
        now: the moment to apply the rule to, with a time zone; becomes the run's ``as_of``.
        batch_size: accounts in a slice, 1 or more; without it a run learns how many stay locked for 100 ms.
        max_accounts: refuse when more are due; without it ``settings.TRIAL_EXPIRY_MAX`` is the limit. Of either, an
            operator's allowance (``decisions.allow``) makes one exception.
        throttle: pause after each slice for so many times as long as it took, 0 to 100, for replicas that lag.
        look_at_all: look below ``ledger.low_water_mark`` as well, which a run does by itself every six hours.
        task_id: Celery's id of the calling task, for the ledger.
        run_slices: how to run the slices; by default ``run_here``, one after the other.

    Returns:
        The run as the ledger has it: succeeded, or still running when ``run_slices`` sent the slices to workers.

    Raises:
        ValueError: ``now`` is naive, or a number is below 1.
        NothingToDo: a run of this path is at work, or an operator has paused the runs.
        RunRefused: too many are due, or the clock is wrong; the run is recorded as refused.
        ExpiryRun.DoesNotExist: the run was deleted while it was running.
        Exception: the error of a slice; the run is recorded as failed, and what it expired stays expired.
    """
    _require_time_zone(now)
    limit = fuse_limit(max_accounts)
    _require_at_least_one(batch_size=batch_size, max_accounts=limit)
    _require_throttle(throttle)
    clock = ledger.database_now()
    if pause := decisions.paused(now=clock):
        logger.info(Fields("expiry_paused", path=path, until=pause.until, task_id=task_id))
        raise RunPaused(pause)
    ledger.mark_dead_runs_interrupted()
    if living := ledger.living_run(path=path):
        logger.info(Fields("expiry_already_running", path=path, run=living.pk, task_id=task_id))
        raise AlreadyRunning(living)
    run = ledger.new_run(
        path=path,
        now=now,
        floor=None if look_at_all else ledger.low_water_mark(now=clock),
        batch_size=batch_size,
        throttle=throttle,
        task_id=task_id,
    )
    if wrong := wrong_clock(clock):
        ledger.refuse(run, wrong)
        raise WrongClock(wrong)

    run.due_count = count_due(run, limit)
    if limit is not None and run.due_count > limit and not decisions.use_allowance(run):
        why = TOO_MANY_DUE.format(due=run.due_count, limit=limit)
        ledger.refuse(run, why)
        raise TooManyDue(why)
    run.save()
    try:
        run_slices(run)
    except KeyboardInterrupt as stop:
        ledger.interrupt_run(run_id=run.pk, why=str(stop) or "Stopped by a signal.")
        raise
    except Exception as error:
        ledger.fail_run(run_id=run.pk, error=error)
        raise
    run.refresh_from_db()
    return run


def count_due(run: ExpiryRun, limit: int | None) -> int:
    """How many accounts are due for the run: exactly, up to ``COUNTED`` and wherever the fuse's ``limit`` is exceeded.

    Counting a hundred million takes a minute, for which no run waits that will not be refused.
    """
    due = _due_for(run)
    if due.first_end() is None:
        return 0
    count = _count_to_tell(due, limit)
    return due.count() if limit is not None and count > limit else count


def due_to_tell(now: datetime, limit: int | None = None) -> int:
    """How many accounts are due, for pages and dry runs: exactly, up to ``COUNTED`` and to the fuse's ``limit``.

    Above both it is one more, so that an allowance for as many is taken at its word. It looks at all trials, as *Run
    now* does.
    """
    return _count_to_tell(Account.objects.due(now), limit)


def _count_to_tell(due: AccountQuerySet, limit: int | None) -> int:
    return due.count_to(max(COUNTED, limit or 0) + 1)


def _due_for(run: ExpiryRun) -> AccountQuerySet:
    return Account.objects.due_before(run.cutoff).above(run.floor)


TOO_MANY_DUE = (
    "Refused: {due:,} accounts are due and at most {limit:,} may expire in one run. Nothing was changed. If the number "
    "is right, allow it once with ./manage.py expire_trials --max-accounts {due}, or raise TRIAL_EXPIRY_MAX; if not, "
    "look at TRIAL_DAYS, TRIAL_GRACE_DAYS, the trial ends of these accounts and the clock."
)


def fuse_limit(max_accounts: int | None = None) -> int | None:
    """The most accounts that one run may expire; None means no limit."""
    return settings.TRIAL_EXPIRY_MAX if max_accounts is None else max_accounts


def wrong_clock(there: datetime) -> str:
    """What is wrong with this process's clock, compared with the database's just now; empty when they agree.

    A clock that is ahead would expire accounts early, and the run would count as fresh until that moment.
    """
    here = timezone.now()
    if ledger.clocks_agree(here, there):
        return ""
    return (
        f"Refused: the clock of this machine says {moment(here, seconds=True)} and that of the database "
        f"{moment(there, seconds=True)}. Nothing was changed. Set the clock that is wrong, and run it again."
    )


def expiry_by(run: ExpiryRun) -> Change:
    """The change that the run applies to each slice. It uses the cutoff of the run, whatever the settings are now."""
    return Change(
        rows=_due_for(run),
        order=WALK,
        values={"status": Account.TRIAL_EXPIRED, "trial_expired_at": run.as_of, "expiry_run": run},
        count=partial(ledger.count_expired, run),
        throttle=run.throttle,
        log=partial(ledger.log_slice, run),
    )


def slices_of(run: ExpiryRun, *, after: Position | None = None) -> Iterator[Slice]:
    """Cut the due accounts of the run into slices, oldest end of trial first; each is cut when it is asked for.

    Ends when the run expires no more accounts, because it was undone or deleted.

    Args:
        after: where to begin: what an earlier slice went up to.
    """
    return expiry_by(run).walk(size=lambda: ledger.next_slice_size(run), after=after)


def expire_slice(*, run: ExpiryRun, keys: Slice) -> int:
    """Expire the accounts of one slice that are still due; returns how many. Locks and retries as ``Change.on`` does.

    Changes nothing when the run has succeeded, was refused, undone or deleted.
    """
    return expiry_by(run).on(keys)


@dataclass(frozen=True, kw_only=True, slots=True)
class UndoPreview:
    """What undoing a run would change now."""

    would_return: int
    """Accounts that this run expired and that are still expired: they would be back on trial."""
    due_again: int
    """Those of them that the next run would expire again, unless the undo extends them."""
    moved_on: int
    """Accounts that this run expired and that paid or were cancelled since. They do not change."""
    extended: int
    """Accounts that this run expired and that were extended one by one since, or deleted. They do not change."""
    mailed: int
    """Of those that would return: how many customers were mailed that their trial has ended."""
    mailed_among: int
    """Of how many that is."""
    looked_at: int
    """How many accounts of the run were looked at."""
    is_all: bool
    """Whether that is all of them."""

    @property
    def left_alone(self) -> int:
        """Accounts that this run expired and that an undo would not change."""
        return self.moved_on + self.extended


def preview_undo(*, run: ExpiryRun, now: datetime, look_at: int | None = None) -> UndoPreview:
    """Count what ``undo_run`` would change. Exact unless the accounts change concurrently.

    Args:
        run: the run, freshly read from the database.
        now: the moment at which ``due_again`` is counted, with a time zone.
        look_at: look at no more accounts than these, and for mails at a hundredth of them. Without it, at all.
    """
    # In one statement, because the run may still be expiring accounts.
    still_expired, due = Q(status=Account.TRIAL_EXPIRED), ended_before(grace_cutoff(now))
    found = (
        Account.objects.filter(expiry_run=run)
        .order_by("pk")[:look_at]
        .aggregate(
            pointing=Count("pk"),
            would_return=Count("pk", filter=still_expired),
            due_again=Count("pk", filter=still_expired & due),
        )
    )
    # A subquery for each account, because PostgreSQL plans a join by statistics, which are stale after a large run: the
    # join took minutes. This finds each mail by index.
    ended = Notice.objects.filter(
        account=OuterRef("pk"), kind=Notice.Kind.ENDED, trial_ends_at=OuterRef("trial_ends_at"), days_before=0
    )
    told = (
        Account.objects.still_expired_by(run)
        .annotate(mail=Subquery(ended.values("status")))
        .order_by("pk")[: None if look_at is None else look_at // 100]
        .aggregate(among=Count("pk"), mailed=Count("pk", filter=Q(mail=Notice.Status.SENT)))
    )
    is_all = found["pointing"] != look_at
    return UndoPreview(
        would_return=found["would_return"],
        due_again=found["due_again"],
        moved_on=found["pointing"] - found["would_return"],
        extended=max(0, run.expired_count - run.undone_count - found["pointing"]) if is_all else 0,
        mailed=told["mailed"],
        mailed_among=told["among"],
        looked_at=found["pointing"],
        is_all=is_all,
    )


def undo_by(*, run: ExpiryRun, now: datetime, by: str, extend_days: int | None = None, throttle: float = 0) -> Change:
    """The change that an undo of the run applies to each slice. Its arguments are those of ``undo_run``."""
    values = _back_on_trial(extend_days, now)
    return Change(
        rows=_can_be_extended(Account.objects.still_expired_by(run), extend_days),
        values=values,
        before=partial(events.record, kind=AccountEvent.Kind.UNDONE, by=by, ends=values.get("trial_ends_at")),
        count=partial(ledger.count_undone, run),
        throttle=throttle,
        log=partial(ledger.log_slice, run),
    )


def undo_run(
    *,
    run: ExpiryRun,
    now: datetime,
    by: str,
    extend_days: int | None = None,
    batch_size: int | None = None,
    throttle: float = 0,
    after_slice: Progress = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
    jobs: int = 1,
) -> int:
    """Put every account that the run expired, and that is still expired, back on trial; returns how many.

    The run is marked undone first, so that none of its later slices expires accounts: this also stops a run in
    progress. An account that paid or was cancelled does not change. Safe to call at any time, twice, or concurrently;
    after a kill, or when an account was locked, call it again for the rest.

    Args:
        now: the moment an extension is counted from, with a time zone.
        by: who undoes the run; at most 255 characters. The ledger keeps the first one, each account's event its own.
        extend_days: extend the trials by this many days, counted from their end or from ``now``, whichever is later.
            Without it the next run expires most of the accounts again.
        batch_size: accounts in a slice, 1 or more; without it as many as stay locked for 100 ms.
        throttle: that of ``expire_trials``.
        after_slice: see ``Progress``. Of all accounts, those that paid or were cancelled since are left out.
        stop: called before every slice, in any of the threads; True ends the undo. Call it again for the rest.
        jobs: how many slices to undo at a time, as for ``run_here``.

    Raises:
        ValueError: ``now`` is naive, ``by`` is too long, or a number is out of range.
        DatabaseError: a slice failed after its retries, and changed nothing; the others are done.
    """
    _require_at_least_one(batch_size=batch_size, jobs=jobs)
    _require_throttle(throttle)
    _require_short(by)
    undo = undo_by(run=run, now=now, by=by, extend_days=extend_days, throttle=throttle)
    started = time.monotonic()
    ledger.mark_undone(run, by=by)
    run.refresh_from_db()
    # No account is added to these rows any more: a slice commits before the run is marked, or is rolled back.
    undone = undo.on_each(
        undo.walk(size=lambda: None if stop() else batch_size or ledger.undo_slice_size(run)),
        after_slice=lambda done, _: after_slice(done, max(done, run.expired_count - run.undone_count)),
        jobs=max(1, min(jobs, ceil(run.expired_count / (batch_size or FIRST)))),
    )
    run.refresh_from_db()
    ledger.log_run(run, logging.INFO, seconds=time.monotonic() - started, undone=undone)
    if undone:
        ledger.expiry_undone.send_robust(sender=ExpiryRun, run=run, undone=undone)
    return undone


ALLOWED = {
    AccountEvent.Kind.ACTIVATED: [Account.TRIALING, Account.TRIAL_EXPIRED],
    AccountEvent.Kind.EXTENDED: [Account.TRIALING, Account.TRIAL_EXPIRED],
    AccountEvent.Kind.CANCELED: [Account.TRIALING, Account.TRIAL_EXPIRED, Account.ACTIVE, Account.PAST_DUE],
}
"""The statuses in which an account can be activated, extended or cancelled."""


def activate(*, account_id: Any, by: str = "") -> bool:
    """Make a trialing or expired account active, after a payment. False when it was neither.

    Args:
        by: who asked for it, for the account's events; at most 255 characters. Empty: a call of the service.
    """
    return _change(account_id, AccountEvent.Kind.ACTIVATED, by, {"status": Account.ACTIVE})


def extend_trial(*, account_id: Any, days: int, now: datetime, by: str = "") -> bool:
    """Extend a trial by ``days``, counted from its end or from ``now``, whichever is later.

    Also puts an expired account back on trial. False when the account was neither trialing nor expired, or when its
    trial would end after the year 9999. ``by`` is that of ``activate``.

    Raises:
        ValueError: ``days`` is below 1 or above ``LONGEST_EXTENSION``, or ``now`` is naive.
    """
    return _change(account_id, AccountEvent.Kind.EXTENDED, by, _back_on_trial(days, now), extend_days=days)


def cancel(*, account_id: Any, by: str = "") -> bool:
    """Cancel a trialing, expired, active or past-due account. False when it was in another status.

    ``by`` is that of ``activate``.
    """
    return _change(account_id, AccountEvent.Kind.CANCELED, by, {"status": Account.CANCELED})


def _change(
    account_id: Any, kind: AccountEvent.Kind, by: str, values: dict[str, Any], *, extend_days: int | None = None
) -> bool:
    _require_short(by)
    account = _can_be_extended(Account.objects.filter(pk=account_id, status__in=ALLOWED[kind]), extend_days)
    # Two statements, four round trips of which the row is locked during the last three.
    with transaction.atomic(savepoint=False):
        if not events.record(account, kind=kind, by=by, ends=values.get("trial_ends_at")):
            return False
        account.update(**values)
    return True


def _back_on_trial(extend_days: int | None, now: datetime) -> dict[str, Any]:
    _require_time_zone(now)
    values: dict[str, Any] = {"status": Account.TRIALING, "trial_expired_at": None, "expiry_run": None}
    if extend_days is not None:
        _require_at_least_one(days=extend_days)
        if extend_days > LONGEST_EXTENSION:
            raise ValueError(f"days must be at most {LONGEST_EXTENSION}, got {extend_days!r}.")
        values["trial_ends_at"] = Greatest(F("trial_ends_at"), Value(now)) + Value(timedelta(days=extend_days))
    return values


def _can_be_extended(accounts: AccountQuerySet, days: int | None) -> AccountQuerySet:
    return accounts.filter(trial_ends_at__lte=LATEST_END - timedelta(days=days)) if days else accounts


def _require_time_zone(now: datetime) -> None:
    if timezone.is_naive(now):
        raise ValueError(f"now must have a time zone, got {now!r}.")


def _require_throttle(throttle: float) -> None:
    if not 0 <= throttle <= MOST_THROTTLE:
        raise ValueError(f"throttle must be a number from 0 to {MOST_THROTTLE:g}, got {throttle!r}.")


def _require_short(by: str) -> None:
    if len(by) > 255:
        raise ValueError(f"by must be at most 255 characters, got {len(by)}.")


def _require_at_least_one(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number!r}.")
