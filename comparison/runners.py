"""The processes of a contender: one that is started for every run, or ones that stand ready and get a message.

An engine is a subclass of ``CronRun`` or ``Standing`` that names its processes and says how work is handed to them.
Starting, killing, measuring and breaking them is the same for all.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil
import psycopg
from django.conf import settings
from redis import Redis

from accounts.models import ExpiryRun
from comparison.measurements import Contender
from sandbox import servers

APPLICATION_NAME = "compare_paths contender"  # what a contender's connections are called in ``pg_stat_activity``
LONGEST_RUN = 1800  # seconds after which a run is given up

stopped = threading.Event()
"""Set when the comparison ends early, so that what waits in another thread ends as well."""


class Failed(Exception):  # noqa: N818 (it says what happened)
    """A contender did not do its work; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A database and a broker that a contender works with, as URLs."""

    database: str
    broker: str
    options: str = ""  # of its connections to PostgreSQL, as in ``PGOPTIONS``

    @property
    def name(self) -> str:
        """Of the database."""
        return urlsplit(self.database).path.removeprefix("/")

    def ask(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement there, on a connection that is closed again, so that nothing of it stays."""
        with psycopg.connect(self.database, autocommit=True) as postgres:
            cursor = postgres.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []


class Program(NamedTuple):
    """A process that stands ready."""

    arguments: Sequence[str]  # of Python
    ready: str  # its log contains this once it takes work
    children: int = 0  # processes that it starts, and needs for that


Roles = Mapping[str, Sequence[psutil.Process]]


class Runner(ABC):
    """The processes of one contender."""

    name: str  # short and unique, without spaces
    title: str  # at most 20 characters, for a column
    how: str  # one sentence
    path: str = "cron"
    settings: str = "comparison.settings"
    environment: Mapping[str, str] = {}  # what its processes need beside what every contender has
    store: str = ""  # where work waits for its processes: ``broker``, ``database``, or nowhere
    keeps_connections = False
    """Its standing processes keep a connection to the database, which does not survive that it is restored."""
    same_scheduler = False  # its schedule is kept by the same process as another contender's
    rounds: int | None = None  # how often it runs in a scenario at most
    part: int | None = None  # it is measured on so many due accounts only
    work: Mapping[str, float] = {}
    """What the last run measured of its own work, without start-up: ``seconds`` and ``cpu_seconds``."""
    site: Site

    @property
    def contender(self) -> Contender:
        """Whose processes these are."""
        return Contender(name=self.name, title=self.title, how=self.how, path=self.path)

    @abstractmethod
    def run(self) -> None:
        """Trigger the work and return when it is done; raise Failed when it was not."""

    def warm_up(self) -> None:  # noqa: B027 (most have nothing to do)
        """Do once what is slower the first time; the database is empty."""

    @contextmanager
    def standing(self, site: Site, *, logs: Path, every: int | None = None) -> Iterator[None]:
        """Have its processes stand ready during the block, and its schedule tick, if ``every`` so many seconds."""
        self.site = site
        yield

    def roles(self) -> Roles:
        """Its living processes that stand ready, by role: ``broker``, ``scheduler``, ``worker``."""
        return {}

    def processes(self) -> list[psutil.Process]:
        """Its processes that live now."""
        return [process for processes in self.roles().values() for process in processes]

    def cpu_seconds(self) -> float:
        """CPU time that its processes have taken so far, user and system."""
        return cpu_seconds(self.processes())

    def scheduled(self, as_of: float, every: int) -> float:
        """The moment that a run was scheduled for which began at ``as_of``, both in seconds since the epoch."""
        return floor(as_of / every) * every

    def kill(self, *roles: str) -> None:
        """SIGKILL to the processes of these roles, by default of all but the broker, which is not its own."""
        raise NotImplementedError

    def start(self, *roles: str) -> None:
        """Start those that do not run, as a supervisor does."""
        raise NotImplementedError

    def ended(self) -> list[str]:
        """The roles whose process has ended by itself."""
        return []

    def process_environment(self, every: int | None) -> dict[str, str]:
        """The environment of its processes."""
        given = {
            "PGAPPNAME": APPLICATION_NAME,
            "PGOPTIONS": self.site.options,
            "DJANGO_SETTINGS_MODULE": self.settings,
            "DATABASE_URL": self.site.database,
            "CELERY_BROKER_URL": self.site.broker,
            **({"COMPARE_EVERY": str(every)} if every else {}),
        }
        return {**os.environ, **given, **self.environment}


