"""The settings of the process that compares: with the apps of every engine, for their tables and their messages."""

from comparison.engines.django_tasks.settings import *  # noqa: F403
from comparison.engines.huey.settings import *  # noqa: F403
from comparison.engines.procrastinate.settings import *  # noqa: F403
from comparison.settings import INSTALLED_APPS

INSTALLED_APPS = ["procrastinate.contrib.django", *INSTALLED_APPS, "django_tasks", "django_tasks_db"]
