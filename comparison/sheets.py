"""The tables of a report: what was measured, in words and figures, for terminal and page alike."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from comparison.results import DJANGO_SETUP, MEASURES, Contender, Figure, Result, Scenario, Spread
from comparison.verdict import ARTICLE, COMMAND, celery, held_while_idle, largest_backlog
from comparison.wording import accounts, duration, extent, memory, times

TIME = {
    "seconds": "time",
    "service_seconds": "without start-up",
}
NEEDS = {
    "start_up_share": "start-up share",
    "cpu_seconds": "CPU",
    "database_cpu_seconds": "database CPU",
    "peak_memory_bytes": "peak memory",
}
LOCKS = {
    "longest_transaction_seconds": "longest transaction",
    "wait_median_seconds": "median wait",
    "wait_p99_seconds": "99th percentile",
    "wait_max_seconds": "longest wait",
}
"""The measures as columns of three tables, where there is no room for the words of ``MEASURES``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """A table: the first cell of each row names it, the others are figures."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def quantity(measure: str, value: float) -> str:
    """A value of a measure with its unit, which ends the measure's name."""
    if measure.endswith("share"):
        return f"{value:.0%}"
    return memory(value) if measure.endswith("bytes") else duration(value)


def between(spread: Spread, measure: str) -> str:
    """The lowest and the highest of several rounds."""
    if spread.lowest == spread.highest:
        return "once"
    return extent(quantity(measure, spread.lowest), quantity(measure, spread.highest))


def scenario_sheets(result: Result, scenario: Scenario) -> Iterator[Sheet]:
    """The work of every contender, and what it did to others; of the measures, those that were taken."""
    titles = {each.name: each.title for each in result.contenders}
    number = rounds_of(result, scenario)
    rounds = f"medians of {number} rounds" if number > 1 else "one round"
    yield _contenders_sheet(
        result,
        scenario,
        TIME,
        caption=f"How long it takes, {rounds}; the ratio is to “{titles[scenario.baseline]}” in the same round",
    )
    yield _contenders_sheet(result, scenario, NEEDS, caption=f"What it needs, {rounds}")
    if any(result.figure(scenario.name, name, measure) for name in scenario.contenders for measure in LOCKS):
        yield _contenders_sheet(
            result, scenario, LOCKS, caption="What it did to others: locks, and paying customers who waited"
        )


def _contenders_sheet(result: Result, scenario: Scenario, headings: dict[str, str], *, caption: str) -> Sheet:
    contenders = taking_part(result, scenario)
    taken = [
        measure for measure in headings if any(result.figure(scenario.name, each.name, measure) for each in contenders)
    ]
    timed, several = "seconds" in taken, rounds_of(result, scenario) > 1
    beside = {"seconds": ("rounds", "ratio") if several else ("ratio",), "service_seconds": ("ratio",)}
    columns = ["", *(column for measure in taken for column in (headings[measure], *beside.get(measure, ())))]
    if paid := "wait_median_seconds" in taken:
        columns.append("payments")
    rows, notes = [], []
    for contender in contenders:
        samples = result.of(scenario.name, contender.name)
        if reason := result.wrong(scenario.name, contender.name):
            rows.append((contender.title, "wrong", *("" for _ in columns[2:])))
            if timed:
                notes.append(f"{contender.title} is not timed: {reason}")
            continue
        cells = []
        for measure in taken:
            figure = result.figure(scenario.name, contender.name, measure)
            cells += _cells(figure, beside.get(measure, ())) if figure else ["", *("" for _ in beside.get(measure, ()))]
        if paid:
            cells.append(accounts(sum(each.waits for each in samples)))
        rows.append((contender.title, *cells))
        part = min((each.measured_on for each in samples if each.measured_on), default=0)
        if timed and 0 < part < scenario.due:
            once = " once," if several and len(samples) == 1 else ""
            notes.append(f"{contender.title} was measured{once} on {accounts(part)}, its times extrapolated to all.")
    return Sheet(caption=caption, columns=tuple(columns), rows=tuple(rows), note=" ".join(notes))


def rounds_of(result: Result, scenario: Scenario) -> int:
    """How often each contender ran."""
    return max((each.round for each in result.samples if each.scenario == scenario.name), default=0)


def _cells(figure: Figure, beside: tuple[str, ...]) -> list[str]:
    """The median, and what is to be beside it."""
    written = {
        "rounds": between(figure.spread, figure.measure),
        "ratio": times(figure.ratio.median) if figure.ratio else "",
    }
    return [quantity(figure.measure, figure.spread.median), *(written[each] for each in beside)]


