"""The Celery tasks. A task reads the clock, calls one service, and declares its retries; nothing else."""

import mmap
import time
from collections.abc import Sequence
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
from accounts.slices import Slice


@shared_task(name="accounts.expire_trials", base=BaseTask, bind=True, ignore_result=True)
def expire_trials(self: BaseTask, *, batch_size: int = services.BATCH_SIZE, max_accounts: int | None = None) -> None:
    """Expire every due trial, in several slices on all free workers. See ``services.expire_trials``."""
    ping.started()
    try:
        services.expire_trials(
            path=ExpiryRun.Path.CELERY,
            now=timezone.now(),
            batch_size=batch_size,
            max_accounts=max_accounts,
            task_id=self.request.id or "",
            run_slices=run_on_workers,
        )
    except services.RunPaused:  # logged already; an operator's decision is no failure
        ping.succeeded()


def run_on_workers(run: ExpiryRun, slices: Sequence[Slice]) -> None:
    """Run a single slice in this task, and several as one task each; ``finish_run`` then closes the run.

    One message for each slice. Four slices in a message, measured with 64 slices, took a tenth less CPU time, but a
    slice that kills its process would also fail the others in its message.
    """
    # Without a result backend no chord can detect that all slices are done.
    if len(slices) <= 1 or isinstance(current_app.backend, DisabledBackend):
        services.run_here(run, slices)
    else:
        chord(
            [expire_slice.si(run_id=run.pk, first=keys.first, last=keys.last) for keys in slices],
            finish_run.si(run_id=run.pk),
        ).delay()


@shared_task(name="accounts.expire_slice", base=RunTask, ignore_result=False)
def expire_slice(*, run_id: int, first: Any, last: Any) -> int:
    """Expire one slice of a run: the due accounts with keys from ``first`` to ``last``.

    Returns how many; the chord uses the result only to detect that the slice is done.
    """
    run = ExpiryRun.objects.filter(pk=run_id).first()
    if run is None:
        raise WrongArguments(f"There is no run {run_id}: it was deleted, or pruned. Nothing was changed.")
    return services.expire_slice(run=run, keys=Slice(account_key("first", first), account_key("last", last)))


def account_key(name: str, value: Any) -> Any:
    """Convert an argument of a task from JSON to the primary key of an account; raises WrongArguments."""
    try:
        key = Account._meta.pk.to_python(value)
    except (ValidationError, OverflowError):  # overflow: infinity
        key = None
    if key is None:
        raise WrongArguments(f"{name} must be the key of an account, not {value!r:.40}. Nothing was changed.")
    return key


@shared_task(name="accounts.finish_run", base=RunTask, ignore_result=True)
def finish_run(*, run_id: int) -> None:
    """Close a run whose slices are all done."""
    ledger.finish_run(run_id=run_id)


@receiver(ledger.trials_expired)
def tell_monitor_of_success(run: ExpiryRun, **_: Any) -> None:
    """Ping the monitor when a run by Celery has succeeded."""
    if run.path == ExpiryRun.Path.CELERY:
        ping.succeeded()


@task_failure.connect
def tell_monitor_of_failure(sender: Any, **_: Any) -> None:
    """Ping the monitor when a task of a run has failed for good, or its run was refused."""
    if sender in (expire_trials, expire_slice, finish_run):
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
