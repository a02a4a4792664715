"""What a comparison's figures say, in plain words: each finding is a function, its condition beside its sentence.

They claim no more than the figures show: two contenders differ when one was faster in every round, and otherwise this
run shows no difference. Where something was not measured, nothing is said of it.
"""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from comparison.measurements import Contender, Result
from comparison.quantities import duration, listed, number, times
from comparison.tables import COMMAND, MAIL_COMMAND, MANY_ROUNDS, MARGIN, ONE_UPDATE

FASTER, SAME, SLOWER = "faster", "no difference", "slower"


class Finding(NamedTuple):
    """One thing to know, for one paragraph."""

    title: str
    text: str


class Duel(NamedTuple):
    """Celery at its best against the command in one scenario: medians in seconds, and how Celery did."""

    due: int
    ours: float
    theirs: float
    outcome: str


def judged(by_round: Sequence[float]) -> str:
    """Whether the first of two was faster, by its ratios to the second; with few rounds only by ``MARGIN``."""
    margin = 0 if len(by_round) >= MANY_ROUNDS else MARGIN
    return FASTER if max(by_round) < 1 - margin else SLOWER if min(by_round) > 1 + margin else SAME


def duels(result: Result, kind: str) -> list[Duel]:
    """One for each scenario of a kind, by size."""
    command, rival = result.contender(COMMAND), result.rival
    return [
        Duel(of.due, result.median(of, command) or 0, result.median(of, rival) or 0, judged(by_round))
        for of in result.of_kind(kind)
        if command and rival and (by_round := result.ratios(of, rival, command))
    ]


def spoken(contender: Contender | None) -> str:
    """A contender's title as part of a sentence: Celery with 2 processes."""
    return contender.title.replace(", ", " with ", 1) if contender else ""


def short_answer(result: Result) -> Finding | None:
    """Whether the time that Celery saves matters beside the time between two ticks."""
    if not (fought := duels(result, "backlog")):
        return None
    due, ours, theirs, outcome = fought[-1]
    interval, celery = result.options.interval_seconds, spoken(result.rival)
    text = f"The command finished the largest backlog, {due:,} due accounts, in {duration(ours)} and is called every "
    text += duration(interval)
    if ours >= interval:
        title = "Here the command is too slow for its schedule"
        fits = "which fits" if theirs < interval else "which does not fit either: let it run less often"
        return Finding(title, f"{text}. {celery} needed {duration(theirs)}, {fits}.")
    if outcome != FASTER:
        took = f"took {duration(theirs)}, a difference within the spread of this run"
        took = f"took longer, {duration(theirs)}" if outcome == SLOWER else took
        return Finding("On this machine, the command is enough", f"{text}. {celery} {took}.")
    if ours < interval / 10:
        title = "On this machine, time is no reason for Celery"
        text += f". {celery} was faster, {duration(theirs)}, and the schedule has time enough for either."
        return Finding(title, text)
    title = "On this machine, Celery buys time that counts"
    text += f": {ours / interval:.0%} of that. {celery} needed {duration(theirs)}, {theirs / interval:.0%}."
    return Finding(title, text)


def wrong_outcomes(result: Result) -> Finding | None:
    """Contenders that did not do the work, and so have no figures."""
    wrong = [
        f"{contender.title} in “{scenario.title}”: {reason}"
        for scenario in result.scenarios
        for contender in result.in_scenarios(scenario)
        if (reason := result.wrong.get(scenario.name, {}).get(contender.name))
    ]
    return Finding("Wrong outcomes, not timed", " ".join(wrong)) if wrong else None


def nothing_due(result: Result) -> Finding | None:
    """The run that finds nothing to do: most of them."""
    if not (fought := duels(result, "nothing")):
        return None
    _, ours, theirs, outcome = fought[-1]
    text = f"The command took {duration(ours)}, {spoken(result.rival)} {duration(theirs)}."
    if outcome == SAME:
        text += " This run shows no difference between them."
    for start_up in result.of_kind("start-up") if outcome == FASTER else ():
        if taken := result.figures.get((start_up.name, "django-setup", "seconds")):
            text += f" Python and Django take {duration(taken.spread.median)} to start, which cron pays at every run "
            text += "and a worker once."
    return Finding("What a run costs when nothing is due", text)


