"""What our tasks have in common: checked arguments, retries, redelivery, limits, and a check before they can run.

The options stand on the tasks, so that they hold in any project's Celery app, whatever its settings say.
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
from accounts.services import RunRefused

if TYPE_CHECKING:
    AnyTask = Task[..., Any]
else:
    AnyTask = Task

logger = logging.getLogger(__name__)

HIGHEST_NUMBER = 2**31 - 1


class WrongArguments(Exception):  # noqa: N818 (it says what happened, as RunRefused does)
    """A task was sent with arguments that it cannot work with. Nothing was changed, and it is not tried again."""


def check_arguments(run: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check what a message gives to a task against the task's parameters.

    A parameter annotated as ``int``, or ``int | None``, takes a whole number from 1 to ``HIGHEST_NUMBER``.

    Raises:
        WrongArguments: one is missing, unknown, or no such number; the message names it.
    """
    expected = signature(run)
    try:
        given = expected.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise WrongArguments(f"The arguments of the task are wrong: {error}. Nothing was changed.") from None
    for name, value in given.items():
        kind = expected.parameters[name].annotation
        if kind not in (int, int | None) or (value is None and kind == int | None):
            continue
        if type(value) is not int or not 1 <= value <= HIGHEST_NUMBER:
            raise WrongArguments(
                f"{name} must be a whole number from 1 to {HIGHEST_NUMBER}, not {value!r:.40}. Nothing was changed."
            )


class BaseTask(AnyTask):
    """A task with checked arguments, limited in time, that is retried when the database is away for a moment.

    Five retries, after about 1, 2, 4, 8 and 16 seconds, with jitter so that the workers do not come back all at once.
    Then it fails, loudly; the next tick is the next try.
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
        """Run the task. Outside of ``run``, which is what Celery retries: wrong arguments stay wrong."""
        check_arguments(self.run, args, kwargs)
        return self.run(*args, **kwargs)


class RedeliveredTask(BaseTask):
    """A task that may run twice, and is handed out again when its process or its worker dies."""

    # Acknowledged when done, so that it is handed out again when its worker dies: it is short and may run twice.
    acks_late = True
    # When only its process dies it is one more retry: rejected instead, one that kills it every time would be
    # redelivered forever.
    retry_on_worker_lost = True
    default_retry_delay = 1
    reject_on_worker_lost = True  # for when the retry could not be sent


class RunTask(RedeliveredTask):
    """A task whose failure, when it has no retries left, fails the run it belongs to. The run's other slices go on."""


@task_failure.connect
def report_failure(sender: Any, task_id: str, exception: Exception, kwargs: Mapping[str, Any], **_: Any) -> None:
    """Write the error into the run's row, and one line into the log where Celery is told to log no traceback.

    A signal, because ``on_failure`` is not called when the process was killed.
    """
    if isinstance(sender, BaseTask) and isinstance(exception, sender.throws):
        logger.error(Fields("task_refused", task=sender.name, task_id=task_id, error=str(exception)))
    if isinstance(sender, RunTask) and type(kwargs.get("run_id")) is int:
        ledger.fail_run(run_id=kwargs["run_id"], error=exception)


@worker_init.connect
@beat_init.connect
def refuse_to_start_misconfigured(**_: Any) -> None:
    """Stop the worker or beat when a system check finds an error; by itself Celery runs them and drops the result.

    Raises:
        SystemExit: naming every setting that is wrong.
    """
    try:
        require_valid_settings()
    except ImproperlyConfigured as error:
        raise SystemExit(str(error)) from None
