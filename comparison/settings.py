"""The settings of everything that compare_paths measures: production's, on a scratch database and on no other."""

from django.core.exceptions import ImproperlyConfigured

from project.settings import *  # noqa: F403
from project.settings import DATABASES, INSTALLED_APPS
from sandbox import SCRATCH

INSTALLED_APPS = [*INSTALLED_APPS, "sandbox", "comparison"]

if SCRATCH not in str(DATABASES["default"]["NAME"]):
    raise ImproperlyConfigured(
        f"comparison.settings are for scratch databases, called {SCRATCH}..., and DATABASE_URL names another. "
        "Run ./manage.py compare_paths with the project's own settings; it makes one for itself."
    )
