"""Django's admin, with the overview of trial expiry as its first page."""

from django.contrib.admin import apps


class AdminConfig(apps.AdminConfig):
    """Stands in INSTALLED_APPS where ``django.contrib.admin`` would."""

    default_site = "accounts.sites.OperatorSite"
