"""The Celery app. Its settings are those of project/settings.py that begin with ``CELERY_``."""

import logging
import os
from typing import Any

import django
from celery import Celery
from celery.loaders.app import AppLoader
from celery.signals import after_setup_logger, after_setup_task_logger, beat_init, celeryd_after_setup
from django.conf import settings

from accounts.schema import warn_at_start
from project.heartbeat import WorkerStep
from project.start import one_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")


class Loader(AppLoader):
    """Loads the settings; a wrong one ends the process with one line, where Celery's own loader shows a traceback."""

    def config_from_object(self, obj: Any, silent: bool = False) -> None:
        """Read the settings; every command of Celery calls this."""
        with one_line():
            super().config_from_object(obj, silent)

    def import_default_modules(self) -> Any:
        """Load the apps, which check their settings. Worker and beat call this once, before they start."""
        with one_line():
            django.setup()
        return super().import_default_modules()


app = Celery("project", loader="project.celery:Loader", amqp="project.heartbeat:AMQP")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
app.steps["worker"].add(WorkerStep)


@after_setup_logger.connect
@after_setup_task_logger.connect
def apply_log_format(logger: logging.Logger, **_: Any) -> None:
    """Apply LOG_FORMAT=json to the handlers that Celery adds for --loglevel and --logfile."""
    if settings.LOG_FORMAT == "json":
        from project.logging import JsonLines

        for handler in logger.handlers:
            handler.setFormatter(JsonLines())


@celeryd_after_setup.connect
@beat_init.connect
def warn_of_a_database_ahead(**_: Any) -> None:
    """Log a line when the database is ahead of this code, as the commands and web do."""
    warn_at_start()


@celeryd_after_setup.connect
def say_that_slices_are_not_shared(**_: Any) -> None:
    """Log a line when no result backend tells when the slices of a run are done, so that its first task runs them."""
    if settings.CELERY_RESULT_BACKEND == "disabled://":
        logging.getLogger(__name__).warning(
            "CELERY_RESULT_BACKEND is not set, and this broker keeps no results: one process runs all slices of a run. "
            "Set it, or REDIS_URL, to a Redis, and the workers share them."
        )


@beat_init.connect
def shorten_broker_errors_of_beat(**_: Any) -> None:
    """Log a tick that the broker refused in one line, where beat alone logs a hundred lines of traceback each time."""
    logging.getLogger("celery.beat").addFilter(remove_traceback)


def remove_traceback(record: logging.LogRecord) -> bool:
    """Reduce the record of a broker's error to one line. A logging filter that keeps every record."""
    from celery.beat import SchedulingError
    from kombu.exceptions import KombuError
    from redis.exceptions import RedisError  # imported here, because importing redis would slow down the command

    if record.exc_info and isinstance(record.exc_info[1], SchedulingError | KombuError | RedisError | OSError):
        record.msg, record.args, record.exc_info = record.getMessage().partition("\n")[0], (), None
    return True
