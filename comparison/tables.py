"""The tables of a report: what was measured, in words and figures, for terminal and page alike.

A table fits a terminal of 80 columns: a unit stands in the heading, and a ratio has its spread beside it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from comparison.churn import SHOWN
from comparison.measurements import Contender, Figure, Result, Scenario
from comparison.quantities import digits, quantity, ratio_and_spread

RATIO = "\N{MULTIPLICATION SIGN}"
QUESTIONS: dict[str, dict[str, str]] = {
    "How long it takes": {"seconds": "time, s", "service_seconds": "work alone, s"},
    "What it needs": {
        "start_up_share": "start-up, %",
        "cpu_seconds": "CPU, s",
        "database_cpu_seconds": "database CPU, s",
        "peak_memory_bytes": "peak memory, MB",
    },
    "What it does to others: locks, and paying customers who wait": {
        "longest_transaction_seconds": "longest transaction, ms",
        "wait_median_seconds": "median wait, ms",
        "wait_p99_seconds": "p99 wait, ms",
        "wait_max_seconds": "longest wait, ms",
        "payments": "payments",
    },
    "What it does at rest": {
        "day_cpu_seconds": "CPU a day, s",
        "minute_transactions": "transactions a minute",
        "minute_commands": "broker commands a minute",
        "connections": "connections",
    },
    "What it holds at rest": {
        "processes": "processes",
        "broker_bytes": "broker, MB",
        "scheduler_bytes": "scheduler, MB",
        "worker_bytes": "worker, MB",
        "held_bytes": "together, MB",
    },
    "From the moment of a tick to accounts that have expired": {
        "late_median_seconds": "median, ms",
        "late_worst_seconds": "worst, ms",
        "ticks": "ticks",
    },
    "What a month leaves": {
        "table_bytes": "table, MB",
        "indexes_bytes": "indexes, MB",
        "trials_bytes": "index of trials, MB",
        "growth_share": "growth, %",
        "notices_bytes": "mails, MB",
        "dead_rows": "dead rows",
        "vacuums": "vacuums",
    },
    "What a month does": {
        "signed_up": "sign-ups",
        "expired": "expired",
        "wal_account_bytes": "WAL a sign-up, kB",
        "wal_ticks_bytes": "WAL an expiry, kB",
        "ticks_first_seconds": "tick on day 1, ms",
        "ticks_last_seconds": "on the last day, ms",
    },
    "Is any account due? Asked of all trials, on day": {f"whole_day_{day}_seconds": f"{day}, ms" for day in SHOWN},
    "Asked above the low-water mark, on day": {f"above_day_{day}_seconds": f"{day}, ms" for day in SHOWN},
    "What an account takes, in bytes": {
        "row_bytes": "row",
        "key_index_bytes": "primary key",
        "user_index_bytes": "index of users",
        "due_index_bytes": "of trials",
        "run_index_bytes": "of a run's accounts",
    },
    "What a run takes": {
        "run_seconds": "expire, s",
        "undo_seconds": "undo, s",
        "plan_mails_seconds": "plan mails, s",
        "wal_expiry_bytes": "WAL an expiry, kB",
        "wal_undo_bytes": "WAL an undo, kB",
        "wal_mail_bytes": "WAL a mail, kB",
    },
    "What a tick takes": {
        "whole_seconds": "question, all trials, ms",
        "above_seconds": "above the mark, ms",
        "tick_before_seconds": "tick before, ms",
        "tick_after_seconds": "tick after, ms",
        "first_slice_seconds": "first slice, ms",
    },
    "What pages and mails take": {
        "health_seconds": "health, ms",
        "metrics_seconds": "metrics, ms",
        "overview_seconds": "overview, ms",
        "claim_seconds": "claim a mail, ms",
    },
    "Who is let in, and what it costs to ask": {
        "let_in": "in too long",
        "locked_out": "locked out",
        "page_seconds": "page, ms",
        "bare_seconds": "bare view, ms",
    },
    "Seconds until all was done": {
        "worker_seconds": "worker killed",
        "scheduler_seconds": "scheduler killed",
        "database_seconds": "database away",
        "broker_seconds": "broker away",
        "missed_seconds": "tick missed",
    },
}
"""What is asked of a scenario, a table for each, and the measures that answer it, as its columns."""
UNITS = {"s": 1.0, "ms": 1e3, "MB": 1e-6, "kB": 1e-3, "%": 100.0}
WITH_RATIO = ("seconds", "service_seconds")
NOTES = {
    "What it does at rest": (
        "Standing processes as they are while nobody wants anything, without ticks; of a process for each run, what 24 "
        "runs a day take that find nothing due, computed from one. Connections are those held to the database."
    ),
    "What a month leaves": (
        "Of the accounts the table and its indexes, and how much larger both are than a month before, with 15 % more "
        "accounts. Autovacuum looks once a minute; here it is as if it looked after every simulated hour."
    ),
    "What a month does": (
        "WAL for each sign-up is that of the whole month: users, accounts, mails, payments and ledger. Of an expiry, "
        "that of the ticks."
    ),
    "What a tick takes": (
        "A tick that finds nothing due, before and after the run; the first slice of that run counts from its start."
    ),
    "What pages and mails take": "Mails were planned for all that expired and half of them sent; then one is claimed.",
    "Who is let in, and what it costs to ask": (
        "In too long: the trial and its grace are over, and every job was off for a day. Locked out: customers on "
        "trial, by a clock a year ahead; decided on read, TRIAL_EXPIRY_MAX was set to a day's worth. The page loads "
        "the account in any case; the bare view does not."
    ),
    "Seconds until all was done": (
        "From the kill, or from the end of the fault. \N{DAGGER}: a process ended by itself, and was started again. "
        "\N{DOUBLE DAGGER}: the missed tick was caught up at the start; without it the next tick did the work, or the "
        "start took too long to tell. Celery's visibility timeout was 5 s."
    ),
}
MARGINS = {1: 2.0, 2: 1.25}
"""By which factor two must differ to be called different, by rounds; with more rounds in every one of them."""
COMMAND, ONE_UPDATE = "command", "one-update"
"""Names of contenders that a glance and the verdict are about, beside ``Result.several`` and ``Result.rival``."""


class Table(NamedTuple):
    """The first cell of each row names it, the others are figures."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


