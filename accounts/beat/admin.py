"""Beat's schedule in the admin."""

from typing import Any

from celery import current_app
from django.contrib import admin, messages
from django.http import HttpRequest
from django_celery_beat.admin import PeriodicTaskAdmin
from django_celery_beat.models import PeriodicTask

from accounts.admin.schedule import SHORT
from accounts.log import one_line

admin.site.unregister(PeriodicTask)


@admin.register(PeriodicTask)
class TaskAdmin(PeriodicTaskAdmin):  # type: ignore[misc]  # it carries no types
    """The page of django-celery-beat, with a message from "Run selected tasks" when the broker does not take a task."""

    def run_tasks(self, request: HttpRequest, queryset: Any) -> None:
        """Send the tasks to the broker."""
        try:
            # First, because for a broker that is down Celery retries for 20 seconds, longer than a request should take.
            with current_app.connection_for_write(transport_options=SHORT) as broker:
                broker.connect()
            super().run_tasks(request, queryset)
        except Exception as error:  # of the broker's library, the result store's, kombu or Celery
            reason = one_line(str(error), most=500)
            self.message_user(request, f"The broker did not take the task: {reason}", level=messages.ERROR)
