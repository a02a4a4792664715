"""Put the hourly tick of ``accounts.send_trial_notices`` into beat's schedule, as 0002 did for the expiry.

It does nothing while ``settings.TRIAL_NOTICES`` is off.
"""

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from django.utils import timezone

NAME = "Send trial notices"


def tell_a_running_beat(apps: StateApps) -> None:
    """The models of a migration send no signals, so beat must be told by hand that the schedule changed."""
    apps.get_model("django_celery_beat", "PeriodicTasks").objects.update_or_create(
        ident=1, defaults={"last_update": timezone.now()}
    )


def add(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    # Half an hour from the expiry, which at the end of a run that expired somebody asks for the mails by itself.
    hourly, _ = apps.get_model("django_celery_beat", "CrontabSchedule").objects.get_or_create(
        minute="30", hour="*", day_of_week="*", day_of_month="*", month_of_year="*", timezone="UTC"
    )
    apps.get_model("django_celery_beat", "PeriodicTask").objects.get_or_create(
        name=NAME,
        defaults={
            "task": "accounts.send_trial_notices",
            "crontab": hourly,
            # A message that found no worker for this long is dropped: the next tick is about to come.
            "expire_seconds": 55 * 60,
            "description": "Reminds customers before their trial ends and tells them when it has, if TRIAL_NOTICES is "
            "on. Yours to edit: migrations never overwrite it.",
        },
    )
    tell_a_running_beat(apps)


def remove(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    apps.get_model("django_celery_beat", "PeriodicTask").objects.filter(name=NAME).delete()
    tell_a_running_beat(apps)


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0005_notice"),
        ("django_celery_beat", "0019_alter_periodictasks_options"),
    ]
    operations = [migrations.RunPython(add, remove)]
