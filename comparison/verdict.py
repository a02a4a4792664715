"""What a comparison's figures say, in plain words: each finding is a function, its condition beside its sentence.

They claim no more than the figures show: a difference is one only beyond the spread of the rounds, and few rounds tell
only large ones. Where something was not measured, nothing is said of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from comparison.measurements import Contender, Result, Scenario, Spread
from comparison.quantities import duration, listed, number, quantity, ratio_and_spread
from comparison.tables import COMMAND, MARGINS, ONE_UPDATE

FASTER, SAME, SLOWER, UNKNOWN = "faster", "same", "slower", "unknown"
MAIL_COMMAND, MAIL_JOBS, MAIL_CELERY, MAIL_THREADS = (
    "mail-command",
    "mail-jobs-8",
    "mail-celery-8",
    "mail-celery-threads-8",
)


class Finding(NamedTuple):
    """One thing to know, for one paragraph."""

    title: str
    text: str


class Duel(NamedTuple):
    """How the first of two did against the second in a scenario: medians in seconds, and the ratio of the two."""

    scenario: Scenario
    first: Contender
    second: Contender
    ours: float
    theirs: float
    ratio: Spread
    outcome: str

    def sentence(self) -> str:
        """Both times, the ratio with its spread, and whether that is a difference."""
        text = (
            f"{capital(spoken(self.first))} took {duration(self.ours)}, {spoken(self.second)} {duration(self.theirs)}"
        )
        text += f": {ratio_and_spread(self.ratio)} of its time"
        return text + {
            SAME: ", no difference beyond the spread.",
            UNKNOWN: ", too few rounds to call it a difference.",
        }.get(self.outcome, ".")


def judged(by_round: Sequence[float]) -> str:
    """Whether the first of two was faster, by its ratios to the second; a few rounds tell only of a large factor."""
    margin = MARGINS.get(len(by_round), 1.0)
    if max(by_round) < 1 / margin:
        return FASTER
    if min(by_round) > margin:
        return SLOWER
    return UNKNOWN if len(by_round) in MARGINS else SAME


def duel(
    result: Result,
    scenario: Scenario | None,
    first: Contender | None,
    second: Contender | None,
    measure: str = "seconds",
) -> Duel | None:
    """None where one of them has no figures."""
    if not (scenario and first and second and (by_round := result.ratios(scenario, first, second, measure))):
        return None
    ours, theirs = (result.median(scenario, each, measure) or 0 for each in (first, second))
    return Duel(scenario, first, second, ours, theirs, Spread.of(by_round), judged(by_round))


def largest(result: Result, kind: str) -> Scenario | None:
    """The largest scenario of a kind."""
    return next(reversed(result.of_kind(kind)), None)


def spoken(contender: Contender) -> str:
    """A contender as part of a sentence: Celery with 2 processes."""
    return (
        "the command"
        if contender.name == COMMAND
        else contender.title.replace("command,", "the command,").replace(", ", " with ", 1)
    )


def capital(words: str) -> str:
    """The words as a sentence begins with them."""
    return words[:1].upper() + words[1:]


def short_answer(result: Result) -> Finding | None:
    """Whether the time that Celery saves matters beside the time between two ticks, each path at its strongest."""
    backlog, command = largest(result, "backlog"), result.contender(COMMAND)
    best = result.several if backlog and result.several and result.median(backlog, result.several) else command
    if not (fought := duel(result, backlog, result.rival, best)):
        return None
    interval = result.options.interval_seconds
    text = (
        f"The largest backlog was {fought.scenario.due:,} due accounts, and a tick comes every {duration(interval)}. "
    )
    text += fought.sentence()
    if fought.theirs >= interval:
        fits = "Celery fits." if fought.ours < interval else "Neither fits: let it run less often."
        return Finding("Here the command is too slow for its schedule", f"{text} {fits}")
    if fought.outcome == FASTER and fought.theirs > interval / 10:
        return Finding("On this machine, Celery saves time that counts", text)
    return Finding("On this machine, time is no reason for Celery", f"{text} The schedule has time enough for either.")


def wrong_outcomes(result: Result) -> Finding | None:
    """Contenders that did not do the work, and so have no figures."""
    wrong = [
        f"{contender.title} in “{scenario.title}”: {reason}"
        for scenario in result.scenarios
        for contender in result.in_scenarios(scenario)
        if (reason := result.wrong.get(scenario.name, {}).get(contender.name))
    ]
    return Finding("Wrong outcomes, not timed", " ".join(wrong)) if wrong else None


def concurrency(result: Result) -> Finding | None:
    """What several connections at once buy on either path, and whether it matters which path they are on."""
    backlog, measure = largest(result, "backlog"), "service_seconds"
    gained = duel(result, backlog, result.several, result.contender(COMMAND), measure)
    against = duel(result, backlog, result.several, result.rival, measure)
    sentences = [fought.sentence() for fought in (gained, against) if fought]
    if not sentences:
        return None
    return Finding(
        "What it buys to expire on several connections",
        f"Timed is the work alone, without start-up. {' '.join(sentences)}",
    )


def access(result: Result) -> Finding | None:
    """Whether a customer's access waits for a job, and what it costs to decide it when it is asked."""
    scenario = largest(result, "access")
    stored, on_read = result.contender("stored-status"), result.contender("on-read")
    if not (scenario and stored and on_read):
        return None

    def figure(contender: Contender, measure: str) -> float:
        return result.median(scenario, contender, measure) or 0

    return Finding(
        "What it buys to decide access on read",
        f"With every job off for a day, the stored status let in {figure(stored, 'let_in'):,.0f} customers too long, "
        f"and the rule asked on read {figure(on_read, 'let_in'):,.0f}. A clock a year ahead would lock out "
        f"{figure(stored, 'locked_out'):,.0f} and {figure(on_read, 'locked_out'):,.0f}. A page that loads the account "
        f"took {duration(figure(on_read, 'page_seconds'))} with the gate and "
        f"{duration(figure(stored, 'page_seconds'))} without it.",
    )


