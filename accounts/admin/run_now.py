"""Run now, from the admin: by a worker of Celery where one lives, else in this process for a few seconds."""

import time

from django.apps import apps
from django.db import DatabaseError
from django.utils import timezone

from accounts import decisions, ledger, services
from accounts.decisions import NotPossible
from accounts.log import one_line
from accounts.models import Decision, ExpiryRun
from accounts.words import number, plural

SECONDS = 5
"""How long a run in this process starts slices. One takes a tenth of a second, and a web request may take 30."""


class OutOfTime(KeyboardInterrupt):
    """The run in this process has used its time; what it expired stays expired."""


def worker_answers() -> bool:
    """Whether a worker of Celery answers, within a second."""
    if not apps.is_installed("django_celery_beat"):
        return False
    from accounts.admin import schedule  # imports Celery, which a project may not have

    return bool(schedule.processes().workers)


def start(*, by: str, reason: str) -> str:
    """Start a run, and record who did and why; returns a sentence about what happened.

    Raises:
        NotPossible: the runs are paused, or the run was refused or failed; the message says why.
    """
    if pause := decisions.paused(now=ledger.database_now()):
        raise NotPossible(f"{decisions.in_words(pause)} Resume first. Nothing was changed.")
    decision = decisions.run_now(by=by, reason=reason)
    if worker_answers():
        from accounts import tasks
        from accounts.admin import schedule

        if schedule.send_to_worker(tasks.expire_trials):
            return "A worker was told to run. Its run is in the ledger within seconds."
    return _here(decision)


def _here(decision: Decision) -> str:
    end = time.monotonic() + SECONDS
    started: list[ExpiryRun] = []

    def in_bounded_time(done: int, total: int) -> None:
        if done < total and time.monotonic() > end:
            raise OutOfTime(
                f"Stopped after {SECONDS} seconds in the admin, {number(done)} of {plural(total, 'account')} done."
            )

    def run_slices(run: ExpiryRun) -> None:
        started.append(run)
        decisions.record_run(decision, run)
        services.run_here(run, after_slice=in_bounded_time)

    try:
        services.expire_trials(path=ExpiryRun.Path.COMMAND, now=timezone.now(), look_at_all=True, run_slices=run_slices)
    except (services.RunRefused, services.NothingToDo) as refusal:
        raise NotPossible(str(refusal)) from None
    except DatabaseError as error:
        reason = one_line(str(error), most=500)
        raise NotPossible(f"The run failed: {reason}. What it expired stays expired; run again for the rest.") from None
    except OutOfTime:
        rest = " Run now again for the rest, or leave it to the next tick."
    else:
        rest = ""
    (run,) = started
    run.refresh_from_db()
    return f"Run {run.pk} expired {number(run.expired_count)} of {plural(run.due_count, 'due account')}.{rest}"
