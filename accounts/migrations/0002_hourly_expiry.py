"""Put the hourly tick of ``accounts.expire_trials`` into beat's schedule.

``get_or_create``: an entry of this name that is there already, edited or not, stays as it is.
"""

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from django.utils import timezone

NAME = "Expire trials"


def tell_a_running_beat(apps: StateApps) -> None:
    """The models of a migration send no signals, so beat must be told by hand that the schedule changed."""
    apps.get_model("django_celery_beat", "PeriodicTasks").objects.update_or_create(
        ident=1, defaults={"last_update": timezone.now()}
    )


def add(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    # hour="*" and UTC: beat loads a fixed hour only when it is near, so a tick missed while it was down would not be
    # caught up; and in local time an hour is skipped or doubled when the clocks change.
    hourly, _ = apps.get_model("django_celery_beat", "CrontabSchedule").objects.get_or_create(
        minute="0", hour="*", day_of_week="*", day_of_month="*", month_of_year="*", timezone="UTC"
    )
    apps.get_model("django_celery_beat", "PeriodicTask").objects.get_or_create(
        name=NAME,
        defaults={
            "task": "accounts.expire_trials",
            "crontab": hourly,
            # A message that found no worker for this long is dropped: the next tick is about to come.
            "expire_seconds": 55 * 60,
            "description": "Moves due accounts from trialing to trial expired. Yours to edit: "
            "migrations never overwrite it.",
        },
    )
    tell_a_running_beat(apps)


def remove(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    apps.get_model("django_celery_beat", "PeriodicTask").objects.filter(name=NAME).delete()
    tell_a_running_beat(apps)


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0001_initial"),
        ("django_celery_beat", "0019_alter_periodictasks_options"),
    ]
    operations = [migrations.RunPython(add, remove)]
