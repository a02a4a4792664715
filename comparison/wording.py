"""Quantities as people read them: three significant digits at most, with their unit, never in powers of ten."""

from math import floor, log10

SPACE = "\N{NO-BREAK SPACE}"
"""Between a figure and its unit."""


def figure(value: float) -> str:
    """Three significant digits, and no zeros after the point only: 0.0123, 1.20, 12, 123, 12,300."""
    return digits(value).removesuffix(".00").removesuffix(".0")


def digits(value: float) -> str:
    """Exactly three significant digits: 0.0123, 1.00, 12.0, 123, 12,300."""
    if value == 0:
        return "0"
    place = 2 - floor(log10(abs(value)))
    rounded = round(value, place)
    place = 2 - floor(log10(abs(rounded)))  # 9.996 becomes 10.0, not 10.00
    return f"{rounded:,.{max(0, place)}f}"


def duration(seconds: float) -> str:
    """In the unit that suits: 350 µs, 12.3 ms, 4.50 s, 12 min, 3 h."""
    for unit, size, upto in (("µs", 1e-6, 0.9995e-3), ("ms", 1e-3, 0.9995), ("s", 1, 120), ("min", 60, 7200)):
        if seconds < upto:
            return f"{figure(seconds / size)}{SPACE}{unit}"
    return f"{figure(seconds / 3600)}{SPACE}h"


def memory(size: float) -> str:
    """Bytes as megabytes, of a million each: 65.4 MB."""
    return f"{figure(size / 1e6)}{SPACE}MB"


def extent(lowest: str, highest: str) -> str:
    """Two quantities as a range, their unit said once where it is the same: 4.24 to 4.77 s."""
    return f"{lowest.removesuffix(SPACE + highest.rpartition(SPACE)[2])} to {highest}"


def times(ratio: float) -> str:
    """A ratio, with the multiplication sign: 1.18 times."""
    return f"{digits(ratio)}\N{MULTIPLICATION SIGN}"


def accounts(number: int) -> str:
    """A count, with thousands apart: 1,000,000."""
    return f"{number:,}"


def listed(words: list[str]) -> str:
    """Words as a sentence has them: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
