"""Beat's scheduler."""

from typing import Any

from django_celery_beat.schedulers import DatabaseScheduler

from project import heartbeat

LOST = "lost the last tick, which the broker did not take"


class Scheduler(DatabaseScheduler):  # type: ignore[misc]
    """The scheduler of django-celery-beat, with a heartbeat each time that it looks for due entries."""

    state = heartbeat.WORKS

    def tick(self, *args: Any, **options: Any) -> Any:
        """Send what is due; returns the seconds until the next look."""
        seconds = super().tick(*args, **options)
        heartbeat.write(self.state)
        return seconds

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """Send one tick."""
        self.state = LOST
        result = super().apply_async(*args, **options)
        self.state = heartbeat.WORKS
        return result
