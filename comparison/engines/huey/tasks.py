"""Huey's face: its consumer finds this module, and calls the periodic task when its schedule says so."""

import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from django.utils import timezone
from huey.consumer import Scheduler
from huey.contrib.djhuey import db_periodic_task, enqueue, signal
from huey.exceptions import CancelExecution
from huey.signals import SIGNAL_INTERRUPTED

from accounts import services
from accounts.models import ExpiryRun

every = int(os.environ.get("COMPARE_EVERY", "3600"))  # seconds
if every < Scheduler.periodic_task_seconds:  # Huey looks at its schedule once a minute, here every second
    Scheduler.periodic_task_seconds = 1


def is_due(at: datetime) -> bool:
    """What ``huey.crontab`` says, in seconds."""
    tolerance: int = Scheduler.periodic_task_seconds
    return int(at.replace(tzinfo=UTC).timestamp()) % every < tolerance


# After 1, 2, 4, 8 and 16 seconds, as the Celery task.
@db_periodic_task(is_due, retries=5, retry_delay=1, retry_backoff=2)  # type: ignore[untyped-decorator]
def expire_trials() -> None:
    """Expire every due trial, slice after slice in a thread of the consumer."""
    try:
        with suppress(services.NothingToDo):
            services.expire_trials(path=ExpiryRun.Path.COMMAND, now=timezone.now())
    except services.RunRefused as refused:  # Huey retries every other exception
        raise CancelExecution(retry=False) from refused


@signal(SIGNAL_INTERRUPTED)  # type: ignore[untyped-decorator]
def run_again(_: str, task: Any) -> None:
    """Enqueue a task that SIGTERM interrupted; otherwise it is lost, as after SIGKILL."""
    enqueue(task)
