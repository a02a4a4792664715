"""The chart of growth, as SVG in the colours of the page around it.

Horizontal places are percentages and text keeps its size, so one drawing fits a screen and a phone. Scales are
logarithmic: some contenders take a hundred times as long as others.
"""

from collections.abc import Callable
from itertools import pairwise
from math import ceil, floor, log10

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from comparison.measurements import Contender, Result
from comparison.tables import COMMAND

TOP, BOTTOM = 20, 260  # CSS pixels: the frame of the lines
LEFT, RIGHT = 8.0, 62.0  # percent: the frame of the lines, beside which each line is named
LABEL = '<text class="muted" x="{}%" y="{}" text-anchor="{}">{}</text>'
GRID = '<line class="grid" x1="{}%" y1="{}" x2="{}%" y2="{}"/>'


def growth_chart(result: Result) -> SafeString | None:
    """Time against the number of due accounts; None where only one size was measured.

    A line for each contender that was measured at every size: the others' would end in the middle.
    """
    backlogs = result.of_kind("backlog")
    lines = []
    for each in result.in_scenarios(*backlogs):
        points = [(of.due, value) for of in backlogs if (value := result.median(of, each)) and of.due]
        if len(points) == len(backlogs) > 1:
            lines.append((points, each))
    if not lines:
        return None
    lines.sort(key=lambda line: -line[0][-1][1])
    xs = sorted({x for points, _ in lines for x, _ in points})
    ys = [y for points, _ in lines for _, y in points]
    across, up = scale(xs[0], xs[-1], LEFT, RIGHT), scale(min(ys), max(ys), BOTTOM, TOP)
    gap = (BOTTOM - TOP) / max(1, len(lines) - 1)  # between two names, which stand in the order of the lines' ends
    parts = [
        format_html(LABEL, 0, TOP - 10, "start", "seconds"),
        format_html(LABEL, RIGHT, BOTTOM + 36, "end", "due accounts"),
        *(format_html(LABEL, across(x), BOTTOM + 18, "middle", f"{x:,.0f}") for x in xs),
    ]
    for y in ticks(min(ys), max(ys)):
        parts.append(format_html(GRID, LEFT, up(y), RIGHT, up(y)))
        parts.append(format_html(LABEL, LEFT - 1.5, up(y) + 4, "end", f"{y:,.6f}".rstrip("0").rstrip(".")))
    for number, (points, contender) in enumerate(lines):
        places, name = [(across(x), up(y)) for x, y in points], TOP + number * gap
        segments = [(*start, *stop) for start, stop in pairwise(places)] + [(RIGHT, places[-1][1], RIGHT + 3, name)]
        drawn = format_html_join("", '<line x1="{}%" y1="{}" x2="{}%" y2="{}" stroke-width="2"/>', segments)
        drawn += format_html_join("", '<circle cx="{}%" cy="{}" r="3"/>', places)
        named = '<g class="{}">{}<text x="{}%" y="{}">{}</text></g>'
        parts.append(format_html(named, colour(result, contender), drawn, RIGHT + 3.5, name + 4, contender.title))
    head = '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="Time as the work grows" width="100%"'
    return format_html(head + ' height="{}">{}</svg>', BOTTOM + 42, mark_safe("".join(parts)))  # noqa: S308 (each is)


def colour(result: Result, contender: Contender) -> str:
    """A class of the style sheet: the command and Celery stand out, the engines do not."""
    if contender.path == "celery":
        return "celery" if contender == result.rival else "celery-light"
    return "command" if contender.name == COMMAND or contender == result.several else "reference"


def scale(lowest: float, highest: float, start: float, end: float) -> Callable[[float], float]:
    """Where a value belongs on a logarithmic axis."""
    wide = log10(highest / lowest) or 1
    return lambda value: round(start + (end - start) * log10(value / lowest) / wide, 2)


def ticks(lowest: float, highest: float) -> list[float]:
    """Powers of ten between the two, and 2 and 5 times those where these are few."""
    steps = (1, 2, 5) if highest / lowest < 100 else (1,)
    powers = range(floor(log10(lowest)), ceil(log10(highest)) + 1)
    return [value for power in powers for step in steps if lowest <= (value := step * 10.0**power) <= highest]
