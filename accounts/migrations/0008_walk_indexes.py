"""Indexes that a run and its undo walk along. Each replaces one that had only its first column."""

from django.db import migrations, models

from accounts.indexes import AddIndexConcurrently, RemoveIndexConcurrently


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("accounts", "0007_run_walks")]

    operations = [
        AddIndexConcurrently(
            model_name="account",
            index=models.Index(
                condition=models.Q(("status", "trialing")),
                fields=["trial_ends_at", "id"],
                name="accounts_account_trials",
            ),
        ),
        AddIndexConcurrently(
            model_name="account",
            index=models.Index(
                condition=models.Q(("expiry_run__isnull", False)),
                fields=["expiry_run", "id"],
                name="accounts_account_of_run",
            ),
        ),
        RemoveIndexConcurrently(model_name="account", name="accounts_account_due"),
        RemoveIndexConcurrently(model_name="account", name="accounts_account_expiry_run"),
    ]
