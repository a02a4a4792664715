"""The project's settings, with a worker that spawns its processes instead of forking them."""

from project.settings import *  # noqa: F403

CELERY_WORKER_POOL_START_METHOD = "spawn"
