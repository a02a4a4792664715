"""The processes of a contender: one that is started for every run, or ones that stand ready and get a message."""

import os
import resource
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from math import inf
from pathlib import Path
from uuid import uuid4

import psutil
from django.conf import settings
from redis import Redis

from accounts.models import ExpiryRun
from comparison.measurements import Contender
from project.celery import app
from sandbox import servers

APPLICATION_NAME = "compare_paths contender"  # what a contender's connections are called in ``pg_stat_activity``
LONGEST_RUN = 1800  # seconds after which a run is given up


class Failed(Exception):  # noqa: N818 (it says what happened)
    """A contender did not do its work; the message says why."""


class Runner(ABC):
    """The processes of one contender."""

    name: str
    title: str
    how: str
    path: str = "cron"
    environment: Mapping[str, str] = {}  # what its processes need beside what every contender has
    rounds: int | None = None  # how often it runs in a scenario, where that is not for the options to say
    part: int | None = None  # it is measured on so many due accounts only
    work: Mapping[str, float] = {}
    """What the last run measured of its own work, without start-up: ``seconds`` and ``cpu_seconds``."""
    redelivered_after: float = inf  # seconds after which a killed run is taken up without a tick of the schedule

    @property
    def contender(self) -> Contender:
        """Whose processes these are."""
        return Contender(name=self.name, title=self.title, how=self.how, path=self.path)

    @abstractmethod
    def run(self) -> None:
        """Trigger the work and return when it is done; raise Failed when it was not."""

    def processes(self) -> list[psutil.Process]:
        """Its processes that live now."""
        return []

    def cpu_seconds(self) -> float:
        """CPU time that its processes have taken so far, user and system."""
        return cpu_seconds(self.processes())

    @contextmanager
    def at_rest(self) -> Iterator[Mapping[str, Sequence[psutil.Process]]]:
        """By role, the processes that are there between two runs."""
        yield {}

    def be_killed(self, when: Callable[[], object]) -> None:
        """Start the work, and kill every process of it as soon as ``when`` returns."""
        raise NotImplementedError

    def recover(self) -> None:
        """Take over from the killed run, by the path's own means: here the next run."""
        self.run()


