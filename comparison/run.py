"""A run of the comparison: every contender in every scenario, in shuffled order."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from itertools import groupby
from pathlib import Path

import psutil
from django.conf import settings
from django.core.management import call_command
from rich.progress import Progress

from comparison import contenders, machine, sample, workloads
from comparison.measurements import Key, Options, Result, Scenario
from comparison.measures import Turn
from comparison.runners import Failed, Runner, Worker, started
from comparison.workloads import KINDS, Workload
from sandbox.mail_server import Mailbox, mail_server
from sandbox.scratch import ScratchDatabase

MAIL_PROCESSES = (1, 2, 4, 8)  # of the workers that send mails


class Comparison:
    """Measures what the options ask for, on the database and broker of the settings, which must be scratch ones."""

    def __init__(self, options: Options, *, now: datetime, logs: Path, bar: Progress) -> None:
        self.options, self.now, self.logs, self.bar = options, now, logs, bar
        self.task = bar.add_task("")
        self.database = ScratchDatabase()
        broker = settings.CELERY_BROKER_URL.rpartition("/")[0]
        self.brokers = (f"{broker}/{number}" for number in range(9))  # for each worker one where it is alone
        self.scenarios: list[Scenario] = []
        self.values: defaultdict[Key, dict[int, float]] = defaultdict(dict)
        self.wrong: defaultdict[str, dict[str, str]] = defaultdict(dict)

    def run(self) -> Result:
        """Do it all. What it starts is stopped when it returns or raises."""
        call_command("migrate", verbosity=0)
        self.database.snapshot("empty")
        self.server = machine.database_process()
        workers = [self.celery(each) for each in dict.fromkeys((1, self.options.workers))]
        with mail_server() as mailbox:
            mailbox.delay = contenders.SECONDS_PER_MAIL
            expiry = [each for each in self.of_accounts(workers) if each.kind in self.options.kinds]
            mails = [self.of_mails(mailbox)] if workloads.Mails.kind in self.options.kinds else []
            in_order = sorted((*expiry, *mails), key=lambda each: KINDS.index(each.kind))
            turns = [(work, runner) for work in in_order for runner in work.runners]
            self.bar.update(self.task, total=sum(work.rounds(runner) for work, runner in turns))
            with started(workers):
                self.measure_all(expiry)
            for work in mails:
                self.database.restore("empty")
                with started([each for each in work.runners if isinstance(each, Worker)]):
                    self.measure_all(mails)
        self.scenarios.sort(key=lambda each: (KINDS.index(each.kind), each.accounts))
        return Result(
            machine=machine.describe(settings.CELERY_BROKER_URL),
            options=self.options,
            contenders=tuple(dict.fromkeys(runner.contender for _, runner in turns)),
            scenarios=tuple(self.scenarios),
            values=dict(self.values),
            wrong=dict(self.wrong),
        )

    def celery(self, concurrency: int) -> contenders.Celery:
        """A worker with that many processes."""
        return contenders.Celery(concurrency, broker=next(self.brokers), logs=self.logs)

    def of_accounts(self, workers: Sequence[contenders.Celery]) -> Iterator[Workload]:
        """The scenarios of accounts, size by size, those on the same tables one after the other."""
        command, sizes = contenders.ExpireTrials(), self.options.sizes
        paths: list[Runner] = [contenders.RawUpdate(), contenders.OneUpdate(), command, *workers]
        start_ups = [contenders.PythonStart(), contenders.DjangoSetup(), command, contenders.DueQuery()]
        to_kill = next((size for size in sizes if size * 8 // 10 >= workloads.Killed.fewest), None)

        def workload(kind: type[Workload], runners: Sequence[Runner]) -> Workload:
            return kind(accounts=size, runners=runners, options=self.options, now=self.now)

        for size in sizes:
            if size == sizes[0]:
                yield workload(workloads.AtRest, [command, *workers])
            if size == sizes[-1]:
                yield workload(workloads.NothingDue, paths)  # where a loop is one update() under another name
                yield workload(workloads.StartUp, start_ups)
                yield workload(workloads.NormalDay, [*paths, contenders.SaveLoop()])
            yield workload(workloads.Backlog, [*paths, contenders.SaveLoop()])
            if size == to_kill:  # not the others, which are needed later
                yield workload(workloads.Killed, [command, self.celery(self.options.workers)])

    def of_mails(self, mailbox: Mailbox) -> workloads.Mails:
        """The scenario of mails."""
        count = self.options.mails
        workers = [
            contenders.MailWorker(each, mailbox=mailbox, mails=count, broker=next(self.brokers), logs=self.logs)
            for each in MAIL_PROCESSES
        ]
        runners = [contenders.SendNotices(mailbox), *workers]
        return workloads.Mails(accounts=count, runners=runners, options=self.options, now=self.now, mailbox=mailbox)

    def measure_all(self, work: Sequence[Workload]) -> None:
        """Fill each size's users once, and each kind of tables once, which takes longer than most runs."""
        for accounts, of_size in groupby(work, key=lambda each: each.accounts):
            self.bar.update(self.task, description=f"Filling the database with {accounts:,} accounts")
            self.database.restore("empty")
            sample.fill_users(accounts, now=self.now)
            self.database.snapshot("users")
            for tables, (first, *others) in groupby(of_size, key=lambda each: each.tables):
                self.database.restore("users")
                first.fill()
                self.database.snapshot(tables)
                for workload in (first, *others):
                    self.measure(workload)
                self.database.drop_snapshot(tables)
            self.database.drop_snapshot("users")

    def measure(self, workload: Workload) -> None:
        """Every contender in turn, again and again, each time in another order."""
        self.database.restore(workload.tables)
        scenario = workload.scenario()
        self.scenarios.append(scenario)
        rng = random.Random(f"{scenario.name}-{self.options.seed}")  # noqa: S311
        changed = False
        for number in range(1, max(map(workload.rounds, workload.runners)) + 1):
            who = [runner for runner in workload.runners if number <= workload.rounds(runner)]
            for runner in rng.sample(who, k=len(who)):
                name = runner.name
                self.bar.update(self.task, description=f"{scenario.title}. Round {number}: {runner.title}")
                if changed:
                    self.database.restore(workload.tables)
                changed = workload.changes_accounts
                turn = measured(workload, scenario, runner, database=self.server)
                if turn.wrong:
                    self.wrong[scenario.name][name] = turn.wrong
                for measure, value in turn.values.items():
                    self.values[scenario.name, name, measure][number] = value
                self.bar.advance(self.task)


def measured(workload: Workload, scenario: Scenario, runner: Runner, *, database: psutil.Process | None) -> Turn:
    """One turn of one contender, with its values, or with what was wrong and no values."""
    interval = workload.options.interval_seconds
    turn = Turn(runner=runner, scenario=scenario, interval_seconds=interval, database=database)
    try:
        workload.prepare(turn)
        with ExitStack() as measuring:
            for measure in workload.measures:
                measuring.enter_context(measure(turn))
            workload.perform(turn)
        turn.wrong = workload.what_is_wrong(turn)
    except (Failed, TimeoutError) as failure:
        turn.wrong = str(failure)
    if turn.wrong:
        turn.values.clear()
    return turn
