"""The geometry of a bar chart: one stacked bar for each day, as rectangles that admin/overview_chart.html draws."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """The part of a bar that belongs to one series. The chart is 1000 high and 10 wide for each day; y points down."""

    series: str
    y: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """The bar of one day."""

    day: date
    x: int
    counts: list[int]
    """One count for each series."""
    segments: list[Segment]
    """The rectangles to draw; none for a count of 0."""

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
    total: int

    @property
    def width(self) -> int:
        """The width of the chart, in the units of ``Bar.x``."""
        return 10 * len(self.bars)


def stacked_bars(days: Iterable[date], series: Mapping[str, Mapping[date, int]]) -> Chart:
    """Stack the counts of each series, the first at the bottom, for each of the days."""
    rows: list[tuple[date, list[int]]] = [(day, [counts.get(day, 0) for counts in series.values()]) for day in days]
    highest = max(sum(counts) for _, counts in rows)
    bars = [
        Bar(day=day, x=10 * number, counts=counts, segments=_stack(series, counts, highest))
        for number, (day, counts) in enumerate(rows)
    ]
    return Chart(bars=bars, series=list(series), highest=highest, total=sum(bar.count for bar in bars))


def _stack(series: Iterable[str], counts: Iterable[int], highest: int) -> list[Segment]:
    segments, top = [], 1000
    for name, count in zip(series, counts, strict=True):
        if count:
            height = max(round(1000 * count / highest), 10)  # high enough to be visible
            top -= height
            segments.append(Segment(series=name, y=max(top, 0), height=height))
    return segments
