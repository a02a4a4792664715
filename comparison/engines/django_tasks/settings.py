"""The settings of django.tasks, on Django 5.2 by its backport, see https://github.com/RealOrangeOne/django-tasks-db."""

from comparison.settings import *  # noqa: F403
from comparison.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "django_tasks", "django_tasks_db"]
TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}
