"""Both paths, on random populations: the same accounts and, except for the path, the same ledger."""

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import Account, ExpiryRun
from sandbox.sample import create_sample
from sandbox.servers import wait_for
from tests.conftest import ManagePy, Process, Send

OF_THE_PATH = {"id", "path", "as_of", "cutoff", "started", "heartbeat", "finished", "longest_slice", "host", "task_id"}


def accounts_and_ledger() -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    """Every account and the latest run, without the fields that differ between any two runs."""
    run = ExpiryRun.objects.latest()
    accounts = [
        (account.pk, account.status, account.created, account.trial_ends_at, account.trial_expired_at == run.as_of)
        for account in Account.objects.order_by("pk")
    ]
    ledger = ExpiryRun.objects.values().get(pk=run.pk)
    return accounts, {name: value for name, value in ledger.items() if name not in OF_THE_PATH}


def run_of(task_id: str) -> Callable[[], ExpiryRun | None]:
    return lambda: ExpiryRun.objects.filter(task_id=task_id).exclude(finished=None).first()


@pytest.mark.django_db(transaction=True)
def test_command_and_celery_leave_the_same_accounts_and_equal_ledgers(
    manage_py: ManagePy, celery: Process, send: Send
) -> None:
    now = timezone.now() - timedelta(minutes=1)  # no other account becomes due within the hour

    with celery("worker", "--concurrency=2"):
        for size, batch_size in ((1, 5), (60, 1000), (60, 1), (400, 17)):
            seed = random.randrange(10_000)

            create_sample(size=size, seed=seed, now=now)
            command = manage_py("expire_trials", f"--batch-size={batch_size}")
            assert command.returncode == 0, command.stderr
            by_command = accounts_and_ledger()

            create_sample(size=size, seed=seed, now=now)
            task = send("accounts.expire_trials", kwargs={"batch_size": batch_size})
            wait_for("the run to be closed", run_of(task.id))

            assert accounts_and_ledger() == by_command, f"seed {seed}"
