"""Change many rows in short transactions: cut them into slices of keys, then change one slice at a time.

Knows no model: it takes any queryset whose model has an ordered primary key, such as integers or UUIDs. It compares
keys and never calculates with them. Imports only Django, so this one file can be taken elsewhere.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import DatabaseError, connection, transaction
from django.db.models import F, Q, QuerySet, Window
from django.db.models.functions import Lead, RowNumber

logger = logging.getLogger(__name__)

LOCK_NOT_AVAILABLE = "55P03"
RETRIED = {LOCK_NOT_AVAILABLE, "40P01", "40001"}  # the others: deadlock detected, serialization failure
ATTEMPTS = 5
PAUSE = 1.5
"""Seconds before a slice that found a whole table, or the row it is counted in, locked is tried again."""

# How long a statement waits for a lock. Less than PostgreSQL's deadlock_timeout (1 s), so that PostgreSQL never ends a
# payment as the victim of a deadlock with a slice. The count waits for no longer than that either, because the slice's
# rows stay locked meanwhile: whoever pays waits for one slice and this.
LOCK_TIMEOUT = "200ms"


@dataclass(frozen=True, slots=True)
class Slice:
    """A closed range of primary keys. It names no rows: which rows it has is asked when it runs."""

    first: Any
    last: Any


def plan(rows: QuerySet[Any], *, size: int) -> tuple[list[Slice], int]:
    """Cut the rows into slices of at most ``size``, by primary key; returns the slices, and how many rows there are.

    The answer of the database grows with the number of slices, not of rows. A row that qualifies later, with a key
    between two slices, belongs to none of them.
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
"""Called with the number of slices done and of all slices: to show progress, or to stop by raising."""


def log_plainly(level: int, event: str, **fields: Any) -> None:
    """Log ``event key=value ...``."""
    logger.log(level, " ".join((event, *(f"{key}={value}" for key, value in fields.items()))))


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What is done to the rows of a slice: one UPDATE of those that qualify at that moment, and a count of them.

    A slice may run twice, late, or concurrently with another. On PostgreSQL none of its statements waits longer than
    ``LOCK_TIMEOUT`` for a lock.
    """

    rows: QuerySet[Any]
    """Which rows qualify. Asked again inside each UPDATE."""
    values: Mapping[str, Any]
    """What they become."""
    count: Callable[[int, timedelta], bool]
    """Called last in the same transaction with the number of rows and how long they have been locked. When it returns
    False, the slice is rolled back."""
    log: Callable[..., None] = log_plainly
    """Called with a level, the name of an event, and fields, when a slice is tried again or fails."""

    def on_each(self, slices: Sequence[Slice], *, after_slice: AfterSlice = lambda done, total: None) -> int:
        """Change the slices, one after the other; returns how many rows changed.

        A slice that fails does not stop the others; when all have run, the first error is raised. A database that
        cannot be reached any more stops them at once.
        """
        changed = 0
        errors: list[DatabaseError] = []
        for done, keys in enumerate(slices, start=1):
            try:
                changed += self.on(keys)
            except DatabaseError as error:
                if not connection.is_usable():
                    raise
                errors.append(error)
            after_slice(done, len(slices))
        if errors:
            raise errors[0]
        return changed

    def on(self, keys: Slice) -> int:
        """Change the rows of one slice, in one short transaction; returns how many.

        A deadlock or serialization failure is retried. A row that another transaction holds a lock on is left out, and
        the others are changed. A lock on the whole table is waited for, for ``PAUSE`` at a time and about six seconds
        in all, while the slice itself holds no lock.

        Raises:
            DatabaseError: the slice failed for good, and changed nothing.
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
                    if skip_locked:  # so it is no row of this slice
                        time.sleep(PAUSE)
                    skip_locked = True
        raise AssertionError("unreachable")

    def _attempt(self, rows: QuerySet[Any], *, skip_locked: bool) -> int:
        # durable: inside the caller's transaction the locks would be held, and the count unseen, until that one ends.
        with transaction.atomic(durable=True):
            started = time.monotonic()
            if connection.vendor == "postgresql":
                with connection.cursor() as cursor:
                    cursor.execute("SELECT set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
            if skip_locked:  # 2.8 times the work, so only where it is needed
                locked = rows.select_for_update(skip_locked=True).values("pk")
                rows = rows.model._default_manager.filter(pk__in=locked)
            changed = rows.update(**self.values)
            # Last, because slices that run at the same moment wait for each other here, until the commit.
            if not self.count(changed, timedelta(seconds=time.monotonic() - started)):
                transaction.set_rollback(True)
                return 0
        return changed
