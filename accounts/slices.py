"""Change many rows in short transactions: cut one range of rows (a slice) after the other, and change each by itself.

Takes any queryset, and the fields to walk it by. Compares their values and does no arithmetic with them, so keys may be
integers or UUIDs. Imports only Django and threads.py, so a project can copy these two files.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from django.db import DatabaseError, connection, transaction
from django.db.models import BooleanField, Func, QuerySet, Value
from django.db.models.lookups import GreaterThan, LessThanOrEqual

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

AIM = timedelta(milliseconds=100)
"""How long a slice should keep its rows locked."""
FEWEST, FIRST, MOST = 100, 500, 50_000
"""Rows of a slice: at least, while nothing is known of their speed, and at most."""
LONGEST_PAUSE = 5.0
"""Seconds that a throttled slice pauses at most, so that a signal never waits longer."""

Rows = TypeVar("Rows", bound=QuerySet[Any])
Position = tuple[Any, ...]
"""The values of a row in the fields that rows are walked by."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows after one position and up to another. It lists none: the UPDATE selects those between that qualify."""

    after: Position | None
    """Not included; None for the first slice."""
    upto: Position
    """Included."""
    rows: int = 0
    """How many qualified when the slice was cut."""


def next_size(rows: int, locked: timedelta) -> int:
    """How many rows would be locked for ``AIM``, judging by a slice that locked ``rows`` for ``locked``.

    At most four times as many, because the next rows may be slower: their pages may not be in memory. And not much
    fewer at once: on a machine with more to do than processors, a slice takes long however few rows it has, and small
    ones would only add to that. So up to four times ``AIM`` at least half as many, and up to twice ``AIM`` no fewer
    than ``FIRST`` because of it.
    """
    ideal = rows * (AIM / max(locked, timedelta(microseconds=1)))
    if locked < 4 * AIM:
        ideal = max(ideal, rows / 2)
    if locked < 2 * AIM:
        ideal = max(ideal, min(rows, FIRST))
    return int(max(FEWEST, min(MOST, 4 * rows, ideal)))


class Row(Func):
    """Several values as one, which SQL compares from the left to the right: ``(a, b) > (1, 2)``."""

    template = "(%(expressions)s)"
    output_field = BooleanField()  # what a comparison of two rows is; a row itself is never selected


AfterSlice = Callable[[int, Slice], None]
"""Called with the number of rows in the slices done so far and the slice done last, to show progress, or to stop by
raising an exception."""


