"""Let beat send an entry that it has never sent when it first starts, and not up to an hour later.

Until then a new installation has no successful run.
"""

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from django.utils import timezone

NAMES = ["Expire trials", "Send trial notices"]


def make_due(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    # Without a start_time, beat takes an entry that has never run for one that has just run.
    apps.get_model("django_celery_beat", "PeriodicTask").objects.filter(
        name__in=NAMES, start_time=None, last_run_at=None
    ).update(start_time=timezone.now())


class Migration(migrations.Migration):
    dependencies = [("accounts_beat", "0001_initial")]
    operations = [migrations.RunPython(make_due, migrations.RunPython.noop)]
