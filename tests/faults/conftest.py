"""Fixtures of the fault tests: customers, a gate that blocks a slice at a known point, and the final check."""

import os
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.db.models import Count, F
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from accounts import ledger
from accounts.models import Account, ExpiryRun, Notice
from sandbox.servers import wait_for
from tests.conftest import Process, Send
from tests.factories import make_accounts
from tests.faults import faults
from tests.locks import trigger_on_update

Row = tuple[Any, ...]


def runs_grow_older(passed: timedelta) -> None:
    """Make the last slice of every run that is running so much older."""
    ExpiryRun.objects.filter(status=ExpiryRun.Status.RUNNING).update(heartbeat=F("heartbeat") - passed)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With the faults disabled, expect every test of this directory to fail, but those marked ``no_fault``."""
    for item in items if faults.DISABLED else ():
        if item.path.parent != Path(__file__).parent:
            continue
        if exempt := item.get_closest_marker("no_fault"):
            item.add_marker(pytest.mark.skip(reason=exempt.args[0]))
        else:
            item.add_marker(pytest.mark.xfail(raises=faults.NOTICED, reason="it is vacuous", strict=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report by what a test noticed that its fault was missing."""
    report = yield
    if hasattr(report, "wasxfail") and call.excinfo:
        report.wasxfail = call.excinfo.exconly().splitlines()[0]
    return report


class Customers:
    """Accounts that are due, and one account of every kind that no run may change."""

    def __init__(self, due: int) -> None:
        now = timezone.now()
        for status in Account.Status:
            # Except for the trialing account, which has days left, their trials ended long ago, which has no effect.
            ended = timedelta(days=-5 if status == Account.TRIALING else 10)
            make_accounts(1, status=status, ended=ended, now=now)
        make_accounts(due, ended=timedelta(days=10), now=now)
        self.due = list(Account.objects.due(timezone.now()).order_by("pk"))
        self.others = self._rows_of_others()

    def _rows_of_others(self) -> list[Row]:
        return list(Account.objects.exclude(pk__in=[account.pk for account in self.due]).order_by("pk").values_list())

    def have_expired(self) -> bool:
        expired = Account.objects.filter(status=Account.TRIAL_EXPIRED, expiry_run__isnull=False)
        return set(self.due) <= set(expired)

    def assert_settled_by(self, next_run: Callable[[], Any]) -> None:
        """Assert the state after every fault, the run a little later, and the one ten minutes later.

        Every due account has expired exactly once, no other changed, the ledger's sums are correct, and no run stays
        running forever.
        """
        for passed in (ledger.ALIVE_FOR, ledger.SILENT_FOR):
            runs_grow_older(passed)
            next_run()

        assert self.have_expired()
        assert self._rows_of_others() == self.others
        # An account expired twice would be counted by two runs and point to one.
        counted = F("pointing") + F("undone_count")
        assert not ExpiryRun.objects.annotate(pointing=Count("accounts")).exclude(expired_count=counted)
        wait_for("every run to end", lambda: not ExpiryRun.objects.filter(status=ExpiryRun.Status.RUNNING).exists())


@pytest.fixture
def customers(transactional_db: None) -> Customers:
    """Six due accounts, for three slices of two, and the others."""
    return Customers(due=6)


def ticks_every_second(**options: Any) -> PeriodicTask:
    """Add an entry to beat's schedule that ticks every second."""
    every_second = IntervalSchedule.objects.create(every=1, period=IntervalSchedule.SECONDS)
    return PeriodicTask.objects.create(
        name="every second",
        task="accounts.expire_trials",
        interval=every_second,
        last_run_at=timezone.now() - timedelta(hours=1),
        **{"kwargs": '{"batch_size": 2}', **options},
    )


