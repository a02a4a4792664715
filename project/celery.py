"""The Celery app. Its settings are the ``CELERY_*`` ones of project/settings.py."""

import logging
import os
from typing import Any

from celery import Celery
from celery.signals import after_setup_logger, after_setup_task_logger, beat_init, worker_init
from django.conf import settings
from django.core.management.base import BaseCommand, SystemCheckError

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

app = Celery("project")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@worker_init.connect
@beat_init.connect
def refuse_to_start_misconfigured(**_: Any) -> None:
    """Stop the worker or beat when a system check finds an error; by itself Celery runs them and drops the result.

    Raises:
        SystemExit: naming every setting that is wrong.
    """
    try:
        BaseCommand().check(tags=["accounts"])
    except SystemCheckError as error:
        raise SystemExit(str(error)) from None


@after_setup_logger.connect
@after_setup_task_logger.connect
def log_as_told(logger: logging.Logger, **_: Any) -> None:
    """Obey LOG_FORMAT=json. Celery sets up handlers of its own, for --loglevel and --logfile."""
    if settings.LOG_FORMAT == "json":
        from project.logging import JsonLines

        for handler in logger.handlers:
            handler.setFormatter(JsonLines())
