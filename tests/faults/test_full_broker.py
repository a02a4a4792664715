"""A Redis that is full and refuses commands instead of evicting keys: ``maxmemory-policy noeviction``."""

from pathlib import Path

import pytest

from sandbox.servers import wait_for
from tests.conftest import ManagePy, Process
from tests.faults import faults
from tests.faults.conftest import Customers, Hold, Tick, ticks_every_second, wait_for_line

pytestmark = [pytest.mark.faults, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

REFUSAL = "command not allowed when used memory > 'maxmemory'"


def test_a_full_broker_is_told_in_a_line_and_costs_no_more_than_ticks(
    customers: Customers, celery: Process, tick: Tick, broker: str, tmp_path: Path
) -> None:
    ticks_every_second()
    with faults.full(broker):
        with celery("worker", "--concurrency=1") as worker:
            assert worker.wait(30) == 1
        with celery("beat"):
            wait_for_line(tmp_path / "beat.log", "Couldn't apply scheduled task every second:")
    for log in ("worker.log", "beat.log"):
        text = (tmp_path / log).read_text()
        assert REFUSAL in text
        assert "Traceback" not in text

    with celery("worker", "--concurrency=1"), celery("beat"):
        wait_for("beat's next tick", customers.have_expired)
        customers.assert_settled_by(tick)


def test_a_worker_whose_broker_fills_up_ends_with_a_line(
    customers: Customers, celery: Process, held_run: Hold, tick: Tick, broker: str
) -> None:
    with held_run() as held, faults.full(broker):
        held.gate.open()
        assert held.worker.wait(30) == 1
    # The process in the slice could not store its result either, which Celery logs with a traceback.
    last = held.log.read_text().splitlines()[-1]
    assert last.endswith(f"The broker refuses to work with this worker: {REFUSAL}.")

    with celery("worker", "--concurrency=1"):
        customers.assert_settled_by(tick)


RUN_SELECTED_TASKS = """
from django.contrib.auth import get_user_model
from django.contrib.messages import get_messages
from django.test import Client
from django_celery_beat.models import PeriodicTask

client = Client(SERVER_NAME="localhost")
client.force_login(get_user_model().objects.create_superuser("operator"))
page = "/admin/django_celery_beat/periodictask/"
entry = PeriodicTask.objects.get(name="every second")
answer = client.post(page, {"action": "run_tasks", "_selected_action": [entry.pk]})
print(answer.status_code, *get_messages(answer.wsgi_request))
"""


def test_the_admin_says_that_a_full_broker_takes_no_task(
    transactional_db: None, manage_py: ManagePy, broker: str
) -> None:
    ticks_every_second()
    with faults.full(broker):
        shown = manage_py("shell", "--command", RUN_SELECTED_TASKS, CELERY_BROKER_URL=broker)

    assert shown.stdout.splitlines()[-1].startswith("302 The broker did not take the task:"), shown.stderr
    assert REFUSAL in shown.stdout
