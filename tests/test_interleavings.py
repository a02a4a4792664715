"""Two verbs at once come out as one after the other, in whatever order their statements reach the database.

What comes out is what the tables and the mailbox hold, the signals that were sent, and what both verbs returned.
"""

import json
import re
from collections.abc import Callable, Iterator
from copy import copy
from datetime import datetime
from difflib import unified_diff
from functools import partial
from itertools import combinations_with_replacement, permutations, product
from typing import Any, NamedTuple

import pytest
from django.db import connection
from django.dispatch import Signal
from psycopg.sql import SQL, Composed, Identifier, Literal

from accounts import delivery, erasure, ledger, notices, services
from accounts.models import Account, ExpiryRun
from accounts.slices import Slice
from sandbox.mail_server import Mailbox
from tests.interleaving import Done, IsolationTester, Schedule
from tests.runs import DAY, expire
from tests.trials import trialing

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres, pytest.mark.interleavings]

TABLES = ("users_user", "accounts_expiryrun", "accounts_account", "accounts_accountevent", "accounts_notice")

OF_THE_CLOCK = {"at", "claimed", "finished", "heartbeat", "next_attempt", "queued", "sent", "undone_at"}
"""Columns of which it matters only whether they have a value, and whether it is the one from before."""

OF_CHANCE = {"longest_slice", "slice_size", "skipped"}
"""Columns that say how fast a slice was, and whether it met a lock."""


class World:
    """A run has expired one account and has not come to another. It has been silent for so long that it counts as dead.

    The customer of the expired account is owed the mail about it. Both accounts were extended once.
    """

    def __init__(self, now: datetime, mailbox: Mailbox) -> None:
        self.now, self.mailbox = now, mailbox
        self.expired = self._overdue()
        self.run = expire(now)
        self.due = self._overdue()
        self.account = self.due
        """The one that the verbs of one account change."""
        dead = ExpiryRun.objects.filter(pk=self.run.pk)
        dead.update(status=ExpiryRun.Status.RUNNING, finished=None, heartbeat=now - DAY)
        self.run.refresh_from_db()
        self.another_run = ExpiryRun.objects.create(path=ExpiryRun.Path.COMMAND, as_of=now)
        self.slice = Slice(None, (now, 0))  # every account whose trial has ended
        self.undo_slice = Slice(None, (self.due.pk,))  # every account
        assert notices.queue_notices(now=now).total == 1
        self.signals: list[str] = []
        self._before = self._rows()
        self._restore = _statements_that_restore(self._before)

    def _overdue(self) -> Account:
        account = trialing(-40 * DAY, self.now)
        assert services.extend_trial(account_id=account.pk, days=1, now=self.now - 50 * DAY)
        return account

    def reset(self) -> None:
        """Make everything as it was at first."""
        self.mailbox.received.clear()
        self.signals.clear()
        with connection.cursor() as cursor:
            cursor.execute(self._restore)

    def state(self) -> str:
        """What the tables and the mailbox hold, and the signals sent, which follow a commit in no order, as text."""
        rows = self._rows()
        for table, before in self._before.items():
            old = {row["id"]: row for row in before}
            for row in rows[table]:
                same = old.get(row["id"], {"id": "new"})
                for column in OF_THE_CLOCK & row.keys():
                    if row[column] is not None:
                        row[column] = "as before" if row[column] == same.get(column) else "another"
                row["id"] = same["id"]
                for column in OF_CHANCE:
                    row.pop(column, None)
        return json.dumps({**rows, "mails": self.mailbox.recipients, "signals": sorted(self.signals)}, indent=1)

    def _rows(self) -> dict[str, list[dict[str, Any]]]:
        tables = SQL(", ").join(
            SQL("{}, (SELECT coalesce(json_agg(t ORDER BY id), '[]') FROM {} t)").format(
                Literal(name), Identifier(name)
            )
            for name in TABLES
        )
        with connection.cursor() as cursor:
            cursor.execute(SQL("SELECT json_build_object({})::text").format(tables))
            rows: dict[str, list[dict[str, Any]]] = json.loads(cursor.fetchone()[0])
        return rows


def _statements_that_restore(rows: dict[str, list[dict[str, Any]]]) -> Composed:
    deletes = [SQL("DELETE FROM {};").format(Identifier(table)) for table in reversed(TABLES)]
    inserts = [
        SQL("INSERT INTO {0} SELECT * FROM json_populate_recordset(NULL::{0}, {1});").format(
            Identifier(table), Literal(json.dumps(rows[table]))
        )
        for table in TABLES
    ]
    return SQL("").join([SQL("SET LOCAL synchronous_commit = off;"), *deletes, *inserts])


def undo_a_slice(world: World) -> int:
    """What ``undo_run`` does without cutting slices, which adds ten statements."""
    run = copy(world.run)
    ledger.mark_undone(run, by="operator")
    return services.undo_by(run=run, now=world.now, by="operator").on(world.undo_slice)


Verb = Callable[[World], object]

