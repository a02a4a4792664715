"""The Celery tasks. A task reads the clock, calls one service, and declares its retries; nothing else."""

import mmap
import time
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import islice
from math import ceil
from typing import Any

from celery import chord, current_app, group, shared_task
from celery.backends.base import DisabledBackend
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import task_failure, worker_shutting_down
from django.conf import settings
from django.core.exceptions import ValidationError
from django.dispatch import receiver
from django.utils import timezone

from accounts import delivery, ledger, notices, ping, services
from accounts.base_tasks import BaseTask, RedeliveredTask, RunTask, WrongArguments
from accounts.mailer import MailServerAwayError
from accounts.models import Account, ExpiryRun, Notice
from accounts.slices import Position, Slice, position_fields


@shared_task(name="accounts.expire_trials", base=BaseTask, bind=True, ignore_result=True)
def expire_trials(
    self: BaseTask, *, batch_size: int | None = None, max_accounts: int | None = None, throttle: float = 0
) -> None:
    """Expire every due trial, in several slices on all free workers. See ``services.expire_trials``."""
    ping.started()
    try:
        services.expire_trials(
            path=ExpiryRun.Path.CELERY,
            now=timezone.now(),
            batch_size=batch_size,
            max_accounts=max_accounts,
            throttle=throttle,
            task_id=self.request.id or "",
            run_slices=run_on_workers,
        )
    except services.NothingToDo:  # logged already, and no failure
        ping.succeeded()


WAVE = 100
"""The most messages of a run that wait in the broker at a time."""

FIRST_WAVE = 4
"""So many slices go ahead while nothing is known of how long they take."""


def run_on_workers(run: ExpiryRun) -> None:
    """Run a single slice in this task, and more of them in waves of one message each; the last wave closes the run."""
    # Without a result backend no chord can detect that all slices are done.
    if run.due_count <= run.size or isinstance(current_app.backend, DisabledBackend):
        services.run_here(run)
    else:
        send_wave(run, most=WAVE if run.batch_size else FIRST_WAVE)


def send_wave(run: ExpiryRun, *, most: int, after: Position | None = None) -> None:
    """Cut the next slices of the run and send them; when there are none, close the run.

    One message for each slice. Four slices in a message, measured with 64 slices, took a tenth less CPU time, but a
    slice that kills its process would also fail the others in its message.
    """
    size = run.size
    wave = list(islice(services.slices_of(run, after=after), most))
    if not wave:
        ledger.finish_run(run_id=run.pk)
        return
    following = partial(continue_run.si, run_id=run.pk, after=wave[-1].upto, size=size)
    chord(
        [expire_slice.si(run_id=run.pk, after=keys.after, upto=keys.upto) for keys in wave],
        # A slice that failed must not keep the following ones from their turn. Its error is recorded a little later.
        following().on_error(following(has_failed=True)),
    ).delay()


@shared_task(name="accounts.expire_slice", base=RunTask, ignore_result=False)
def expire_slice(*, run_id: int, after: Any, upto: Any) -> int:
    """Expire one slice of a run: the due accounts after one position and up to another.

    Returns how many; the chord uses the result only to detect that the slice is done.
    """
    run = run_with(run_id)
    keys = Slice(None if after is None else position("after", after), position("upto", upto))
    return services.expire_slice(run=run, keys=keys)


@shared_task(name="accounts.continue_run", base=RunTask, ignore_result=True)
def continue_run(*, run_id: int, after: Any, size: int, has_failed: bool = False) -> None:
    """Send the next slices of a run, after the position that the last ones went up to; close it when there are none.

    When its message is delivered twice, two tasks send the same slices, of which each account expires in one.

    Args:
        size: how many accounts the last slices had. While the run still learns to take many more, few are sent.
        has_failed: whether one of the last slices failed.
    """
    run = run_with(run_id)
    if has_failed:
        ledger.record_failed_slice(run_id=run_id)
    has_learnt = run.batch_size is not None or run.slice_size < 2 * size
    send_wave(run, most=WAVE if has_learnt else FIRST_WAVE, after=position("after", after))


def run_with(run_id: int) -> ExpiryRun:
    """The run; raises WrongArguments when there is none."""
    run = ExpiryRun.objects.filter(pk=run_id).first()
    if run is None:
        raise WrongArguments(f"There is no run {run_id}: it was deleted, or pruned. Nothing was changed.")
    return run


def position(name: str, value: Any) -> Position:
    """Convert an argument of a task from JSON to a position among the due accounts: the end of a trial, and a key.

    Raises:
        WrongArguments: it is none.
    """
    fields = position_fields(Account.objects.all(), services.WALK)
    try:
        found = tuple(field.to_python(part) for field, part in zip(fields, value, strict=True))
        is_one = None not in found and timezone.is_aware(found[0])
    except (AttributeError, TypeError, ValueError, ValidationError, OverflowError):  # overflow: infinity
        is_one = False
    if not is_one:
        raise WrongArguments(
            f"{name} must be the end of a trial and the key of an account, not {value!r:.60}. Nothing was changed."
        )
    return found


# --- Undo ---


