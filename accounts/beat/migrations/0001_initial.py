"""Put the hourly ticks of ``accounts`` into beat's schedule.

``get_or_create``: an entry of the same name that is there already, edited or not, stays as it is.
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
        # Half an hour after the expiry, which sends the mails itself at the end of a run that expired somebody.
        "minute": "30",
        "description": "Reminds customers before their trial ends and tells them when it has, if TRIAL_NOTICES is "
        "on. Yours to edit: migrations never overwrite it.",
    },
}


def tell_a_running_beat(apps: StateApps) -> None:
    """The models of a migration send no signals, so this tells beat that the schedule changed."""
    apps.get_model("django_celery_beat", "PeriodicTasks").objects.update_or_create(
        ident=1, defaults={"last_update": timezone.now()}
    )


def add(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    for name, entry in ENTRIES.items():
        # hour="*" and UTC: beat loads a fixed hour only when it is near, so it would not catch up a tick that it missed
        # while it was down; and in local time an hour is skipped or doubled when the clocks change.
        hourly, _ = apps.get_model("django_celery_beat", "CrontabSchedule").objects.get_or_create(
            minute=entry["minute"], hour="*", day_of_week="*", day_of_month="*", month_of_year="*", timezone="UTC"
        )
        apps.get_model("django_celery_beat", "PeriodicTask").objects.get_or_create(
            name=name,
            defaults={
                "task": entry["task"],
                "crontab": hourly,
                # A message that found no worker for this long is dropped: the next tick is about to come.
                "expire_seconds": 55 * 60,
                "description": entry["description"],
            },
        )
    tell_a_running_beat(apps)


def remove(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    apps.get_model("django_celery_beat", "PeriodicTask").objects.filter(name__in=ENTRIES).delete()
    tell_a_running_beat(apps)


class Migration(migrations.Migration):
    initial = True
    dependencies = [("django_celery_beat", "0019_alter_periodictasks_options")]
    operations = [migrations.RunPython(add, remove)]
