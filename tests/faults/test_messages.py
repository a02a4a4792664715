"""Messages that are delivered twice, late, in bulk, or lost."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from django.db.models import Sum
from django.utils import timezone

from accounts import tasks
from accounts.models import Account, ExpiryRun
from sandbox.servers import wait_for
from tests.conftest import Process
from tests.factories import make_accounts
from tests.faults import faults
from tests.faults.conftest import Customers, Gate, Hold, Tick, gate_before, ticks_every_second, wait_for_line

pytestmark = [pytest.mark.faults, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

QUEUE = "trial-expiry"


@pytest.fixture
def messages(broker: str) -> redis.Redis:
    """The broker, to look at the messages it holds."""
    return redis.Redis.from_url(broker)


def at_least(count: int, **which: Any) -> Callable[[], bool]:
    return lambda: ExpiryRun.objects.filter(**which).count() >= count


def total_expired() -> int:
    total: int = ExpiryRun.objects.aggregate(total=Sum("expired_count"))["total"]
    return total


def test_two_beats_expire_nothing_twice(customers: Customers, celery: Process, tick: Tick, tmp_path: Path) -> None:
    ticks_every_second()
    beat = ("beat", "--loglevel=info", "--pidfile=")
    with gate_before(customers.due[0]) as gate, celery("worker", "--concurrency=3", "--loglevel=info"):
        with celery(*beat), faults.beside(celery(*beat)):
            log = tmp_path / "beat.log"
            wait_for("both beats", lambda: log.exists() and log.read_text().count("beat: Starting...") == 2)
            gate.wait_until_held()
            wait_for_line(tmp_path / "worker.log", "expiry_already_running")
            gate.open()
            wait_for("runs to succeed", at_least(3, status=ExpiryRun.Status.SUCCEEDED))
        customers.assert_settled_by(tick)


def test_a_tick_and_slices_delivered_twice_expire_nothing_twice(
    customers: Customers, celery: Process, tick: Tick, messages: redis.Redis
) -> None:
    def double_what_is_queued() -> int:
        queued = messages.lrange(QUEUE, 0, -1)
        faults.inflict(messages.lpush, QUEUE, *queued)
        return messages.llen(QUEUE)

    task_id = tick.send()
    assert double_what_is_queued() == 2
    with gate_before(customers.due[0]) as gate, celery("worker", "--concurrency=1"):
        gate.wait_until_held()
        # The second tick found the run of the first at work. Two of its three slices are queued.
        assert double_what_is_queued() == 4
        gate.open()

        wait_for("the run to succeed", at_least(1, task_id=task_id, status=ExpiryRun.Status.SUCCEEDED))
        wait_for("no message to be left", lambda: not messages.exists(QUEUE, "unacked"))
        customers.assert_settled_by(tick)


def test_a_message_that_outlives_its_tick_is_dropped(
    customers: Customers, celery: Process, tick: Tick, messages: redis.Redis, tmp_path: Path
) -> None:
    ticks_every_second(expire_seconds=6, one_off=True)  # a worker starts sooner
    with celery("beat"):
        wait_for("beat to send the tick", lambda: messages.llen(QUEUE))
    sent = timezone.now()
    faults.inflict(wait_for, "the message to expire", lambda: timezone.now() > sent + timedelta(seconds=6))

    with celery("worker", "--concurrency=1", "--loglevel=info"):
        wait_for_line(tmp_path / "worker.log", "Discarding revoked task: accounts.expire_trials")
        assert not ExpiryRun.objects.exists()
        customers.assert_settled_by(tick)


def test_ten_ticks_that_wait_for_a_worker_expire_nothing_twice(
    customers: Customers, celery: Process, tick: Tick, messages: redis.Redis
) -> None:
    tick.send()
    for _ in range(9):
        faults.inflict(tick.send)

    with celery("worker", "--concurrency=2"):
        wait_for("no message to be left", lambda: not messages.exists(QUEUE, "unacked"))
        assert not ExpiryRun.objects.exclude(status=ExpiryRun.Status.SUCCEEDED)
        assert total_expired() == 6
        customers.assert_settled_by(tick)


def test_a_slice_that_fails_for_good_fails_its_run_and_the_others_are_done(
    customers: Customers, celery: Process, tick: Tick
) -> None:
    with celery("worker", "--concurrency=1"):
        with faults.cannot_expire(customers.due[2]):
            tick.send()
            failed = ExpiryRun.objects.filter(status=ExpiryRun.Status.FAILED, expired_count=4)
            run = wait_for("the run to fail, and the other slices", failed.first)
            assert "not this one" in run.error

        customers.assert_settled_by(tick)


def test_a_run_whose_results_were_lost_is_not_left_running(
    customers: Customers, held_run: Hold, tick: Tick, messages: redis.Redis
) -> None:
    with held_run() as held:
        faults.inflict(messages.delete, *messages.scan_iter("celery-task*"))
        assert not list(messages.scan_iter("celery-task*"))
        held.gate.open()
        run = wait_for("every slice", ExpiryRun.objects.filter(task_id=held.task_id, expired_count=6).first)

        assert run.status == ExpiryRun.Status.RUNNING
        customers.assert_settled_by(tick)

    run.refresh_from_db()
    assert run.status == ExpiryRun.Status.INTERRUPTED


def test_slices_come_in_waves_and_one_that_fails_keeps_no_later_wave_from_its_turn(
    transactional_db: None, celery: Process, tick: Tick, messages: redis.Redis
) -> None:
    make_accounts(2 * tasks.WAVE + 3, ended=timedelta(days=10), now=timezone.now())  # 102 slices of two
    first, _, poison, *_ = Account.objects.order_by("pk")
    bad = faults.in_trigger(f"IF NEW.id = {poison.pk} THEN RAISE EXCEPTION 'not this one'; END IF;")

    with gate_before(first, poison, hold=Gate.HOLD + bad) as gate, celery("worker", "--concurrency=1"):
        task_id = tick.send()
        gate.wait_until_held()
        assert messages.llen(QUEUE) + messages.hlen("unacked") == tasks.WAVE
        gate.open()
        failed = ExpiryRun.objects.filter(task_id=task_id, status=ExpiryRun.Status.FAILED)
        run = wait_for("the other slices", failed.filter(expired_count=2 * tasks.WAVE + 1).first, seconds=60)

    assert (run.slice_count, run.due_count) == (tasks.WAVE + 1, 2 * tasks.WAVE + 3)
    assert "not this one" in run.error
