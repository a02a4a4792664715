"""procrastinate's settings, see https://procrastinate.readthedocs.io/en/stable/howto/django/configuration.html."""

from comparison.settings import *  # noqa: F403
from comparison.settings import INSTALLED_APPS

INSTALLED_APPS = ["procrastinate.contrib.django", *INSTALLED_APPS]
PROCRASTINATE_AUTODISCOVER_MODULE_NAME = None  # accounts.tasks are Celery's
PROCRASTINATE_IMPORT_PATHS = ["comparison.engines.procrastinate.tasks"]
