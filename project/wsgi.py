"""The WSGI application, for gunicorn."""

import os

from django.core.wsgi import get_wsgi_application

from project.start import one_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

with one_line():
    application = get_wsgi_application()
