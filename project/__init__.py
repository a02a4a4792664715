# Imported with Django, so that every @shared_task uses this app.
from project.celery import app as celery_app

__all__ = ["celery_app"]
