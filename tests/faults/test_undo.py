"""An undo that is killed, and an undo of a run whose slices are still in the queue."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from accounts import services
from accounts.models import Account, ExpiryRun
from sandbox.servers import wait_for
from tests.conftest import ManagePy, Process
from tests.faults import faults
from tests.faults.conftest import Customers, Tick, gate_before

pytestmark = [pytest.mark.faults, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


def test_an_undo_killed_in_the_middle_is_finished_by_the_next_one(
    customers: Customers, environment: Mapping[str, str], manage_py: ManagePy
) -> None:
    before = list(Account.objects.order_by("pk").values())
    run = services.expire_trials(path=ExpiryRun.Path.COMMAND, now=timezone.now())
    with gate_before(customers.due[2]) as gate:
        with subprocess.Popen(
            [sys.executable, "manage.py", "undo_expiry", str(run.pk), "--batch-size=2"],
            cwd=settings.BASE_DIR,
            env={**os.environ, **environment},
        ) as undo:
            gate.wait_until_held()
            faults.kill(undo)
        gate.turn_away()

    run.refresh_from_db()
    assert (run.status, run.undone_count, run.accounts.count()) == (ExpiryRun.Status.UNDONE, 2, 4)

    again = manage_py("undo_expiry", str(run.pk), "--batch-size=2")

    assert again.stdout.endswith("Put 4 account(s) back on trial\n")
    run.refresh_from_db()
    assert run.undone_count == 6
    assert list(Account.objects.order_by("pk").values()) == before


@pytest.mark.no_fault("it is about a verb of the product, whose output it asserts")
def test_undoing_a_run_whose_slices_are_in_the_queue_stops_them(
    customers: Customers, celery: Process, tick: Tick, manage_py: ManagePy, tmp_path: Path
) -> None:
    def finished() -> bool:
        return (
            re.search(r"Task accounts\.continue_run\[.*\] succeeded", (tmp_path / "worker.log").read_text()) is not None
        )

    before = list(Account.objects.order_by("pk").values())
    with celery("worker", "--concurrency=1", "--loglevel=info"):
        with gate_before(customers.due[2]) as gate:
            task_id = tick.send()
            gate.wait_until_held()  # of three slices one is done, one waits at the gate, and one is in the queue
            run = ExpiryRun.objects.get(task_id=task_id)

            undo = manage_py("undo_expiry", str(run.pk))

            assert undo.stdout.endswith("Put 2 account(s) back on trial\n"), undo.stderr
            gate.open()
            wait_for("every slice to be done", finished)

        assert list(Account.objects.order_by("pk").values()) == before
        run.refresh_from_db()
        assert (run.status, run.expired_count, run.undone_count) == (ExpiryRun.Status.UNDONE, 2, 2)
        customers.assert_settled_by(tick)
