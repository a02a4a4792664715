"""The command and Celery: concurrently, and with the command as the fallback."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest
from django.db import connection
from django.db.models import F, Sum
from django.utils import timezone

from accounts import ledger
from accounts.models import Account, ExpiryRun
from sandbox.servers import wait_for
from tests.conftest import ManagePy, Process, Send
from tests.factories import make_accounts
from tests.faults import faults
from tests.faults.conftest import Customers, Row, Tick, gate_before, run_that_succeeds, runs_grow_older

pytestmark = [pytest.mark.faults, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


ROUNDS, EACH = 10, 200


def test_command_and_celery_started_at_one_moment_expire_nothing_twice(
    celery: Process, send: Send, tick: Tick, manage_py: ManagePy
) -> None:
    with celery("worker", "--concurrency=2"), ThreadPoolExecutor() as cron:
        for _ in range(ROUNDS):
            customers = Customers(due=EACH)
            with psycopg.connect(**connection.get_connection_params()) as starter:
                faults.inflict(starter.execute, "LOCK TABLE accounts_expiryrun IN EXCLUSIVE MODE")
                # Slices of one account are slow enough for Celery to run concurrently.
                command = cron.submit(manage_py, "expire_trials", "--batch-size=1")
                task = send("accounts.expire_trials", kwargs={"batch_size": 20})
                wait_for("both to stand at the start", lambda: waiting_for_the_ledger(starter) == 2)
                starter.rollback()
            assert command.result().returncode == 0, command.result().stderr
            run_that_succeeds(task.id)
            customers.assert_settled_by(tick)

    expired = dict(ExpiryRun.objects.values_list("path").annotate(Sum("expired_count")))
    assert expired["command"] + expired["celery"] == ROUNDS * EACH
    assert expired["command"] > 0
    assert expired["celery"] > 0


def waiting_for_the_ledger(starter: psycopg.Connection[Row]) -> int:
    (count,) = starter.execute(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'accounts_expiryrun'::regclass"
    ).fetchone() or (0,)
    return int(count)


def hours_pass(hours: float) -> None:
    passed = timedelta(hours=hours)
    ExpiryRun.objects.update(as_of=F("as_of") - passed, heartbeat=F("heartbeat") - passed)


@pytest.mark.no_fault("Celery is alive: the next test kills it")
def test_the_fallback_does_nothing_beside_a_living_celery(
    customers: Customers, celery: Process, tick: Tick, manage_py: ManagePy
) -> None:
    with celery("worker", "--concurrency=1"):
        tick()
        make_accounts(1, ended=timedelta(days=10), now=timezone.now())
        hours_pass(1)

        fallback = manage_py("expire_trials", "--if-stale=2")

        assert "Nothing to do: a run by celery succeeded" in fallback.stdout
        assert Account.objects.due(timezone.now()).count() == 1
        customers.due += list(Account.objects.due(timezone.now()))
        customers.assert_settled_by(tick)


def test_the_fallback_does_the_work_of_a_celery_killed_in_the_middle_of_it(
    celery: Process, tick: Tick, manage_py: ManagePy
) -> None:
    with celery("worker", "--concurrency=1") as worker:
        tick()
        hours_pass(3)
        customers = Customers(due=6)
        with gate_before(customers.due[2]) as gate:
            tick.send()
            gate.wait_until_held()
            faults.kill(worker)
            gate.turn_away()

    runs_grow_older(ledger.ALIVE_FOR)
    fallback = manage_py("expire_trials", "--if-stale=2")

    assert fallback.stdout.splitlines() == ["Search for old trial accounts...", "Expired 4 trial(s)"]
    customers.assert_settled_by(lambda: manage_py("expire_trials"))
