"""What happens when the project starts."""

from django.apps import AppConfig
from django.contrib.admin import apps

from project.start import one_line


class ProjectConfig(AppConfig):
    """Stops every process whose settings are wrong, with one line: command, worker, beat and web alike."""

    name = "project"

    def ready(self) -> None:
        from accounts.checks import require_valid_settings

        with one_line():
            require_valid_settings()


class AdminConfig(apps.AdminConfig):
    """Stands in INSTALLED_APPS where ``django.contrib.admin`` would."""

    default_site = "accounts.sites.OperatorSite"
