"""The Celery app. Its settings are the ``CELERY_*`` ones of project/settings.py."""

import logging
import os
from typing import Any

import django
from celery import Celery
from celery.loaders.app import AppLoader
from celery.signals import after_setup_logger, after_setup_task_logger, beat_init
from django.conf import settings

from project.start import one_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")


class Loader(AppLoader):
    """Loads the settings for Celery; a wrong one ends the process with one line, where Celery shows a traceback."""

    def config_from_object(self, obj: Any, silent: bool = False) -> None:
        """Read the settings, for every command of Celery."""
        with one_line():
            super().config_from_object(obj, silent)

    def import_default_modules(self) -> Any:
        """Load the apps, which check their settings. Worker and beat call this once, before they do or log anything."""
        with one_line():
            django.setup()
        return super().import_default_modules()


app = Celery("project", loader="project.celery:Loader")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@after_setup_logger.connect
@after_setup_task_logger.connect
def log_as_told(logger: logging.Logger, **_: Any) -> None:
    """Obey LOG_FORMAT=json. Celery sets up handlers of its own, for --loglevel and --logfile."""
    if settings.LOG_FORMAT == "json":
        from project.logging import JsonLines

        for handler in logger.handlers:
            handler.setFormatter(JsonLines())


@beat_init.connect
def log_broker_errors_of_beat_in_one_line(**_: Any) -> None:
    """By itself beat logs a tick that the broker did not take with a hundred lines of stack, at every tick."""
    logging.getLogger("celery.beat").addFilter(without_stack)


def without_stack(record: logging.LogRecord) -> bool:
    """Make the record of a broker's error one line; a filter, which keeps every record."""
    from celery.beat import SchedulingError
    from kombu.exceptions import KombuError
    from redis.exceptions import RedisError  # here, because to import redis would slow the command

    if record.exc_info and isinstance(record.exc_info[1], SchedulingError | KombuError | RedisError | OSError):
        record.msg, record.args, record.exc_info = record.getMessage().partition("\n")[0], (), None
    return True
