"""Celery's part of the overview: the entry in beat's schedule, and the liveness of worker and beat.

Imported only when django_celery_beat is installed.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from celery import current_app
from django.core.cache import cache
from django_celery_beat.models import PeriodicTask

from accounts import tasks
from accounts.base_tasks import BaseTask


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The entry in beat's schedule that expires trials."""

    entry: PeriodicTask
    next_tick: datetime | None
    """None when the entry is disabled."""
    late: bool
    """Whether beat has sent a tick before and missed the one due since."""


BEAT_MAY_LAG = timedelta(minutes=5)


def entry() -> PeriodicTask | None:
    """The entry that expires trials; an enabled one if there are several."""
    entries = PeriodicTask.objects.select_related("crontab", "interval", "solar", "clocked")
    return entries.filter(task=tasks.expire_trials.name).order_by("-enabled", "pk").first()


def schedule(*, now: datetime) -> Schedule | None:
    """When beat sends the next tick, and whether it missed one; None when the schedule has no entry that expires."""
    found = entry()
    if not found:
        return None
    if not found.enabled:
        return Schedule(entry=found, next_tick=None, late=False)
    ticks = found.schedule
    ticks.nowfun = lambda: now
    next_tick = now + timedelta(seconds=ticks.is_due(found.last_run_at or now).next)
    ticks.nowfun = lambda: now - BEAT_MAY_LAG
    late = found.last_run_at is not None and ticks.is_due(found.last_run_at).is_due
    return Schedule(entry=found, next_tick=next_tick.replace(microsecond=0), late=late)


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """The number of processes that answered a ping through the broker."""

    broker: bool
    """Whether the broker could be reached."""
    beats: int = 0
    workers: int = 0


PING_SECONDS = 0.5
# For a broker that is down, a page waits at most twice: for a connection, and for an answer.
SHORT = {"socket_connect_timeout": PING_SECONDS, "socket_timeout": PING_SECONDS, "max_retries": 0}


def processes() -> Processes:
    """Ping every worker and beat. A ping takes a second at most; its answer is cached for 15 seconds."""
    return cache.get_or_set("accounts.admin.processes", _ping, 15) or Processes(broker=False)


def send_to_worker(task: BaseTask, **arguments: Any) -> bool:
    """Send a task; False when the broker does not take it."""
    try:
        with current_app.connection_for_write(transport_options=SHORT) as broker:
            current_app.send_task(
                task.name,
                kwargs=arguments,
                connection=broker,
                retry=False,
                expires=tasks.TICK_SECONDS,
                ignore_result=True,
            )
    except Exception:  # the web process then does it itself
        return False
    return True


def _ping() -> Processes:
    try:
        with current_app.connection_for_write(transport_options=SHORT) as broker:
            answers = current_app.control.ping(timeout=PING_SECONDS, connection=broker)
    except Exception:  # the page must be shown whatever is wrong with the broker or its URL
        return Processes(broker=False)
    names = [name for answer in answers or () for name in answer]
    beats = sum(name.startswith("celerybeat@") for name in names)
    return Processes(broker=True, beats=beats, workers=len(names) - beats)
