"""What a comparison measured, and the figures that follow from it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import median
from typing import Self

SCHEMA = 4  # raised whenever the JSON changes in a way that an older reader would misread

Key = tuple[str, str, str]  # scenario, contender, measure
Values = Mapping[int, float]
"""By round, from 1. Contenders of one round ran right after each other, in shuffled order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What was asked for; the same options and seed measure the same again."""

    command: str  # the command line that repeats it
    measured: str  # the moment it began, ISO 8601 in UTC
    kinds: tuple[str, ...]  # of scenarios
    sizes: tuple[int, ...]
    """Numbers of accounts, ascending. All of them for the backlog, the last for a normal day and for nothing due."""
    rounds: int  # how often each contender runs in each scenario
    seed: int  # of the sample, the customers and the order of contenders
    workers: int  # how many work at once, on either path: threads of the command, processes or threads of Celery
    mails: int  # notices of the scenario that sends them
    rest_seconds: float  # how long the standing processes are watched while they rest
    ticks: int  # of which the lateness is measured
    only: tuple[str, ...]  # names of the contenders that take part; all where it is empty
    interval_seconds: float = 3600  # of the schedule, the same for every path


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One way to do the work."""

    name: str  # short and unique, such as ``command``: what measurements refer to
    title: str  # as a reader knows it, short enough for a column
    how: str  # one sentence: what runs, and what is timed
    path: str  # ``cron`` for a process per run, ``celery``, ``engine``, ``limit`` for a yardstick, and others


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One amount of work, done by several contenders."""

    name: str  # unique, such as ``backlog-1000000``: what measurements refer to
    kind: str  # scenarios of one kind differ in size only (growth)
    title: str  # as a reader would say it
    accounts: int  # accounts in the table
    due: int  # accounts, or mails, there was something to do for
    baseline: str  # name of the contender that the others are divided by; empty where none is
    contenders: tuple[str, ...]  # names of those that took part, in the order to show them


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Several values of one thing."""

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
    """Says what, and ends with the unit: seconds, bytes, share (0 to 1); otherwise it is a count. See ``measures``."""
    values: Values
    spread: Spread
    ratio: Spread | None
    """Each round's value divided by the baseline's of the same round; None where the baseline has none, or 0."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A whole comparison."""

    machine: Mapping[str, str]  # what it ran on: processor, memory, versions
    options: Options
    contenders: tuple[Contender, ...]
    scenarios: tuple[Scenario, ...]  # in the order to show them
    values: Mapping[Key, Values]  # as measured
    wrong: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By scenario and contender: why an outcome was not the expected one. Such a contender has no figures there."""

    @cached_property
    def figures(self) -> dict[Key, Figure]:
        """Every figure there is, by scenario, contender and measure."""
        values = {key: each for key, each in self.values.items() if key[1] not in self.wrong.get(key[0], {})}
        baselines = {each.name: each.baseline for each in self.scenarios}
        figures = {}
        for (scenario, contender, measure), by_round in values.items():
            ratios = divided(by_round, values.get((scenario, baselines.get(scenario, ""), measure), {}))
            figures[scenario, contender, measure] = Figure(
                scenario=scenario,
                contender=contender,
                measure=measure,
                values=by_round,
                spread=Spread.of(by_round.values()),
                ratio=Spread.of(ratios) if ratios else None,
            )
        return figures

    def median(self, scenario: Scenario, contender: Contender, measure: str = "seconds") -> float | None:
        """Over all rounds; None when it was not measured, or the outcome was wrong."""
        figure = self.figures.get((scenario.name, contender.name, measure))
        return figure.spread.median if figure else None

    def ratios(self, scenario: Scenario, first: Contender, second: Contender, measure: str = "seconds") -> list[float]:
        """What ``first`` took, divided by what ``second`` took, round by round; empty when one has no figures."""
        figures = [self.figures.get((scenario.name, each.name, measure)) for each in (first, second)]
        return divided(*(figure.values if figure else {} for figure in figures))

    def of_kind(self, kind: str) -> list[Scenario]:
        """The scenarios of a kind, by size."""
        return sorted((each for each in self.scenarios if each.kind == kind), key=lambda each: each.accounts)

    def contender(self, name: str) -> Contender | None:
        """The one of that name, if it took part."""
        return next((each for each in self.contenders if each.name == name), None)

    def in_scenarios(self, *scenarios: Scenario) -> list[Contender]:
        """Who took part in any of them, in the order to show them."""
        names = dict.fromkeys(name for scenario in scenarios for name in scenario.contenders)
        return [contender for name in names if (contender := self.contender(name))]

    @property
    def rival(self) -> Contender | None:
        """Celery as docker-compose.yml has it, with as many processes as the command has threads."""
        return self.contender(f"celery-{self.options.workers}")

    @property
    def several(self) -> Contender | None:
        """The command with as many threads as Celery has processes."""
        return self.contender(f"command-jobs-{self.options.workers}")

    def to_json(self) -> str:
        """As JSON text."""
        document = {"schema": SCHEMA, **asdict(self), "figures": [asdict(each) for each in self.figures.values()]}
        del document["values"]  # those of the figures
        return json.dumps(document, indent=2) + "\n"


def divided(values: Values, by: Values) -> list[float]:
    """Each round's value divided by the other of the same round; rounds that lack one are left out."""
    return [value / divisor for number, value in values.items() if (divisor := by.get(number))]
