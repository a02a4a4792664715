"""The project's app configurations: the check of the settings, what watches the processes, and the admin site."""

from django.apps import AppConfig
from django.conf import settings
from django.contrib.admin import apps
from django.core.exceptions import ImproperlyConfigured

from project.start import one_line


class ProjectConfig(AppConfig):
    """Stops every process whose settings are wrong, and starts Sentry and OpenTelemetry in it where they are on."""

    name = "project"

    def ready(self) -> None:
        from accounts.checks import require_valid_settings

        with one_line():
            require_valid_settings()
            start_watching()


def start_watching() -> None:
    """Start Sentry and OpenTelemetry where they are on; elsewhere, nothing of them is imported.

    Raises:
        ImproperlyConfigured: one is on and its packages are not installed.
    """
    variable = ""
    try:
        if settings.SENTRY_DSN:
            variable = "SENTRY_DSN"
            from project import sentry

            sentry.start(settings.SENTRY_DSN)
        if settings.OTEL_TRACES_EXPORTER == "otlp":
            variable = "OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_TRACES_EXPORTER"
            from project import tracing

            tracing.start()
    except ModuleNotFoundError as error:
        raise ImproperlyConfigured(
            f"{variable} is set, and the package of {error.name} is not installed. "
            "Install it: pip install -r requirements-extras.txt"
        ) from None


class AdminConfig(apps.AdminConfig):
    """Replaces ``django.contrib.admin`` in INSTALLED_APPS."""

    default_site = "accounts.sites.OperatorSite"
