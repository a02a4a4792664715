"""A run of the comparison: every contender in every scenario, in shuffled order."""

import os
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import groupby
from pathlib import Path
from statistics import median

import psutil
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from rich.progress import Progress

from comparison import access, churn, contenders, machine, sample, workloads
from comparison.engines.contenders import ENGINES
from comparison.measurements import Key, Options, Result, Scenario
from comparison.measures import Turn, percentile
from comparison.runners import Failed, Runner, Site, Standing, stopped
from comparison.server_log import SESSION_OPTIONS, ServerLog
from comparison.workloads import KINDS, Workload
from sandbox.mail_server import Mailbox, mail_server
from sandbox.scratch import ScratchDatabase

MAILS_AT_ONCE = 8  # threads or processes that send mails
FEWEST_FOR_PERCENTILE = 100  # payments


def contestants(workers: int) -> list[Runner]:
    """Those that expire accounts by a run, as they are shown."""
    return [
        contenders.RawUpdate(),
        contenders.OneUpdate(),
        contenders.SaveLoop(),
        contenders.ExpireTrials(),
        contenders.ExpireTrialsJobs(workers),
        contenders.Celery(workers),
        contenders.CeleryThreads(workers),
        *engines(),
    ]


def scheduled(workers: int) -> list[Runner]:
    """Those that have a schedule."""
    return [
        contenders.ExpireTrials(),
        contenders.Celery(workers),
        contenders.CeleryThreads(workers),
        contenders.CeleryBeatInside(workers),
        *engines(),
    ]


def deciders() -> list[Runner]:
    """Those that say who is let in."""
    return [access.ByStoredStatus(), access.DecidedOnRead()]


def keepers() -> list[Runner]:
    """Those that keep the tables clean, or not."""
    return [churn.Vacuumed(), churn.NeverVacuumed()]


def engines() -> list[Runner]:
    """The others; of what is timed they have one turn each."""
    others = [engine() for engine in ENGINES]
    for each in others:
        each.rounds = 1
    return others


def of_mails(mailbox: Mailbox, mails: int) -> list[Runner]:
    """Those that send mails."""
    return [
        contenders.SendNotices(1, mailbox=mailbox),
        contenders.SendNotices(MAILS_AT_ONCE, mailbox=mailbox),
        contenders.CeleryMails(MAILS_AT_ONCE, mailbox=mailbox, mails=mails),
        contenders.CeleryThreadsMails(MAILS_AT_ONCE, mailbox=mailbox, mails=mails),
    ]


def names(workers: int) -> list[str]:
    """Of all that ``--only`` may choose."""
    everybody = [
        *contestants(workers),
        *scheduled(workers),
        *deciders(),
        *keepers(),
        *of_mails(Mailbox("", 0), 0),
    ]
    return list(dict.fromkeys(runner.name for runner in everybody))


