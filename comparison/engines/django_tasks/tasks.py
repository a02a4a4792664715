"""The face for django.tasks. It knows no retries: the next tick is the next attempt."""

from contextlib import suppress

from django.utils import timezone
from django_tasks import task

from accounts import services
from accounts.models import ExpiryRun


@task()
def expire_trials() -> None:
    """Expire every due trial, slice after slice in the worker."""
    with suppress(services.NothingToDo):
        services.expire_trials(path=ExpiryRun.Path.COMMAND, now=timezone.now())
