"""What a comparison's figures say, in plain words: what Celery costs, what it buys, and from which size.

Pure functions of a ``Result``. They claim no more than the figures show: two contenders differ when one was faster in
every round, and otherwise this run shows no difference. Where something was not measured, nothing is said of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median

from comparison.results import DJANGO_SETUP, Contender, Result, Scenario, Standing
from comparison.wording import accounts, duration, figure, listed, memory, times

COMMAND, ARTICLE, MAIL_COMMAND = "command", "one-update", "mail-command"
"""Names of the contenders that the verdict is about, beside those on Celery's path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing to know, for one paragraph."""

    title: str
    text: str


class Comparison(Enum):
    """How the first of two did against the second."""

    FASTER = "faster"
    SAME = "no difference"
    SLOWER = "slower"


def verdict(result: Result) -> list[Finding]:
    """Every finding that the figures allow, the most important first."""
    findings = [find(result) for find in FINDERS]
    return [finding for finding in findings if finding]


def ratios(result: Result, scenario: Scenario, first: str, second: str, measure: str = "seconds") -> list[float]:
    """What ``first`` took, divided by what ``second`` took, round by round; empty when one has no figures."""
    if not all(result.figure(scenario.name, name, measure) for name in (first, second)):
        return []
    divisors = {sample.round: getattr(sample, measure) for sample in result.of(scenario.name, second)}
    return [
        value / divisor
        for sample in result.of(scenario.name, first)
        if (value := getattr(sample, measure)) is not None and (divisor := divisors.get(sample.round))
    ]


MANY_ROUNDS = 3
MARGIN = 0.25
"""By how much a ratio must differ from 1 where there are fewer rounds than ``MANY_ROUNDS`` to tell it from chance."""


def judged(by_round: Sequence[float]) -> Comparison:
    """Faster or slower only when it was so in every round; with few rounds, by ``MARGIN``."""
    margin = 0 if len(by_round) >= MANY_ROUNDS else MARGIN
    if max(by_round) < 1 - margin:
        return Comparison.FASTER
    return Comparison.SLOWER if min(by_round) > 1 + margin else Comparison.SAME


def backlogs(result: Result) -> list[Scenario]:
    """The growth series, ascending."""
    return sorted((each for each in result.scenarios if each.kind == "backlog"), key=lambda each: each.due)


def largest_backlog(result: Result) -> Scenario | None:
    """The one the verdict is mostly about."""
    return max(backlogs(result), key=lambda each: each.due, default=None)


def spoken(contender: Contender) -> str:
    """A contender's title as part of a sentence: Celery with 2 processes."""
    return contender.title.replace(", ", " with ", 1)


def celery(result: Result) -> Contender | None:
    """Celery at its best: of its contenders, the one that was fastest on the largest backlog."""
    largest = largest_backlog(result)
    if not largest:
        return None
    measured = {
        contender: figure.spread.median
        for contender in result.contenders
        if contender.path == "celery" and (figure := result.figure(largest.name, contender.name, "seconds"))
    }
    return min(measured, key=lambda contender: measured[contender], default=None)


def short_answer(result: Result) -> Finding | None:
    """Whether the time that Celery saves matters beside the time between two ticks."""
    duel = _duel(result)
    if not duel:
        return None
    largest, rival, by_round = duel
    ours, theirs = _median(result, largest, COMMAND), _median(result, largest, rival.name)
    interval = result.options.interval_seconds
    work = f"the largest backlog, {accounts(largest.due)} due accounts,"
    room = f"in {duration(ours)} and is called every {duration(interval)}"
    if ours >= interval:
        title = "Here the command is too slow for its schedule"
        text = f"It finished {work} {room}. {spoken(rival)} needed {duration(theirs)}"
        text += ", which fits." if theirs < interval else ", which does not fit either: let it run less often."
    elif judged(by_round) is not Comparison.FASTER:
        title = "On this machine, the command is enough"
        text = f"The command finished {work} {room}. "
        text += (
            f"{spoken(rival)} took longer, {duration(theirs)}."
            if judged(by_round) is Comparison.SLOWER
            else f"{spoken(rival)} took {duration(theirs)}, a difference within the spread of this run."
        )
    elif ours < interval / 10:
        title = "On this machine, time is no reason for Celery"
        text = f"The command finished {work} {room}. {spoken(rival)} was faster, {duration(theirs)}, and the schedule "
        text += "has time enough for either."
    else:
        title = "On this machine, Celery buys time that counts"
        text = f"The command finished {work} {room}: {ours / interval:.0%} of that. "
        text += f"{spoken(rival)} needed {duration(theirs)}, {theirs / interval:.0%}."
    return Finding(title=title, text=text)


