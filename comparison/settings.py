"""The settings of everything that compare_paths measures: production's, on a scratch database and on no other."""

import os

from django.core.exceptions import ImproperlyConfigured

from project.settings import *  # noqa: F403
from project.settings import CELERY_BROKER_TRANSPORT_OPTIONS, DATABASES, INSTALLED_APPS
from sandbox import SCRATCH

INSTALLED_APPS = [*INSTALLED_APPS, "sandbox", "comparison"]

if SCRATCH not in str(DATABASES["default"]["NAME"]):
    raise ImproperlyConfigured(
        f"comparison.settings are for scratch databases, called {SCRATCH}..., and DATABASE_URL names another. "
        "Run ./manage.py compare_paths with the project's own settings; it makes one for itself."
    )

if 1 < int(os.environ.get("COMPARE_EVERY", "3600")) < 3600:
    # Ticks come every few seconds, and a killed run is waited for. So a lost message comes back as much sooner, which
    # the transport looks for every 100 s otherwise.
    VISIBILITY_SECONDS = 5
    CELERY_VISIBILITY_TIMEOUT = VISIBILITY_SECONDS
    CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS = {"visibility_timeout": VISIBILITY_SECONDS}
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        **CELERY_BROKER_TRANSPORT_OPTIONS,
        "visibility_timeout": VISIBILITY_SECONDS,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
