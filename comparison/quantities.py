"""Quantities as people read them: three significant digits, with their unit."""

from math import floor, log10

from accounts.templatetags import durations
from comparison.measurements import Spread

SPACE = "\N{NO-BREAK SPACE}"  # between a figure and its unit


def digits(value: float) -> str:
    """Exactly three significant digits: 0.0123, 1.00, 12.0, 123, 12,300."""
    if value == 0:
        return "0"
    rounded = round(value, 2 - floor(log10(abs(value))))
    return f"{rounded:,.{max(0, 2 - floor(log10(abs(rounded))))}f}"  # 9.996 is 10.0, not 10.00


def number(value: float) -> str:
    """Three significant digits, and no fraction of zeros only: 1.20, 12, 12,300."""
    return digits(value).removesuffix(".00").removesuffix(".0")


def duration(seconds: float) -> str:
    """In the unit that suits: 350 µs, 12.3 ms, 4.50 s, 12 min, 3 h."""
    return durations.duration(seconds, digits=3).replace(" ", SPACE)


def times(ratio: float) -> str:
    """A ratio, with the multiplication sign: 1.18 times."""
    return f"{digits(ratio)}\N{MULTIPLICATION SIGN}"


def quantity(measure: str, value: float) -> str:
    """A value of a measure, whose name ends with its unit; without one it is a count. A MB is a million bytes."""
    if measure.endswith("share"):
        return f"{value:.0%}"
    if measure.endswith("seconds"):
        return duration(value)
    if not value:
        return "none"
    return f"{number(value / 1e6)}{SPACE}MB" if measure.endswith("bytes") else f"{value:,.0f}"


def ratio_and_spread(ratio: Spread) -> str:
    """The median and, of several rounds, the lowest and the highest; to a hundredth where that counts."""
    median, lowest, highest = (
        f"{value:.2f}" if 0.1 <= value < 10 else digits(value) for value in (ratio.median, ratio.lowest, ratio.highest)
    )
    return median if ratio.lowest == ratio.highest else f"{median} ({lowest}\N{EN DASH}{highest})"


def listed(words: list[str]) -> str:
    """Words as a sentence has them: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
