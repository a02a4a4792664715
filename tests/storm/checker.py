"""The checker: what the triggers' log, the customers' journal and the mails say of a storm.

It imports nothing that it checks, and asks the rule by its own code. All moments are seconds since 1970.
"""

import json
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from email import message_from_string
from email.policy import default as modern
from pathlib import Path
from typing import Any, NamedTuple

DAY = 86400
GRACE = DAY
TAKES_NONE = {"succeeded", "refused", "undone"}
AFTER = {"pay": "active", "extend": "trialing", "cancel": "canceled", "delete": None}
VISIBLE = 1.0
"""Within so many seconds others see a commit, once it has its time."""
RECORDED = 3.0
"""Within so many seconds the answer to a mail is recorded."""

Finding = tuple[str, str]
"""The name of the check, and what it found."""
Lines = list[dict[str, Any]]


class Change(NamedTuple):
    """A row of the log: what an account was before and after."""

    who: str
    account: int
    old: str | None
    new: str | None
    old_ends: float
    new_ends: float
    old_run: int | None
    new_run: int | None
    expired_at: float
    xid: str
    commit: float


class Checker:
    """Reads what a storm left, and keeps what its checks find."""

    def __init__(self, sql: Any, directory: Path) -> None:
        def seconds(*names: str) -> str:
            return ", ".join(f"coalesce(extract(epoch FROM {name}), 0)::float8" for name in names)

        def lines(name: str) -> Lines:
            return [json.loads(line) for line in (directory / name).open()]

        def read(what: str, table: str) -> Any:
            return sql.execute(f"SELECT {what} FROM {table}").fetchall()  # noqa: S608 (our own words)

        self.log = [
            Change(*row)
            for row in read(
                f"who, account, old_status, new_status, {seconds('old_ends', 'new_ends')}, old_run, new_run, "
                f"{seconds('expired_at')}, xmin::text, {seconds('pg_xact_commit_timestamp(xmin)')}",
                "storm_log ORDER BY id",
            )
        ]
        self.runs = read(
            f"run, {seconds('as_of')}, old_status, new_status, expired, undone, xmin::text", "storm_runs ORDER BY id"
        )
        accounts = read(f"id, status, {seconds('trial_ends_at')}, expiry_run_id", "accounts_account")
        self.now = {account: tuple(row) for account, *row in accounts}
        self.ledger = read("id, expired_count, undone_count, floor", "accounts_expiryrun")
        self.events, self.journal, self.mails = map(lines, ("events.jsonl", "customers.jsonl", "mails.jsonl"))
        self.status = {run: status for run, _, _, status, *_ in self.runs}
        self.said = list(self.parsed())
        self.history: dict[int, list[Change]] = defaultdict(list)
        for change in self.log:
            self.history[change.account].append(change)

    def findings(self, *, mails: bool) -> list[Finding]:
        """What every check finds; those of the mails, if any were sent."""
        checks = (self.wrongly_expired, self.past_the_log, self.miscounted, self.untrue_to_customers, self.late)
        of_mails = (self.mails_without_reason, self.mails_again, self.mails_missing)
        return [finding for check in (*checks, *(of_mails if mails else ())) for finding in check()]

    def state(self, account: int, begin: float, end: float) -> list[Change]:
        """The changes that made the account what it was from ``begin`` to ``end``, by the times of the commits."""
        changes = self.history[account]
        commits = [change.commit for change in changes]
        return changes[max(0, bisect_right(commits, begin) - 1) : bisect_right(commits, end)]

    def wrongly_expired(self) -> Iterator[Finding]:
        """Only an account that was on trial, past its end and grace as of the run, expires, and only once."""
        as_of = {run: moment for run, moment, *_ in self.runs}
        for change in (change for change in self.log if change.new == "trial_expired"):
            run, moment = change.new_run, as_of.get(change.new_run, 0)
            past = moment - GRACE - change.old_ends
            if change.old == "trial_expired":
                yield "expired twice", f"account {change.account} by runs {change.old_run} and {run}"
            elif change.old != "trialing" or past <= 0 or moment != change.expired_at or moment > change.commit + 1:
                yield (
                    "wrongly expired",
                    f"account {change.account}, {change.old}, {past:.1f} s past grace, by run {run}",
                )

    def past_the_log(self) -> Iterator[Finding]:
        """The log is whole: each change begins where the one before ended, and the last one is what is stored."""
        for account, changes in self.history.items():
            ends = [(None, 0, None), *((c.new, c.new_ends, c.new_run) for c in changes)]
            begins = [*((c.old, c.old_ends, c.old_run) for c in changes), self.now.get(account, (None, 0, None))]
            if ends != begins:
                yield "log", f"account {account} was changed past the log: {ends} is not {begins}"

    def miscounted(self) -> Iterator[Finding]:
        """Each transaction counts what it changes, no closed run takes accounts, the sums are right, all runs ended."""
        expired = Counter((c.new_run, c.xid) for c in self.log if c.new == "trial_expired")
        back = [c for c in self.log if c.old == "trial_expired" and c.old_run and not c.new_run]
        undone = Counter((c.old_run, c.xid) for c in back if c.who.startswith("undo"))
        counted, given = Counter[Any](), Counter[Any]()
        for run, _, old, _, more, less, xid in self.runs:
            counted[run, xid] += more
            given[run, xid] += less
            if more and old in TAKES_NONE:
                yield "closed run", f"run {run} was {old} and expired {more} more"
        for what, said, done in (("expired", counted, expired), ("undone", given, undone)):
            for key in said.keys() | done.keys():
                if said[key] != done[key]:
                    yield "count", f"a transaction counted {said[key]} as {what} by run {key[0]}, and did {done[key]}"
        left = Counter(c.old_run for c in self.log if c.old_run and not c.new_run and not c.who.startswith("undo"))
        pointing = Counter(run for _, _, run in self.now.values())
        for run, total, less, _ in self.ledger:
            if total != pointing[run] + less + left[run]:
                yield "ledger", f"run {run}: {total} is not {pointing[run]} + {less} undone + {left[run]} left since"
            if self.status.get(run) == "running":
                yield "late", f"run {run} is still running"

    def untrue_to_customers(self) -> Iterator[Finding]:
        """What customers were told is done was done, once; what they were told is not, was not."""
        did: dict[str, list[Any]] = defaultdict(list)
        for change in self.log:
            did[change.who].append((change.account, change.new))
        results: dict[str, Any] = {line["who"]: line["result"] for line in self.journal if line["what"] == "done"}
        for line in self.journal:
            if line["what"] == "intent":
                who, act = line["who"], [(line["account"], AFTER[line["verb"]])]
                result = results.get(who, "nothing")
                outcomes: dict[Any, list[Any]] = {True: [act], False: [[]]}
                if did[who] not in outcomes.get(result, [act, []]):
                    yield "lost" if result is True else "doubled", f"{line['verb']} of {who}, told {result}: {did[who]}"

    def late(self) -> Iterator[Finding]:
        """After each of the last ticks nobody is due, but who was locked meanwhile."""
        for event in (event for event in self.events if event["what"] == "last_tick"):
            for account in self.history:
                for change in self.state(account, event["at"], event["at"])[-1:]:
                    over = event["cutoff"] - change.new_ends
                    if change.new == "trialing" and over > 0 and account != event["locked"]:
                        yield "late", f"account {account} is due since {over:.1f} s after the last tick"

    def parsed(self) -> Iterator[tuple[tuple[int, str, float], str, dict[str, Any]]]:
        """Each mail: what it says to whom about which end of a trial, to the minute; its Message-ID, and its line."""
        for line in self.mails:
            mail = message_from_string(line["mail"], policy=modern)
            text = mail.get_body(("plain",)).get_content()  # type: ignore[union-attr]
            said = " ".join(re.findall(r"on\s+(\d+)\s(\w+)\s(\d{4}),\s(\d\d:\d\d)\sUTC", text)[0])
            ends = datetime.strptime(said, "%d %B %Y %H:%M").replace(tzinfo=UTC).timestamp()
            kind = "ended" if "has ended" in mail["Subject"] else "ending"
            yield (int(mail["To"].split("@")[0]), kind, ends), mail["Message-ID"], line

    def mails_without_reason(self) -> Iterator[Finding]:
        """A mail is true between the answer before it, after which its sender asks again, and its own begin."""
        for (account, kind, ends), _, line in self.said:
            begin, end = line["since"] - VISIBLE, line["asked"]
            was = self.state(account, begin, end)
            now = [c.new for c in was if ends <= c.new_ends < ends + 60]
            due = any(begin < ends + 60 - days * DAY and ends - most * DAY <= end for days, most in ((0, 1), (2, 7)))
            if ("trial_expired" if kind == "ended" else "trialing") not in now or not (due or kind == "ended"):
                yield "mail without reason", f"{kind}, to account {account}, which was {[c.new for c in was]}"

    def mails_again(self) -> Iterator[Finding]:
        """A mail comes again only after a cut, or after a kill before the answer was recorded; and it is the same."""
        kills = [event["at"] for event in self.events if event["what"] == "kill"]
        pauses = sorted((event["since"], event["at"]) for event in self.events if event.get("since"))
        copies: dict[Any, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
        for what, name, line in self.said:
            copies[what].append((name, line))
        for (account, kind, _), each in copies.items():
            if len({name for name, _ in each}) > 1:
                yield "mail's name", f"{kind}, to account {account}: {len(each)} copies with different Message-IDs"
            for _, first in each[:-1]:
                reach = first["at"] + RECORDED
                for begin, end in pauses:  # whoever was frozen, or had no database, recorded it later
                    reach = max(reach, end + RECORDED) if begin <= reach and end >= first["asked"] else reach
                if first["answered"] and not any(first["asked"] <= kill <= reach for kill in kills):
                    yield "mail doubled", f"{kind}, to account {account}: it was answered and nobody was killed"

    def mails_missing(self) -> Iterator[Finding]:
        """Whoever is still expired at the end was told so."""
        told = {what for what, *_ in self.said}
        for account, (status, ends, run) in self.now.items():
            if run and status == "trial_expired" and (account, "ended", ends // 60 * 60) not in told:
                yield "mail lost", f"account {account} was never told that its trial has ended"

    def figures(self) -> dict[str, float]:
        """How much there was to check."""
        intents = {line["who"]: line for line in self.journal if line["what"] == "intent"}
        done = [line for line in self.journal if line["what"] == "done"]
        return {
            **Counter(f"{intents[line['who']]['verb']}_done" for line in done if line["result"]),
            "longest_wait_of_a_customer_s": max(line["at"] - intents[line["who"]]["at"] for line in done),
            "accounts": len(self.history),
            "expired": sum(change.new == "trial_expired" for change in self.log),
            "put_back": sum(less for *_, less, _ in self.runs),
            **Counter(f"runs_{status}" for status in self.status.values()),
            "runs_from_the_low_water_mark": sum(floor is not None for *_, floor in self.ledger),
            "mails": len(self.mails),
            "mails_that_came_again": len(self.mails) - len({what for what, *_ in self.said}),
        }