class Comparison:
    """Measures what the options ask for, on the database and broker of the settings, which must be scratch ones."""

    def __init__(self, options: Options, *, now: datetime, logs: Path, bar: Progress) -> None:
        self.options, self.now, self.logs, self.bar = options, now, logs, bar
        self.task = bar.add_task("")
        self.database = ScratchDatabase()
        broker = settings.CELERY_BROKER_URL.rpartition("/")[0]
        self.brokers = (f"{broker}/{number}" for number in range(16))  # for each contender one where it is alone
        self.scenarios: list[Scenario] = []
        self.values: defaultdict[Key, dict[int, float]] = defaultdict(dict)
        self.wrong: defaultdict[str, dict[str, str]] = defaultdict(dict)

    def run(self) -> Result:
        """Do it all. What it starts is stopped when it returns or raises."""
        call_command("migrate", verbosity=0)
        self.database.snapshot("empty")
        self.server = machine.database_process()
        self.noted = SESSION_OPTIONS if ServerLog.from_now() else ""
        with mail_server() as mailbox:
            mailbox.delay = contenders.SECONDS_PER_MAIL
            planned = [each for each in self.planned(mailbox) if each.kind in self.options.kinds and each.runners]
            in_order = sorted(planned, key=lambda each: KINDS.index(each.kind))
            turns = [(work, runner) for work in in_order for runner in work.runners]
            self.bar.update(self.task, total=sum(work.rounds(runner) for work, runner in turns))
            for _, together in groupby(planned, key=lambda each: isinstance(each, workloads.Mails)):
                self.measure_all(list(together))
        self.scenarios.sort(key=lambda each: (KINDS.index(each.kind), each.accounts))
        return Result(
            machine=machine.describe(settings.CELERY_BROKER_URL),
            options=self.options,
            contenders=tuple(dict.fromkeys(runner.contender for _, runner in turns)),
            scenarios=tuple(self.scenarios),
            values=dict(self.values),
            wrong=dict(self.wrong),
        )

    def planned(self, mailbox: Mailbox) -> Iterator[Workload]:
        """The scenarios, size by size, those on the same tables one after the other."""
        sizes, mails, only = self.options.sizes, self.options.mails, self.options.only
        runs, ticks = contestants(self.options.workers), scheduled(self.options.workers)

        def workload(kind: type[Workload], accounts: int, runners: Sequence[Runner], **more: Mailbox) -> Workload:
            chosen = [each for each in runners if not only or each.name in only or each.path == "limit"]
            alone = all(each.path == "limit" for each in chosen)  # a yardstick with nothing beside it
            return kind(
                accounts=accounts,
                runners=() if alone else chosen,
                options=self.options,
                now=self.now,
                logs=self.logs,
                **more,
            )

        for size in sizes:
            if size == sizes[0]:
                yield workload(workloads.AtRest, size, ticks)
                yield workload(workloads.Late, size, [each for each in ticks if not each.same_scheduler])
                yield workload(workloads.Access, size, deciders())
            if size == sizes[-1]:
                yield workload(workloads.NothingDue, size, [each for each in runs if not each.part])
                yield workload(workloads.NormalDay, size, runs)
            # An engine calls the same verb; how that grows is told by the others.
            growing = [each for each in runs if each.path != "engine" or size == sizes[-2:][0]]
            yield workload(workloads.Backlog, size, growing)
            if size == sizes[-2:][0]:
                yield workload(workloads.Churn, size, keepers())
                yield workload(workloads.AfterHalf, size, keepers())
        slices = [each for each in runs if each.path in ("limit", "celery") or each.name.startswith("command")]
        yield workload(workloads.DearBacklog, workloads.DearBacklog.fixed_accounts, slices)
        yield workload(workloads.Faults, workloads.Faults.fixed_accounts, ticks)
        yield workload(workloads.Mails, mails, of_mails(mailbox, mails), mailbox=mailbox)

    @contextmanager
    def standing(self, runners: Sequence[Runner]) -> Iterator[None]:
        """Give each its site, and have those stand ready for all turns that can, their first run over."""
        with ExitStack() as ready:
            for runner in runners:
                runner.site = Site(
                    database=os.environ["DATABASE_URL"],
                    broker=next(self.brokers) if isinstance(runner, Standing) else settings.CELERY_BROKER_URL,
                    options=self.noted,
                )
                if not runner.keeps_connections:
                    ready.enter_context(runner.standing(runner.site, logs=self.logs))
                    runner.warm_up()
            yield

    def measure_all(self, work: Sequence[Workload]) -> None:
        """Fill each size's users once, and each kind of tables once, which takes longer than most runs."""
        sharing = [each for each in work if not isinstance(each, workloads.Scheduled)]  # the others bring their site
        everybody = {id(runner): runner for each in sharing for runner in each.runners}
        self.database.restore("empty")
        with self.standing(list(everybody.values())):
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
        waits: defaultdict[str, list[float]] = defaultdict(list)
        for number in range(1, max(map(workload.rounds, workload.runners)) + 1):
            who = [runner for runner in workload.runners if number <= workload.rounds(runner)]
            if workload.together:
                self.bar.update(self.task, description=f"{scenario.title}: all at once")
                for turn in side_by_side(workload, scenario, who, database=self.server):
                    self.note(turn, number)
                continue
            for runner in rng.sample(who, k=len(who)):
                self.bar.update(self.task, description=f"{scenario.title}. Round {number}: {runner.title}")
                if changed:
                    self.database.restore(workload.tables)
                changed = workload.changes_accounts
                turn = measured(workload, scenario, runner, database=self.server)
                waits[runner.name] += turn.waits
                self.note(turn, number)
        for name, of_all_rounds in waits.items():
            for measure, value in of_customers(of_all_rounds).items():
                self.values[scenario.name, name, measure][1] = value

    def note(self, turn: Turn, number: int) -> None:
        """Keep what a turn was like."""
        scenario, name = turn.scenario.name, turn.runner.name
        if turn.wrong:
            self.wrong[scenario][name] = turn.wrong
        for measure, value in turn.values.items():
            self.values[scenario, name, measure][number] = value
        self.bar.advance(self.task)


def of_customers(waits: Sequence[float]) -> dict[str, float]:
    """How long those waited who paid beside a contender, in all rounds together: no percentile of a few."""
    if not waits:
        return {}
    values = {"payments": len(waits), "wait_median_seconds": median(waits), "wait_max_seconds": max(waits)}
    if len(waits) >= FEWEST_FOR_PERCENTILE:
        values["wait_p99_seconds"] = percentile(waits, 99)
    return values


def side_by_side(
    workload: Workload, scenario: Scenario, runners: Sequence[Runner], *, database: psutil.Process | None
) -> list[Turn]:
    """A turn of each, all at once."""

    def one(runner: Runner) -> Turn:
        try:
            return measured(workload, scenario, runner, database=database)
        finally:
            connections.close_all()  # of this thread

    with ThreadPoolExecutor(len(runners)) as pool:
        try:
            return list(pool.map(one, runners))
        except BaseException:
            stopped.set()
            raise


def measured(workload: Workload, scenario: Scenario, runner: Runner, *, database: psutil.Process | None) -> Turn:
    """One turn of one contender, with its values, or with what was wrong and no values."""
    turn = Turn(runner=runner, scenario=scenario, database=database)
    try:
        with workload.around(turn):
            with ExitStack() as measuring:
                for measure in workload.measures:
                    measuring.enter_context(measure(turn))
                workload.perform(turn)
            turn.wrong = workload.what_is_wrong(turn)
    except (Failed, TimeoutError) as failure:
        turn.wrong = str(failure)
    if turn.wrong:
        turn.values.clear()
        turn.waits.clear()
    return turn