def wrong_outcomes(result: Result) -> Finding | None:
    """Contenders that did not do the work, and so have no figures."""
    wrong = [
        f"{contender.title} in “{scenario.title}”: {reason}"
        for scenario in result.scenarios
        for contender in result.contenders
        if (reason := result.wrong(scenario.name, contender.name))
    ]
    return Finding(title="Wrong outcomes, not timed", text=" ".join(wrong)) if wrong else None


def idle_cost(result: Result) -> Finding | None:
    """What stands around while there is nothing to do."""
    workers = workers_of(result)
    if not workers:
        return None
    held = [
        f"{memory(held_bytes)} in {processes} processes (worker with {worker.concurrency})"
        for worker, (held_bytes, processes) in zip(workers, held_while_idle(result), strict=True)
    ]
    roles = [each.role for each in result.standing if each.role != "worker"]
    text = f"{listed([*roles, 'worker']).capitalize()} hold {listed(held)}, day and night. "
    return Finding(title="What Celery costs while idle", text=text + "Between two runs the path of cron holds nothing.")


def workers_of(result: Result) -> list[Standing]:
    """The standing workers, by the number of their processes, ascending."""
    return sorted((each for each in result.standing if each.role == "worker"), key=lambda each: each.concurrency or 0)


def held_while_idle(result: Result) -> list[tuple[int, int]]:
    """Bytes and processes of all that stands, for each of ``workers_of``."""
    fixed = [each for each in result.standing if each.role != "worker"]
    return [
        (
            worker.memory_bytes + sum(each.memory_bytes for each in fixed),
            worker.processes + sum(each.processes for each in fixed),
        )
        for worker in workers_of(result)
    ]


def nothing_due(result: Result) -> Finding | None:
    """The run that finds nothing to do: most of them."""
    duel = _duel(result, kind="nothing")
    if not duel:
        return None
    scenario, rival, by_round = duel
    ours, theirs = _median(result, scenario, COMMAND), _median(result, scenario, rival.name)
    text = f"The command took {duration(ours)}, {spoken(rival)} {duration(theirs)}. "
    start_up = _start_up(result)
    if judged(by_round) is Comparison.SAME:
        text += "This run shows no difference between them."
    elif judged(by_round) is Comparison.FASTER and start_up:
        text += f"Python and Django take {duration(start_up)} to start, which cron pays at every run and a worker once."
    return Finding(title="What a run costs when nothing is due", text=text.strip())


def crossover(result: Result) -> Finding | None:
    """From how many due accounts on Celery is faster."""
    rival = celery(result)
    if not rival:
        return None
    by_size = {
        scenario: judged(by_round)
        for scenario in backlogs(result)
        if (by_round := ratios(result, scenario, rival.name, COMMAND))
    }
    faster = [scenario for scenario, outcome in by_size.items() if outcome is Comparison.FASTER]
    slower = [scenario for scenario, outcome in by_size.items() if outcome is not Comparison.FASTER]
    name = spoken(rival)
    if not by_size:
        return None
    if not faster:
        title = "No crossover was found"
        text = f"Up to {accounts(slower[-1].due)} due accounts, the most measured, {name} was not faster than the "
        text += "command. Whether it is beyond that, this run cannot say."
    elif not slower:
        title = "Celery was faster at every size measured"
        text = f"{name} finished before the command with {accounts(faster[0].due)} due accounts, the fewest measured, "
        text += "already. Whether the command is faster below that, this run cannot say."
    elif faster[0].due > slower[-1].due:
        title = "Where the crossover lies"
        text = f"Between {accounts(slower[-1].due)} and {accounts(faster[0].due)} due accounts: from there on {name} "
        text += "finished before the command."
    else:
        title = "No clear crossover"
        sizes = listed([accounts(scenario.due) for scenario in faster])
        text = f"{name} was faster with {sizes} due accounts, and not at the other sizes."
    saved = []
    for scenario in dict.fromkeys([*faster[:1], *faster[-1:]]):
        ours, theirs = (_median(result, scenario, each) for each in (COMMAND, rival.name))
        saved.append(f"{duration(ours - theirs)} of {duration(ours)} with {accounts(scenario.due)} due")
    if saved:
        text += f" It saved {listed(saved)}."
        if (start_up := _start_up(result)) and start_up < _median(result, faster[0], COMMAND):
            text += f" Of the command's time, Python and Django take {duration(start_up)} to start, at any size."
    return Finding(title=title, text=text)