@dataclass(frozen=True)
class Tick:
    """Sends ticks as beat does."""

    send_task: Send

    def send(self) -> str:
        """Send a tick, with slices of two accounts; returns the task's id."""
        return self.send_task("accounts.expire_trials", kwargs={"batch_size": 2}).id

    def __call__(self) -> ExpiryRun:
        """Send a tick, again while it finds a run at work and starts none, and wait until its run has succeeded."""
        for _ in range(10):
            runs_grow_older(ledger.ALIVE_FOR)
            task_id = self.send()
            with suppress(TimeoutError):
                wait_for("the run to start", ExpiryRun.objects.filter(task_id=task_id).exists, seconds=6)
                break
        return run_that_succeeds(task_id)


@pytest.fixture
def tick(send: Send) -> Tick:
    return Tick(send)


def run_that_succeeds(task_id: str) -> ExpiryRun:
    """Wait until a run of that task has succeeded."""
    runs = ExpiryRun.objects.filter(task_id=task_id, status=ExpiryRun.Status.SUCCEEDED)
    return wait_for("the run to succeed", runs.first, seconds=60)


class Gate:
    """A trigger on one row: an UPDATE of it waits, inside the database, until the gate is opened."""

    KEY = 1
    HOLD = f"PERFORM set_config('lock_timeout', '0', true); PERFORM pg_advisory_xact_lock_shared({KEY});"

    def __init__(self, owner: psycopg.Connection[Row]) -> None:
        self.owner = owner
        owner.execute("SELECT pg_advisory_lock(%s)", [self.KEY])

    def open(self) -> None:
        """Let all waiting and later updates continue."""
        self.owner.execute("SELECT pg_advisory_unlock_all()")

    def wait_until_held(self, number: int = 1) -> None:
        """Wait until so many UPDATEs wait at the gate."""
        wait_for(f"{number} to be held", lambda: len(self._held()) >= number)

    def turn_away(self) -> None:
        """End the transactions that wait at the gate, as PostgreSQL does when it detects that a client died."""
        for (pid,) in self._held():
            self.owner.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])

    def _held(self) -> list[Row]:
        return self.owner.execute(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchall()


@contextmanager
def gate_before(row: Account | Notice, *more: Account | Notice, hold: str = Gate.HOLD) -> Iterator[Gate]:
    with (
        trigger_on_update(row, hold, *more),  # can be dropped after the gate, which is opened first
        psycopg.connect(**connection.get_connection_params(), autocommit=True) as owner,
    ):
        yield Gate(owner)


ANOTHER = ("worker", "--concurrency=1", "--hostname=another@%h")
"""A worker that takes the place of a killed one."""

REDELIVER_AT_ONCE = (
    "--",
    'broker.transport_options=(json){"visibility_timeout": 1, "unacked_restore_interval": 1,'
    ' "unacked_restore_throttle": 1}',
)
"""Arguments of a worker that redelivers what is not acknowledged for a second."""


@dataclass(frozen=True)
class HeldRun:
    """A run of three slices by one worker: the first is done, the second waits at the gate, the third is queued."""

    worker: subprocess.Popen[bytes]
    gate: Gate
    task_id: str
    log: Path


Hold = Callable[..., AbstractContextManager[HeldRun]]


@pytest.fixture
def held_run(customers: Customers, celery: Process, tick: Tick, tmp_path: Path) -> Hold:
    """Start such a run with a worker that has the given arguments."""

    @contextmanager
    def hold(*arguments: str) -> Iterator[HeldRun]:
        with gate_before(customers.due[2]) as gate, celery("worker", "--concurrency=1", *arguments) as worker:
            task_id = tick.send()
            gate.wait_until_held()
            yield HeldRun(worker, gate, task_id, tmp_path / "worker.log")

    return hold


def wait_for_line(log: Path, text: str, *, seconds: float = 30) -> None:
    """Wait until a process has written ``text`` to its log."""
    wait_for(f"{text!r} in {log.name}", lambda: text in log.read_text(), seconds=seconds)


@contextmanager
def running(*command: str, log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server, and end it and its children with the block."""
    with log.open("ab") as output:
        server = subprocess.Popen(
            command, env={**os.environ, **env}, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield server
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
