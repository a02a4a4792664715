"""What a run needs to walk through the due accounts: where it begins, and how many it takes at a time."""

import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0006_notice_indexes")]

    operations = [
        migrations.AddField(
            model_name="expiryrun",
            name="batch_size",
            field=models.PositiveIntegerField(
                blank=True,
                help_text="Accounts in every slice, as its caller asked. Empty: it learns the number.",
                null=True,
            ),
        ),
        migrations.AddField(
            model_name="expiryrun",
            name="floor",
            field=models.DateTimeField(
                blank=True,
                help_text="Trials that ended before this moment were not looked at: earlier runs were done with them. Empty: the run looked at all.",
                null=True,
                verbose_name="looked from",
            ),
        ),
        migrations.AddField(
            model_name="expiryrun",
            name="skipped",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="Whether accounts may have been left out because another transaction had locked them. The next run looks at them again.",
            ),
        ),
        migrations.AddField(
            model_name="expiryrun",
            name="slice_size",
            field=models.PositiveIntegerField(
                db_default=500,
                default=500,
                help_text="Accounts in its next slice, so many that they stay locked for a tenth of a second.",
            ),
        ),
        migrations.AddField(
            model_name="expiryrun",
            name="throttle",
            field=models.FloatField(
                db_default=0, default=0, help_text="After each slice, a pause of so many times as long as it took."
            ),
        ),
        migrations.AlterField(
            model_name="expiryrun",
            name="due_count",
            field=models.PositiveBigIntegerField(
                default=0,
                help_text="Accounts that were due when the run began. Counted up to a million; more than that are counted as they expire.",
                verbose_name="due",
            ),
        ),
        migrations.AlterField(
            model_name="expiryrun",
            name="heartbeat",
            field=models.DateTimeField(
                db_default=django.db.models.functions.datetime.Now(),
                help_text="When the run, or the undo of it, last committed a slice.",
            ),
        ),
        migrations.AlterField(
            model_name="expiryrun",
            name="slice_count",
            field=models.PositiveIntegerField(
                default=0, help_text="Slices that it has committed.", verbose_name="slices"
            ),
        ),
    ]
