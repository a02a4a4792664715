"""The charts of a report, as SVG in the colours of the page around it.

Horizontal places are percentages and text keeps its size, so one drawing fits a screen and a phone. Scales are
logarithmic: some contenders take a hundred times as long as others.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import ceil, floor, log10
from typing import NamedTuple

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from comparison.measurements import Contender, Result, Scenario
from comparison.quantities import duration
from comparison.tables import COMMAND, MAIL_COMMAND

ROW, TOP, BOTTOM = 44, 20, 260  # CSS pixels: of a row of dots, and of the frame of lines
LEFT, RIGHT = 8.0, 62.0  # percent: the frame of lines, beside which each line is named
LABEL = '<text class="muted" x="{}%" y="{}" text-anchor="{}">{}</text>'
GRID = '<line class="grid" x1="{}%" y1="{}" x2="{}%" y2="{}"/>'


class Chart(NamedTuple):
    """A drawing with what it needs to be read."""

    title: str
    svg: SafeString
    caption: str


class Series(NamedTuple):
    """What was measured of one contender."""

    label: str
    colour: str  # A class of the page's style sheet
    points: Sequence[tuple[float, float]]
    """Dots lie at the second of each, and the figure that is written beside them is the first's."""


def scenario_charts(result: Result, scenario: Scenario) -> Iterator[Chart]:
    """Time, and how long customers waited."""
    watched = [
        each for each in result.in_scenarios(scenario) if result.median(scenario, each, "cpu_seconds") is not None
    ]
    times, waits = [], []
    for each in watched:
        time, *wait = (
            result.figures.get((scenario.name, each.name, f"{measure}seconds"))
            for measure in ("", "wait_p99_", "wait_median_", "wait_max_")
        )
        if time:
            times.append(series(result, scenario, each, [time.spread.median, *time.values.values()]))
        if all(wait):
            waits.append(series(result, scenario, each, [figure.spread.median for figure in wait if figure]))
    if times:
        caption = "A dot is a round; the line, and the figure, is the median. The scale is logarithmic."
        yield Chart(title="Time", svg=dots("Time", times), caption=caption)
    if waits:
        title = "How long a paying customer waits"
        caption = "Dots: the median, the 99th percentile, which is the line and the figure, and the longest. "
        yield Chart(title=title, svg=dots(title, waits), caption=caption + "The scale is logarithmic.")


def growth_chart(result: Result, scenarios: Sequence[Scenario]) -> Chart | None:
    """Time against the number of due accounts; None where only one size was measured."""
    lines = []
    for each in result.in_scenarios(*scenarios):
        points = [(of.due, value) for of in scenarios if (value := result.median(of, each)) and of.due]
        if len(points) > 1:
            lines.append(Series(label=each.title, colour=colour(result, scenarios[-1], each), points=points))
    title = "Time as the work grows"
    caption = "Medians, start-up included. Both scales are logarithmic."
    return Chart(title=title, svg=growth(title, lines), caption=caption) if lines else None


def series(result: Result, scenario: Scenario, contender: Contender, values: Sequence[float]) -> Series:
    """A row of dots; the first value is the figure."""
    points = [(values[0], value) for value in values]
    return Series(label=contender.title, colour=colour(result, scenario, contender), points=points)


def colour(result: Result, scenario: Scenario, contender: Contender) -> str:
    """The command and Celery stand out; of several Celery contenders the last one most."""
    if contender.name in (COMMAND, MAIL_COMMAND):
        return "command"
    celery = [each for each in result.in_scenarios(scenario) if each.path == "celery"]
    return "reference" if contender not in celery else "celery" if contender == celery[-1] else "celery-light"