@shared_task(name="accounts.undo_run", base=RedeliveredTask, bind=True, ignore_result=True)
def undo_run(self: BaseTask, *, run_id: int, by: str, now: str, extend_days: int | None = None) -> None:
    """Undo a run for a minute, then requeue itself for the rest, so that other tasks in the queue run in between.

    Args:
        run_id: the run.
        by: who undoes it.
        now: the moment an extension is counted from, in ISO 8601 with a time zone. It is that of the request, so that
            an extension is the same however often the task runs.
        extend_days: as for ``services.undo_run``.
    """
    run = run_with(run_id)
    end = time.monotonic() + BATCH_SECONDS
    was_stopped = False

    def stop() -> bool:
        nonlocal was_stopped
        was_stopped = bool(_shutting_down[0]) or time.monotonic() > end
        return was_stopped

    services.undo_run(run=run, now=moment("now", now), by=by, extend_days=extend_days, stop=stop)
    if was_stopped and Account.objects.still_expired_by(run).exists():
        self.apply_async(kwargs={"run_id": run_id, "by": by, "now": now, "extend_days": extend_days})


def moment(name: str, value: Any) -> datetime:
    """Convert an argument of a task from JSON to a moment; raises WrongArguments unless it has a time zone."""
    found = None
    with suppress(TypeError, ValueError):
        found = datetime.fromisoformat(value)
    if found is None or timezone.is_naive(found):
        raise WrongArguments(f"{name} must be a moment with a time zone, not {value!r:.40}. Nothing was changed.")
    return found


@receiver(ledger.trials_expired)
def tell_monitor_of_success(run: ExpiryRun, **_: Any) -> None:
    """Ping the monitor when a run by Celery has succeeded."""
    if run.path == ExpiryRun.Path.CELERY:
        ping.succeeded()


@task_failure.connect
def tell_monitor_of_failure(sender: Any, **_: Any) -> None:
    """Ping the monitor when a task of a run has failed for good, or its run was refused."""
    if sender in (expire_trials, expire_slice, continue_run):
        ping.failed()


# --- Notices. With settings.TRIAL_NOTICES off, these tasks do nothing. ---

BATCH_SIZE = 500
"""The most notices that one task attempts."""

BATCH_SECONDS = 60
"""How long a task starts new mails. Even with a slow last mail it ends well within its time limit."""

CONCURRENCY = 8
"""The most tasks that deliver concurrently, each on a worker process and a connection of its own."""

MAILS_FOR_A_TASK = 25
"""With fewer mails, another connection to the mail server does not pay."""

TICK_SECONDS = 55 * 60
"""The tasks of a tick expire after this, because the next tick sends new ones."""

# Memory shared with the pool's processes, which this process forks later. Without a lock, because a process that is
# killed while it holds one would block the others.
_shutting_down = mmap.mmap(-1, 1)


@worker_shutting_down.connect
def stop_delivering(**_: Any) -> None:
    """Make every delivery of this worker end after its current mail. Only the main process receives this signal."""
    _shutting_down[0] = True


@receiver(ledger.trials_expired)
def send_notices_of_run(run: ExpiryRun, **_: Any) -> None:
    """Send the mails after a run by Celery that expired accounts. If this message is lost, the next tick sends them."""
    if settings.TRIAL_NOTICES and run.path == ExpiryRun.Path.CELERY and run.expired_count:
        send_trial_notices.apply_async(expires=TICK_SECONDS)


@shared_task(name="accounts.send_trial_notices", base=BaseTask, ignore_result=True)
def send_trial_notices(
    *, concurrency: int = CONCURRENCY, batch_size: int = BATCH_SIZE, max_notices: int | None = None
) -> None:
    """Queue the mails that are owed, and start one delivery task for every 25 of them, at most ``concurrency``."""
    if not settings.TRIAL_NOTICES:
        return
    now = timezone.now()
    notices.queue_notices(now=now, max_notices=max_notices)
    enough = min(batch_size, MAILS_FOR_A_TASK)
    waiting = Notice.objects.deliverable(now)[: concurrency * enough].count()
    deliveries = [deliver_notices.si(batch_size=batch_size) for _ in range(ceil(waiting / enough))]
    if deliveries:
        group(deliveries).apply_async(expires=TICK_SECONDS)


@shared_task(
    name="accounts.deliver_notices",
    base=RedeliveredTask,
    bind=True,
    ignore_result=True,
    # Also retried while the mail server is down.
    autoretry_for=(*BaseTask.autoretry_for, MailServerAwayError),
)
def deliver_notices(self: BaseTask, *, batch_size: int = BATCH_SIZE) -> None:
    """Deliver one batch, then requeue itself for the next, so that other tasks in the queue run in between."""
    if not settings.TRIAL_NOTICES:
        return
    end = time.monotonic() + BATCH_SECONDS
    outcome = delivery.deliver_notices(
        now=timezone.now(),
        limit=batch_size,
        stop=lambda: bool(_shutting_down[0]) or time.monotonic() > end,
        interrupts=(SoftTimeLimitExceeded,),
    )
    if outcome.trouble:
        raise MailServerAwayError(outcome.trouble)
    if not outcome.finished:
        until: Any = self.request.expires  # a moment, as in the message; the stubs declare a number
        self.apply_async(kwargs={"batch_size": batch_size}, expires=until)
