"""Huey's settings, see https://huey.readthedocs.io/en/latest/django.html."""

import os

from comparison.settings import *  # noqa: F403
from comparison.settings import INSTALLED_APPS, LOGGING

INSTALLED_APPS = [*INSTALLED_APPS, "huey.contrib.djhuey", "comparison.engines.huey"]
HUEY = {
    "huey_class": "huey.PostgresHuey",  # creates its tables when they are missing
    "name": "trial-expiry",
    "immediate": False,
    "connection": {"dsn": os.environ["DATABASE_URL"]},
    "consumer": {"workers": 2, "worker_type": "thread"},
}
# Otherwise the consumer adds a handler of its own, and every line is logged twice.
LOGGING = {**LOGGING, "loggers": {"huey": {"handlers": ["stderr"], "level": "INFO", "propagate": False}}}
