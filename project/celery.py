"""The Celery app. Its settings are those of project/settings.py that begin with ``CELERY_``."""

import logging
import os
from typing import Any

import django
from celery import Celery
from celery.loaders.app import AppLoader
from celery.signals import after_setup_logger, after_setup_task_logger, beat_init, celeryd_after_setup, celeryd_init
from celery.utils.log import get_multiprocessing_logger
from django.conf import settings
from kombu.utils.objects import cached_property

from accounts.log import Fields
from accounts.schema import warn_at_start
from project.heartbeat import WorkerStep
from project.start import one_line

logger = logging.getLogger(__name__)

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


class App(Celery):
    """The Celery app, whose beat prints no banner where each line must be JSON."""

    @cached_property
    def Beat(self) -> Any:  # noqa: N802 (Celery's name)
        """What ``celery beat`` runs."""
        from celery.apps import beat

        class Beat(beat.Beat):
            def run(self) -> None:
                self.quiet: bool = self.quiet or settings.LOG_FORMAT == "json"
                super().run()

        return self.subclass_with_self(Beat)


app = App("project", loader="project.celery:Loader", amqp="project.heartbeat:AMQP")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
app.steps["worker"].add(WorkerStep)


@after_setup_logger.connect
@after_setup_task_logger.connect
def apply_log_format(logger: logging.Logger, **_: Any) -> None:
    """Apply LOG_FORMAT=json to the handlers that Celery adds for --loglevel and --logfile, and to what is printed."""
    if settings.LOG_FORMAT == "json":
        from project.logging import JsonLines, write_json_on_stdout

        for written in (logger, get_multiprocessing_logger() or logger):
            for handler in written.handlers:
                handler.setFormatter(JsonLines())
        write_json_on_stdout()


@celeryd_init.connect
def print_no_banner(instance: Any, **_: Any) -> None:
    """Keep the worker from printing its banner, and its words at a signal, where each line must be JSON."""
    if settings.LOG_FORMAT == "json":
        from celery.apps import worker

        from project.logging import say_from_signal_handler

        instance.quiet = True
        worker.safe_say = say_from_signal_handler  # type: ignore[attr-defined]


@celeryd_after_setup.connect
def log_banner(instance: Any, **_: Any) -> None:
    """Log what the banner says."""
    if settings.LOG_FORMAT == "json":
        broker, queues = app.connection().as_uri(), ",".join(app.amqp.queues)  # as_uri masks the password
        logger.info(Fields("worker_starts", broker=broker, queues=queues, concurrency=instance.concurrency))


@beat_init.connect
def log_banner_of_beat(**_: Any) -> None:
    """Log what the banner says."""
    if settings.LOG_FORMAT == "json":
        logger.info(Fields("beat_starts", broker=app.connection().as_uri()))


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
