"""What is measured of one run: each measure is a function that begins before the run and ends after it."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import psutil
from django.db import Error, connection, connections
from redis import Redis

from accounts import services
from accounts.models import ExpiryRun
from comparison.measurements import Scenario
from comparison.runners import Runner, cpu_seconds
from comparison.server_log import ServerLog, longest_write
from comparison.sites import OwnSite

DAY, HOUR = 24 * 3600, 3600
CUSTOMERS_PER_SECOND = 5
"""Few, because their work is timed too, though not beside a contender who keeps them waiting: four times as many made
each path that lets them through 8 % slower than the one UPDATE that does not."""
CUSTOMERS_AT_ONCE = 16
"""Connections of customers. When all wait for a lock, the next ones queue up, and their wait counts from there."""


@dataclass(kw_only=True)
class Turn:
    """One run of one contender in one scenario, and what was measured of it."""

    runner: Runner
    scenario: Scenario
    own: OwnSite | None = None  # where the contender works, if not where all do
    customers: Iterable[int] = ()  # accounts whose customers pay meanwhile
    database: psutil.Process | None  # the database server, where it runs on this machine
    values: dict[str, float] = field(default_factory=dict)  # by measure
    waits: list[float] = field(default_factory=list)  # of customers who paid meanwhile, in seconds
    paid: set[int] = field(default_factory=set)  # the accounts whose customers did pay
    wrong: str = ""  # why the outcome was not the expected one


Measure = Callable[[Turn], AbstractContextManager[None]]


@contextmanager
def wall_time(turn: Turn) -> Iterator[None]:
    """``seconds``: from the trigger (process started, message sent) to the end (process ended, run closed)."""
    began = time.perf_counter()
    yield
    turn.values["seconds"] = time.perf_counter() - began


@contextmanager
def cpu_time(turn: Turn) -> Iterator[None]:
    """``cpu_seconds`` of the path's processes: the cron process, or worker and broker. Not the database.

    ``database_cpu_seconds`` of every process of the database server, customers included.
    """
    of_server, of_path = server_cpu_seconds(turn.database), turn.runner.cpu_seconds()
    yield
    turn.values["cpu_seconds"] = turn.runner.cpu_seconds() - of_path
    if turn.database:
        turn.values["database_cpu_seconds"] = server_cpu_seconds(turn.database) - of_server


@contextmanager
def peak_memory(turn: Turn) -> Iterator[None]:
    """``peak_memory_bytes`` that the path's processes held at once; one that was gone too soon has none."""
    seen = [0]
    with repeatedly(lambda: seen.append(memory_bytes(turn.runner.processes())), pause=0.025):
        yield
    if most := max(seen):
        turn.values["peak_memory_bytes"] = most


@contextmanager
def longest_transaction(turn: Turn) -> Iterator[None]:
    """``longest_transaction_seconds`` of those that wrote: so long an account stays locked.

    From the server's log; where that cannot be read, as of a server that ``--database`` names, there is none.
    """
    log = ServerLog.from_now()
    yield
    if log and (longest := longest_write(log.statements())):
        turn.values["longest_transaction_seconds"] = longest


@contextmanager
def payments(turn: Turn) -> Iterator[None]:
    """Have customers pay for due accounts during the run, and note how long ``services.activate`` kept each."""
    if turn.runner.part or not turn.scenario.due:
        yield
        return
    with paying(turn.customers) as (turn.waits, turn.paid):
        yield


@contextmanager
def work_alone(turn: Turn) -> Iterator[None]:
    """``service_seconds``: from reading the clock, with Python and Django up, to the closed run.

    ``finished`` less ``as_of`` in the ledger, unless the database goes by another machine's clock. Of those that keep
    no ledger, what they measured of their statement.
    """
    yield
    if turn.runner.work:
        turn.values["service_seconds"] = turn.runner.work["seconds"]
    elif turn.database and (run := ExpiryRun.objects.order_by("pk").last()) and run.finished:
        turn.values["service_seconds"] = (run.finished - run.as_of).total_seconds()


@contextmanager
def of_all(turn: Turn) -> Iterator[None]:
    """``measured_on`` so many accounts or mails; where that is a part, times become those of all, without start-up.

    ``start_up_share``: what was not the work: starting a process, or a message's way to the worker.
    """
    yield
    due, values, work = turn.scenario.due, turn.values, turn.runner.work
    measured_on = min(turn.runner.part or due, due)
    values["measured_on"] = measured_on
    if measured_on < due:
        more = due / measured_on - 1  # times what was measured
        values["seconds"] += more * work["seconds"]
        values["service_seconds"] += more * work["seconds"]
        values["cpu_seconds"] += more * work["cpu_seconds"]
        if "database_cpu_seconds" in values:
            values["database_cpu_seconds"] *= 1 + more
    if "service_seconds" in values:  # two clocks may differ by a hair
        values["start_up_share"] = max(0.0, 1 - values["service_seconds"] / values["seconds"])


