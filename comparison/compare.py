"""The comparison itself: every contender in every scenario, in shuffled order, and what else there is to know."""

import os
import platform
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import psutil
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from redis import Redis

from accounts.models import Account, ExpiryRun
from accounts.services import BATCH_SIZE
from comparison import contenders, mails, scenarios
from comparison.contenders import ENVIRONMENT, Contender, Worker
from comparison.measure import Measuring, elapsed, memory_bytes
from comparison.results import (
    DJANGO_SETUP,
    DueQuery,
    Machine,
    Options,
    Recovery,
    Result,
    Sample,
    Scenario,
    Spread,
    Standing,
    StartUp,
    Timeliness,
)
from sandbox import servers
from sandbox.mail_server import mail_server
from sandbox.scratch import ScratchDatabase

BASELINE = "raw-sql"
DUE_QUERIES = 20
"""How often the query is timed, which takes so little."""
BROKER_DATABASE_OF_THE_KILLED = 2
"""The broker's database of the worker that is killed half-way."""
BROKER_DATABASE_OF_MAILS = 4
"""The broker's databases from this one on belong to the workers that send mails."""


@dataclass(kw_only=True)
class Comparison:
    """Measures what the options ask for, on the database and broker of the settings, which must be scratch ones."""

    options: Options
    kinds: Sequence[str]
    """Of scenarios; all but the backlog at the last size only, and the notices as many as the options say."""
    now: datetime
    directory: Path
    """For logs."""
    say: Callable[[str], None] = lambda _: None
    """Told what is going on."""
    advance: Callable[[], None] = lambda: None
    """Called ``steps`` times in all."""

    def __post_init__(self) -> None:
        self.broker = settings.CELERY_BROKER_URL
        self.database = ScratchDatabase()
        self.workers = [
            self.worker(concurrency, broker_database=number)
            for number, concurrency in enumerate(dict.fromkeys((1, self.options.workers)))
        ]
        self.contenders: list[Contender] = [
            contenders.raw_sql(),
            contenders.one_update(),
            contenders.command(),
            *self.workers,
            contenders.row_by_row(),
        ]
        self.plan = [
            (kind, accounts)
            for accounts in self.options.sizes
            for kind in self.kinds
            if kind == "backlog" or (accounts == self.options.sizes[-1] and kind != "notices")
        ]

    @property
    def steps(self) -> int:
        """How often ``advance`` is going to be called."""
        of_mails = 1 + len(mails.PROCESSES) if "notices" in self.kinds else 0
        everybody = [each for kind, _ in self.plan for each in self.contenders_of(kind)]
        runs = sum(self.options.rounds if each.part is None else 1 for each in everybody)
        return 1 + len(self.plan) + runs + of_mails + 1

    def run(self) -> Result:
        """Do it all. What it starts is stopped when it returns or raises."""
        self.say("Creating the scratch database and starting the workers")
        call_command("migrate", verbosity=0)
        self.database.snapshot("empty")
        samples: list[Sample] = []
        done: list[Scenario] = []
        due_queries: list[DueQuery] = []
        start_ups: list[StartUp] = []
        recoveries: list[Recovery] = []
        taking_part = [*self.contenders]
        with ExitStack() as started:
            for worker in self.workers:
                started.enter_context(worker.started())
            for worker in self.workers:
                worker.wait_until_ready()
                worker.tick()  # the first message costs a worker more than all later ones
            standing = self.measure_standing()
            measuring = Measuring(
                restore=self.database.restore,
                database=database_process(),
                seed=self.options.seed,
                now=self.now,
            )
            self.advance()
            for accounts in self.options.sizes:
                kinds = [kind for kind, size in self.plan if size == accounts]
                of_this_size = self.fill(accounts, kinds) if kinds else []
                for scenario in of_this_size:
                    who = self.contenders_of(scenario.kind)
                    samples += self.rounds(scenario, measuring, who, rounds=self.options.rounds)
                    done.append(scenario)
                    if scenario.kind == "nothing":
                        due_queries.append(self.measure_due_query(scenario))
                        start_ups += self.measure_start_ups()
                    # Once, in the first backlog of enough slices to be killed in the middle: a larger one takes longer
                    # to tell the same.
                    if scenario.kind == "backlog" and scenario.due >= 4 * BATCH_SIZE and not recoveries:
                        recoveries += self.recover(scenario)
                    self.database.drop_snapshot(scenario.name)
            if "notices" in self.kinds:
                scenario, of_mails, senders = self.send_mails(measuring)
                done.append(scenario)
                samples += of_mails
                taking_part += senders
            self.advance()
        result = Result(
            machine=machine(self.broker),
            options=self.options,
            contenders=tuple(contender.about for contender in taking_part),
            scenarios=tuple(sorted(done, key=lambda each: (list(scenarios.TITLES).index(each.kind), each.accounts))),
            samples=tuple(samples),
            start_ups=tuple(start_ups),
            due_queries=tuple(due_queries),
            standing=tuple(standing),
            recoveries=tuple(recoveries),
        )
        return replace(result, timeliness=timeliness(result))

    def contenders_of(self, kind: str) -> list[Contender]:
        """Who takes part: with nothing due, a loop is the article's command under another name."""
        return [each for each in self.contenders if kind != "nothing" or each.part is None]

    def worker(self, concurrency: int, *, broker_database: int) -> Worker:
        """A worker on a database of the broker where it is alone."""
        return contenders.celery(concurrency, broker=self.broker_url(broker_database), logs=self.directory)

    def broker_url(self, number: int) -> str:
        """Of one of the broker's databases."""
        return f"{self.broker.rpartition('/')[0]}/{number}"

    def send_mails(self, measuring: Measuring) -> tuple[Scenario, list[Sample], list[Contender]]:
        """The scenario of mails: one round, because most of its time is the mail server's, which does not vary."""
        self.say(f"Filling the database with {self.options.mails:,} notices to send")
        self.database.restore("empty")
        scenario = mails.fill(self.options.mails, now=self.now)
        self.database.snapshot(scenario.name)
        with mail_server() as mailbox, ExitStack() as started:
            mailbox.delay = mails.SECONDS_PER_MAIL
            workers = [
                mails.celery(
                    concurrency,
                    mailbox=mailbox,
                    notices=self.options.mails,
                    broker=self.broker_url(BROKER_DATABASE_OF_MAILS + number),
                    logs=self.directory,
                )
                for number, concurrency in enumerate(mails.PROCESSES)
            ]
            for worker in workers:
                started.enter_context(worker.started())
            for worker in workers:
                worker.wait_until_ready()
                worker.tick()
            who: list[Contender] = [mails.command(mailbox), *workers]
            scenario = replace(scenario, contenders=tuple(each.about.name for each in who))
            looking = mails.MeasuringMails(
                restore=measuring.restore,
                database=measuring.database,
                seed=measuring.seed,
                now=measuring.now,
                mailbox=mailbox,
            )
            return scenario, list(self.rounds(scenario, looking, who, rounds=1)), who

    def fill(self, accounts: int, kinds: Sequence[str]) -> list[Scenario]:
        """Build and put aside the databases of the scenarios of one size."""
        self.say(f"Filling the database with {accounts:,} accounts")
        self.database.restore("empty")
        scenarios.fill_users(accounts, now=self.now)
        self.database.snapshot("users")
        filled = []
        for kind in kinds:
            self.say(f"Filling the database with {accounts:,} accounts")
            self.database.restore("users")
            scenario = scenarios.fill_accounts(accounts, kind=kind, seed=self.options.seed, now=self.now)
            self.database.snapshot(scenario.name)
            names = tuple(contender.about.name for contender in self.contenders_of(kind))
            filled.append(replace(scenario, baseline=BASELINE, contenders=names))
            self.advance()
        self.database.drop_snapshot("users")
        return filled

    def rounds(
        self, scenario: Scenario, measuring: Measuring, taking_part: Sequence[Contender], *, rounds: int
    ) -> Iterator[Sample]:
        """Every contender in turn, again and again, each time in another order; once, who is measured on a part."""
        rng = random.Random(f"{scenario.name}-{self.options.seed}")  # noqa: S311
        for number in range(1, rounds + 1):
            who = [each for each in taking_part if number == 1 or each.part is None]
            for contender in rng.sample(who, k=len(who)):
                self.say(f"{scenario.title}. Round {number}: {contender.about.title}")
                yield measuring.sample(contender, scenario, round_number=number)
                self.advance()

    def measure_start_ups(self) -> list[StartUp]:
        """What Python, Django and the command cost while nothing is due."""
        command = contenders.command()
        runs = {
            "python": replace(command, arguments=[sys.executable, "-c", ""]),
            DJANGO_SETUP: replace(command, arguments=[sys.executable, "-c", "import django; django.setup()"]),
            command.about.name: command,
        }
        turns = [
            {what: elapsed(process.run) for what, process in runs.items()}
            for _ in range(self.options.rounds + 1)  # once more than the others: what is short varies more
        ]
        return [
            StartUp(
                what=what,
                seconds=Spread.of(turn[what] for turn in turns),
                ratio=Spread.of(turn[what] / turn[DJANGO_SETUP] for turn in turns),
            )
            for what in runs
        ]

    def measure_standing(self) -> list[Standing]:
        """What the processes hold that are there all the time."""
        found = []

        def add(role: str, processes: Sequence[psutil.Process], concurrency: int | None = None) -> None:
            found.append(
                Standing(
                    path="celery",
                    role=role,
                    concurrency=concurrency,
                    processes=len(processes),
                    memory_bytes=memory_bytes(processes),
                )
            )

        log = self.directory / "beat.log"
        schedule = {"CELERY_BROKER_URL": self.broker_url(9)}  # where nobody listens
        arguments = ("-m", "celery", "-A", "project", "beat", "--loglevel=DEBUG", "--pidfile=")
        with servers.process(*arguments, env=schedule, log=log) as beat:
            servers.wait_for("beat to read its schedule", lambda: "Current schedule" in log.read_text(), seconds=60)
            add("broker", [contenders.broker_process(self.broker)])
            add("beat", [psutil.Process(beat.pid)])
            for worker in self.workers:
                add("worker", worker.standing, worker.concurrency)
            beat.kill()  # told to stop, it may take its time
        return found

    def measure_due_query(self, scenario: Scenario) -> DueQuery:
        """The query that every run begins with, when it finds nothing."""
        connection.ensure_connection()
        seconds = Spread.of(elapsed(lambda: Account.objects.any_due(self.now)) for _ in range(DUE_QUERIES))
        return DueQuery(accounts=scenario.accounts, seconds=seconds)

    def recover(self, scenario: Scenario) -> Iterator[Recovery]:
        """Kill each path half-way, and let it recover by its own means."""
        command = contenders.command()
        self.say(f"{scenario.title}. Killed half-way: {command.about.title}")
        self.database.restore(scenario.name)
        with subprocess.Popen(  # noqa: S603 (our own)
            command.arguments, env={**os.environ, **ENVIRONMENT}, cwd=settings.BASE_DIR, stdout=subprocess.DEVNULL
        ) as doomed:
            try:
                wait_until_half_done(scenario)
            finally:
                doomed.kill()
        yield self.recovery(command, scenario, command.run, "The next cron run takes what is left.", self.interval)

        # One of its own: the others are needed later.
        worker = replace(
            self.workers[-1],
            broker=self.broker_url(BROKER_DATABASE_OF_THE_KILLED),
            log=self.directory / "killed.log",
            standing=[],
        )
        self.say(f"{scenario.title}. Killed half-way: {worker.about.title}")
        self.database.restore(scenario.name)
        with worker.started():  # and killed when the block ends
            worker.wait_until_ready()
            worker.send()
            wait_until_half_done(scenario)

        def start_again() -> None:
            with worker.started():
                worker.wait_until_ready()
                worker.run()

        visibility_timeout = settings.CELERY_VISIBILITY_TIMEOUT
        how = (
            "The worker is started again and goes on with the queued slices; those it held come with the next tick, "
            f"or with the visibility timeout of {visibility_timeout} s if that is earlier."
        )
        yield self.recovery(worker, scenario, start_again, how, min(self.interval, visibility_timeout))

    @property
    def interval(self) -> float:
        """Seconds between two ticks of the schedule."""
        return self.options.interval_seconds

    def recovery(
        self, contender: Contender, scenario: Scenario, take_over: Callable[[], None], how: str, adds: float
    ) -> Recovery:
        """Time what takes over from a killed run, and look whether it left anything."""
        left = Account.objects.due(self.now).count()
        seconds = elapsed(take_over)
        if wrong := scenarios.what_is_wrong(paid=()):
            raise contenders.Failed(f"{contender.about.title} did not recover from being killed: {wrong}")
        return Recovery(
            contender=contender.about.name,
            scenario=scenario.name,
            left=left,
            seconds=seconds,
            schedule_adds_seconds=adds,
            how=how,
        )


