"""How long transactions took, by the log of the database server: exact to a millisecond, however short they are.

With ``log_min_duration_statement=0`` a session has each of its statements noted, with the moment at which it ended and
how long it took. A transaction lasts from the start of its BEGIN to the end of its COMMIT. The other sources miss some:
``pg_stat_activity`` shows what runs at the moment of asking, and no statistics view has single transactions.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Self

from django.db import Error, connection, transaction

SESSION_OPTIONS = "-c log_min_duration_statement=0"  # of libpq, as in ``PGOPTIONS``
LINE = re.compile(
    # The default of log_line_prefix is '%m [%p] '. What an extended query has before "execute" takes no lock.
    r"^(?P<ended>\S+ [\d:.]+) \S+ \[(?P<session>\d+)\] LOG:  duration: (?P<ms>[\d.]+) ms"
    r"  (?:statement|execute [^:]*):\s+(?P<statement>.*?)\s*$",
    re.DOTALL,
)
WRITES = re.compile(r"^(UPDATE|INSERT|DELETE|MERGE|COPY|WITH)\b|\bFOR (NO KEY )?UPDATE\b", re.IGNORECASE)


class Statement(NamedTuple):
    """A statement as the log has it."""

    session: str
    started: float  # seconds
    ended: float
    text: str


@dataclass(frozen=True)
class ServerLog:
    """The log since a moment."""

    begin: int  # bytes

    @classmethod
    def from_now(cls) -> Self | None:
        """None where the server's log cannot be read: it is so only on the comparison's own server."""
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT size FROM pg_stat_file('log', true)")
                (size,) = cursor.fetchone()
        except Error:
            return None
        return None if size is None else cls(size)

    def statements(self) -> Iterator[Statement]:
        """Those of the sessions that have them noted, in the order of their ends."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_read_file('log', %s, size) FROM pg_stat_file('log')", [self.begin])
            (text,) = cursor.fetchone()
        yield from statements(text)


def statements(log: str) -> Iterator[Statement]:
    """The statements in the text of a log. One of several lines is continued on lines that begin with a tab."""
    for entry in re.split(r"^(?=\d{4}-\d\d-\d\d )", log, flags=re.MULTILINE):
        if found := LINE.match(entry):
            ended = datetime.fromisoformat(found["ended"]).timestamp()
            yield Statement(found["session"], ended - float(found["ms"]) / 1000, ended, found["statement"])


def longest_write(noted: Iterable[Statement]) -> float:
    """Seconds of the longest transaction that wrote or locked rows; 0 when none did."""
    longest = 0.0
    began: dict[str, float] = {}  # by session with an open transaction
    wrote: set[str] = set()
    for session, started, ended, text in noted:
        verb = text.partition(" ")[0].rstrip(";").upper()  # a check of the connection is an empty statement
        if verb == "BEGIN":
            began[session] = started
            continue
        if WRITES.search(text):
            wrote.add(session)
        over = verb == "COMMIT" or (verb == "ROLLBACK" and "TO SAVEPOINT" not in text)
        if over or session not in began:
            if session in wrote:
                longest = max(longest, ended - began.get(session, started))
            began.pop(session, None)
            wrote.discard(session)
    return longest