VERBS: dict[str, Verb] = {
    "expire": lambda world: services.expire_slice(run=copy(world.run), keys=world.slice),
    "expire by another run": lambda world: services.expire_slice(run=copy(world.another_run), keys=world.slice),
    "undo": lambda world: services.undo_run(run=copy(world.run), now=world.now, by="operator", batch_size=10),
    "undo a slice": undo_a_slice,
    "activate": lambda world: services.activate(account_id=world.account.pk),
    "extend": lambda world: services.extend_trial(account_id=world.account.pk, days=14, now=world.now),
    "cancel": lambda world: services.cancel(account_id=world.account.pk),
    "delete": lambda world: erasure.erase(user=copy(world.account.user)),
    # Not how many it skipped: that depends on whether a customer was deleted before or after the claim of the mail.
    "deliver": lambda world: delivery.deliver_notices(now=world.now, limit=1).sent,
    "finish": lambda world: ledger.finish_run(run_id=world.run.pk),
    "fail": lambda world: ledger.fail_run(run_id=world.run.pk, error=ValueError("no reason")),
    "mark dead": lambda world: ledger.mark_dead_runs_interrupted(),
}
OF_ONE_ACCOUNT = {"activate", "extend", "cancel", "delete"}

LEFT_FOR_LATER: dict[str, Verb] = {
    "expire": lambda world: None,
    "expire by another run": lambda world: None,
    "undo a slice": lambda world: ledger.mark_undone(copy(world.run), by="operator"),
    "undo": lambda world: ledger.mark_undone(copy(world.run), by="operator"),
}
"""The one exception, with what then remains of each verb. These wait for a lock for 200 ms, then try again and skip the
rows that are locked, and fail when the ledger's row is locked at every attempt. What they did not get is left for the
next run, or for the next call of the undo. Only with ``patient`` False."""


class Outcome(NamedTuple):
    state: str
    done: tuple[Done, Done]


@pytest.fixture
def world(now: datetime, mailbox: Mailbox) -> Iterator[World]:
    world = World(now, mailbox)

    def hear(signal: Signal, **_: Any) -> None:
        world.signals.append("expired" if signal is ledger.trials_expired else "undone")

    for signal in (ledger.trials_expired, ledger.expiry_undone):
        signal.connect(hear)
    yield world
    for signal in (ledger.trials_expired, ledger.expiry_undone):
        signal.disconnect(hear)


IN_TEST_FAULTS = {("expire", "activate"), ("activate", "delete"), ("deliver", "deliver")}
"""The pairs that ``make test-faults`` runs, too."""


PAIRS = [
    pytest.param(*pair, marks=[pytest.mark.faults] if pair in IN_TEST_FAULTS else [], id=" and ".join(pair))
    for pair in combinations_with_replacement(VERBS, 2)
    if pair != ("undo", "undo")  # tens of thousands of orders; "undo a slice" has all that changes anything
]


@pytest.mark.parametrize("patient", [pytest.param(True, id="patient"), pytest.param(False, id="impatient")])
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_verbs_at_once_come_out_as_one_after_the_other(
    world: World, first: str, second: str, *, patient: bool, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    if not patient and not {first, second} & LEFT_FOR_LATER.keys():
        pytest.skip("neither has a timeout for locks")
    # Either the other goes on in time, or the wait for a lock always ends first. In production it is 200 ms.
    monkeypatch.setattr("accounts.slices.LOCK_TIMEOUT", "30s" if patient else "10ms")
    monkeypatch.setattr("accounts.slices.ATTEMPTS", 2)
    schedules = exceptions = 0
    for account in ("due", "expired") if {first, second} & OF_ONE_ACCOUNT else ("due",):
        world.account = getattr(world, account)
        one, two = partial(VERBS[first], world), partial(VERBS[second], world)
        with IsolationTester(patient=patient) as tester:
            serial = set()
            for swapped in (False, True):
                world.reset()
                done = tester.one_after_the_other(one, two, swapped=swapped)
                serial.add(Outcome(world.state(), done))
            alike = {(without_slices_that_got_nothing(each.state), each.done) for each in serial}
            left = set() if patient else states_left_for_later(world, first, second)
            for schedule in tester.every_schedule(one, two, reset=world.reset):
                schedules += 1
                outcome = Outcome(world.state(), schedule.done)
                if outcome not in serial:
                    exceptions += 1
                    state = without_slices_that_got_nothing(outcome.state)
                    gave_up = {done.error for done in schedule.done} <= {"", "OperationalError"} and state in left
                    got_nothing = (state, schedule.done) in alike
                    is_known = gave_up or got_nothing
                    assert is_known, told(account, schedule, outcome, serial)
    record_property("schedules", schedules)
    record_property("exceptions", exceptions)


def states_left_for_later(world: World, *names: str) -> set[str]:
    """The states in which only what then remains of a verb was done, or of both."""
    states = set()
    for verbs in product(*({VERBS[name], LEFT_FOR_LATER.get(name, VERBS[name])} for name in names)):
        for order in permutations(verbs):
            world.reset()
            for verb in order:
                verb(world)
            states.add(without_slices_that_got_nothing(world.state()))
    return states


def without_slices_that_got_nothing(state: str) -> str:
    """A slice that got nothing counts as a slice, and as a sign of life of its run."""
    return re.sub(r'"(heartbeat|slice_count)": .*', "", state)


def told(account: str, schedule: Schedule, outcome: Outcome, serial: set[Outcome]) -> str:
    """The order of the statements, and how what came out differs from one after the other."""
    lines = [f"The account is {account}.", *schedule.steps]
    for one in serial:
        differences = unified_diff(one.state.splitlines(), outcome.state.splitlines(), lineterm="", n=0)
        lines += ["", f"{one.done} is", f"{outcome.done} here", *list(differences)[2:]]
    return "\n".join(lines)
