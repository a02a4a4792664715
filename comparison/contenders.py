"""The ways to do the work, each as its users run it: a process for every cron run, a message to a standing worker."""

import json
import os
import re
import resource
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import psutil
from django.conf import settings
from django.db import connection
from redis import Redis

from accounts.models import ExpiryRun
from comparison import results
from project.celery import app
from sandbox import servers

PART = 250
"""Accounts that the loop of ``save()`` is measured on."""

CONTENDER = "compare_paths contender"
"""What a contender's connections are called in ``pg_stat_activity``."""

ENVIRONMENT = {"PGAPPNAME": CONTENDER}


class Failed(Exception):  # noqa: N818 (it says what happened)
    """A contender did not do its work; the message says why."""


class Contender(ABC):
    """One way to do the work."""

    about: results.Contender
    part: int | None = None
    """Measured on so many due accounts only."""
    told: Mapping[str, float] | None = None
    """What the last run measured of its work, if it does: ``seconds`` and ``cpu_seconds``, without start-up."""

    @abstractmethod
    def run(self) -> None:
        """Trigger the work and return when it is done; raise Failed when it was not."""

    @abstractmethod
    def processes(self) -> list[psutil.Process]:
        """The processes of the path that live now."""

    @abstractmethod
    def cpu_seconds(self) -> float:
        """CPU time that the path's processes have taken so far."""


