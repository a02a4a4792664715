"""Words for people instead of slugs: Django keeps the labels of choices in its migrations. No SQL."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0004_decisions"),
    ]

    operations = [
        migrations.AlterField(
            model_name="account",
            name="status",
            field=models.CharField(
                choices=[
                    ("exempt", "Exempt"),
                    ("beta", "Beta"),
                    ("trialing", "Trialing"),
                    ("active", "Active"),
                    ("past_due", "Past due"),
                    ("canceled", "Cancelled"),
                    ("trial_expired", "Trial expired"),
                ],
                default="trialing",
                max_length=13,
            ),
        ),
        migrations.AlterField(
            model_name="notice",
            name="kind",
            field=models.CharField(choices=[("ending_soon", "Ending soon"), ("ended", "Ended")], max_length=11),
        ),
        migrations.AlterField(
            model_name="notice",
            name="status",
            field=models.CharField(
                choices=[
                    ("pending", "Pending"),
                    ("sent", "Sent"),
                    ("skipped", "Skipped: no longer true"),
                    ("given_up", "Given up"),
                ],
                db_default="pending",
                default="pending",
                max_length=8,
            ),
        ),
    ]
