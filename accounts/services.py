"""The services that change accounts: expire trials, undo a run, and activate, extend or cancel one account.

Every service is a conditional ``UPDATE`` (a run and its undo: one for each slice), so the state of the row at that
moment decides, never what was read before. All but a run add an ``AccountEvent`` in the same transaction. Celery and
the command line call this module; it imports neither.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, Value
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
    grace_cutoff,
)
from accounts.slices import AfterSlice, Change, Slice, plan
from accounts.words import moment

logger = logging.getLogger(__name__)

BATCH_SIZE = 10_000
"""Accounts in a slice: locked for 70 to 90 ms on PostgreSQL, and as fast as one statement for all accounts."""

LONGEST_EXTENSION = 3650
"""Days. More is a typing error, and dates overflow with far more."""


class RunRefused(Exception):  # noqa: N818 (it says what happened, as DoesNotExist does)
    """A run was refused. Nothing was changed except the ledger, which stores the run and this message."""


class TooManyDue(RunRefused):
    """The fuse: more accounts are due than one run may expire."""


class WrongClock(RunRefused):
    """The clock of this process differs from the database's, so it is uncertain which accounts are due."""


class RunPaused(Exception):  # noqa: N818 (it says what happened, as RunRefused does)
    """An operator has paused the runs. Nothing was changed, and nothing is recorded of this attempt."""

    def __init__(self, pause: Decision) -> None:
        """Args: pause: the decision in force."""
        super().__init__(
            f"{decisions.in_words(pause)} Nothing was changed. Resume in the admin, or wait: a pause ends by itself."
        )


RunSlices = Callable[[ExpiryRun, Sequence[Slice]], None]
"""Runs every slice with ``expire_slice``, then calls ``ledger.finish_run``; in this process, or later on workers."""


def run_here(
    run: ExpiryRun, slices: Sequence[Slice], *, after_slice: AfterSlice = lambda done, total: None, jobs: int = 1
) -> None:
    """Run the slices in this process, then finish the run. Raises as ``Change.on_each`` does.

    Args:
        after_slice: called in this thread with the number of slices done and of all slices; an exception from it stops
            the run.
        jobs: how many slices to run at a time, each in a thread with a database connection of its own.
    """
    _require_at_least_one(jobs=jobs)
    if (threads := min(jobs, len(slices))) > 1:
        ledger.record_jobs(run, threads)
    expiry_by(run).on_each(slices, after_slice=after_slice, jobs=jobs)
    ledger.finish_run(run_id=run.pk)


def expire_trials(
    *,
    path: ExpiryRun.Path,
    now: datetime,
    batch_size: int = BATCH_SIZE,
    max_accounts: int | None = None,
    task_id: str = "",
    run_slices: RunSlices = run_here,
) -> ExpiryRun:
    """Move every due account (``Account.objects.due(now)``) from trialing to trial expired, and record the run.

    Safe to call at any time, twice, or concurrently: each UPDATE applies the rule again, so an account that is paid
    for, extended or cancelled in the meantime does not change, and none is expired or counted twice.

    Args:
        path: the path that calls, for the ledger.
        now: the moment to apply the rule to, with a time zone; becomes the run's ``as_of``.
        batch_size: accounts in a slice, 1 or more.
        max_accounts: refuse when more are due; without it ``settings.TRIAL_EXPIRY_MAX`` is the limit. Of either, an
            operator's allowance (``decisions.allow``) makes one exception.
        task_id: Celery's id of the calling task, for the ledger.
        run_slices: how to run the slices; by default ``run_here``, one after the other.

    Returns:
        The run as the ledger has it: succeeded, or still running when ``run_slices`` sent the slices to workers.

    Raises:
        ValueError: ``now`` is naive, or a number is below 1.
        RunPaused: an operator has paused the runs.
        RunRefused: too many are due, or the clock is wrong; the run is recorded as refused.
        ExpiryRun.DoesNotExist: the run was deleted while it was running.
        Exception: the error of a slice; the run is recorded as failed, and what it expired stays expired.
    """
    _require_time_zone(now)
    limit = fuse_limit(max_accounts)
    _require_at_least_one(batch_size=batch_size, max_accounts=limit)
    clock = ledger.database_now()
    if pause := decisions.paused(now=clock):
        logger.info(Fields("expiry_paused", path=path, until=pause.until, task_id=task_id))
        raise RunPaused(pause)
    ledger.mark_dead_runs_interrupted()
    run = ledger.new_run(path=path, now=now, task_id=task_id)
    if wrong := wrong_clock(clock):
        ledger.refuse(run, wrong)
        raise WrongClock(wrong)

    due = Account.objects.due_before(run.cutoff)
    slices, run.due_count = plan(due, size=batch_size) if Account.objects.any_due(now) else ([], 0)
    run.slice_count = len(slices)
    if limit is not None and run.due_count > limit and not decisions.use_allowance(run):
        why = TOO_MANY_DUE.format(due=run.due_count, limit=limit)
        ledger.refuse(run, why)
        raise TooManyDue(why)
    run.save()
    try:
        run_slices(run, slices)
    except KeyboardInterrupt as stop:
        ledger.interrupt_run(run_id=run.pk, why=str(stop) or "Stopped by a signal.")
        raise
    except Exception as error:
        ledger.fail_run(run_id=run.pk, error=error)
        raise
    run.refresh_from_db()
    return run


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
        rows=Account.objects.due_before(run.cutoff),
        values={"status": Account.TRIAL_EXPIRED, "trial_expired_at": run.as_of, "expiry_run": run},
        count=partial(ledger.count_expired, run),
        log=partial(ledger.log_slice, run),
    )


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

    @property
    def left_alone(self) -> int:
        """Accounts that this run expired and that an undo would not change."""
        return self.moved_on + self.extended


