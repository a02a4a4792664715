"""How pages, messages and mails write moments, numbers, counts and durations: one style for all of them.

In templates, ``{% load words %}`` has each of these functions as a filter.
"""

from datetime import UTC, datetime, timedelta
from math import floor, log10

from django.utils import dateformat
from django.utils.formats import number_format

NOTHING = "–"  # noqa: RUF001 (a dash, not a minus)
"""Stands where there is no value."""


def moment(at: datetime | None, *, seconds: bool = False) -> str:
    """Format a moment in UTC, to the minute or the second: 24 November 2026, 02:41 UTC; a dash for None."""
    if at is None:
        return NOTHING
    return dateformat.format(at.astimezone(UTC), "j F Y, H:i:s" if seconds else "j F Y, H:i") + " UTC"


def number(value: float) -> str:
    """Format a number, rounded to a whole one, with its thousands separated: 51,234."""
    return number_format(round(value), force_grouping=True)


def number_up_to(value: int, most: int | None) -> str:
    """Format a count that stopped at ``most``: 51,234, or 100,000+ when there may be more. None: it did not stop."""
    return f"{number(value)}+" if most is not None and value >= most else number(value)


def plural(count: int, noun: str, nouns: str = "", *, most: int | None = None) -> str:
    """Format a count with its noun: 1 account, 51,234 accounts, and above ``most``: more than 1,000,000 accounts.

    ``nouns`` is an irregular plural, such as entries.
    """
    if most is not None and count > most:
        return f"more than {plural(most, noun, nouns)}"
    return f"{number(count)} {noun if count == 1 else nouns or f'{noun}s'}"


DAY, HOUR, MINUTE, SECOND = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)


def time_left(now: datetime, end: datetime) -> str:
    """Say how far ``end`` is from ``now``: in 3 days, in 34 hours, in 5 minutes; 3 days ago when it is past.

    Below two days it names hours and below two hours minutes, so that nobody counts on a day that is not whole. It
    rounds down, except what lacks less than one of the next smaller unit: an hourly schedule sends the reminder of
    seven days up to an hour late, and the mail says "in 7 days".
    """
    left = abs(end - now)
    text = "less than a minute"
    for name, unit, smaller, least in (("day", DAY, HOUR, 2), ("hour", HOUR, MINUTE, 2), ("minute", MINUTE, SECOND, 1)):
        if left >= least * unit:
            text = plural((left + smaller - timedelta.resolution) // unit, name)
            break
    return f"{text} ago" if end < now else f"in {text}"


UNITS = (("days", 86_400.0, 2), ("h", 3_600.0, 2), ("min", 60.0, 2), ("s", 1.0, 1), ("ms", 1e-3, 1), ("µs", 1e-6, 1))
"""Name, seconds, and the smallest number for which the unit is used: 90 min, not 1.5 h."""


def duration(value: timedelta | float | None, digits: int = 2) -> str:
    """Format a duration in a suitable unit: 63 ms, 4.2 s, 35 min, 12 days; a dash for None.

    Args:
        value: a timedelta, or a number of seconds.
        digits: the number of significant digits, at least. A fraction of zeros only is omitted.
    """
    if value is None:
        return NOTHING
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not seconds:
        return "0 ms"
    # Rounded before the unit is chosen: 999.6 ms is 1 s.
    seconds = round(seconds, max(0, digits - 1 - floor(log10(abs(seconds)))))
    unit, size, _ = next((each for each in UNITS if abs(seconds) >= each[1] * each[2]), UNITS[-1])
    in_units = seconds / size
    decimals = max(0, digits - 1 - floor(log10(abs(in_units)))) if in_units else 0
    text = f"{in_units:.{decimals}f}"
    return f"{text.removesuffix('.' + '0' * decimals)} {unit}"
