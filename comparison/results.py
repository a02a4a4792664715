"""What one comparison found: the machine, the samples as measured, and what follows from them.

Everything stored is a plain dataclass, so a result goes to JSON and back. Figures are derived from the samples, never
stored beside them; the JSON carries them too, under ``figures``, for readers that are not this program.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any, Self

SCHEMA = 1
"""Raised whenever the JSON changes in a way that an older reader would misread."""

DJANGO_SETUP = "django.setup()"
"""What a start-up is compared with."""

MEASURES = {
    "seconds": "wall time",
    "service_seconds": "time of the work alone, without start-up",
    "start_up_share": "start-up's share of the wall time",
    "cpu_seconds": "CPU time of the path's processes",
    "database_cpu_seconds": "CPU time of the database server",
    "peak_memory_bytes": "peak memory of the path's processes",
    "longest_transaction_seconds": "longest transaction",
    "wait_median_seconds": "a paying customer's wait, median",
    "wait_p99_seconds": "a paying customer's wait, 99th percentile",
    "wait_max_seconds": "a paying customer's wait, longest",
}
"""What of a sample is a figure, and what to call it. The unit ends the name: seconds, bytes, or share (0 to 1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where it was measured."""

    cpu: str
    """Model of the processor, as the system names it."""
    cores: int
    """Logical ones that this process may use."""
    memory_bytes: int
    """Of the whole machine."""
    system: str
    """Operating system and release."""
    python: str
    """Versions, here and below."""
    django: str
    celery: str
    database: str
    """Name and version, such as ``PostgreSQL 18.1``."""
    broker: str
    """Name and version, such as ``Valkey 9.1.2``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What was asked for; the same options and seed measure the same again."""

    command: str
    """The command line that repeats it."""
    measured: str
    """The moment it began, ISO 8601 in UTC."""
    sizes: tuple[int, ...]
    """Accounts of the growth series, ascending. The scenarios other than the backlog use the last of them."""
    rounds: int
    """How often each contender ran in each scenario."""
    seed: int
    """Of the sample, the customers and the order of contenders."""
    workers: int
    """Processes of the Celery worker that has several."""
    interval_seconds: float
    """Of the schedule, the same for both paths."""
    mails: int = 0
    """Notices of the scenario that sends them; 0 where it was not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One way to do the work."""

    name: str
    """Short and unique, such as ``command``: what samples refer to."""
    title: str
    """As a reader knows it, such as ``manage.py expire_trials``."""
    how: str
    """One sentence: what runs, and what is timed."""
    path: str
    """``cron`` for a process per run, ``celery`` for standing ones, ``limit`` for what is only a yardstick."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One amount of work, done by several contenders."""

    name: str
    """Unique, such as ``backlog-1000000``: what samples refer to."""
    kind: str
    """``nothing``, ``normal``, ``backlog``, ``notices``: scenarios of one kind differ in size only (growth)."""
    title: str
    """As a reader would say it, such as ``A backlog: 800,000 of 1,000,000 accounts are due``."""
    accounts: int
    """Accounts in the table."""
    due: int
    """Accounts, or notices, there was something to do for."""
    baseline: str
    """Name of the contender that the others are divided by."""
    contenders: tuple[str, ...]
    """Names of those that took part, in the order to show them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One run of one contender. What could not be measured is None."""

    scenario: str
    contender: str
    round: int
    """From 1. Contenders of one round ran right after each other, in shuffled order."""
    wrong: str = ""
    """Why the outcome was not the expected one. Such a run has no figures."""
    measured_on: int | None = None
    """Due accounts it really worked on. Fewer than the scenario's: times are extrapolated to all, the rest is not."""
    seconds: float | None = None
    """Wall time, from the trigger (process started, message sent) to the last commit (process ended, run closed)."""
    service_seconds: float | None = None
    """The work alone: from the moment the path read its clock (task or command, Python and Django being up) to the
    closed run, so connecting, planning and every slice are in it: ``finished`` less ``as_of`` in the ledger. Of those
    that keep no ledger, what they measured of their statement."""
    cpu_seconds: float | None = None
    """User and system time of the path's processes: the cron process, or worker and broker. Not the database."""
    database_cpu_seconds: float | None = None
    """The same of every process of the database server, customers included."""
    peak_memory_bytes: int | None = None
    """Most memory the path's processes held at once; shared pages counted once where the system tells (Linux)."""
    longest_transaction_seconds: float | None = None
    """Longest transaction of the path that wrote: so long an account can stay locked. One under 5 ms may be missed."""
    waits: int = 0
    """Customers who paid during the run, each for a due account."""
    wait_median_seconds: float | None = None
    """How long ``services.activate`` kept them, from the moment they came."""
    wait_p99_seconds: float | None = None
    wait_max_seconds: float | None = None

    @property
    def start_up_share(self) -> float | None:
        """What of the wall time was not the work: starting a process, or a message's way to the worker; 0 to 1."""
        if not self.seconds or self.service_seconds is None:
            return None
        return max(0.0, 1 - self.service_seconds / self.seconds)  # two clocks may differ by a hair


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Of one value at least."""
        ordered = sorted(values)
        return cls(median=median(ordered), lowest=ordered[0], highest=ordered[-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One measure of one contender in one scenario, over all rounds."""

    scenario: str
    contender: str
    measure: str
    """A key of ``MEASURES``; its ending is the unit."""
    spread: Spread
    ratio: Spread | None
    """Each round's value divided by the baseline's of the same round; None where the baseline has none, or 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartUp:
    """What a process costs that finds nothing to do. Nobody watches it, and each round starts all of them in turn."""

    what: str
    """``python``, ``django.setup()``, or the name of a contender: its whole run with nothing due."""
    seconds: Spread
    ratio: Spread
    """Each round's time divided by that of ``django.setup()``, with the same settings, in the same round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DueQuery:
    """The question "is anything due?" when nothing is, asked on an open connection."""

    accounts: int
    seconds: Spread


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Processes of one role that run while there is nothing to do. The path of cron has none."""

    path: str
    """``celery``."""
    role: str
    """``beat``, ``broker`` or ``worker``, the latter with one entry for each number of its processes."""
    concurrency: int | None
    """Of a worker: how many processes work; one more manages them."""
    processes: int
    memory_bytes: int
    """Held while idle; shared pages counted once where the system tells (Linux)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeliness:
    """How long an account stays trialing after it fell due. Computed, not waited for.

    An account falls due at any moment between two ticks alike: on average it waits half the interval, at worst all of
    it, and then for the run (median wall time of the scenario).
    """

    contender: str
    scenario: str
    interval_seconds: float
    average_seconds: float
    worst_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovery:
    """A run killed (SIGKILL, every process of it) half-way, and what came after."""

    contender: str
    scenario: str
    left: int
    """Due accounts that the killed run left."""
    seconds: float
    """From the trigger of what takes over to the last commit; what starts again (worker) is started in this time."""
    schedule_adds_seconds: float
    """At worst, before that: until the schedule triggers it."""
    how: str
    """One sentence: what takes over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A whole comparison."""

    machine: Machine
    options: Options
    contenders: tuple[Contender, ...]
    scenarios: tuple[Scenario, ...]
    """In the order to show them. The growth series is those of one kind, ascending in size."""
    samples: tuple[Sample, ...]
    start_ups: tuple[StartUp, ...] = ()
    due_queries: tuple[DueQuery, ...] = ()
    standing: tuple[Standing, ...] = ()
    timeliness: tuple[Timeliness, ...] = ()
    recoveries: tuple[Recovery, ...] = ()

    def of(self, scenario: str, contender: str) -> list[Sample]:
        """The samples of one contender in one scenario, a round each."""
        return [sample for sample in self.samples if (sample.scenario, sample.contender) == (scenario, contender)]

    def wrong(self, scenario: str, contender: str) -> str:
        """Why an outcome was wrong, which leaves the contender without figures here; empty when none was."""
        return next((sample.wrong for sample in self.of(scenario, contender) if sample.wrong), "")

    def figure(self, scenario: str, contender: str, measure: str) -> Figure | None:
        """One measure over all rounds; None when it was not measured, or the contender's outcome was wrong."""
        samples = self.of(scenario, contender)
        taken = {each.round: value for each in samples if (value := getattr(each, measure)) is not None}
        if not taken or self.wrong(scenario, contender):
            return None
        baseline_name = next(each.baseline for each in self.scenarios if each.name == scenario)
        baseline = {each.round: getattr(each, measure) for each in self.of(scenario, baseline_name)}
        ratios = [value / divisor for number, value in taken.items() if (divisor := baseline.get(number))]
        return Figure(
            scenario=scenario,
            contender=contender,
            measure=measure,
            spread=Spread.of(taken.values()),
            ratio=Spread.of(ratios) if ratios else None,
        )

    def figures(self) -> list[Figure]:
        """Every figure there is, scenario by scenario."""
        return [
            figure
            for scenario in self.scenarios
            for contender in scenario.contenders
            for measure in MEASURES
            if (figure := self.figure(scenario.name, contender, measure))
        ]

    def to_json(self) -> str:
        """As JSON text; ``from_json`` reads it back."""
        document = {
            "schema": SCHEMA,
            **asdict(self),
            "figures": [asdict(figure) for figure in self.figures()],
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: it is no such text, or of another schema.
        """
        document = json.loads(text)
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise ValueError(f"This is not a result of compare_paths with schema {SCHEMA}.")
        try:
            return cls(
                machine=Machine(**document["machine"]),
                options=_read(Options, document["options"]),
                contenders=tuple(_read(Contender, each) for each in document["contenders"]),
                scenarios=tuple(_read(Scenario, each) for each in document["scenarios"]),
                samples=tuple(_read(Sample, each) for each in document["samples"]),
                start_ups=tuple(_read(StartUp, each) for each in document["start_ups"]),
                due_queries=tuple(_read(DueQuery, each) for each in document["due_queries"]),
                standing=tuple(_read(Standing, each) for each in document["standing"]),
                timeliness=tuple(_read(Timeliness, each) for each in document["timeliness"]),
                recoveries=tuple(_read(Recovery, each) for each in document["recoveries"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"This result of compare_paths is incomplete or damaged: {error!r}.") from None


def _read(kind: type[Any], values: dict[str, Any]) -> Any:
    """Build a dataclass from JSON, which knows lists but no tuples, and no nested dataclasses."""
    spreads = {field.name for field in fields(kind) if field.type is Spread}
    return kind(
        **{
            name: Spread(**value) if name in spreads else tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )
