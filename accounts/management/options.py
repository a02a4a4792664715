"""The argparse types of the commands' options. Each parses one string, or explains in a sentence why it cannot."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from django.db import connection
from django.utils import timezone
from django.utils.text import Truncator

MOST = 1_000_000_000
LONGEST_AGE = 87_600  # hours: ten years
YEARS = range(1000, 9001)  # no overflow when any setting in days is added or subtracted


def quoted(text: str) -> str:
    """``text`` for a message: in quotation marks, on one line, and truncated when it is long."""
    return repr(Truncator(text).chars(60))


def whole_number(*, at_most: int = MOST) -> Callable[[str], int]:
    """The type of a whole number from 1 to ``at_most``."""

    def read(text: str) -> int:
        with suppress(ValueError):
            if 1 <= (number := int(text)) <= at_most:
                return number
        raise ArgumentTypeError(f"it must be a whole number from 1 to {at_most}, not {quoted(text)}.")

    return read


def factor(*, at_most: float) -> Callable[[str], float]:
    """The type of a number from 0 to ``at_most``."""

    def read(text: str) -> float:
        with suppress(ValueError):
            if 0 <= (number := float(text)) <= at_most:
                return number
        raise ArgumentTypeError(f"it must be a number from 0 to {at_most:g}, not {quoted(text)}.")

    return read


MOST_JOBS = 64
"""PostgreSQL accepts 100 connections by default, and the web processes and workers need some of them."""


def jobs(text: str) -> int:
    """The type of a number of threads, each with a database connection of its own; on SQLite 1."""
    number = whole_number(at_most=MOST_JOBS)(text)
    if number > 1 and connection.vendor == "sqlite":
        raise ArgumentTypeError(f"{number} needs PostgreSQL: SQLite has one writer. Use 1, the default.")
    return number


def hours(text: str) -> float:
    """The type of a duration in hours, above 0 and at most ten years."""
    with suppress(ValueError):
        if 0 < (number := float(text)) <= LONGEST_AGE:
            return number
    raise ArgumentTypeError(f"it must be a number of hours above 0 and at most {LONGEST_AGE}, not {quoted(text)}.")


def moment(text: str) -> datetime:
    """The type of a moment in ISO 8601 with a time zone, converted to UTC."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(
            f"{quoted(text)} is not an ISO 8601 date and time such as 2026-03-01T00:00:00Z."
        ) from None
    if timezone.is_naive(read):
        raise ArgumentTypeError(f"{text} has no time zone. Add one, such as {read.isoformat()}Z for UTC.")
    if read.year not in YEARS:
        raise ArgumentTypeError(f"{text} must lie in the years {YEARS[0]} to {YEARS[-1]}.")
    return read.astimezone(UTC)


def name(*, at_most: int) -> Callable[[str], str]:
    """The type of a name that the database can store and a terminal can show."""

    def read(text: str) -> str:
        if not (0 < len(text) <= at_most and text.isprintable()):
            raise ArgumentTypeError(f"it must be 1 to {at_most} printable characters, not {quoted(text)}.")
        return text

    return read
