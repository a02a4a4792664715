"""Add the hourly entries of ``accounts`` to beat's schedule.

``get_or_create``: an existing entry of the same name, edited or not, does not change.
"""

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from django.utils import timezone

ENTRIES = {
    "Expire trials": {
        "task": "accounts.expire_trials",
        "minute": "0",
        "description": "Moves due accounts from trialing to trial expired. Yours to edit: "
        "migrations never overwrite it.",
    },
    "Send trial notices": {
        "task": "accounts.send_trial_notices",
        # Half an hour after the expiry, which already sends the mails at the end of a run that expired accounts.
        "minute": "30",
        "description": "Reminds customers before their trial ends and tells them when it has, if TRIAL_NOTICES is "
        "on. Yours to edit: migrations never overwrite it.",
    },
}


def notify_beat(apps: StateApps) -> None:
    """Make a running beat reload its schedule, because the models of a migration send no signals."""
    apps.get_model("django_celery_beat", "PeriodicTasks").objects.update_or_create(
        ident=1, defaults={"last_update": timezone.now()}
    )


def add(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    for name, entry in ENTRIES.items():
        # hour="*", because beat loads a fixed hour only when it is near, so it would not send a tick that it missed while
        # it was down. UTC, because a schedule in local time skips or repeats an hour when the clocks change.
        hourly, _ = apps.get_model("django_celery_beat", "CrontabSchedule").objects.get_or_create(
            minute=entry["minute"], hour="*", day_of_week="*", day_of_month="*", month_of_year="*", timezone="UTC"
        )
        apps.get_model("django_celery_beat", "PeriodicTask").objects.get_or_create(
            name=name,
            defaults={
                "task": entry["task"],
                "crontab": hourly,
                # A message that no worker received for this long is dropped, because the next tick follows soon.
                "expire_seconds": 55 * 60,
                "description": entry["description"],
            },
        )
    notify_beat(apps)


def remove(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    apps.get_model("django_celery_beat", "PeriodicTask").objects.filter(name__in=ENTRIES).delete()
    notify_beat(apps)


class Migration(migrations.Migration):
    initial = True
    dependencies = [("django_celery_beat", "0019_alter_periodictasks_options")]
    operations = [migrations.RunPython(add, remove)]