def crossover(result: Result) -> Finding | None:
    """From how many due accounts on Celery is faster."""
    fought, celery = duels(result, "backlog"), spoken(result.rival)
    faster, others = [d for d in fought if d.outcome == FASTER], [d for d in fought if d.outcome != FASTER]
    if not fought:
        return None
    if not faster:
        text = f"Up to {others[-1].due:,} due accounts, the most measured, {celery} was not faster than the command. "
        return Finding("No crossover was found", text + "Whether it is beyond that, this run cannot say.")
    if not others:
        title = "Celery was faster at every size measured"
        text = f"{celery} finished before the command with {faster[0].due:,} due accounts, the fewest measured, "
        text += "already. Whether the command is faster below that, this run cannot say."
    elif faster[0].due > others[-1].due:
        title = "Where the crossover lies"
        text = f"Between {others[-1].due:,} and {faster[0].due:,} due accounts: from there on {celery} finished before "
        text += "the command."
    else:
        title = "No clear crossover"
        sizes = listed([f"{duel.due:,}" for duel in faster])
        text = f"{celery} was faster with {sizes} due accounts, and not at the other sizes."
    ends = faster[:1] + faster[1:][-1:]
    saved = [f"{duration(each.ours - each.theirs)} of {duration(each.ours)} with {each.due:,} due" for each in ends]
    text += f" It saved {listed(saved)}."
    return Finding(title, text)


WAITED_LESS = {
    SAME: "Between these two this run shows no difference.",
    FASTER: "Customers waited less for Celery.",
    SLOWER: "Customers waited less for the command.",
}


def customers_wait(result: Result) -> Finding | None:
    """What a run does to those who pay while it is on."""
    command, one_update, rival = result.contender(COMMAND), result.contender(ONE_UPDATE), result.rival
    backlog, measure = next(reversed(result.of_kind("backlog")), None), "wait_p99_seconds"
    if not backlog or not command or not result.median(backlog, command, measure):
        return None

    def waited(contender: Contender) -> str:
        longest = result.figures.get((backlog.name, contender.name, "wait_max_seconds"))
        worst = f" (the longest {duration(longest.spread.highest)})" if longest else ""
        return f"{duration(result.median(backlog, contender, measure) or 0)}{worst}"

    text = f"In the largest backlog 99 % of those who paid waited no longer than {waited(command)} beside the command"
    if rival and (by_round := result.ratios(backlog, rival, command, measure)):
        text += f", {waited(rival)} beside {spoken(rival)}. {WAITED_LESS[judged(by_round)]}"
    else:
        text += "."
    if one_update and (by_round := result.ratios(backlog, one_update, command, measure)):
        text += f" Beside one update() of all accounts it was {waited(one_update)}"
        longer = f", {times(median(by_round))} as long as beside the command"
        text += f"{longer if judged(by_round) == SLOWER else ''}."
    return Finding("How long paying customers wait", text)


def mails(result: Result) -> Finding | None:
    """From how many processes on Celery sends mails faster, and for how many mails the command is fast enough."""
    scenario = next(iter(result.of_kind("mails")), None)
    command = result.contender(MAIL_COMMAND)
    if not scenario or not command or not (ours := result.median(scenario, command)):
        return None
    rivals = [
        (spoken(contender), result.median(scenario, contender) or 0, judged(by_round))
        for contender in result.in_scenarios(scenario)
        if contender != command and (by_round := result.ratios(scenario, contender, command))
    ]
    text = f"The command sent {scenario.due:,} in {duration(ours)}, one after the other"
    text += f"; {listed([f'{name} in {duration(theirs)}' for name, theirs, _ in rivals])}. " if rivals else ". "
    faster = [(name, theirs) for name, theirs, outcome in rivals if outcome == FASTER]
    pace = scenario.due * result.options.interval_seconds
    sent = f"At this pace the command sends about {number(pace / ours)} mails between two calls of its schedule"
    if faster:
        best, theirs = faster[-1]
        text += f"{faster[0][0]} was the first that was faster. {sent}, {best} about {number(pace / theirs)}. That is "
        text += "where Celery begins to pay: with more mails than the command can send in time."
    else:
        text += f"{'None of them was faster. ' if rivals else ''}{sent}."
    return Finding("Mails through a slow server", text)


FINDINGS = (short_answer, wrong_outcomes, nothing_due, crossover, customers_wait, mails)


def verdict(result: Result) -> list[Finding]:
    """Every finding that the figures allow, the most important first."""
    return [finding for find in FINDINGS if (finding := find(result))]
