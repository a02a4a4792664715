"""The entries of ``accounts`` in django-celery-beat's schedule.

A separate app, so that a project without Celery can leave it out of INSTALLED_APPS and add it later.
"""
