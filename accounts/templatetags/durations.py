"""The formatter of durations."""

from datetime import timedelta
from math import floor, log10

from django import template

register = template.Library()

UNITS = (("days", 86_400.0, 2), ("h", 3_600.0, 2), ("min", 60.0, 2), ("s", 1.0, 1), ("ms", 1e-3, 1), ("µs", 1e-6, 1))
"""Name, seconds, and the smallest number for which the unit is used: 90 min, not 1.5 h."""


@register.filter
def duration(value: timedelta | float | None, digits: int = 2) -> str:
    """Format a duration in a suitable unit: 63 ms, 4.2 s, 35 min, 12 days; a dash for None.

    Args:
        value: a timedelta, or a number of seconds.
        digits: the number of significant digits, at least. A fraction of zeros only is omitted.
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
