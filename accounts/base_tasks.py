"""Base classes of the tasks: checked arguments, retries, redelivery, time limits, and a check of the settings.

The options are set on the tasks, so that they hold in any project's Celery app, whatever its settings are.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.signals import beat_init, task_failure, worker_init
from django.core.exceptions import ImproperlyConfigured
from django.db import InterfaceError, OperationalError

from accounts import ledger
from accounts.checks import require_valid_settings
from accounts.log import Fields
from accounts.services import MOST_THROTTLE, RunRefused

if TYPE_CHECKING:
    AnyTask = Task[..., Any]
else:
    AnyTask = Task

logger = logging.getLogger(__name__)

HIGHEST_NUMBER = 2**31 - 1


class WrongArguments(Exception):  # noqa: N818 (it says what happened, as RunRefused does)
    """A task was sent with invalid arguments. Nothing was changed, and the task is not retried."""


def check_arguments(run: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check the arguments in a message against the task's parameters.

    A parameter annotated as ``int`` or ``int | None`` takes a whole number from 1 to ``HIGHEST_NUMBER``, and one
    annotated as ``float`` a number from 0 to ``MOST_THROTTLE``.

    Raises:
        WrongArguments: an argument is missing, unknown, or not such a number; the message names it.
    """
    expected = signature(run)
    try:
        given = expected.bind(*args, **kwargs).arguments
    except TypeError as error:
        what = str(error).replace("keyword-only ", "")  # which only newer Pythons say
        raise WrongArguments(f"The arguments of the task are wrong: {what}. Nothing was changed.") from None
    for name, value in given.items():
        kind = expected.parameters[name].annotation
        if kind is float and (type(value) not in (int, float) or not 0 <= value <= MOST_THROTTLE):
            raise WrongArguments(
                f"{name} must be a number from 0 to {MOST_THROTTLE:g}, not {value!r:.40}. Nothing was changed."
            )
        if kind not in (int, int | None) or (value is None and kind == int | None):
            continue
        if type(value) is not int or not 1 <= value <= HIGHEST_NUMBER:
            raise WrongArguments(
                f"{name} must be a whole number from 1 to {HIGHEST_NUMBER}, not {value!r:.40}. Nothing was changed."
            )


class BaseTask(AnyTask):
    """A task with checked arguments and time limits, which is retried when the database is down.

    Five retries, after about 1, 2, 4, 8 and 16 seconds, with jitter so that the workers do not all retry at once. Then
    the task fails; the next tick is the next attempt.
    """

    Request = "accounts.consumer:Request"
    serializer = "json"
    acks_late = False
    time_limit = 300  # seconds; a slice takes about a tenth of one. The broker's visibility timeout must be longer
    soft_time_limit = 270
    throws = (WrongArguments, RunRefused)  # Celery logs no traceback of these
    autoretry_for = (OperationalError, InterfaceError)
    max_retries = 5
    retry_backoff = True
    retry_backoff_max = 60
    retry_jitter = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Check the arguments, then run the task. Celery retries only ``run``: wrong arguments stay wrong."""
        check_arguments(self.run, args, kwargs)
        return self.run(*args, **kwargs)


class RedeliveredTask(BaseTask):
    """A short task that may run twice, and is redelivered when its process or its worker dies."""

    # Acknowledged when done, so that the broker redelivers it when its worker dies.
    acks_late = True
    # When only its process dies, that counts as a retry. If the message were rejected instead, a task that kills its
    # process every time would be redelivered forever.
    retry_on_worker_lost = True
    default_retry_delay = 1
    reject_on_worker_lost = True  # applies when the retry could not be sent


class RunTask(RedeliveredTask):
    """A task that fails its run when it has no retries left. The run's other slices continue."""


@task_failure.connect
def report_failure(sender: Any, task_id: str, exception: Exception, kwargs: Mapping[str, Any], **_: Any) -> None:
    """Store the error in the run's row, and log one line for an exception in ``throws``.

    A signal handler, because Celery does not call ``on_failure`` when the process was killed.
    """
    if isinstance(sender, BaseTask) and isinstance(exception, sender.throws):
        logger.error(Fields("task_refused", task=sender.name, task_id=task_id, error=str(exception)))
    if isinstance(sender, RunTask) and type(kwargs.get("run_id")) is int:
        ledger.fail_run(run_id=kwargs["run_id"], error=exception)


@worker_init.connect
@beat_init.connect
def refuse_to_start_misconfigured(**_: Any) -> None:
    """Stop the worker or beat when a system check finds an error. Celery alone runs the checks and ignores the result.

    Raises:
        SystemExit: a setting is wrong; the message names every one.
    """
    try:
        require_valid_settings()
    except ImproperlyConfigured as error:
        raise SystemExit(str(error)) from None
