"""Workers that are killed or stopped during a run."""

import signal

import pytest
import redis

from accounts.base_tasks import RunTask
from accounts.models import ExpiryRun
from sandbox.servers import wait_for
from tests.conftest import Process
from tests.faults import faults
from tests.faults.conftest import (
    ANOTHER,
    REDELIVER_AT_ONCE,
    Customers,
    Hold,
    Tick,
    run_that_succeeds,
    wait_for_line,
)

pytestmark = [pytest.mark.faults, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


def test_a_slice_whose_process_is_killed_is_retried_and_its_run_succeeds(
    customers: Customers, held_run: Hold, tick: Tick
) -> None:
    with held_run() as held:
        faults.kill_child(held.worker)
        held.gate.open()

        run = run_that_succeeds(held.task_id)

        assert run.expired_count == 6
        customers.assert_settled_by(tick)


def test_a_slice_that_kills_its_process_every_time_fails_the_run(
    customers: Customers, celery: Process, held_run: Hold, tick: Tick, broker: str
) -> None:
    with held_run() as held:
        for _ in range(1 + RunTask.max_retries):
            held.gate.wait_until_held()
            faults.kill_child(held.worker)
            held.gate.turn_away()

        run = wait_for("the run to fail", ExpiryRun.objects.filter(status=ExpiryRun.Status.FAILED).first)
        assert "WorkerLostError" in run.error
        assert run.expired_count == 4
        messages = redis.Redis.from_url(broker)
        wait_for("no message to be left", lambda: not messages.exists("trial-expiry", "unacked"))
        held.gate.open()
        customers.assert_settled_by(tick)


def test_the_next_tick_takes_over_from_a_worker_killed_with_slices_queued(
    customers: Customers, celery: Process, held_run: Hold, tick: Tick
) -> None:
    with held_run() as held:
        faults.kill(held.worker)
        held.gate.open()

        with celery(*ANOTHER):
            customers.assert_settled_by(tick)

    assert ExpiryRun.objects.earliest().status == ExpiryRun.Status.INTERRUPTED


def test_slices_of_a_killed_worker_are_redelivered_to_another(
    customers: Customers, celery: Process, held_run: Hold, tick: Tick
) -> None:
    with held_run() as held:
        faults.kill(held.worker)
        held.gate.open()

        with celery(*ANOTHER, *REDELIVER_AT_ONCE):
            run = run_that_succeeds(held.task_id)

            assert run.expired_count == 6
            customers.assert_settled_by(tick)


def test_a_worker_told_to_stop_finishes_its_slice_and_leaves_the_others(
    customers: Customers, celery: Process, held_run: Hold, tick: Tick
) -> None:
    with held_run() as held:
        faults.send_signal(held.worker, signal.SIGTERM)
        wait_for_line(held.log, "Warm shutdown")
        held.gate.open()
        assert held.worker.wait(30) == 0

        run = ExpiryRun.objects.get()
        assert (run.status, run.expired_count) == (ExpiryRun.Status.RUNNING, 4)
        with celery(*ANOTHER):
            run = run_that_succeeds(held.task_id)
            assert run.expired_count == 6
            customers.assert_settled_by(tick)


def test_a_worker_told_to_hurry_hands_its_unfinished_slice_to_another(
    customers: Customers, celery: Process, held_run: Hold, tick: Tick
) -> None:
    with held_run("--", "worker.soft_shutdown_timeout=1") as held:
        faults.send_signal(held.worker, signal.SIGQUIT)
        held.worker.wait(faults.SHOWS_WITHIN)
        assert "Initiating Soft Shutdown, terminating in 1.0 seconds" in held.log.read_text()
        held.gate.open()

        with celery(*ANOTHER):
            run = run_that_succeeds(held.task_id)
            assert run.expired_count == 6
            customers.assert_settled_by(tick)
