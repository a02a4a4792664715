"""Measuring one run: monitors that watch while a contender works, and the sample they make."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import ceil
from statistics import median
from typing import Self

import psutil
import psycopg
from django.db import Error, connection, connections
from django.db.models import Max

from accounts import services
from accounts.models import ExpiryRun
from comparison import scenarios
from comparison.contenders import CONTENDER, Contender, Failed, cpu_seconds
from comparison.results import Sample, Scenario

CUSTOMERS_PER_SECOND = 5
"""Few, because their work is timed too, though not beside a contender who keeps them waiting: four times as many made
each path that lets them through 8 % slower than the one UPDATE that does not."""
CUSTOMERS_AT_ONCE = 16
"""Connections of customers. When all wait for a lock, the next ones queue up, and their wait counts from there."""


class Monitor(AbstractContextManager["Monitor"]):
    """Looks at something again and again, in a thread of its own, while the ``with`` block runs."""

    pause: float
    """Seconds between two looks at first. More as time goes by, and where a look takes long: a look must not slow down
    what it looks at.
    """

    def look(self) -> None:
        """Look once."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        started, pause = time.monotonic(), self.pause
        while not self._over.wait(pause):
            began = time.monotonic()
            self.look()
            pause = max(self.pause, 100 * (time.monotonic() - began), (began - started) / 100)


class PeakMemory(Monitor):
    """The most memory that a contender's processes hold at once."""

    pause = 0.025

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.bytes = 0

    def look(self) -> None:
        """Add up the contender's processes."""
        self.bytes = max(self.bytes, memory_bytes(self.contender.processes()))


class LongestTransaction(Monitor):
    """The longest transaction of a contender's connections that wrote, as PostgreSQL shows them."""

    pause = 0.005
    query = (
        "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = %s"
        " AND backend_xid IS NOT NULL"  # one that has written, and so holds locks; reading makes nobody wait
    )

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._connection = psycopg.connect(**connection.get_connection_params(), autocommit=True)
        return super().__enter__()

    def look(self) -> None:
        """Ask how long the oldest open transaction has lasted."""
        row = self._connection.execute(self.query, [CONTENDER]).fetchone()
        self.seconds = max(self.seconds, row[0] if row else 0)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._connection.close()


