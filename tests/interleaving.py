"""Runs two functions in every interleaving of their SQL statements, as PostgreSQL's own isolation tester does.

Each function runs in a thread with a database connection of its own, and waits for its turn before each step. A step
that waits for a lock is found by asking the server, and then the other session goes on: an order that a lock forbids
does not exist. A step is one statement, with the BEGIN that psycopg sends before it, or a COMMIT or a ROLLBACK. These
are no steps, because neither function can notice their place:

- a BEGIN, which under READ COMMITTED takes no snapshot;
- a statement that reads only tables in which the other changes nothing, and changes only tables that it does not touch;
- the end of a transaction that changed and locked nothing.

For the same reason two orders are one when they differ only in neighbours that read the same tables, or different ones.
Of those one is run (Godefroid's sleep sets).
"""

import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, Self

import psycopg
import pytest
from django.db import DEFAULT_DB_ALIAS, connection, connections

Verb = Callable[[], object]

DEADLINE = 30
"""Seconds within which a step ends, or waits for a lock."""

ASK_AFTER = 0.002
"""Seconds that a step may take before the server is asked whether it waits for a lock."""

TABLES = re.compile(r"\b(?:accounts|users|django)_\w+")
LOCKS = re.compile(r"\bFOR (?:NO KEY )?UPDATE\b")


class Done(NamedTuple):
    """What became of a function: its result, or the name of its exception."""

    result: object = None
    error: str = ""


def do(verb: Verb) -> Done:
    try:
        return Done(verb())
    except Exception as error:
        return Done(error=type(error).__name__)