Column = tuple[str, Callable[[Contender], str]]  # its heading, and what it shows of a contender


def scenario_tables(result: Result, scenario: Scenario) -> Iterator[Table]:
    """The questions that this scenario answers."""
    contenders = result.in_scenarios(scenario)
    parts = " ".join(
        f"{each.title} was measured once, on {part:,.0f}, its times extrapolated to all."
        for each in contenders
        if (part := result.median(scenario, each, "measured_on")) is not None and part < scenario.due
    )
    baseline = result.contender(scenario.baseline)
    of_baseline = result.figures.get((scenario.name, scenario.baseline, "seconds"))
    rounds = len(of_baseline.values) if of_baseline else 1
    wrong = result.wrong.get(scenario.name, {})
    for question, measures in QUESTIONS.items():
        columns = [
            column
            for measure, heading in measures.items()
            if any((scenario.name, each.name, of) in result.figures for each in contenders for of in asked(measure))
            for column in columns_of(result, scenario, measure, heading)
        ]
        if not columns:
            continue
        caption = question + (f", medians of {rounds} rounds" if rounds > 1 else "")
        if baseline and any(heading == RATIO for heading, _ in columns):
            caption += f"; {RATIO} is to “{baseline.title}” in the same round"
        rows = []
        for each in contenders:
            cells = [show(each) for _, show in columns]
            rows.append((each.title, *(["wrong", *cells[1:]] if each.name in wrong else cells)))
        note = " ".join(filter(None, [parts, NOTES.get(question, "")]))
        yield Table(caption, ("", *(heading for heading, _ in columns)), tuple(rows), note)
        parts = ""