def customers_wait(result: Result) -> Finding | None:
    """What a run does to those who pay while it is on."""
    largest = largest_backlog(result)
    rival = celery(result)
    if not largest or not result.figure(largest.name, COMMAND, "wait_p99_seconds"):
        return None

    def waited(name: str) -> str:
        longest = result.figure(largest.name, name, "wait_max_seconds")
        worst = f" (the longest {duration(longest.spread.highest)})" if longest else ""
        return f"{duration(_median(result, largest, name, 'wait_p99_seconds'))}{worst}"

    text = f"In the largest backlog 99 % of those who paid waited no longer than {waited(COMMAND)} beside the command"
    if rival and (by_round := ratios(result, largest, rival.name, COMMAND, "wait_p99_seconds")):
        text += f", {waited(rival.name)} beside {spoken(rival)}. "
        text += {
            Comparison.SAME: "Between these two this run shows no difference.",
            Comparison.FASTER: "Customers waited less for Celery.",
            Comparison.SLOWER: "Customers waited less for the command.",
        }[judged(by_round)]
    else:
        text += "."
    if by_round := ratios(result, largest, ARTICLE, COMMAND, "wait_p99_seconds"):
        text += f" Beside one update() of all accounts it was {waited(ARTICLE)}"
        longer = judged(by_round) is Comparison.SLOWER
        text += f", {times(median(by_round))} as long as beside the command." if longer else "."
    return Finding(title="How long paying customers wait", text=text)


def distance_from_the_limit(result: Result) -> Finding | None:
    """The command beside one raw UPDATE."""
    largest = largest_backlog(result)
    if not largest or not (by_round := ratios(result, largest, COMMAND, largest.baseline)):
        return None
    text = f"With {accounts(largest.due)} due accounts the command, start-up included, took {times(median(by_round))} "
    text += "the time of one raw UPDATE"
    text += f" (in the rounds {times(min(by_round))} to {times(max(by_round))})." if len(by_round) > 1 else "."
    if alone := ratios(result, largest, COMMAND, largest.baseline, "service_seconds"):
        text += f" Its work alone, from reading the clock to the closed run, took {times(median(alone))}."
    if locks := ratios(result, largest, largest.baseline, COMMAND, "longest_transaction_seconds"):
        longest = _median(result, largest, COMMAND, "longest_transaction_seconds")
        text += f" Its longest transaction was {duration(longest)}; the raw UPDATE's was {times(median(locks))} that."
    return Finding(title="How far from the database's limit", text=text)


def lateness(result: Result) -> Finding | None:
    """What the schedule adds, which is the same for both paths."""
    rival = celery(result)
    by_name = {each.contender: each for each in result.timeliness}
    if not rival or not {COMMAND, rival.name} <= by_name.keys():
        return None
    ours, theirs = by_name[COMMAND], by_name[rival.name]
    if abs(ours.average_seconds - theirs.average_seconds) < 0.01 * ours.interval_seconds:
        text = f"After it fell due an account stays trialing for {duration(ours.average_seconds)} on average and "
        text += f"{duration(ours.worst_seconds)} at worst, by either path: both are called every "
        text += f"{duration(ours.interval_seconds)}, and the schedule decides."
    else:
        text = f"After it fell due an account stays trialing for {duration(ours.average_seconds)} on average by the "
        text += f"command, for {duration(theirs.average_seconds)} by {spoken(rival)}."
    return Finding(title="How late an account expires", text=text)


