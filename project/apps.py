"""The project's app configurations: the check of the settings, and the admin site."""

from django.apps import AppConfig
from django.contrib.admin import apps

from project.start import one_line


class ProjectConfig(AppConfig):
    """Stops every process whose settings are wrong, with one line: command, worker, beat and web."""

    name = "project"

    def ready(self) -> None:
        from accounts.checks import require_valid_settings

        with one_line():
            require_valid_settings()


class AdminConfig(apps.AdminConfig):
    """Replaces ``django.contrib.admin`` in INSTALLED_APPS."""

    default_site = "accounts.sites.OperatorSite"
