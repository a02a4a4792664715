"""procrastinate's face: the task, its schedule, and the task that takes up the jobs of dead workers."""

import os
from contextlib import suppress

from django.db import InterfaceError, OperationalError
from django.utils import timezone
from procrastinate import JobContext, RetryStrategy
from procrastinate.contrib.django import app

from accounts import services
from accounts.models import ExpiryRun

# After 2, 4, 8, 16 and 32 seconds.
when_the_database_is_away = RetryStrategy(
    max_attempts=5, exponential_wait=2, retry_exceptions=[OperationalError, InterfaceError]
)


@app.task(name="expire_trials", queueing_lock="expire_trials", retry=when_the_database_is_away)
def expire_trials(timestamp: int) -> None:
    """Expire every due trial, slice after slice in a thread of the worker."""
    with suppress(services.NothingToDo):
        services.expire_trials(path=ExpiryRun.Path.COMMAND, now=timezone.now())


@app.periodic(cron="*/10 * * * *")
@app.task(name="retry_stalled_jobs", queueing_lock="retry_stalled_jobs", pass_context=True)
async def retry_stalled_jobs(context: JobContext, timestamp: int) -> None:
    """Requeue the jobs of workers that have been silent for 30 seconds; without this they stay "doing" forever."""
    for job in await app.job_manager.get_stalled_jobs():
        await app.job_manager.retry_job(job)


if every := int(os.environ.get("COMPARE_EVERY", "0")):  # seconds
    # The sixth field is of seconds.
    app.periodic(cron="0 * * * *" if every == 3600 else f"* * * * * */{every}")(expire_trials)
