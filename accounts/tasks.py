"""Celery's face of the services. A task reads the clock, calls one service, and says what to retry; nothing else."""

import mmap
import time
from collections.abc import Sequence
from math import ceil
from typing import Any

from celery import chord, current_app, group, shared_task
from celery.backends.base import DisabledBackend
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import worker_shutting_down
from django.conf import settings
from django.core.exceptions import ValidationError
from django.dispatch import receiver
from django.utils import timezone

from accounts import delivery, ledger, notices, services
from accounts.base_tasks import BaseTask, RedeliveredTask, RunTask, WrongArguments
from accounts.mailer import MailServerAwayError
from accounts.models import Account, ExpiryRun, Notice
from accounts.slices import Slice


@shared_task(name="accounts.expire_trials", base=BaseTask, bind=True, ignore_result=True)
def expire_trials(self: BaseTask, *, batch_size: int = services.BATCH_SIZE, max_accounts: int | None = None) -> None:
    """Expire every due trial; many of them on whichever workers are free. See ``services.expire_trials``."""
    services.expire_trials(
        path=ExpiryRun.Path.CELERY,
        now=timezone.now(),
        batch_size=batch_size,
        max_accounts=max_accounts,
        task_id=self.request.id or "",
        run_slices=run_on_workers,
    )


def run_on_workers(run: ExpiryRun, slices: Sequence[Slice]) -> None:
    """Run a single slice here; several as tasks on whichever worker is free, closed by ``finish_run``.

    One message for each slice. Four in a message, measured on 64 slices, took a tenth less processor time, and needed a
    rule for the neighbours of a slice that kills its process.
    """
    # Without a result backend nobody would know when all slices are done.
    if len(slices) <= 1 or isinstance(current_app.backend, DisabledBackend):
        services.run_in_turn(run, slices)
    else:
        chord(
            [expire_slice.si(run_id=run.pk, first=keys.first, last=keys.last) for keys in slices],
            finish_run.si(run_id=run.pk),
        ).delay()


@shared_task(name="accounts.expire_slice", base=RunTask, ignore_result=False)
def expire_slice(*, run_id: int, first: Any, last: Any) -> int:
    """Expire one slice of a run: the due accounts with keys from ``first`` to ``last``.

    How many accounts, the result, only tells the chord that the slice is done.
    """
    run = ExpiryRun.objects.filter(pk=run_id).first()
    if run is None:
        raise WrongArguments(f"There is no run {run_id}: it was deleted, or pruned. Nothing was changed.")
    return services.expire_slice(run=run, keys=Slice(account_key("first", first), account_key("last", last)))


def account_key(name: str, value: Any) -> Any:
    """The primary key of an account that an argument of a task holds, as JSON has it."""
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


# --- Notices. With settings.TRIAL_NOTICES off, none of this does anything. ---

BATCH_SIZE = 500
"""Notices that one task takes up at most ..."""

BATCH_SECONDS = 60
"""... and how long it begins new ones: with a mail that takes its time it ends well within its time limit."""

CONCURRENCY = 8
"""Tasks that deliver at the same time, if there are as many worker processes, each over a connection of its own."""

MAILS_FOR_A_TASK = 25
"""Fewer are not worth another connection to the mail server."""

TICK_SECONDS = 55 * 60
"""Delivering ends by then: the next tick brings new tasks."""

# Memory that this process shares with the pool's processes, which it forks later. Without a lock: a process that is
# killed while it holds one would block the others.
_shutting_down = mmap.mmap(-1, 1)


@worker_shutting_down.connect
def stop_delivering(**_: Any) -> None:
    """Tell every delivery of this worker to end after the mail in hand. Celery tells only the main process."""
    _shutting_down[0] = True


@receiver(ledger.trials_expired)
def send_notices_of_run(run: ExpiryRun, **_: Any) -> None:
    """Send the mails soon after a run by Celery expired somebody. Should this message get lost, the next tick does."""
    if settings.TRIAL_NOTICES and run.path == ExpiryRun.Path.CELERY and run.expired_count:
        send_trial_notices.apply_async(expires=TICK_SECONDS)


@shared_task(name="accounts.send_trial_notices", base=BaseTask, ignore_result=True)
def send_trial_notices(
    *, concurrency: int = CONCURRENCY, batch_size: int = BATCH_SIZE, max_notices: int | None = None
) -> None:
    """Queue the mails that are owed, and have them delivered by a task for every 25, ``concurrency`` at most."""
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
    # It waits for a mail server that is away, as every task does for the database.
    autoretry_for=(*BaseTask.autoretry_for, MailServerAwayError),
)
def deliver_notices(self: BaseTask, *, batch_size: int = BATCH_SIZE) -> None:
    """Deliver one batch, then make room for whatever else waits in the queue before the next."""
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
        until: Any = self.request.expires  # the moment, as the message has it; a number only in the stubs
        self.apply_async(kwargs={"batch_size": batch_size}, expires=until)