def glance_sheet(result: Result) -> Sheet:
    """The few figures that decide, for the article's command, this project's, and Celery at its best."""
    largest, idle, rival = largest_backlog(result), scenario_of(result, "nothing"), celery(result)
    shown = [each for each in result.contenders if each.name in (ARTICLE, COMMAND) or each == rival]
    asked = (
        (idle, "seconds", "A run with nothing due"),
        (largest, "seconds", "The largest backlog" + (f", {accounts(largest.due)} due" if largest else "")),
        (largest, "longest_transaction_seconds", "Its longest transaction"),
        (largest, "wait_p99_seconds", "A payment meanwhile waits, 99th percentile"),
    )
    rows = []
    for scenario, measure, label in asked:
        figures = [scenario and result.figure(scenario.name, each.name, measure) for each in shown]
        if any(figures):
            rows.append((label, *(quantity(measure, each.spread.median) if each else "" for each in figures)))
    if result.standing and rival:
        bytes_held, processes = held_while_idle(result)[-1]
        for label, held, none in (
            ("Memory held between two runs", memory(bytes_held), "none"),
            ("Processes between two runs", str(processes), "none"),
        ):
            rows.append((label, *(held if each.path == "celery" else none for each in shown)))
    return Sheet(caption="At a glance, medians", columns=("", *(each.title for each in shown)), rows=tuple(rows))


def growth_sheets(result: Result, series: list[Scenario]) -> Iterator[Sheet]:
    """Time and memory, a column for each size."""
    for measure in ("seconds", "peak_memory_bytes"):
        rows = []
        for contender in taking_part(result, *series):
            figures = [result.figure(scenario.name, contender.name, measure) for scenario in series]
            if any(figures):
                cells = [quantity(measure, each.spread.median) if each else "" for each in figures]
                rows.append((contender.title, *cells))
        columns = ("", *(f"{accounts(scenario.due)} due" for scenario in series))
        yield Sheet(caption=f"{MEASURES[measure].capitalize()}, medians", columns=columns, rows=tuple(rows))


def standing_sheet(result: Result) -> Sheet:
    """Each role's processes."""
    rows = [
        (with_processes(each.role, each.concurrency), str(each.processes), memory(each.memory_bytes))
        for each in result.standing
    ]
    return Sheet(
        caption="Held all the time by Celery; the path of cron holds nothing between two runs",
        columns=("", "processes", "memory"),
        rows=tuple(rows),
    )


def timeliness_sheet(result: Result) -> Sheet:
    """How long an account stays trialing after it fell due."""
    titles = {each.name: each.title for each in result.contenders}
    rows = [
        (titles[each.contender], duration(each.average_seconds), duration(each.worst_seconds))
        for each in result.timeliness
    ]
    return Sheet(
        caption=f"From falling due to expired, computed for a call every {duration(result.options.interval_seconds)}",
        columns=("", "on average", "at worst"),
        rows=tuple(rows),
    )


def recovery_sheet(result: Result) -> Sheet:
    """How long until a killed run's work is done."""
    titles = {each.name: each.title for each in result.contenders}
    rows = [
        (titles[each.contender], accounts(each.left), duration(each.seconds), duration(each.schedule_adds_seconds))
        for each in result.recoveries
    ]
    return Sheet(
        caption="Killed (SIGKILL) half-way",
        columns=("", "accounts left", "work of what takes over", "waiting for it to start, at worst"),
        rows=tuple(rows),
        note=" ".join(f"{titles[each.contender]}: {each.how}" for each in result.recoveries),
    )


def nothing_sheet(result: Result) -> Sheet:
    """What a run costs before it does any work."""
    titles = {each.name: f"{each.title}, nothing due" for each in result.contenders}
    rows = [
        *((titles.get(each.what, each.what), each.seconds, times(each.ratio.median)) for each in result.start_ups),
        *((f"the query among {accounts(each.accounts)} accounts", each.seconds, "") for each in result.due_queries),
    ]
    return Sheet(
        caption="A process is started for each of these, except for the query; nothing watches it, and they take turns",
        columns=("", "time", "lowest and highest", f"to {DJANGO_SETUP}"),
        rows=tuple((name, duration(spread.median), between(spread, "seconds"), ratio) for name, spread, ratio in rows),
    )


def scenario_of(result: Result, kind: str) -> Scenario | None:
    """The largest scenario of a kind."""
    return max((each for each in result.scenarios if each.kind == kind), key=lambda each: each.accounts, default=None)


def facts(result: Result) -> list[tuple[str, str]]:
    """Where, when and with what it was measured."""
    machine, options = result.machine, result.options
    return [
        ("Measured", f"{datetime.fromisoformat(options.measured):%Y-%m-%d %H:%M} UTC"),
        ("Processor", f"{machine.cpu}, {machine.cores} cores"),
        ("Memory", f"{machine.memory_bytes / 1e9:.1f} GB"),
        ("System", machine.system),
        ("Versions", f"Python {machine.python}, Django {machine.django}, Celery {machine.celery}"),
        ("Servers", f"{machine.database}, {machine.broker}"),
        ("Accounts", ", ".join(map(accounts, options.sizes))),
        ("Rounds", f"{options.rounds}, the order of contenders shuffled in each"),
        ("Seed", str(options.seed)),
    ]


def taking_part(result: Result, *scenarios: Scenario) -> list[Contender]:
    """The contenders of one or several scenarios, in the order to show them."""
    names = dict.fromkeys(name for scenario in scenarios for name in scenario.contenders)
    by_name = {contender.name: contender for contender in result.contenders}
    return [by_name[name] for name in names]


def with_processes(role: str, concurrency: int | None) -> str:
    """A role, and of a worker how many processes work."""
    if concurrency is None:
        return role
    return f"{role}, {concurrency} process{'es' if concurrency > 1 else ''}"