@dataclass
class Footprint:
    """The tables that a function touches, and those of them in which it changed or locked rows."""

    touched: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)

    def see(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        """Execute a statement, and add its tables."""
        result = execute(sql, params, many, context)
        tables = TABLES.findall(sql)
        self.touched.update(tables)
        if tables and context["cursor"].rowcount > 0:
            if LOCKS.search(sql):
                self.changed.update(tables)
            if sql.startswith(("INSERT", "UPDATE", "DELETE")):
                self.changed.add(tables[0])
        return result

    def meets(self, other: "Footprint", tables: Collection[str]) -> bool:
        """Whether a statement of this function on these tables can notice, or be noticed by, the other function."""
        return not (other.changed | self.changed & other.touched).isdisjoint(tables)


class Step(NamedTuple):
    """What a session does at its next turn."""

    what: str
    touched: frozenset[str]
    changed: frozenset[str]

    def meets(self, other: "Step") -> bool:
        """Whether it matters which of two neighbours comes first."""
        return not (self.touched.isdisjoint(other.changed) and self.changed.isdisjoint(other.touched))


class Session:
    """A thread with a database connection that runs one function at a time, step by step."""

    def __init__(self, news: threading.Condition) -> None:
        self.news = news
        """Notified when a session comes to a step, may take it, or has ended."""
        self.step: Step | None = None
        """The step for which it waits for its turn."""
        self.done: Done | None = None
        self.gives_up = False
        """Whether its waits for a lock have a timeout."""
        self.pid = 0
        self.mine, self.others = Footprint(), Footprint()
        self._to_end = False
        """Whether its transaction changed or locked anything, so that its end is a step."""
        self._stopped = False
        self._verbs = SimpleQueue[Verb | None]()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def begin(self, verb: Verb) -> None:
        """Run the function until its first step."""
        self.done = None
        self._verbs.put(verb)

    def take_the_step(self) -> None:
        with self.news:
            self.step = None
            self.news.notify_all()

    def stop(self) -> None:
        """End the thread and its connection, also in the middle of a function."""
        self._stopped = True
        self._verbs.put(None)
        self.take_the_step()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    def is_at_rest(self) -> bool:
        """Whether it waits for its turn or has ended."""
        return self.step is not None or self.done is not None

    def _work(self) -> None:
        own = connections[DEFAULT_DB_ALIAS]
        with ExitStack() as stack:
            stack.callback(own.close)
            with own.cursor() as cursor:
                cursor.execute("SET deadlock_timeout = '20ms'")
                cursor.execute("SET synchronous_commit = off")  # thousands of commits
                cursor.execute("SELECT pg_backend_pid()")
                (self.pid,) = cursor.fetchone()
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for end in ("_commit", "_rollback"):
                patch.setattr(own, end, partial(self._end, end[1:].upper(), getattr(own, end)))
            stack.enter_context(own.execute_wrapper(self._statement))
            while verb := self._verbs.get():
                done = do(verb)
                with self.news:
                    self.done = done
                    self.news.notify_all()

    def _statement(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        tables = TABLES.findall(sql)
        reads_only = sql.startswith("SELECT") and not LOCKS.search(sql)
        if self.mine.meets(self.others, tables):
            self.gives_up = context["connection"].connection.execute("SHOW lock_timeout").fetchone() != ("0",)
            what = " ".join((sql.split(maxsplit=1)[0], *dict.fromkeys(tables)))
            changed = frozenset[str]() if reads_only else self.mine.changed.intersection(tables)
            self._wait_for_turn(Step(what, frozenset(tables), frozenset(changed)))
        if tables and not reads_only:
            self._to_end = context["connection"].in_atomic_block
        return self.mine.see(execute, sql, params, many, context)

    def _end(self, name: str, end: Callable[[], None]) -> None:
        if self._to_end:
            self._to_end = False
            self._wait_for_turn(Step(name, frozenset(self.mine.touched), frozenset(self.mine.changed)))
        end()

    def _wait_for_turn(self, step: Step) -> None:
        with self.news:
            self.step = step
            self.news.notify_all()
            assert self.news.wait_for(lambda: self.step is None, DEADLINE), f"no turn came for {step.what}"
        assert not self._stopped


@dataclass
class Place:
    """A place in the order of the steps."""

    untried: list[Session]
    """The sessions that could make this step and have not yet; the first one makes it now."""
    tried: Session | None = None


class Schedule(NamedTuple):
    """The steps in their order, each after a 1 or 2 for its session, and what became of the two functions."""

    steps: list[str]
    done: tuple[Done, Done]


class IsolationTester:
    """Two sessions, and a connection that asks the server whether one of them waits for a lock.

    Args:
        patient: whether a step whose wait for a lock has a timeout waits until the other session has gone on.
            Otherwise the other session stays where it is until the timeout.
    """

    def __init__(self, *, patient: bool) -> None:
        self.patient = patient
        self.news = threading.Condition()
        self.sessions = Session(self.news), Session(self.news)
        self.server = psycopg.connect(**connection.get_connection_params(), autocommit=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.server:
            for session in self.sessions:
                self.server.execute("SELECT pg_terminate_backend(%s)", [session.pid])
        for session in self.sessions:
            session.stop()

    def one_after_the_other(self, first: Verb, second: Verb, *, swapped: bool = False) -> tuple[Done, Done]:
        """Run the two in this thread, the second one first when ``swapped``, and learn what they touch."""
        done = {}
        for number in (1, 0) if swapped else (0, 1):
            with connection.execute_wrapper(self.sessions[number].mine.see):
                done[number] = do((first, second)[number])
        return done[0], done[1]

    def every_schedule(self, first: Verb, second: Verb, *, reset: Callable[[], object]) -> Iterator[Schedule]:
        """Run the two in every interleaving, each after ``reset()``; yields each when both have ended."""
        one, two = self.sessions
        one.others, two.others = learnt = deepcopy((two.mine, one.mine))
        path: list[Place] = []
        while True:
            reset()
            one.begin(first)
            two.begin(second)
            steps, is_new = self._go(path)
            assert one.done
            assert two.done
            assert (two.mine, one.mine) == learnt, f"it touches more than when it is alone: {steps}"
            if is_new:
                yield Schedule(steps, (one.done, two.done))
            while path and len(path[-1].untried) == 1:  # depth first
                path.pop()
            if not path:
                return
            path[-1].tried = path[-1].untried.pop(0)

    def _go(self, path: list[Place]) -> tuple[list[str], bool]:
        """Go along the path and on to the end, and add the places there; returns the steps, and whether they are new.

        They are not when a session sleeps to the end. It sleeps where the order with its step before that of the other
        has been tried, until the other makes a step that meets it.
        """
        steps: list[str] = []
        is_new = True
        asleep: Session | None = None
        while ready := self._ready():
            awake = [session for session in ready if session is not asleep]
            is_new = is_new and bool(awake)
            if len(path) == len(steps):
                path.append(Place(awake if is_new else ready[:1]))
            place = path[len(steps)]
            mover = place.untried[0]
            assert mover in ready, f"not reproducible after {steps}"
            assert mover.step
            asleep = place.tried or asleep
            if asleep is mover or (asleep and asleep.step and asleep.step.meets(mover.step)):
                asleep = None
            steps.append(f"{self.sessions.index(mover) + 1} {mover.step.what}")
            mover.take_the_step()
        return steps, is_new

    def _ready(self) -> list[Session]:
        """The sessions that can make a step: those that have not ended and wait for no lock."""
        while True:
            for session in self.sessions:
                self._let_come_to_rest(session)
            at_rest = [session for session in self.sessions if session.is_at_rest()]
            if not at_rest:  # a deadlock, of which PostgreSQL ends one
                with self.news:
                    assert self.news.wait_for(lambda: any(map(Session.is_at_rest, self.sessions)), DEADLINE)
            # Asked again, because the other has come to rest only since, and may have released the lock.
            elif all(session in at_rest or self._waits_for_a_lock(session) for session in self.sessions):
                return [session for session in at_rest if session.step]

    def _let_come_to_rest(self, session: Session) -> None:
        """Wait until it waits for its turn, has ended, or waits for a lock of the other session."""
        end = time.monotonic() + DEADLINE
        while True:
            with self.news:
                if self.news.wait_for(session.is_at_rest, ASK_AFTER):
                    return
            if (self.patient or not session.gives_up) and self._waits_for_a_lock(session):
                return
            assert time.monotonic() < end, "a step did not end"

    def _waits_for_a_lock(self, session: Session) -> bool:
        pids = [each.pid for each in self.sessions]
        (waits,) = self.server.execute(
            "SELECT pg_isolation_test_session_is_blocked(%s, %s)", [session.pid, pids]
        ).fetchone() or (False,)
        return bool(waits)
