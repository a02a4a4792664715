"""Plots for the report, as SVG that belongs to the page around it.

Text stays text, colours are CSS variables of the page, so light and dark need one picture, and the same figures make
the same bytes. Each plot is drawn twice, wide and for a phone: a picture that is only scaled down cannot be read.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf, log10
from statistics import fmean, median
from textwrap import fill

import matplotlib as mpl
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

WIDE, NARROW = 680, 340  # CSS pixels
ROW = 34  # CSS pixels


class Colour(Enum):
    """What matplotlib draws with; the page decides what it looks like. Told apart with any kind of colour vision."""

    INK = "#010203"
    MUTED = "#010204"
    GRID = "#010205"
    PAPER = "#010206"
    REFERENCE = "#010207"
    COMMAND = "#010208"
    CELERY = "#010209"
    CELERY_LIGHT = "#01020a"

    @property
    def variable(self) -> str:
        """The CSS variable of the page that stands for it."""
        return f"var(--{self.name.lower().replace('_', '-')})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of a plot: a contender, and what was measured of it."""

    label: str
    values: Sequence[float]
    """What is drawn; what each of them means is the plot's."""
    colour: Colour


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Something that grows: ``points`` are (x, y), in the order of x."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: Colour


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a stacked bar."""

    label: str
    value: float
    colour: Colour


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """The same plot twice, as ``<svg>`` elements; the page shows one of them."""

    wide: SafeString
    narrow: SafeString


Show = Callable[[float], str]
"""How a value is written beside its row."""


def rounds(title: str, rows: Sequence[Row], *, show: Show) -> Plot:
    """Every value as a dot and the median as a line, labelled, from zero.

    One row more than ten times as long as all others would press them together: it is only named, at the edge.
    """
    others = sorted(max(row.values) for row in rows)[:-1]
    edge = max(others) if others and min(max(rows, key=lambda row: max(row.values)).values) > 10 * max(others) else inf

    def draw(axes: Axes, *, wide: bool) -> None:
        axes.set_xlim(0, max(value for row in rows for value in row.values if value <= edge) * 1.05)
        for y, row in enumerate(rows):
            colour, middle = row.colour.value, median(row.values)
            if middle > edge:
                axes.annotate(
                    f"{show(middle)} →",
                    (1, y),
                    xycoords=axes.get_yaxis_transform(),
                    ha="right",
                    va="center",
                    color=colour,
                )
                continue
            axes.plot(
                row.values, [y] * len(row.values), "o", color=colour, markersize=8, alpha=0.4, mew=0, clip_on=False
            )
            axes.plot([middle], [y], "|", color=colour, markersize=20, mew=3, clip_on=False)
            _label(axes, y, show(middle))
        _rows(axes, rows, wide=wide)
        axes.set_xlabel(_wrapped(title, wide=wide, width=30))

    return _picture(title, draw, data=rows, rows=len(rows))


def spans(title: str, rows: Sequence[Row], *, show: Show) -> Plot:
    """The three values of each row, ascending, on a logarithmic axis: a dot, a line, and a diamond that is labelled."""

    def draw(axes: Axes, *, wide: bool) -> None:
        axes.set_xscale("log")
        for y, row in enumerate(rows):
            colour = row.colour.value
            axes.plot([row.values[0], row.values[-1]], [y, y], color=colour, linewidth=3, alpha=0.4)
            for value, (marker, size, edge) in zip(row.values, (("o", 8, 0), ("|", 16, 3), ("D", 7, 0)), strict=True):
                axes.plot([value], [y], marker, color=colour, markersize=size, mew=edge)
            _label(axes, y, show(row.values[-1]))
        _rows(axes, rows, wide=wide)
        _plain(axes.xaxis, [value for row in rows for value in row.values])
        axes.set_xlabel(title)

    return _picture(title, draw, data=rows, rows=len(rows))


def growth(title: str, lines: Sequence[Line], *, x_unit: str, y_unit: str) -> Plot:
    """Lines on two logarithmic axes, each named where it ends."""

    def draw(axes: Axes, *, wide: bool) -> None:
        axes.set_xscale("log")
        axes.set_yscale("log")
        for line in lines:
            xs, ys = zip(*line.points, strict=True)
            axes.plot(xs, ys, "o-", color=line.colour.value, linewidth=2, markersize=6, mew=0, clip_on=False)
        bottom, top = (log10(y) for y in axes.get_ylim())
        ends = [(log10(line.points[-1][1]) - bottom) / (top - bottom) for line in lines]
        for line, end, place in zip(lines, ends, _apart(ends, 0.07 if wide else 0.11), strict=True):
            axes.annotate(
                _wrapped(line.label, wide=wide, width=13),
                xy=(1.01, end),
                xytext=(1.07, place),
                xycoords="axes fraction",
                va="center",
                color=line.colour.value,
                arrowprops={
                    "arrowstyle": "-",
                    "color": line.colour.value,
                    "alpha": 0.5,
                    "shrinkA": 1,
                    "shrinkB": 0,
                    "relpos": (0, 0.5),
                },
                annotation_clip=False,
            )
        axes.set_xlim(right=max(line.points[-1][0] for line in lines))
        axes.set_xlabel(x_unit)
        axes.set_ylabel(y_unit)
        sizes = sorted({x for line in lines for x, _ in line.points})
        axes.set_xticks(sizes, [f"{x:,.0f}" if wide else _short(x) for x in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        _plain(axes.yaxis, [y for line in lines for _, y in line.points])
        axes.grid(visible=True, axis="both")

    return _picture(title, draw, data=lines, rows=9)


def stacks(title: str, bars: Sequence[tuple[str, Sequence[Part]]], *, show: Show) -> Plot:
    """Bars made of parts; a part is named inside where it is wide enough."""
    longest = max((sum(part.value for part in parts) for _, parts in bars), default=0) or 1

    def draw(axes: Axes, *, wide: bool) -> None:
        for y, (_, parts) in enumerate(bars):
            left = 0.0
            for part in parts:
                axes.barh(y, part.value, left=left, height=0.62, color=part.colour.value, edgecolor=Colour.PAPER.value)
                if part.value / longest > len(part.label) * (0.022 if wide else 0.055):
                    axes.annotate(
                        part.label,
                        (left + part.value / 2, y),
                        ha="center",
                        va="center",
                        color=Colour.PAPER.value,
                    )
                left += part.value
            _label(axes, y, show(left))
        axes.set_xlim(0, longest)
        _rows(axes, [Row(label=label, values=(), colour=Colour.INK) for label, _ in bars], wide=wide)
        axes.set_xlabel(title)

    return _picture(title, draw, data=bars, rows=len(bars))


def _picture(title: str, draw: Callable[..., None], *, data: object, rows: int) -> Plot:
    def version(name: str, width: int) -> SafeString:
        salt = f"{title} {data} {name}"  # ids follow from it, and no two pictures of a page may share one
        return _svg(title, draw, width=width, rows=rows, wide=name == "wide", salt=salt)

    return Plot(wide=version("wide", WIDE), narrow=version("narrow", NARROW))


def _svg(title: str, draw: Callable[..., None], *, width: int, rows: int, wide: bool, salt: str) -> SafeString:
    style: dict[str, object] = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.size": 13,
        "axes.labelsize": 13,
        "axes.labelcolor": Colour.MUTED.value,
        "axes.edgecolor": Colour.GRID.value,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "x",
        "axes.axisbelow": True,
        "grid.color": Colour.GRID.value,
        "text.color": Colour.INK.value,
        "xtick.color": Colour.GRID.value,
        "ytick.color": Colour.GRID.value,
        "xtick.labelcolor": Colour.MUTED.value,
        "ytick.labelcolor": Colour.INK.value,
    }
    with mpl.rc_context(style):  # type: ignore[arg-type]
        picture = Figure(figsize=(width / 72, (rows * ROW + 70) / 72), layout="constrained")
        draw(picture.add_subplot(), wide=wide)
        text = io.StringIO()
        picture.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'#([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"font: [^;\"]*", "", svg)  # the page's
    svg = svg.replace("xlink:href", "href")
    for colour in Colour:
        svg = svg.replace(colour.value, colour.variable)
    head = format_html('<svg role="img" aria-label="{}" viewBox="0 0 ', title)
    return mark_safe(re.sub(r"<svg[^>]*viewBox=\"0 0 ", lambda _: head, svg, count=1))  # noqa: S308 (matplotlib's own)


def _rows(axes: Axes, rows: Sequence[Row], *, wide: bool) -> None:
    """Name the rows, the first on top."""
    axes.set_yticks(range(len(rows)), [_wrapped(row.label, wide=wide, width=20) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _label(axes: Axes, y: float, text: str) -> None:
    """The figure itself, in a column to the right."""
    axes.annotate(text, (1.02, y), xycoords=axes.get_yaxis_transform(), va="center", annotation_clip=False)


def _plain(axis: Axis, values: Sequence[float]) -> None:
    """Ticks of a logarithmic axis in plain figures; also at 2 and 5 where the values span less than two decades."""
    few = max(values) / min(values) < 100
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6f}".rstrip("0").rstrip(".")))


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """Places for labels at ``values``, moved as little as need be until ``gap`` is between any two."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    # Without their gaps, labels that would overlap are out of order; such neighbours share their mean.
    pools: list[list[float]] = []
    for rank, index in enumerate(order):
        pools.append([values[index] - rank * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    places = [fmean(pool) for pool in pools for _ in pool]
    return [places[order.index(index)] + order.index(index) * gap for index in range(len(values))]


def _short(number: float) -> str:
    return f"{number / 1e6:g} M" if number >= 1e6 else f"{number / 1e3:g} k" if number >= 1e3 else f"{number:g}"


def _wrapped(text: str, *, wide: bool, width: int) -> str:
    return text if wide else fill(text, width)
