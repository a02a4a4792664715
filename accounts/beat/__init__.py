"""The entries of ``accounts`` in django-celery-beat's schedule.

An app of its own, so that a project without Celery leaves it out of INSTALLED_APPS and can add it later.
"""
