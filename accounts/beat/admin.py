"""Beat's schedule in the admin."""

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest
from django_celery_beat.admin import PeriodicTaskAdmin
from django_celery_beat.models import PeriodicTask
from kombu.exceptions import OperationalError

admin.site.unregister(PeriodicTask)


@admin.register(PeriodicTask)
class TaskAdmin(PeriodicTaskAdmin):  # type: ignore[misc]  # it carries no types
    """The page of django-celery-beat, with a message from "Run selected tasks" when the broker refuses a task."""

    def run_tasks(self, request: HttpRequest, queryset: Any) -> None:
        """Send the tasks to the broker."""
        try:
            super().run_tasks(request, queryset)
        except OperationalError as error:  # the broker is down, or refuses the task, as a full Redis does
            self.message_user(request, f"The broker did not take the task: {error}", level=messages.ERROR)