def mails(result: Result) -> Finding | None:
    """From how many processes on Celery sends mails faster, and for how many mails the command is fast enough."""
    scenario = next((each for each in result.scenarios if each.kind == "notices"), None)
    ours = _median(result, scenario, MAIL_COMMAND) if scenario else 0
    if not scenario or not ours:
        return None
    rivals = [
        (contender, by_round)
        for contender in result.contenders
        if contender.path == "celery" and (by_round := ratios(result, scenario, contender.name, MAIL_COMMAND))
    ]
    text = f"The command sent {accounts(scenario.due)} in {duration(ours)}, one after the other"
    told = [f"{spoken(each)} in {duration(_median(result, scenario, each.name))}" for each, _ in rivals]
    text += f"; {listed(told)}. " if told else ". "
    faster = [each for each, by_round in rivals if judged(by_round) is Comparison.FASTER]
    if faster:
        text += f"{spoken(faster[0])} was the first that was faster. "
    elif rivals:
        text += "None of them was faster. "
    pace = result.options.interval_seconds / ours * scenario.due
    text += f"At this pace the command sends about {figure(pace)} mails between two calls of its schedule"
    if faster:
        best = result.options.interval_seconds / _median(result, scenario, faster[-1].name) * scenario.due
        text += (
            f", {spoken(faster[-1])} about {figure(best)}. That is where Celery begins to pay: with more mails than "
        )
        text += "the command can send in time"
    return Finding(title="Mails through a slow server", text=f"{text}.")


def recovery(result: Result) -> Finding | None:
    """How long until a killed run's work is done."""
    names = {contender.name: spoken(contender) for contender in result.contenders}
    told = []
    for each in result.recoveries:
        text = f"{names[each.contender]}: the {accounts(each.left)} accounts left took {duration(each.seconds)}"
        waiting = f", after a wait of at most {duration(each.schedule_adds_seconds)} for what starts it"
        told.append(f"{text}{waiting if each.schedule_adds_seconds else ''}.")
    return Finding(title="After a SIGKILL half-way", text=" ".join(told)) if told else None


def how_sure(result: Result) -> Finding | None:
    """What it takes to be called a difference."""
    if not result.samples:
        return None
    rounds = result.options.rounds
    text = f"Each contender ran {rounds} times, and is called faster only where it was faster in every round."
    if rounds < MANY_ROUNDS:
        text = f"Each contender ran {'once' if rounds == 1 else 'twice'}, which cannot tell a difference from chance. "
        text += f"So it is called one from {MARGIN:.0%} on; {MANY_ROUNDS} rounds tell more."
    return Finding(title="How sure this is", text=text)


FINDERS: tuple[Callable[[Result], Finding | None], ...] = (
    short_answer,
    wrong_outcomes,
    idle_cost,
    nothing_due,
    crossover,
    customers_wait,
    distance_from_the_limit,
    lateness,
    mails,
    recovery,
    how_sure,
)


def _duel(result: Result, kind: str = "backlog") -> tuple[Scenario, Contender, list[float]] | None:
    """The largest scenario of a kind, Celery at its best, and what it took divided by what the command took."""
    scenarios = sorted((each for each in result.scenarios if each.kind == kind), key=lambda each: each.accounts)
    rival = celery(result)
    if not scenarios or not rival:
        return None
    by_round = ratios(result, scenarios[-1], rival.name, COMMAND)
    return (scenarios[-1], rival, by_round) if by_round else None


def _median(result: Result, scenario: Scenario, contender: str, measure: str = "seconds") -> float:
    figure = result.figure(scenario.name, contender, measure)
    return figure.spread.median if figure else 0.0


def _start_up(result: Result) -> float | None:
    """Seconds that Python and Django take before any work."""
    return next((each.seconds.median for each in result.start_ups if each.what == DJANGO_SETUP), None)