@dataclass
class Customers(AbstractContextManager["Customers"]):
    """Customers who pay during the run: each comes at a moment set in advance, and does not wait for the one before.

    So a lock held for a second meets as many of them as it would in life.
    """

    accounts: Iterable[int]
    waits: list[float] = field(default_factory=list)
    paid: set[int] = field(default_factory=set)

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(CUSTOMERS_AT_ONCE)
        self._in_every_thread(open_connection)
        self._thread = threading.Thread(target=self._come, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._in_every_thread(connections.close_all)
        self._pool.shutdown()

    def _come(self) -> None:
        started = time.monotonic()
        for number, account in enumerate(self.accounts):
            due_at = started + number / CUSTOMERS_PER_SECOND
            if self._over.wait(max(0.0, due_at - time.monotonic())):
                return
            self._pool.submit(self._pay, account, due_at)

    def _pay(self, account: int, came: float) -> None:
        with suppress(Error):  # SQLite gives up after a while; the wait counts
            if services.activate(account_id=account):
                self.paid.add(account)
        self.waits.append(time.monotonic() - came)

    def _in_every_thread(self, do: Callable[[], None]) -> None:
        everybody = threading.Barrier(CUSTOMERS_AT_ONCE)

        def together() -> None:
            everybody.wait()
            do()

        futures: list[Future[None]] = [self._pool.submit(together) for _ in range(CUSTOMERS_AT_ONCE)]
        for future in futures:
            future.result()


def open_connection() -> None:
    """Open the connection of this thread."""
    connection.ensure_connection()


def memory_bytes(processes: Iterable[psutil.Process]) -> int:
    """What the processes hold; a page that several share is counted once where the system tells, else for each."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):  # it may have ended
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return total


@dataclass(kw_only=True)
class Measuring:
    """Runs contenders on a database that is brought back before each run, and watches."""

    restore: Callable[[str], None]
    """Bring back the database of the scenario of that name."""
    database: psutil.Process | None = None
    """The database server, where it runs on this machine."""
    seed: int
    now: datetime
    """The moment the scenarios were filled for."""
    present: str = ""
    """The scenario whose database is there."""

    def sample(self, contender: Contender, scenario: Scenario, *, round_number: int) -> Sample:
        """One run of one contender, with its figures, or with what was wrong."""
        if scenario.due or scenario.name != self.present:  # where nothing is due, nobody has changed an account
            self.restore(scenario.name)
            self.present = scenario.name
        base = Sample(scenario=scenario.name, contender=contender.about.name, round=round_number)
        measured_on = scenario.due if contender.part is None else min(contender.part, scenario.due)
        customers = Customers(scenarios.customers(scenario, seed=self.seed, now=self.now))
        memory, longest = PeakMemory(contender), LongestTransaction()
        try:
            with ExitStack() as watching:
                watching.enter_context(memory)
                if connection.vendor == "postgresql":
                    watching.enter_context(longest)
                if scenario.due and contender.part is None:
                    watching.enter_context(customers)
                seconds, cpu, database_cpu = self.timed(contender)
        except Failed as failure:
            return replace(base, wrong=str(failure))
        wrong = scenarios.what_is_wrong(paid=customers.paid, expired=contender.part and measured_on)
        if wrong:
            return replace(base, wrong=wrong)
        service = contender.told["seconds"] if contender.told else self._service_seconds()
        if contender.part is not None and contender.told and measured_on:
            more = scenario.due / measured_on - 1  # times what was measured
            seconds += more * contender.told["seconds"]
            service = contender.told["seconds"] * (1 + more)
            cpu += more * contender.told["cpu_seconds"]
            database_cpu += more * database_cpu
        return replace(
            base,
            measured_on=measured_on,
            seconds=seconds,
            service_seconds=service,
            cpu_seconds=cpu,
            database_cpu_seconds=database_cpu if self.database else None,
            peak_memory_bytes=memory.bytes or None,
            longest_transaction_seconds=max(longest.seconds, longest_slice_seconds()) or None,
            waits=len(customers.waits),
            wait_median_seconds=median(customers.waits) if customers.waits else None,
            wait_p99_seconds=percentile(customers.waits, 99) if customers.waits else None,
            wait_max_seconds=max(customers.waits, default=None),
        )

    def timed(self, contender: Contender) -> tuple[float, float, float]:
        """Run it: wall seconds, CPU seconds of its processes, and CPU seconds of the database."""
        cpu, database_cpu = contender.cpu_seconds(), self._database_cpu_seconds()
        seconds = elapsed(contender.run)
        return seconds, contender.cpu_seconds() - cpu, self._database_cpu_seconds() - database_cpu

    def _service_seconds(self) -> float | None:
        """What the ledger tells of the last run; None where the database may go by the clock of another machine."""
        run = ExpiryRun.objects.order_by("pk").last()
        if run is None or run.finished is None or not (self.database or connection.vendor == "sqlite"):
            return None
        return (run.finished - run.as_of).total_seconds()

    def _database_cpu_seconds(self) -> float:
        if self.database is None:
            return 0.0
        while True:
            children = self.database.children()
            seconds = cpu_seconds([self.database, *children])
            # One that ended while they were read was counted twice, with the server's own, or not at all.
            if children == self.database.children():
                return seconds


def elapsed(do: Callable[[], object]) -> float:
    """How many seconds it takes."""
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent of ``values`` do not exceed."""
    return sorted(values)[max(0, ceil(len(values) * percent / 100) - 1)]


def longest_slice_seconds() -> float:
    """What the ledger tells of its transactions; 0 when it has no run."""
    longest = ExpiryRun.objects.aggregate(longest=Max("longest_slice"))["longest"]
    return longest.total_seconds() if longest else 0.0
