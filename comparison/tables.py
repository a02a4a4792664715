"""The tables of a report: what was measured, in words and figures, for terminal and page alike."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from comparison.measurements import Figure, Result, Scenario
from comparison.quantities import quantity, span, times

RATIO = "\N{MULTIPLICATION SIGN}"
QUESTIONS: dict[str, dict[str, str]] = {
    "How long it takes": {
        "left": "accounts left",
        "seconds": "time",
        "service_seconds": "without start-up",
        "until_tick_seconds": "before that, until the next tick at worst",
    },
    "What it needs": {
        "start_up_share": "start-up share",
        "cpu_seconds": "CPU",
        "database_cpu_seconds": "database CPU",
        "peak_memory_bytes": "peak memory",
    },
    "What it does to others: locks, and paying customers who wait": {
        "longest_transaction_seconds": "longest transaction",
        "wait_median_seconds": "median wait",
        "wait_p99_seconds": "p99 wait",
        "wait_max_seconds": "max wait",
        "payments": "payments",
    },
    "From falling due to expired, computed from the schedule": {
        "late_average_seconds": "on average",
        "late_worst_seconds": "at worst",
    },
    "Held between two runs": {
        "processes": "processes",
        "broker_bytes": "broker",
        "scheduler_bytes": "beat",
        "worker_bytes": "worker",
        "held_bytes": "together",
    },
}
"""What is asked of a scenario, a table for each, and the measures that answer it, as its columns."""
WITH_RATIO = ("seconds", "service_seconds")
MARGIN, MANY_ROUNDS = 0.25, 3
"""By how much two must differ to be called different where there are fewer rounds than so many."""
COMMAND, ONE_UPDATE, MAIL_COMMAND = "command", "one-update", "mail-command"
"""Names of the contenders that a glance and the verdict are about, beside Celery."""


class Table(NamedTuple):
    """The first cell of each row names it, the others are figures."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def scenario_tables(result: Result, scenario: Scenario) -> Iterator[Table]:
    """The questions that this scenario answers."""
    contenders = result.in_scenarios(scenario)
    wrong = result.wrong.get(scenario.name, {})
    note = " ".join(
        f"{each.title} was measured once, on {part:,.0f}, its times extrapolated to all."
        for each in contenders
        if (part := result.median(scenario, each, "measured_on")) is not None and part < scenario.due
    )
    baseline = result.contender(scenario.baseline)
    of_baseline = result.figures.get((scenario.name, scenario.baseline, "seconds"))
    rounds = len(of_baseline.values) if of_baseline else 1
    for question, measures in QUESTIONS.items():
        columns = [
            (*column, measure)
            for measure, heading in measures.items()
            if any((scenario.name, each.name, measure) in result.figures for each in contenders)
            for column in columns_of(measure, heading, several=rounds > 1, ratio=baseline is not None)
        ]
        if not columns:
            continue
        caption = question + (f", medians of {rounds} rounds" if rounds > 1 else "")
        if baseline and any(heading == RATIO for heading, *_ in columns):
            caption += f"; {RATIO} is to “{baseline.title}” in the same round"
        rows = []
        for each in contenders:
            figures = [(show, result.figures.get((scenario.name, each.name, measure))) for _, show, measure in columns]
            cells = [show(figure) if figure else "" for show, figure in figures]
            rows.append((each.title, *(["wrong", *cells[1:]] if each.name in wrong else cells)))
        headings = ("", *(heading for heading, *_ in columns))
        yield Table(caption=caption, columns=headings, rows=tuple(rows), note=note)
        note = ""


Show = Callable[[Figure], str]


def columns_of(measure: str, heading: str, *, several: bool, ratio: bool) -> Iterator[tuple[str, Show]]:
    """A measure's columns, each with what it shows of a figure: the time has more than the median."""
    yield heading, lambda figure: quantity(measure, figure.spread.median)
    if several and measure == "seconds":
        yield "lowest and highest", lambda figure: span(measure, figure.spread) if len(figure.values) > 1 else "once"
    if ratio and measure in WITH_RATIO:
        yield RATIO, lambda figure: times(figure.ratio.median) if figure.ratio else ""


def growth_tables(result: Result, series: Sequence[Scenario]) -> Iterator[Table]:
    """Time and memory, a column for each size."""
    for measure, caption in (("seconds", "Time"), ("peak_memory_bytes", "Peak memory of the path's processes")):
        rows = []
        for each in result.in_scenarios(*series):
            values = [result.median(scenario, each, measure) for scenario in series]
            if any(value is not None for value in values):
                rows.append((each.title, *("" if value is None else quantity(measure, value) for value in values)))
        columns = ("", *(f"{scenario.due:,} due" for scenario in series))
        yield Table(caption=f"{caption}, medians", columns=columns, rows=tuple(rows))


def glance(result: Result) -> Table:
    """The few figures that decide, for one update(), this project's command, and Celery at its best."""
    shown = [each for each in result.contenders if each.name in (ONE_UPDATE, COMMAND) or each == result.rival]
    rows = []
    for kind, measure, label in (
        ("nothing", "seconds", "A run with nothing due"),
        ("backlog", "seconds", "The largest backlog, {due:,} due"),
        ("backlog", "longest_transaction_seconds", "Its longest transaction"),
        ("backlog", "wait_p99_seconds", "A payment meanwhile waits, 99th percentile"),
        ("idle", "held_bytes", "Memory held between two runs"),
        ("idle", "processes", "Processes between two runs"),
    ):
        for scenario in result.of_kind(kind)[-1:]:
            values = [result.median(scenario, each, measure) for each in shown]
            if kind == "idle":  # where every command leaves nothing behind
                values = [0 if each.path == "cron" else value for each, value in zip(shown, values, strict=True)]
            if any(value is not None for value in values):
                cells = ("" if value is None else quantity(measure, value) for value in values)
                rows.append((label.format(due=scenario.due), *cells))
    columns = ("", *(each.title for each in shown))
    return Table(
        caption="At a glance, medians", columns=columns, rows=tuple(rows), note=certainty(result.options.rounds)
    )


def certainty(rounds: int) -> str:
    """What it takes to be called a difference."""
    if rounds >= MANY_ROUNDS:
        return f"Each contender ran {rounds} times, and is called faster only where it was faster in every round."
    return (
        f"Each contender ran {'once' if rounds == 1 else 'twice'}, which cannot tell a difference from chance. "
        f"So it is called one from {MARGIN:.0%} on; {MANY_ROUNDS} rounds tell more."
    )
