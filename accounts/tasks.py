"""Celery's face of the services. A task reads the clock, calls one service, and says what to retry; nothing else."""

import mmap
import time
from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from celery import Task, chord, group, shared_task
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import task_failure, worker_shutting_down
from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.dispatch import receiver
from django.utils import timezone

from accounts import delivery, ledger, notices, services
from accounts.mailer import MailServerAwayError
from accounts.models import ExpiryRun, Notice
from accounts.slices import Slice

if TYPE_CHECKING:
    AnyTask = Task[..., Any]
else:
    AnyTask = Task


class RetriedTask(AnyTask):
    """A task that tries again when the database is away for a moment.

    Five times, after about 1, 2, 4, 8 and 16 seconds, with jitter so that the workers do not come back all at once.
    Then it fails, loudly; the next tick is the next try.
    """

    Request = "accounts.consumer:Request"
    autoretry_for = (OperationalError, InterfaceError)
    max_retries = 5
    retry_backoff = True
    retry_backoff_max = 60
    retry_jitter = True


class RedeliveredTask(RetriedTask):
    """A task that may run twice, and is handed out again when its process or its worker dies."""

    # Acknowledged when done, so that it is handed out again when its worker dies: it is short and may run twice.
    acks_late = True
    # When only its process dies it is one more retry: rejected instead, one that is fatal would go round for ever.
    retry_on_worker_lost = True
    default_retry_delay = 1
    reject_on_worker_lost = True  # for when the retry could not be sent


def at_least_one(**numbers: int | None) -> None:
    """Raise ValueError when an argument of a task that was given is no whole number, or below 1."""
    for name, number in numbers.items():
        if number is not None and (type(number) is not int or number < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, not {number!r}.")


class PartOfARun(RedeliveredTask):
    """A task whose failure, when it has no retries left, fails the run it belongs to. The run's other slices go on."""


@task_failure.connect
def fail_its_run(sender: Any, exception: Exception, kwargs: Mapping[str, Any], **_: Any) -> None:
    """Write the error into the ledger. A signal, because ``on_failure`` is not called when the process was killed."""
    if isinstance(sender, PartOfARun):
        ledger.fail_run(run_id=kwargs["run_id"], error=exception)


@shared_task(name="accounts.expire_trials", base=RetriedTask, bind=True, ignore_result=True)
def expire_trials(self: RetriedTask, *, batch_size: int = services.BATCH_SIZE, max_accounts: int | None = None) -> None:
    """Expire every due trial; many of them spread over the workers. See ``services.expire_trials``."""
    services.expire_trials(
        path=ExpiryRun.Path.CELERY,
        now=timezone.now(),
        batch_size=batch_size,
        max_accounts=max_accounts,
        task_id=self.request.id or "",
        run_slices=spread,
    )


def spread(run: ExpiryRun, slices: Sequence[Slice]) -> None:
    """Run a single slice here; several as tasks on whichever worker is free, closed by ``finish_run``."""
    if len(slices) <= 1:
        services.run_in_turn(run, slices)
    else:
        chord(
            [expire_slice.si(run_id=run.pk, first=keys.first, last=keys.last) for keys in slices],
            finish_run.si(run_id=run.pk),
        ).delay()


@shared_task(name="accounts.expire_slice", base=PartOfARun)
def expire_slice(*, run_id: int, first: Any, last: Any) -> int:
    """Expire one slice of a run: the due accounts with keys from ``first`` to ``last``.

    How many accounts, the result, only tells the chord that the slice is done.
    """
    return services.expire_slice(run=ExpiryRun.objects.get(pk=run_id), keys=Slice(first, last))


@shared_task(name="accounts.finish_run", base=PartOfARun, ignore_result=True)
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


@shared_task(name="accounts.send_trial_notices", base=RetriedTask, ignore_result=True)
def send_trial_notices(
    *, concurrency: int = CONCURRENCY, batch_size: int = BATCH_SIZE, max_notices: int | None = None
) -> None:
    """Queue the mails that are owed, and have them delivered by a task for every 25, ``concurrency`` at most."""
    at_least_one(concurrency=concurrency, batch_size=batch_size, max_notices=max_notices)
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
    autoretry_for=(*RetriedTask.autoretry_for, MailServerAwayError),
)
def deliver_notices(self: RetriedTask, *, batch_size: int = BATCH_SIZE) -> None:
    """Deliver one batch, then make room for whatever else waits in the queue before the next."""
    at_least_one(batch_size=batch_size)
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
