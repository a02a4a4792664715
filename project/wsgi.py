"""The WSGI application, for gunicorn."""

import os

from django.core.wsgi import get_wsgi_application

from accounts.schema import warn_at_start
from project.start import one_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

with one_line():
    application = get_wsgi_application()

warn_at_start()
