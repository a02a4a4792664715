"""Celery's face of the services. A task reads the clock, calls one service, and says what to retry; nothing else."""

from collections.abc import Sequence

from celery import Task, chord, shared_task
from django.db import InterfaceError, OperationalError
from django.utils import timezone

from accounts import services
from accounts.models import ExpiryRun
from accounts.services import Slice

# A database that is away for a moment: five more tries, after about 1, 2, 4, 8 and 16 seconds, jittered so that
# the workers do not come back all at once. Then the task fails, and the next tick is the next try.
RETRY = {
    "autoretry_for": (OperationalError, InterfaceError),
    "max_retries": 5,
    "retry_backoff": True,
    "retry_backoff_max": 60,
    "retry_jitter": True,
}


@shared_task(name="accounts.expire_trials", bind=True, ignore_result=True, **RETRY)
def expire_trials(
    self: Task, *, batch_size: int = services.BATCH_SIZE, max_accounts: int | None = None
) -> None:
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
        services.in_turn(run, slices)
    else:
        chord(
            [expire_slice.si(run_id=run.pk, after=part.after, upto=part.upto) for part in slices],
            finish_run.si(run_id=run.pk),
        ).delay()


class PartOfARun(Task):
    """A task that, failing for good, fails the run it belongs to. The run's other slices go on."""

    def on_failure(self, exc: Exception, task_id: str, args: tuple[()], kwargs: dict[str, int], einfo: object) -> None:
        """Write the error into the ledger."""
        services.fail_run(run_id=kwargs["run_id"], error=exc)


# Acknowledged when done, and handed out again when its process dies: a slice is short and may run twice.
REDELIVERED = {"acks_late": True, "reject_on_worker_lost": True}


@shared_task(name="accounts.expire_slice", base=PartOfARun, **REDELIVERED, **RETRY)
def expire_slice(*, run_id: int, after: int, upto: int) -> int:
    """Expire one slice of a run; how many accounts, the result, only tells the chord that the slice is done."""
    return services.expire_slice(run=ExpiryRun.objects.get(pk=run_id), part=Slice(after=after, upto=upto))


@shared_task(name="accounts.finish_run", base=PartOfARun, ignore_result=True, **REDELIVERED, **RETRY)
def finish_run(*, run_id: int) -> None:
    """Close a run whose slices are all done."""
    services.finish_run(run_id=run_id)