def mails(result: Result) -> Finding | None:
    """The same for mails, where most of the time is waiting for the mail server."""
    scenario, command = largest(result, "mails"), result.contender(MAIL_COMMAND)
    if not scenario or not command or not (alone := result.median(scenario, command)):
        return None
    text = f"One after the other, the command sent {scenario.due:,} in {duration(alone)}: about "
    text += f"{number(scenario.due * result.options.interval_seconds / alone)} between two ticks."
    jobs, processes, threads = (result.contender(name) for name in (MAIL_JOBS, MAIL_CELERY, MAIL_THREADS))
    for one, other in ((jobs, processes), (threads, processes)):
        if fought := duel(result, scenario, one, other):
            text += f" {fought.sentence()}"
            memory = [result.median(scenario, each, "peak_memory_bytes") for each in (fought.first, fought.second)]
            if all(memory):
                text += f" They held {listed([quantity('bytes', each or 0) for each in memory])}."
    return Finding("Mails through a slow server", text)


def standing_worker(result: Result) -> Finding | None:
    """What only a standing process buys: it has started already."""
    command, celery = result.contender(COMMAND), result.rival
    sentences = []
    if fought := duel(result, largest(result, "nothing"), celery, command):
        sentences.append(f"With nothing due: {fought.sentence()}")
    late = largest(result, "late")
    if late and command and celery and (ours := result.median(late, command, "late_median_seconds")):
        theirs, ticks = (result.median(late, celery, measure) for measure in ("late_median_seconds", "ticks"))
        if theirs and ticks:
            sentences.append(
                f"After the moment of a tick, accounts had expired within {duration(theirs)} by Celery and "
                f"{duration(ours)} by cron (medians of {ticks:.0f} ticks)."
            )
    return Finding("What only a standing worker buys", " ".join(sentences)) if sentences else None