@contextmanager
def at_rest(turn: Turn) -> Iterator[None]:
    """What it costs that nothing is to be done: memory, connections, and what a day's CPU time would be.

    Of standing processes as they take it while nobody wants anything, without ticks. Of a process for each run, which
    leaves nothing behind, what a day of hourly runs takes that find nothing due. Where sessions of the database stay
    open, their CPU time is counted, too.
    """
    runner = turn.runner
    sessions = sessions_of(runner.site.name) if turn.database else []
    began, before = time.monotonic(), used(runner, sessions)
    yield
    of_a_day = DAY / (time.monotonic() - began) if runner.roles() else DAY / HOUR
    cpu, transactions, commands = (now - then for now, then in zip(used(runner, sessions), before, strict=True))
    held = {f"{role}_bytes": memory_bytes(processes) for role, processes in runner.roles().items()}
    turn.values |= {
        "day_cpu_seconds": cpu * of_a_day,
        "minute_transactions": transactions * of_a_day / 1440,
        "minute_commands": commands * of_a_day / 1440,
        "connections": len(sessions_of(runner.site.name)),
        "processes": sum(map(len, runner.roles().values())),
        "held_bytes": sum(held.values()),
        **held,
    }


TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"


def sessions_of(database: str) -> list[psutil.Process]:
    """The server's processes for the open connections to it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'", [database]
        )
        pids = [pid for (pid,) in cursor.fetchall()]
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


def used(runner: Runner, sessions: Sequence[psutil.Process]) -> tuple[float, int, int]:
    """So far: CPU seconds of its processes and sessions, transactions on its database, commands to its broker."""
    standing = [*runner.processes(), *sessions]
    cpu = sum(map(exact_cpu_seconds, standing)) if standing else runner.cpu_seconds()
    transactions = ask_of(TRANSACTIONS, runner.site.name)
    if runner.store != "broker":
        return cpu, transactions, 0
    with Redis.from_url(runner.site.broker) as broker:
        return cpu, transactions, broker.info("stats")["total_commands_processed"]


def exact_cpu_seconds(process: psutil.Process) -> float:
    """By the nanosecond where Linux tells it: in hundredths, half a minute of rest says little of a day."""
    threads = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(each.read_text().split()[0]) for each in threads) / 1e9 or cpu_seconds([process])


def ask_of(query: str, database: str) -> int:
    """Ask from another database, so that the question is not counted."""
    with connection.cursor() as cursor:
        cursor.execute(query, [database])
        (answer,) = cursor.fetchone()
    return int(answer)


# A measure that needs another's value stands before it, because it ends after it.
RUN: tuple[Measure, ...] = (of_all, peak_memory, cpu_time, wall_time)
"""Of every run that is watched."""
EXPIRY: tuple[Measure, ...] = (*RUN[:1], work_alone, payments, longest_transaction, *RUN[1:])
"""Of every such run that expires accounts."""


@contextmanager
def repeatedly(look: Callable[[], object], *, pause: float) -> Iterator[None]:
    """Call ``look`` again and again in a thread of its own while the block runs.

    Between two looks there are ``pause`` seconds at first. More as time goes by, and where a look takes much CPU: it
    must not slow down what it looks at. CPU, not time: on a busy machine it would miss transactions of half a second.
    """
    over = threading.Event()

    def watch() -> None:
        started, wait = time.monotonic(), pause
        while not over.wait(wait):
            began = time.thread_time()
            look()
            wait = max(pause, 100 * (time.thread_time() - began), (time.monotonic() - started) / 100)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def paying(accounts: Iterable[int]) -> Iterator[tuple[list[float], set[int]]]:
    """Customers pay while the block runs: their waits, and the accounts they paid for.

    Each comes at a moment set in advance, and does not wait for the one before. So a lock held for a second meets as
    many of them as it would in life.
    """
    waits: list[float] = []
    paid: set[int] = set()
    over, everybody = threading.Event(), threading.Barrier(CUSTOMERS_AT_ONCE)
    pool = ThreadPoolExecutor(CUSTOMERS_AT_ONCE)

    def in_every_thread(do: Callable[[], None]) -> None:
        def together(_: int) -> None:
            everybody.wait()
            do()

        list(pool.map(together, range(CUSTOMERS_AT_ONCE)))

    def pay(account: int, came: float) -> None:
        with suppress(Error):  # the wait counts
            if services.activate(account_id=account):
                paid.add(account)
        waits.append(time.monotonic() - came)

    def come() -> None:
        started = time.monotonic()
        for number, account in enumerate(accounts):
            moment = started + number / CUSTOMERS_PER_SECOND
            if over.wait(max(0.0, moment - time.monotonic())):
                return
            pool.submit(pay, account, moment)

    in_every_thread(connection.ensure_connection)
    thread = threading.Thread(target=come, daemon=True)
    thread.start()
    try:
        yield waits, paid
    finally:
        over.set()
        thread.join()
        in_every_thread(connections.close_all)
        pool.shutdown()


def memory_bytes(processes: Iterable[psutil.Process]) -> int:
    """What the processes hold; a page that several share is counted once where the system tells, else for each."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):  # it may have ended
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return total


def server_cpu_seconds(server: psutil.Process | None) -> float:
    """CPU time of a database server and its backends so far."""
    while server:
        children = server.children()
        seconds = cpu_seconds([server, *children])
        # One that ended while they were read was counted twice, with the server's own, or not at all.
        if children == server.children():
            return seconds
    return 0.0


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent of ``values`` do not exceed."""
    return sorted(values)[max(0, ceil(len(values) * percent / 100) - 1)]