def log_plainly(level: int, event: str, **fields: Any) -> None:
    """Log ``event key=value ...``."""
    logger.log(level, " ".join((event, *(f"{key}={value}" for key, value in fields.items()))))


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """What a slice did, for the one who counts it."""

    rows: int
    """How many changed."""
    locked: timedelta
    """How long they have been locked."""
    skipped: bool
    """Whether rows that another transaction had locked may have been left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """The change of a slice: one UPDATE of the rows that qualify at that moment, and a count of them.

    A slice may run twice, late, or concurrently with another. On PostgreSQL none of its statements waits longer than
    ``LOCK_TIMEOUT`` for a lock.
    """

    rows: QuerySet[Any]
    """The rows that qualify. Each UPDATE applies this condition again."""
    order: tuple[str, ...] = ("pk",)
    """The fields to walk the rows by: together unique, and the order of an index of the rows that qualify."""
    values: Mapping[str, Any]
    """The new values of their fields."""
    count: Callable[[Counted], bool]
    """Called last in the same transaction. When it returns False, the slice is rolled back."""
    before: Callable[[QuerySet[Any]], object] = lambda rows: None
    """Called first in the same transaction with the rows that will change. It must lock them, and no row may start to
    qualify afterwards, so that the UPDATE changes the same rows."""
    throttle: float = 0
    """Pause after each slice for so many times as long as it took, for replicas that lag."""
    log: Callable[..., None] = log_plainly
    """Called with a level, an event name and fields when a slice is retried or fails."""

    def walk(self, *, size: Callable[[], int | None], after: Position | None = None) -> Iterator[Slice]:
        """Cut the rows into slices, each when it is asked for: so the first is there at once, however many rows follow.

        A row that qualifies later, at a position that was passed, is in none of them. Rows that were changed are not
        read again, also while their dead entries are still in the index.

        Args:
            size: called before each slice: how many rows it should have; None ends the walk.
            after: where to begin: what an earlier slice went up to.
        """
        while (rows := size()) and (keys := self._cut(after, rows)):
            yield keys
            after = keys.upto

    def _cut(self, after: Position | None, size: int) -> Slice | None:
        rest = within(self.rows, self.order, after=after)
        positions = rest.order_by(*self.order).values_list(*self.order)
        if found := list(positions[size - 1 : size]):
            return Slice(after, found[0], size)
        last = positions.reverse().first()
        return Slice(after, last, rest.count()) if last else None

    def on_each(
        self, slices: Iterable[Slice], *, after_slice: AfterSlice = lambda done, keys: None, jobs: int = 1
    ) -> int:
        """Change the slices, ``jobs`` at a time; returns how many rows changed.

        A slice that fails does not stop the others; when all have run, the first error is raised. A lost connection to
        the database stops them at once. ``after_slice`` is called in this thread.
        """
        changed = done = 0
        errors: list[DatabaseError] = []
        with closing(side_by_side(self._outcomes, slices, jobs=jobs)) as outcomes:
            for keys, outcome in outcomes:
                if isinstance(outcome, DatabaseError):
                    errors.append(outcome)
                else:
                    changed += outcome
                done += keys.rows
                after_slice(done, keys)
        if errors:
            raise errors[0]
        return changed

    def _outcomes(self, slices: Iterator[Slice]) -> Results[tuple[Slice, int | DatabaseError]]:
        for keys in slices:
            outcome: int | DatabaseError
            try:
                outcome = self.on(keys)
            except DatabaseError as error:
                if not connection.is_usable():
                    raise
                outcome = error
            yield keys, outcome

    def on(self, keys: Slice) -> int:
        """Change the rows of one slice, in one short transaction; returns how many.

        A deadlock or serialization failure is retried. Rows that another transaction holds a lock on are skipped, and
        the others are changed. While the whole table is locked, the slice is retried every ``PAUSE`` seconds, for about
        six seconds in all, and holds no lock between the attempts.

        Raises:
            DatabaseError: the slice failed after its retries, and changed nothing.
        """
        rows = within(self.rows, self.order, after=keys.after, upto=keys.upto)
        skip_locked = False
        for attempt in range(1, ATTEMPTS + 1):
            started = time.monotonic()
            try:
                changed = self._attempt(rows, skip_locked=skip_locked)
            except DatabaseError as error:
                state = getattr(error.__cause__, "sqlstate", None)
                again = state in RETRIED and attempt < ATTEMPTS
                self.log(
                    logging.INFO if again else logging.WARNING,
                    "slice_retried" if again else "slice_failed",
                    after=keys.after and keys.after[-1],
                    upto=keys.upto[-1],
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
            else:
                if self.throttle:
                    time.sleep(min(LONGEST_PAUSE, self.throttle * (time.monotonic() - started)))
                return changed
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
            took = timedelta(seconds=time.monotonic() - started)
            # Last, because concurrent slices wait for each other's row lock here, until the commit.
            if not self.count(Counted(rows=changed, locked=took, skipped=skip_locked)):
                transaction.set_rollback(True)
                return 0
        return changed


def within(rows: Rows, order: tuple[str, ...], *, after: Position | None = None, upto: Position | None = None) -> Rows:
    """The rows after one position and up to another, by the fields of ``order``; None: from the first, to the last.

    Each bound is also given for the first field alone: by the comparison of two rows PostgreSQL does not estimate how
    many are between them, and would read the whole table for a slice near the end of the walk.
    """

    def row(position: Position) -> Row:
        fields = position_fields(rows, order)
        return Row(*(Value(value, output_field=field) for value, field in zip(position, fields, strict=True)))

    found = rows
    if after is not None:
        found = found.filter(GreaterThan(Row(*order), row(after)), **{f"{order[0]}__gte": after[0]})
    if upto is not None:
        found = found.filter(LessThanOrEqual(Row(*order), row(upto)), **{f"{order[0]}__lte": upto[0]})
    return found


def position_fields(rows: QuerySet[Any], order: Iterable[str]) -> list[Any]:
    """The model fields that the rows are walked by."""
    options = rows.model._meta
    return [options.pk if name == "pk" else options.get_field(name) for name in order]
