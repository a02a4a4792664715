"""Workers killed and stopped in the middle of a run."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import redis

from accounts.base_tasks import RunTask
from accounts.models import ExpiryRun
from sandbox.servers import wait_for
from tests.conftest import Process
from tests.faults.conftest import Customers, Tick, gate_before, run_that_succeeds, wait_for_line

pytestmark = [pytest.mark.faults, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

ONE_PROCESS = ("worker", "--concurrency=1", "--loglevel=info")
ANOTHER = (*ONE_PROCESS, "--hostname=another@%h")


def kill_the_process_inside_the_slice(worker: subprocess.Popen[bytes]) -> None:
    (child,) = psutil.Process(worker.pid).children()
    child.kill()
    child.wait(10)


def test_a_slice_whose_process_is_killed_is_tried_again_and_its_run_succeeds(
    customers: Customers, celery: Process, tick: Tick
) -> None:
    with gate_before(customers.due[2]) as gate, celery(*ONE_PROCESS) as worker:
        task_id = tick.send()
        gate.wait_until_held()
        kill_the_process_inside_the_slice(worker)
        gate.open()

        run = run_that_succeeds(task_id)

        assert run.expired_count == 6
        customers.assert_settled_by(tick)


def test_a_slice_that_kills_its_process_every_time_is_given_up_and_fails_the_run(
    customers: Customers, celery: Process, tick: Tick, broker: str
) -> None:
    with celery(*ONE_PROCESS) as worker:
        with gate_before(customers.due[2]) as gate:
            tick.send()
            for _ in range(1 + RunTask.max_retries):
                gate.wait_until_held()
                kill_the_process_inside_the_slice(worker)
                gate.turn_away()

            run = wait_for("the run to fail", ExpiryRun.objects.filter(status=ExpiryRun.Status.FAILED).first)

        assert "WorkerLostError" in run.error
        assert run.expired_count == 4
        messages = redis.Redis.from_url(broker)
        wait_for("no message to be left", lambda: not messages.exists("trial-expiry", "unacked"))
        customers.assert_settled_by(tick)


def test_the_next_tick_takes_over_from_a_worker_killed_with_slices_queued(
    customers: Customers, celery: Process, tick: Tick
) -> None:
    with gate_before(customers.due[2]) as gate:
        with celery(*ONE_PROCESS) as worker:
            tick.send()
            gate.wait_until_held()
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        gate.open()

        with celery(*ANOTHER):
            customers.assert_settled_by(tick)

    assert ExpiryRun.objects.earliest().status == ExpiryRun.Status.INTERRUPTED


def test_slices_of_a_killed_worker_are_handed_to_another_after_the_visibility_timeout(
    customers: Customers, celery: Process, tick: Tick
) -> None:
    a_moment = '{"visibility_timeout": 1, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}'
    with gate_before(customers.due[2]) as gate:
        with celery(*ONE_PROCESS) as worker:
            task_id = tick.send()
            gate.wait_until_held()
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        gate.open()

        with celery(*ANOTHER, "--", f"broker.transport_options=(json){a_moment}"):
            run = run_that_succeeds(task_id)

            assert run.expired_count == 6
            customers.assert_settled_by(tick)


def test_a_worker_told_to_stop_finishes_its_slice_and_leaves_the_others_to_another(
    customers: Customers, celery: Process, tick: Tick, tmp_path: Path
) -> None:
    with gate_before(customers.due[2]) as gate:
        with celery(*ONE_PROCESS) as worker:
            task_id = tick.send()
            gate.wait_until_held()
            worker.terminate()
            wait_for_line(tmp_path / "worker.log", "Warm shutdown")
            gate.open()
            assert worker.wait(30) == 0

        run = ExpiryRun.objects.get()
        assert (run.status, run.expired_count) == (ExpiryRun.Status.RUNNING, 4)
        with celery(*ANOTHER):
            run = run_that_succeeds(task_id)
            assert run.expired_count == 6
            customers.assert_settled_by(tick)


def test_a_worker_told_to_hurry_hands_its_unfinished_slice_to_another(
    customers: Customers, celery: Process, tick: Tick, tmp_path: Path
) -> None:
    with gate_before(customers.due[2]) as gate:
        with celery(*ONE_PROCESS, "--", "worker.soft_shutdown_timeout=1") as worker:
            task_id = tick.send()
            gate.wait_until_held()
            worker.send_signal(signal.SIGQUIT)
            worker.wait(30)
            assert "Initiating Soft Shutdown, terminating in 1.0 seconds" in (tmp_path / "worker.log").read_text()
        gate.open()

        with celery(*ANOTHER):
            run = run_that_succeeds(task_id)
            assert run.expired_count == 6
            customers.assert_settled_by(tick)