def resting(result: Result, contender: Contender) -> str:
    """What a contender costs at rest; empty where it was not measured."""
    scenario = largest(result, "idle")
    measures = ("held_bytes", "day_cpu_seconds", "minute_transactions", "minute_commands")
    values = [scenario and result.median(scenario, contender, measure) for measure in measures]
    if any(value is None for value in values):
        return ""
    held, cpu, transactions, commands = (value or 0 for value in values)
    if not held:
        return f"{contender.title}: nothing, and {duration(cpu)} of CPU time for a day of hourly runs"
    return (
        f"{contender.title}: {quantity('bytes', held)}, {duration(cpu)} of CPU time a day, "
        f"{number(transactions)} transactions and {number(commands)} broker commands a minute"
    )


def cost_at_rest(result: Result) -> Finding | None:
    """What each path takes while there is nothing to do."""
    paths = [each for each in result.contenders if each.path == "celery" or each.name == COMMAND]
    costs = [cost for each in paths if (cost := resting(result, each))]
    return Finding("What it costs at rest", f"{'. '.join(costs)}.") if costs else None


def engines(result: Result) -> Finding | None:
    """What another engine would change: at rest, and in how late a tick is."""
    late, sentences = largest(result, "late"), []
    for engine in result.contenders:
        if engine.path == "engine" and (cost := resting(result, engine)):
            lateness = late and result.median(late, engine, "late_median_seconds")
            behind = f"; a tick is {duration(lateness)} late" if lateness else ""
            sentences.append(f"{cost}{behind}.")
    return Finding("What another engine would change", " ".join(sentences)) if sentences else None


def customers_wait(result: Result) -> Finding | None:
    """What a run does to those who pay while it is on: longest transactions, which sample nothing, and their waits."""
    backlog, command = largest(result, "backlog"), result.contender(COMMAND)
    if not backlog:
        return None
    parts = []
    for each in (result.contender(ONE_UPDATE), command, result.several, result.rival):
        longest = each and result.median(backlog, each, "longest_transaction_seconds")
        if each and longest:
            waited = [
                (result.median(backlog, each, measure), words)
                for measure, words in (("wait_p99_seconds", "99 % of"), ("wait_max_seconds", "the longest of"))
            ]
            payments = result.median(backlog, each, "payments") or 0
            said = [f"{words} {payments:,.0f} payments waited {duration(value)}" for value, words in waited if value][
                :1
            ]
            parts.append(f"{spoken(each)} {duration(longest)}{f' ({said[0]})' if said else ''}")
    return Finding("How long customers may wait", f"The longest transaction: {'; '.join(parts)}.") if parts else None


def dead_rows(result: Result) -> Finding | None:
    """What the entries of expired accounts, which only a VACUUM removes, do to the question of a tick."""
    scenario, worst = largest(result, "half"), result.contender("never-vacuumed")
    if not (scenario and worst):
        return None
    whole, above, before, after = (
        result.median(scenario, worst, f"{measure}_seconds")
        for measure in ("whole", "above", "tick_before", "tick_after")
    )
    if whole is None or above is None or before is None or after is None:
        return None
    return Finding(
        "What dead rows cost a tick",
        f"{scenario.title} and with nothing vacuumed, whether any account is due took {duration(whole)} to ask of all "
        f"trials and {duration(above)} above the low-water mark. A tick took {duration(after)}, and "
        f"{duration(before)} before.",
    )


def recovery(result: Result) -> Finding | None:
    """From the kill of a working process until all was done."""
    scenario = largest(result, "faults")
    times = [
        f"{spoken(each)} {duration(seconds)}"
        for each in result.contenders
        if scenario and (seconds := result.median(scenario, each, "worker_seconds"))
    ]
    if not scenario or not times:
        return None
    return Finding("Killed in the middle of a run", f"{scenario.title}. Until all was done: {listed(times)}.")


FINDINGS = (
    short_answer,
    wrong_outcomes,
    concurrency,
    mails,
    standing_worker,
    cost_at_rest,
    engines,
    customers_wait,
    access,
    dead_rows,
    recovery,
)


def verdict(result: Result) -> list[Finding]:
    """Every finding that the figures allow, the most important first."""
    return [finding for find in FINDINGS if (finding := find(result))]
