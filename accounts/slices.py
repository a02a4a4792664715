"""Change many rows in short transactions: plan key ranges (slices), then change one slice at a time, or a few at once.

Takes any queryset whose model has an ordered primary key, such as integers or UUIDs. Compares keys and does no
arithmetic with them. Imports only Django and threads.py, so a project can copy these two files.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import DatabaseError, connection, transaction
from django.db.models import F, Q, QuerySet, Window
from django.db.models.functions import Lead, RowNumber

from accounts.threads import Results, side_by_side

logger = logging.getLogger(__name__)

LOCK_NOT_AVAILABLE = "55P03"
ROLLED_BACK = {"40P01", "40001"}
"""The SQLSTATE of a deadlock and of a serialization failure: the same transaction may succeed when it is repeated."""
RETRIED = ROLLED_BACK | {LOCK_NOT_AVAILABLE}
ATTEMPTS = 5
PAUSE = 1.5
"""Seconds before a slice is retried that found a whole table, or the row that counts it, locked."""

# How long a statement waits for a lock. Less than PostgreSQL's deadlock_timeout (1 s), so that PostgreSQL never aborts
# a payment as the victim of a deadlock with a slice. It also limits the wait of the count, during which the slice's
# rows stay locked: so a payment waits at most for one slice and this timeout.
LOCK_TIMEOUT = "200ms"


@dataclass(frozen=True, slots=True)
class Slice:
    """A closed range of primary keys. It lists no rows: the UPDATE selects those in the range that qualify."""

    first: Any
    last: Any


def plan(rows: QuerySet[Any], *, size: int) -> tuple[list[Slice], int]:
    """Divide the rows into slices of at most ``size``, by primary key; returns the slices and the number of rows.

    The result of the query grows with the number of slices, not of rows. A row that qualifies later, with a key between
    two slices, is in none of them.
    """
    numbered = rows.annotate(number=Window(RowNumber(), order_by="pk"), following=Window(Lead("pk"), order_by="pk"))
    edges = numbered.annotate(remainder=F("number") % size).filter(
        Q(remainder__in={0, 1 % size}) | Q(following__isnull=True)
    )
    found = list(edges.order_by("number").values_list("pk", "number"))
    if not found:
        return [], 0
    last_key, count = found[-1]
    firsts = [key for key, number in found if number % size == 1 % size]
    lasts = [key for key, number in found[:-1] if number % size == 0]
    return [Slice(first, last) for first, last in zip(firsts, [*lasts, last_key], strict=True)], count


AfterSlice = Callable[[int, int], None]
"""Called with the number of slices done and of all slices, to show progress, or to stop by raising an exception."""


def log_plainly(level: int, event: str, **fields: Any) -> None:
    """Log ``event key=value ...``."""
    logger.log(level, " ".join((event, *(f"{key}={value}" for key, value in fields.items()))))


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """The change of a slice: one UPDATE of the rows that qualify at that moment, and a count of them.

    A slice may run twice, late, or concurrently with another. On PostgreSQL none of its statements waits longer than
    ``LOCK_TIMEOUT`` for a lock.
    """

    rows: QuerySet[Any]
    """The rows that qualify. Each UPDATE applies this condition again."""
    values: Mapping[str, Any]
    """The new values of their fields."""
    count: Callable[[int, timedelta], bool]
    """Called last in the same transaction with the number of rows and how long they have been locked. When it returns
    False, the slice is rolled back."""
    before: Callable[[QuerySet[Any]], object] = lambda rows: None
    """Called first in the same transaction with the rows that will change. It must lock them, and no row may start to
    qualify afterwards, so that the UPDATE changes the same rows."""
    log: Callable[..., None] = log_plainly
    """Called with a level, an event name and fields when a slice is retried or fails."""

    def on_each(
        self, slices: Sequence[Slice], *, after_slice: AfterSlice = lambda done, total: None, jobs: int = 1
    ) -> int:
        """Change the slices, ``jobs`` at a time; returns how many rows changed.

        A slice that fails does not stop the others; when all have run, the first error is raised. A lost connection to
        the database stops them at once. ``after_slice`` is called in this thread.
        """
        changed = 0
        errors: list[DatabaseError] = []
        with closing(side_by_side(self._outcomes, slices, jobs=max(1, min(jobs, len(slices))))) as outcomes:
            for done, outcome in enumerate(outcomes, start=1):
                if isinstance(outcome, DatabaseError):
                    errors.append(outcome)
                else:
                    changed += outcome
                after_slice(done, len(slices))
        if errors:
            raise errors[0]
        return changed

    def _outcomes(self, slices: Iterator[Slice]) -> Results[int | DatabaseError]:
        for keys in slices:
            outcome: int | DatabaseError
            try:
                outcome = self.on(keys)
            except DatabaseError as error:
                if not connection.is_usable():
                    raise
                outcome = error
            yield outcome

    def on(self, keys: Slice) -> int:
        """Change the rows of one slice, in one short transaction; returns how many.

        A deadlock or serialization failure is retried. Rows that another transaction holds a lock on are skipped, and
        the others are changed. While the whole table is locked, the slice is retried every ``PAUSE`` seconds, for about
        six seconds in all, and holds no lock between the attempts.

        Raises:
            DatabaseError: the slice failed after its retries, and changed nothing.
        """
        rows = self.rows.filter(pk__gte=keys.first, pk__lte=keys.last)
        skip_locked = False
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._attempt(rows, skip_locked=skip_locked)
            except DatabaseError as error:
                state = getattr(error.__cause__, "sqlstate", None)
                again = state in RETRIED and attempt < ATTEMPTS
                self.log(
                    logging.INFO if again else logging.WARNING,
                    "slice_retried" if again else "slice_failed",
                    first=keys.first,
                    last=keys.last,
                    attempt=attempt,
                    error=type(error).__name__,
                    sqlstate=state,
                )
                if not again:
                    raise
                if state == LOCK_NOT_AVAILABLE:
                    if skip_locked:  # then the lock is not on a row of this slice
                        time.sleep(PAUSE)
                    skip_locked = True
        raise AssertionError("unreachable")

    def _attempt(self, rows: QuerySet[Any], *, skip_locked: bool) -> int:
        # durable: in an outer transaction, the locks would be held, and the count invisible, until that one ends.
        with transaction.atomic(durable=True):
            started = time.monotonic()
            if connection.vendor == "postgresql":
                with connection.cursor() as cursor:
                    cursor.execute("SELECT set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
            if skip_locked:  # takes 2.8 times as long, so only when it is needed
                locked = rows.select_for_update(skip_locked=True).values_list("pk", flat=True)
                rows = rows.model._default_manager.filter(pk__in=list(locked))
            self.before(rows)
            changed = rows.update(**self.values)
            # Last, because concurrent slices wait for each other's row lock here, until the commit.
            if not self.count(changed, timedelta(seconds=time.monotonic() - started)):
                transaction.set_rollback(True)
                return 0
        return changed