def wait_until_half_done(scenario: Scenario) -> None:
    """Wait for the slices of the only run to have expired half of what is due."""
    half_done = ExpiryRun.objects.filter(expired_count__gte=scenario.due // 2)
    servers.wait_for("a run to come half-way", half_done.exists, seconds=1800, pause=0.005)


def timeliness(result: Result) -> tuple[Timeliness, ...]:
    """From schedule and wall time, on a normal day."""
    interval = result.options.interval_seconds
    return tuple(
        Timeliness(
            contender=figure.contender,
            scenario=figure.scenario,
            interval_seconds=interval,
            average_seconds=interval / 2 + figure.spread.median,
            worst_seconds=interval + figure.spread.median,
        )
        for figure in result.figures()
        if figure.measure == "seconds" and figure.scenario.startswith("normal-") and figure.contender != BASELINE
    )


def database_process() -> psutil.Process | None:
    """The server behind the connection, when it runs where we see it."""
    if connection.vendor != "postgresql":
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        try:
            backend = psutil.Process(cursor.fetchone()[0])
            # A server in a container, or on another machine, counts its processes otherwise.
            return backend.parent() if str(connection.settings_dict["NAME"]) in " ".join(backend.cmdline()) else None
        except psutil.Error:
            return None


def machine(broker: str) -> Machine:
    """This machine, and what runs on it."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SHOW server_version")
            database = f"PostgreSQL {cursor.fetchone()[0].split()[0]}"
    else:
        database = f"SQLite {sqlite3.sqlite_version}"
    with Redis.from_url(broker) as client:
        info: dict[str, str] = client.info("server")
    is_valkey = "valkey_version" in info
    return Machine(
        cpu=processor(),
        cores=cores(),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        django=version("django"),
        celery=version("celery"),
        database=database,
        broker=f"Valkey {info['valkey_version']}" if is_valkey else f"Redis {info['redis_version']}",
    )


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor, as Linux names it, or as Python can tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