class CronRun(Runner):
    """A process started for the run, which ends with it. Cron is this program, which starts it at its moments."""

    arguments: Sequence[str]  # the command line
    child: "subprocess.Popen[bytes] | None" = None
    used = 0.0  # CPU seconds, by all its processes that have ended
    cron: threading.Thread | None = None

    def run(self) -> None:
        """From the start of the process to its end."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            code = self._run_process(output, errors)
            output.seek(0), errors.seek(0)
            if code:
                last_line = (errors.read().decode().strip().splitlines() or ["no word on stderr"])[-1]
                raise Failed(f"It ended with exit code {code}: {last_line}")
            self.work = self.read_work(output.read().decode())

    def read_work(self, output: str) -> Mapping[str, float]:
        """What the process says of its own work."""
        return {}

    def _run_process(self, output: Any = subprocess.DEVNULL, errors: Any = subprocess.DEVNULL) -> int:
        with subprocess.Popen(  # noqa: S603 (our own)
            self.arguments,
            cwd=settings.BASE_DIR,
            env=self.process_environment(None),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        ) as child:
            self.child = child
            try:
                _, status, usage = os.wait4(child.pid, 0)  # tells what this very process used
            except BaseException:
                child.kill()
                raise
            child.returncode = os.waitstatus_to_exitcode(status)
        self.used += usage.ru_utime + usage.ru_stime
        return child.returncode

    @contextmanager
    def standing(self, site: Site, *, logs: Path, every: int | None = None) -> Iterator[None]:
        """Cron's part is a thread of this process."""
        self.site, self.every = site, every
        self.ticks: list[float] = []
        try:
            self.start()
            yield
        finally:
            self.kill()

    def start(self, *roles: str) -> None:
        if self.every and not self.cron:
            self.over = threading.Event()
            self.cron = threading.Thread(target=self._tick, args=(self.every, self.over), daemon=True)
            self.cron.start()

    def _tick(self, every: int, over: threading.Event) -> None:
        while not over.is_set():
            moment = (floor(time.time() / every) + 1) * every
            if not over.wait(moment - time.time()):
                self.ticks.append(moment)
                self._run_process()

    def scheduled(self, as_of: float, every: int) -> float:
        """The last tick before: the next one waits for the end of its run."""
        return max(tick for tick in self.ticks if tick <= as_of)

    def kill(self, *roles: str) -> None:
        if self.cron and "worker" not in roles:  # cron itself, or the whole machine
            self.over.set()
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        if self.cron and self.over.is_set():
            self.cron.join()
            self.cron = None

    def processes(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            if self.child and self.child.returncode is None:
                main = psutil.Process(self.child.pid)
                return [main, *main.children(recursive=True)]
        return []

    def cpu_seconds(self) -> float:
        """Of the processes that have ended: nothing stands between two runs."""
        return self.used


class Standing(Runner):
    """Processes that stand ready, and work that is handed to them."""

    path = "engine"
    store = "broker"
    logs: Path
    every: int | None = None

    def __init__(self) -> None:
        self.running: dict[str, tuple[ExitStack, psutil.Process, Path]] = {}
        self.server: psutil.Process | None = None

    @abstractmethod
    def programs(self, every: int | None) -> Mapping[str, Program]:
        """Its processes by role, ``worker`` among them: with a schedule of ``every`` so many seconds, or with none."""

    @abstractmethod
    def trigger(self) -> None:
        """Hand the work to the standing processes, and do not wait for it."""

    def write_schedule(self, every: int) -> None:
        """Write down the schedule where it is not in the processes' own configuration."""

    def run(self) -> None:
        """From handing over to the closed run."""
        latest = ExpiryRun.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
        self.trigger()
        closed = ExpiryRun.objects.filter(pk__gt=latest).exclude(status=ExpiryRun.Status.RUNNING)
        self.wait_for("the run to be closed", closed.exists, seconds=LONGEST_RUN, pause=0.005)
        if (run := closed[0]).status != ExpiryRun.Status.SUCCEEDED:
            raise Failed(f"The run was {run.status}: {run.error}")

    def warm_up(self) -> None:
        Standing.run(self)

    @contextmanager
    def standing(self, site: Site, *, logs: Path, every: int | None = None) -> Iterator[None]:
        self.site, self.logs, self.every = site, logs, every
        if self.store == "broker":
            with Redis.from_url(site.broker) as client:
                info: dict[str, int] = client.info("server")
            self.server = psutil.Process(info["process_id"])
        if every:
            self.write_schedule(every)
        try:
            self.start()
            yield
        finally:
            self.kill()

    def start(self, *roles: str) -> None:
        """Start those of these roles, by default of all, that do not run, and wait until they take work."""
        programs = self.programs(self.every)
        started = [role for role in programs if role in (roles or programs) and not self.runs(role)]
        for role in started:
            self.kill(role)  # what it has left
            log = self.logs / f"{self.name}-{role}-{time.monotonic_ns()}.log"
            stack = ExitStack()
            environment = self.process_environment(self.every)
            child = stack.enter_context(servers.process(*programs[role].arguments, env=environment, log=log))
            self.running[role] = stack, psutil.Process(child.pid), log
        for role in started:
            _, process, log = self.running[role]
            program = programs[role]

            def ready(process: psutil.Process = process, log: Path = log, program: Program = program) -> bool:
                return program.ready in log.read_text() and len(process.children()) >= program.children

            self.wait_for(f"{self.title} to start", ready, seconds=120)

    def runs(self, role: str) -> bool:
        """Whether the process of this role is alive."""
        if not (known := self.running.get(role)):
            return False
        _, process, _ = known
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE

    def ended(self) -> list[str]:
        return [role for role in self.running if not self.runs(role)]

    def kill(self, *roles: str) -> None:
        for role in roles or tuple(self.running):
            if known := self.running.pop(role, None):
                stack, process, _ = known
                # Told to stop, it would first finish work that nobody needs any more.
                for each in (process, *children(process)):
                    with suppress(psutil.Error):
                        each.kill()
                stack.close()

    def roles(self) -> Roles:
        """Of these, and of the broker if it needs one."""
        own = {role: [process, *children(process)] for role, (_, process, _) in self.running.items()}
        return {**({"broker": [self.server]} if self.server else {}), **own}

    def wait_for(self, what: str, condition: Callable[[], bool], *, seconds: float, pause: float = 0.05) -> None:
        """Wait as long as its processes live; raise Failed when one ends, and TimeoutError when the time is over."""

        def alive() -> bool:
            for role, (_, _, log) in list(self.running.items()):
                if not self.runs(role):
                    lines = log.read_text().strip().splitlines() or ["no word in its log"]
                    raise Failed(f"Its {role} ended; {lines[-1]}")
            if stopped.is_set():
                raise Failed("Stopped by hand.")
            return condition()

        servers.wait_for(what, alive, seconds=seconds, pause=pause)


def python(*arguments: str) -> tuple[str, ...]:
    """A command line of the interpreter that runs this program."""
    return (sys.executable, *arguments)


def children(process: psutil.Process) -> list[psutil.Process]:
    """The processes that it has started, and those that they have."""
    with suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """User and system time of the processes, and of the children they have outlived."""
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):  # it may have ended
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
