"""Durations as people say them."""

from datetime import timedelta

from django import template

register = template.Library()

UNITS = (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0), ("s", 1.0), ("ms", 0.001))


@register.filter
def duration(value: timedelta | None) -> str:
    """Two digits or more, in the largest unit that fits: 63 ms, 4.2 s, 35 min, 1.5 h, 12 days; a dash for None."""
    if value is None:
        return "–"  # noqa: RUF001 (a dash, not a minus)
    seconds = value.total_seconds()
    unit, size = next(((unit, size) for unit, size in UNITS if abs(seconds) >= size), UNITS[-1])
    number = seconds / size
    return f"{number:.0f} {unit}" if abs(number) >= 9.95 or unit == "ms" else f"{number:.1f} {unit}"
