from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="expiryrun",
            name="jobs",
            field=models.PositiveSmallIntegerField(
                default=1,
                db_default=1,
                help_text="Threads of one process that ran its slices at the same time, each over a database connection of its own. Celery's worker processes are not counted.",
            ),
        ),
    ]
