"""Durations as people say them."""

from datetime import timedelta
from math import floor, log10

from django import template

register = template.Library()

UNITS = (("days", 86_400.0, 2), ("h", 3_600.0, 2), ("min", 60.0, 2), ("s", 1.0, 1), ("ms", 1e-3, 1), ("µs", 1e-6, 1))
"""Each with its seconds, and from how many of it on it is used: 90 min, not 1.5 h."""


@register.filter
def duration(value: timedelta | float | None, digits: int = 2) -> str:
    """Say it in the unit that suits, with ``digits`` or more: 63 ms, 4.2 s, 35 min, 12 days; a dash for None.

    Args:
        value: a number is seconds.
        digits: significant ones. Zeros that would end a fraction are left out where nothing else follows the point.
    """
    if value is None:
        return "–"  # noqa: RUF001 (a dash, not a minus)
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not seconds:
        return "0 ms"
    # Rounded before the unit is chosen: 999.6 ms is 1 s.
    seconds = round(seconds, max(0, digits - 1 - floor(log10(abs(seconds)))))
    unit, size, _ = next((each for each in UNITS if abs(seconds) >= each[1] * each[2]), UNITS[-1])
    number = seconds / size
    decimals = max(0, digits - 1 - floor(log10(abs(number)))) if number else 0
    text = f"{number:.{decimals}f}"
    return f"{text.removesuffix('.' + '0' * decimals)} {unit}"
