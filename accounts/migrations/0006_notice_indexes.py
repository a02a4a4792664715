"""Indexes for the counts of mails that wait and that were given up."""

from django.db import migrations, models

from accounts.indexes import AddIndexConcurrently


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("accounts", "0005_labels")]

    operations = [
        AddIndexConcurrently(
            model_name="notice",
            index=models.Index(
                condition=models.Q(("status", "pending")), fields=["queued"], name="accounts_notice_waiting"
            ),
        ),
        AddIndexConcurrently(
            model_name="notice",
            index=models.Index(
                condition=models.Q(("status", "given_up")), fields=["next_attempt"], name="accounts_notice_given_up"
            ),
        ),
    ]