def columns_of(result: Result, scenario: Scenario, measure: str, heading: str) -> Iterator[Column]:
    """A measure's columns: the median, and of times the ratio to the baseline."""

    def figure(contender: Contender, of: str = measure) -> Figure | None:
        return result.figures.get((scenario.name, contender.name, of))

    def median(contender: Contender) -> str:
        if found := figure(contender):
            return in_unit_of(heading, found.spread.median) + marks(figure, contender, measure)
        if measure == "wait_p99_seconds" and figure(contender, "payments"):
            return "too few"
        return f">{lost.spread.median:.0f}" if (lost := figure(contender, asked(measure)[1])) else ""

    yield heading, median
    if measure in WITH_RATIO and scenario.baseline in scenario.contenders:
        yield RATIO, lambda each: ratio_and_spread(found.ratio) if (found := figure(each)) and found.ratio else ""


def asked(measure: str) -> tuple[str, str]:
    """The measure, and what a fault's is called where the contender did not recover in time."""
    return measure, measure.replace("_seconds", "_not_within_seconds")


def marks(figure: Callable[[Contender, str], Figure | None], contender: Contender, measure: str) -> str:
    """What the table of faults has to say beside a time."""
    fault = measure.removesuffix("_seconds")
    ended, caught_up = (figure(contender, f"{fault}_{what}") for what in ("ended", "caught_up"))
    dagger = "\N{DAGGER}" if ended and ended.spread.median else ""
    return dagger + ("\N{DOUBLE DAGGER}" if caught_up and caught_up.spread.median else "")


def in_unit_of(heading: str, value: float) -> str:
    """A value as the column shows it: seconds in those of the heading; what has no unit is a count."""
    _, _, unit = heading.rpartition(", ")
    if unit == "%":
        return f"{value * 100:.0f}"
    if unit in UNITS or value != round(value):
        return digits(value * UNITS.get(unit, 1.0))
    return f"{value:,.0f}"


def growth_tables(result: Result, series: Sequence[Scenario]) -> Iterator[Table]:
    """Time and memory, a column for each size."""
    for measure, caption in (("seconds", "Time, s"), ("peak_memory_bytes", "Peak memory of its processes, MB")):
        rows = []
        for each in result.in_scenarios(*series):
            values = [result.median(scenario, each, measure) for scenario in series]
            if any(value is not None for value in values):
                rows.append((each.title, *("" if value is None else in_unit_of(caption, value) for value in values)))
        columns = ("", *(f"{scenario.due:,} due" for scenario in series))
        yield Table(caption=f"{caption}, medians", columns=columns, rows=tuple(rows))


GLANCE = (
    ("nothing", "seconds", "Run with nothing due"),
    ("backlog", "seconds", "Backlog, {due:,} due"),
    ("backlog", "longest_transaction_seconds", "Longest transaction"),
    ("backlog", "wait_max_seconds", "Longest wait of a payment"),
    ("late", "late_median_seconds", "Lateness of a tick"),
    ("idle", "held_bytes", "Memory at rest"),
    ("idle", "processes", "Processes at rest"),
    ("idle", "day_cpu_seconds", "CPU a day at rest"),
)


def glance(result: Result) -> Table:
    """The few figures that decide, each column of one contender throughout."""
    names = (ONE_UPDATE, COMMAND, *(each.name for each in (result.several, result.rival) if each))
    shown = [each for each in result.contenders if each.name in names]
    rows = []
    for kind, measure, label in GLANCE:
        for scenario in result.of_kind(kind)[-1:]:
            cells = [
                "" if value is None else quantity(measure, value)
                for value in map(partial(glanced, result, scenario, measure), shown)
            ]
            if any(cells):
                rows.append((label.format(due=scenario.due), *cells))
    columns = ("", *(each.title for each in shown))
    return Table("At a glance, medians", columns, tuple(rows), certainty(result.options.rounds))


def glanced(result: Result, scenario: Scenario, measure: str, contender: Contender) -> float | None:
    """A contender's own figure; a process for each run leaves nothing behind, measured or not."""
    if contender.path == "cron" and measure in ("held_bytes", "processes"):
        return 0
    return result.median(scenario, contender, measure)


def certainty(rounds: int) -> str:
    """What it takes to be called a difference."""
    if rounds not in MARGINS:
        return f"Each contender ran {rounds} times, and is called faster only where it was faster in every round."
    return (
        f"Each contender ran {'once' if rounds == 1 else 'twice'}, which cannot tell a small difference from chance: "
        f"only a factor of {MARGINS[rounds]:g} is called one. Three rounds or more tell smaller ones."
    )