def preview_undo(*, run: ExpiryRun, now: datetime) -> UndoPreview:
    """Count what ``undo_run`` would change. Exact unless the accounts change concurrently.

    Args:
        run: the run, freshly read from the database.
        now: the moment at which ``due_again`` is counted, with a time zone.
    """
    pointing = Account.objects.filter(expiry_run=run).count()
    expired = Account.objects.still_expired_by(run)
    would_return = expired.count()
    return UndoPreview(
        would_return=would_return,
        due_again=expired.ended_before(grace_cutoff(now)).count(),
        moved_on=pointing - would_return,
        extended=max(0, run.expired_count - run.undone_count - pointing),
        mailed=expired.filter(
            notices__kind=Notice.Kind.ENDED,
            notices__status=Notice.Status.SENT,
            notices__trial_ends_at=F("trial_ends_at"),
        ).count(),
    )


def undo_run(
    *,
    run: ExpiryRun,
    now: datetime,
    by: str,
    extend_days: int | None = None,
    batch_size: int = BATCH_SIZE,
    after_slice: AfterSlice = lambda done, total: None,
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
        batch_size: accounts in a slice, 1 or more.
        after_slice: called in this thread with the number of slices done and of all slices; an exception from it stops
            the undo.
        jobs: how many slices to undo at a time, as for ``run_here``.

    Raises:
        ValueError: ``now`` is naive, ``by`` is too long, or a number is out of range.
        DatabaseError: a slice failed after its retries, and changed nothing; the others are done.
    """
    _require_at_least_one(batch_size=batch_size, jobs=jobs)
    _require_short(by)
    values = _back_on_trial(extend_days, now)
    started = time.monotonic()
    ledger.mark_undone(run, by=by)
    # No account is added to these rows any more: a slice commits before the run is marked, or is rolled back.
    undo = Change(
        rows=_can_be_extended(Account.objects.still_expired_by(run), extend_days),
        values=values,
        before=partial(events.record, kind=AccountEvent.Kind.UNDONE, by=by, ends=values.get("trial_ends_at")),
        count=lambda undone, _: ledger.count_undone(run, undone),
        log=partial(ledger.log_slice, run),
    )
    slices, _ = plan(undo.rows, size=batch_size)
    undone = undo.on_each(slices, after_slice=after_slice, jobs=jobs)
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


def _require_short(by: str) -> None:
    if len(by) > 255:
        raise ValueError(f"by must be at most 255 characters, got {len(by)}.")


def _require_at_least_one(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number!r}.")