def dots(title: str, rows: Sequence[Series]) -> SafeString:
    """For each row its values as dots, and its figure as a line and in words."""
    shown = [y for row in rows for _, y in row.points]
    place, height = scale(min(shown), max(shown), 1, 99), ROW * len(rows)
    parts = [format_html(GRID, place(tick), 0, place(tick), height) for tick in ticks(min(shown), max(shown))]
    for top, row in zip(range(0, height, ROW), rows, strict=True):
        figure, y = row.points[0][0], top + 30
        circles = format_html_join(
            "", '<circle cx="{}%" cy="{}" r="4"/>', ((place(value), y) for _, value in row.points)
        )
        line = '<line x1="{0}%" x2="{0}%" y1="{1}" y2="{2}" stroke-width="3"/>'
        parts += [
            format_html('<text y="{}">{}</text>', top + 15, row.label),
            format_html('<text x="100%" y="{}" text-anchor="end">{}</text>', top + 15, duration(figure)),
            format_html(GRID, 0, y, 100, y),
            format_html('<g class="{}">{}{}</g>', row.colour, circles, format_html(line, place(figure), y - 8, y + 8)),
        ]
    return drawing(title, parts, height=height)


def growth(title: str, lines: Sequence[Series]) -> SafeString:
    """Lines on two axes, each named where it ends."""
    xs = sorted({x for line in lines for x, _ in line.points})
    ys = [y for line in lines for _, y in line.points]
    across, up = scale(xs[0], xs[-1], LEFT, RIGHT), scale(min(ys), max(ys), BOTTOM, TOP)
    lines = sorted(lines, key=lambda line: -line.points[-1][1])
    gap = (BOTTOM - TOP) / max(1, len(lines) - 1)  # between two names, which stand in the order of the lines' ends
    parts = [
        format_html(LABEL, 0, TOP - 10, "start", "seconds"),
        format_html(LABEL, RIGHT, BOTTOM + 36, "end", "due accounts"),
        *(format_html(LABEL, across(x), BOTTOM + 18, "middle", f"{x:,.0f}") for x in xs),
    ]
    for y in ticks(min(ys), max(ys)):
        parts.append(format_html(GRID, LEFT, up(y), RIGHT, up(y)))
        parts.append(format_html(LABEL, LEFT - 1.5, up(y) + 4, "end", f"{y:,.6f}".rstrip("0").rstrip(".")))
    for number, line in enumerate(lines):
        places, name = [(across(x), up(y)) for x, y in line.points], TOP + number * gap
        segments = [(*start, *stop) for start, stop in pairwise(places)] + [(RIGHT, places[-1][1], RIGHT + 3, name)]
        stroke = '<line x1="{}%" y1="{}" x2="{}%" y2="{}" stroke-width="2"/>'
        drawn = format_html_join("", stroke, segments) + format_html_join(
            "", '<circle cx="{}%" cy="{}" r="3"/>', places
        )
        named = '<g class="{}">{}<text x="{}%" y="{}">{}</text></g>'
        parts.append(format_html(named, line.colour, drawn, RIGHT + 3.5, name + 4, line.label))
    return drawing(title, parts, height=BOTTOM + 42)


def drawing(title: str, parts: Sequence[SafeString], *, height: int) -> SafeString:
    """The ``<svg>`` element."""
    head = '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{}" width="100%" height="{}">{}</svg>'
    return format_html(head, title, height, mark_safe("".join(parts)))  # noqa: S308 (each is safe)


def scale(lowest: float, highest: float, start: float, end: float) -> Callable[[float], float]:
    """Where a value belongs on a logarithmic axis."""
    wide = log10(highest / lowest) or 1
    return lambda value: round(start + (end - start) * log10(value / lowest) / wide, 2)


def ticks(lowest: float, highest: float) -> list[float]:
    """Powers of ten between the two, and 2 and 5 times those where these are few."""
    steps = (1, 2, 5) if highest / lowest < 100 else (1,)
    powers = range(floor(log10(lowest)), ceil(log10(highest)) + 1)
    return [value for power in powers for step in steps if lowest <= (value := step * 10.0**power) <= highest]