class CronRun(Runner):
    """A process started for the run, which ends with it."""

    arguments: Sequence[str]  # the command line
    child: "subprocess.Popen[str] | None" = None

    def run(self) -> None:
        """From the start of the process to its end."""
        with self._process() as child:
            output, errors = child.communicate()
        if child.returncode:
            last_line = (errors.strip().splitlines() or ["no word on stderr"])[-1]
            raise Failed(f"It ended with exit code {child.returncode}: {last_line}")
        self.work = self.read_work(output)

    def read_work(self, output: str) -> Mapping[str, float]:
        """What the process says of its own work."""
        return {}

    def processes(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            return [psutil.Process(self.child.pid)] if self.child and self.child.returncode is None else []
        return []

    def cpu_seconds(self) -> float:
        """Of all children that have ended, of which only this one ends between two calls."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def be_killed(self, when: Callable[[], object]) -> None:
        with self._process() as child:
            when()
            child.kill()

    @contextmanager
    def _process(self) -> "Iterator[subprocess.Popen[str]]":
        with subprocess.Popen(  # noqa: S603 (our own)
            self.arguments,
            cwd=settings.BASE_DIR,
            env={**os.environ, "PGAPPNAME": APPLICATION_NAME, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as self.child:
            try:
                yield self.child
            except BaseException:
                self.child.kill()
                raise


class Worker(Runner):
    """A Celery worker that stands ready, and a message to it."""

    path = "celery"
    prefix: str  # of the name; how many processes there are follows it
    how_with: str  # `{processes}`

    def __init__(self, concurrency: int, *, broker: str, logs: Path) -> None:
        """``broker`` is the URL of a database of the broker that no other worker listens to."""
        processes = f"{concurrency} process{'' if concurrency == 1 else 'es'}"
        self.name, self.title = f"{self.prefix}-{concurrency}", f"Celery, {processes}"
        self.how = self.how_with.format(processes=processes)
        self.concurrency, self.broker, self.logs = concurrency, broker, logs
        self.log = logs / f"{self.name}.log"
        self.redelivered_after = settings.CELERY_VISIBILITY_TIMEOUT
        with Redis.from_url(broker) as client:
            info: dict[str, int] = client.info("server")
        self.server = psutil.Process(info["process_id"])
        self.standing: list[psutil.Process] = []

    def run(self) -> None:
        """From the message to the closed run."""
        runs = ExpiryRun.objects.filter(task_id=self.send("accounts.expire_trials"))
        closed = runs.exclude(status=ExpiryRun.Status.RUNNING)
        self.wait_for("the run to be closed", closed.exists, seconds=LONGEST_RUN, pause=0.005)
        if (run := closed.get()).status != ExpiryRun.Status.SUCCEEDED:
            raise Failed(f"The run was {run.status}: {run.error}")

    def send(self, task: str) -> str:
        """Send a task as beat does; returns its id."""
        with app.connection_for_write(self.broker) as to_the_broker:
            task_id = str(uuid4())
            app.send_task(task, task_id=task_id, connection=to_the_broker, ignore_result=True)
        return task_id

    def wait_for(self, what: str, condition: Callable[[], bool], *, seconds: float, pause: float) -> None:
        """Wait as long as the worker lives; raise Failed when it dies, and TimeoutError when the time is over."""

        def alive() -> bool:
            if not self.standing[0].is_running():
                raise Failed(f"The worker died; {self.log.read_text().strip().splitlines()[-1]}")
            return condition()

        servers.wait_for(what, alive, seconds=seconds, pause=pause)

    def processes(self) -> list[psutil.Process]:
        """The worker's, and the broker."""
        return [*self.standing, self.server]

    @contextmanager
    def started(self) -> Iterator[None]:
        """Start it, and kill it when the block ends."""
        self.log.unlink(missing_ok=True)
        with servers.process(
            *("-m", "celery", "-A", "project", "worker", "--loglevel=INFO"),
            *(f"--concurrency={self.concurrency}", f"--hostname={self.name}@%h"),
            env={"PGAPPNAME": APPLICATION_NAME, **self.environment, "CELERY_BROKER_URL": self.broker},
            log=self.log,
        ) as worker:
            self.standing = [psutil.Process(worker.pid)]
            try:
                yield
            finally:
                for process in self.standing:  # told to stop, it would first finish work that nobody needs any more
                    with suppress(psutil.Error):  # it may have ended
                        process.kill()

    def wait_until_ready(self) -> None:
        """Wait until it takes work."""
        main = self.standing[0]
        servers.wait_for(
            f"{self.title} to start",
            lambda: " ready." in self.log.read_text() and len(main.children()) >= self.concurrency,
            seconds=60,
        )
        self.standing = [main, *main.children(recursive=True)]

    @contextmanager
    def at_rest(self) -> Iterator[Mapping[str, Sequence[psutil.Process]]]:
        """Broker, worker, and beat, which is started for it."""
        log = self.logs / "beat.log"
        log.unlink(missing_ok=True)
        arguments = ("-m", "celery", "-A", "project", "beat", "--loglevel=DEBUG", "--pidfile=")
        nobody_listens = f"{self.broker.rpartition('/')[0]}/9"
        with servers.process(*arguments, env={"CELERY_BROKER_URL": nobody_listens}, log=log) as beat:
            servers.wait_for("beat to read its schedule", lambda: "Current schedule" in log.read_text(), seconds=60)
            yield {"broker": [self.server], "scheduler": [psutil.Process(beat.pid)], "worker": self.standing}
            beat.kill()  # told to stop, it may take its time

    def be_killed(self, when: Callable[[], object]) -> None:
        with self.started():  # and killed when the block ends
            self.wait_until_ready()
            self.send("accounts.expire_trials")
            when()

    def recover(self) -> None:
        """The worker is started again, and the next tick takes what is left."""
        with self.started():
            self.wait_until_ready()
            self.run()


@contextmanager
def started(workers: Sequence[Worker]) -> Iterator[None]:
    """Start them side by side, and have each ready before the block begins, its first run, the slowest, over."""
    with ExitStack() as standing:
        for worker in workers:
            standing.enter_context(worker.started())
        for worker in workers:
            worker.wait_until_ready()
            Worker.run(worker)
        yield


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """User and system time of the processes, and of the children they have outlived."""
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):  # it may have ended
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
