"""The geometry of a bar chart: one stacked bar for each day, as rectangles that admin/overview_chart.html draws."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date

HEIGHT = 1000
"""The height of the chart. Its y points down, and a bar is 10 wide."""

DAYS_BETWEEN_LABELS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """The part of a bar that belongs to one series."""

    series: str
    y: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """The bar of one day."""

    day: date
    by_series: list[tuple[str, int]]
    segments: list[Segment]
    """The rectangles to draw; none for a count of 0."""
    url: str
    """The list of the accounts; empty for a count of 0."""
    has_label: bool
    """Whether its day is written below it."""

    @property
    def counts(self) -> list[int]:
        """One count for each series."""
        return [count for _, count in self.by_series]

    @property
    def count(self) -> int:
        """The sum of all series."""
        return sum(self.counts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A bar for each day."""

    bars: list[Bar]
    series: list[str]
    highest: int
    """The count of the highest bar."""
    top: int
    """The count at the upper end of the axis: a round number, and even, so that its half can be written too."""
    total: int
    most: int | None
    """Where counting a day stopped; None when it did not."""

    @property
    def is_capped(self) -> bool:
        """Whether counting a day stopped, so that there are more."""
        return self.most is not None and self.highest >= self.most

    @property
    def middle(self) -> int:
        """The count in the middle of the axis."""
        return self.top // 2


def stacked_bars(
    days: Iterable[date],
    series: Mapping[str, Mapping[date, int]],
    *,
    url: Callable[[date], str] = lambda day: "",
    most: int | None = None,
) -> Chart:
    """Stack the counts of each series, the first at the bottom, for each of the days.

    Args:
        url: lists those of a day.
        most: where counting a day stopped.
    """
    rows: list[tuple[date, list[int]]] = [(day, [counts.get(day, 0) for counts in series.values()]) for day in days]
    highest = max(sum(counts) for _, counts in rows)
    top = round_number(highest)
    bars = [
        Bar(
            day=day,
            by_series=list(zip(series, counts, strict=True)),
            segments=_stack(series, counts, top),
            url=url(day) if sum(counts) else "",
            has_label=number % DAYS_BETWEEN_LABELS == 0,
        )
        for number, (day, counts) in enumerate(rows)
    ]
    total = sum(bar.count for bar in bars)
    return Chart(bars=bars, series=list(series), highest=highest, top=top, total=total, most=most)


def round_number(highest: int) -> int:
    """The smallest of 2, 4, 6, 8, 10, 20, 40, 60, ... that is not below ``highest``."""
    unit = 1
    while 10 * unit < highest:
        unit *= 10
    return next(step * unit for step in (2, 4, 6, 8, 10) if step * unit >= highest)


def _stack(series: Iterable[str], counts: Iterable[int], top: int) -> list[Segment]:
    segments, y = [], HEIGHT
    for name, count in zip(series, counts, strict=True):
        if count:
            height = max(round(HEIGHT * count / top), 10)  # high enough to be visible
            y -= height
            segments.append(Segment(series=name, y=max(y, 0), height=height))
    return segments