@dataclass(kw_only=True)
class CronRun(Contender):
    """A process started for the run, which ends with it."""

    about: results.Contender
    arguments: Sequence[str]
    part: int | None = None
    telling: Callable[[str], Mapping[str, float]] | None = None
    """Reads ``told`` from the output."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What it needs beside what every contender has."""
    child: subprocess.Popen[str] | None = None

    def run(self) -> None:
        """From the start of the process to its end."""
        with subprocess.Popen(  # noqa: S603 (our own)
            self.arguments,
            cwd=settings.BASE_DIR,
            env={**os.environ, **ENVIRONMENT, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as self.child:
            try:
                output, errors = self.child.communicate()
            except BaseException:
                self.child.kill()
                raise
        if self.child.returncode:
            last_line = (errors.strip().splitlines() or ["no word on stderr"])[-1]
            raise Failed(f"It ended with exit code {self.child.returncode}: {last_line}")
        if self.telling:
            self.told = self.telling(output)

    def processes(self) -> list[psutil.Process]:
        """The process, while it runs."""
        with suppress(psutil.Error):
            return [psutil.Process(self.child.pid)] if self.child and self.child.returncode is None else []
        return []

    def cpu_seconds(self) -> float:
        """Of all children that have ended, of which only this one ends between two calls."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime


@dataclass(kw_only=True)
class Worker(Contender):
    """A Celery worker that stands ready, and a message to it."""

    about: results.Contender
    concurrency: int
    broker: str
    """URL of a database of the broker that no other worker listens to."""
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """What it needs beside what every contender has."""
    standing: list[psutil.Process] = field(default_factory=list)
    """The worker and its children."""
    server: psutil.Process | None = None
    """The broker."""

    @contextmanager
    def started(self) -> Iterator[None]:
        """Start the worker, which then takes a while to be ready, and kill it when the block ends."""
        self.log.unlink(missing_ok=True)
        with servers.process(
            *("-m", "celery", "-A", "project", "worker", "--loglevel=INFO"),
            *(f"--concurrency={self.concurrency}", f"--hostname={self.about.name}@%h"),
            env={**ENVIRONMENT, **self.environment, "CELERY_BROKER_URL": self.broker},
            log=self.log,
        ) as worker:
            self.standing = [psutil.Process(worker.pid)]
            try:
                yield
            finally:
                self.kill()  # told to stop, it would first finish its work, which nobody needs any more

    def wait_until_ready(self) -> None:
        """Wait for the worker, once started, to take messages."""
        main = self.standing[0]
        servers.wait_for(
            f"{self.about.title} to start",
            lambda: " ready." in self.log.read_text() and len(main.children()) >= self.concurrency,
            seconds=60,
        )
        self.standing = [main, *main.children(recursive=True)]
        self.server = broker_process(self.broker)

    def kill(self) -> None:
        """Kill every process of the worker, with no word to it. The broker lives on."""
        for process in self.standing:
            with suppress(psutil.Error):  # it may have ended
                process.kill()

    def run(self) -> None:
        """From the message to the closed run."""
        self.tick()

    def tick(self) -> None:
        """Have the due trials expired, and wait for the run to be closed; raise Failed when it was not a success."""
        task_id = self.send()
        closed = "SELECT status, error FROM accounts_expiryrun WHERE task_id = %s AND status <> 'running'"

        def outcome() -> tuple[str, str] | None:
            if not self.standing[0].is_running():
                raise Failed(f"The worker died; {self.log.read_text().strip().splitlines()[-1]}")
            with connection.cursor() as cursor:
                cursor.execute(closed, [task_id])
                row: tuple[str, str] | None = cursor.fetchone()
                return row

        try:
            status, error = servers.wait_for("the run to be closed", outcome, seconds=1800, pause=0.005)
        except TimeoutError as timeout:
            raise Failed(str(timeout)) from None
        if status != ExpiryRun.Status.SUCCEEDED:
            raise Failed(f"The run was {status}: {error}")

    def send(self, task: str = "accounts.expire_trials", **options: int) -> str:
        """Send a task, the tick of the expiry, as beat does; returns its id."""
        with app.connection_for_write(self.broker) as to_the_broker:
            task_id = str(uuid4())
            app.send_task(task, kwargs=options, task_id=task_id, connection=to_the_broker, ignore_result=True)
        return task_id

    def processes(self) -> list[psutil.Process]:
        """Those that stand: the worker's and the broker."""
        return [*self.standing, self.server] if self.server else self.standing

    def cpu_seconds(self) -> float:
        """Of those that stand."""
        return cpu_seconds(self.processes())


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """User and system time of the processes, and of the children they have outlived."""
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):  # it may have ended
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def broker_process(url: str) -> psutil.Process:
    """The process of a broker on this machine."""
    with Redis.from_url(url) as broker:
        info: dict[str, int] = broker.info("server")
        return psutil.Process(info["process_id"])


def last_line_as_json(output: str) -> dict[str, float]:
    """What ``expire_otherwise`` measured of itself."""
    told: dict[str, float] = json.loads(output.splitlines()[-1])
    return told


def timing_of_psql(output: str) -> dict[str, float]:
    """What psql measured of its last statement."""
    return {"seconds": float(re.findall(r"^Time: ([\d.]+) ms", output, re.MULTILINE)[-1]) / 1000}


RAW_UPDATE = """
    UPDATE accounts_account SET status = 'trial_expired', trial_expired_at = {now}, expiry_run_id = 0
    WHERE status = 'trialing' AND trial_ends_at < {limit}
"""


def raw_sql() -> CronRun:
    """One statement, no Django: what the database itself needs."""
    if connection.vendor == "postgresql":
        statement = RAW_UPDATE.format(now="now()", limit=f"now() - interval '{settings.TRIAL_GRACE_DAYS} days'")
        arguments = [servers.psql(), "--no-psqlrc", os.environ["DATABASE_URL"]]
        arguments += ["--command", r"\timing on", "--command", statement]
        client, telling = "psql", timing_of_psql
    else:
        statement = RAW_UPDATE.format(
            now="datetime('now')", limit=f"datetime('now', '-{settings.TRIAL_GRACE_DAYS} days')"
        )
        script = (
            "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], timeout=20);"
            "c.execute('PRAGMA synchronous=NORMAL'); began = time.monotonic(); c.execute(sys.argv[2]); c.commit();"
            "print('{\"seconds\":', time.monotonic() - began, '}'); c.close()"
        )
        arguments = [sys.executable, "-c", script, str(connection.settings_dict["NAME"]), statement]
        client, telling = "Python's sqlite3", last_line_as_json
    about = results.Contender(
        name="raw-sql",
        title=f"{client}, one UPDATE",
        how=f"{client} runs one UPDATE that writes the same columns of the same rows: the limit.",
        path="limit",
    )
    return CronRun(about=about, arguments=arguments, telling=telling)


def one_update() -> CronRun:
    """What the article does."""
    about = results.Contender(
        name="one-update",
        title="The article's command",
        how="A management command with one queryset.update(), of the same columns, in a process of its own.",
        path="cron",
    )
    arguments = [sys.executable, "manage.py", "expire_otherwise", "one-update"]
    return CronRun(about=about, arguments=arguments, telling=last_line_as_json)


def command() -> CronRun:
    """This project's command."""
    about = results.Contender(
        name="command",
        title="manage.py expire_trials",
        how="This project's command, in a process of its own.",
        path="cron",
    )
    return CronRun(about=about, arguments=[sys.executable, "manage.py", "expire_trials"])


def row_by_row() -> CronRun:
    """What most packages do."""
    about = results.Contender(
        name="row-by-row",
        title="A loop of save()",
        how=f"A management command that saves one account after the other; measured once, on {PART:,} of them at most, "
        "and without customers, because its save() would take back what they paid for meanwhile.",
        path="cron",
    )
    arguments = [sys.executable, "manage.py", "expire_otherwise", "row-by-row", "--limit", str(PART)]
    return CronRun(about=about, arguments=arguments, part=PART, telling=last_line_as_json)


def celery(concurrency: int, *, broker: str, logs: Path) -> Worker:
    """This project's task, on a worker with that many processes."""
    about = about_worker(
        f"celery-{concurrency}",
        concurrency,
        how="A message to a standing worker with {processes}, from sending it to the closed run.",
    )
    return Worker(about=about, concurrency=concurrency, broker=broker, log=logs / f"{about.name}.log")


def about_worker(name: str, concurrency: int, *, how: str) -> results.Contender:
    """What a worker with that many processes is called; ``how`` says ``{processes}`` where it speaks of them."""
    processes = "1 process" if concurrency == 1 else f"{concurrency} processes"
    return results.Contender(
        name=name, title=f"Celery, {processes}", how=how.format(processes=processes), path="celery"
    )
