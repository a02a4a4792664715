"""A comparison's result for people: tables on the terminal, and one HTML page that needs nothing but itself.

Both show the same tables and the same verdict. A scenario of a new kind appears by itself.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from django.template.loader import render_to_string
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from comparison import pictures, sheets
from comparison.pictures import Picture
from comparison.results import Result
from comparison.sheets import Sheet
from comparison.verdict import backlogs, verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One question, with the plots and tables that answer it."""

    title: str
    pictures: tuple[Picture, ...] = ()
    sheets: tuple[Sheet, ...]


def print_report(result: Result, console: Console) -> None:
    """Print the tables and, last, the verdict."""
    for section in sections(result):
        console.rule(f"[bold]{section.title}")
        for sheet in section.sheets:
            print_sheet(sheet, console)
    console.rule("[bold]What the figures say")
    if (glance := sheets.glance_sheet(result)).rows:
        print_sheet(glance, console)
    for finding in verdict(result):
        console.print(f"[bold]{finding.title}.[/bold] {finding.text}\n", highlight=False)


def print_sheet(sheet: Sheet, console: Console) -> None:
    """Print one table, its caption above and its note below."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    longest_word = max((len(word) for name, *_ in sheet.rows for word in name.split()), default=0)
    table.add_column(sheet.columns[0], min_width=longest_word)
    for column in sheet.columns[1:]:
        table.add_column(column, justify="right")
    for row in sheet.rows:
        table.add_row(*row)
    note = [sheet.note, ""] if sheet.note else []
    console.print(f"{sheet.caption}:", table, *note, sep="\n", highlight=False)


def write_html(result: Result, path: Path) -> None:
    """Write the page to ``path``. It carries its style and its plots, and asks nobody for anything."""
    context = {
        "result": result,
        "findings": verdict(result),
        "glance": sheets.glance_sheet(result),
        "sections": list(sections(result, draw=True)),
        "facts": sheets.facts(result),
    }
    path.write_text(render_to_string("comparison/report.html", context), encoding="utf-8")


def write_svg(result: Result, path: Path) -> None:
    """Write the plot of time against due accounts to ``path``, a picture for pages such as README.md.

    Raises:
        ValueError: the result has fewer than two backlogs, so nothing grows.
    """
    growth = next(pictures.growth_pictures(result, backlogs(result)), None)
    if not growth:
        raise ValueError("There is no growth to draw: only one size was measured.")
    colours = render_to_string("comparison/colours.css")
    head, body = growth.plot.wide.split(">", 1)
    head = re.sub(
        r'viewBox="0 0 ([\d.]+) ([\d.]+)"',
        lambda size: f'viewBox="-16 -16 {float(size[1]) + 32:g} {float(size[2]) + 32:g}"',  # a margin
        head,
    )
    style = f"{colours} svg {{ background: var(--paper); font: 13px sans-serif; }}"
    path.write_text(f"{head}><style>{style}</style>{body}", encoding="utf-8")


def sections(result: Result, *, draw: bool = False) -> Iterator[Section]:
    """The result in the order to show it; ``draw`` adds the plots, which take a moment each."""
    for _, same_kind in groupby(result.scenarios, key=lambda scenario: scenario.kind):
        series = list(same_kind)
        yield Section(
            title=series[-1].title,
            pictures=tuple(pictures.scenario_pictures(result, series[-1])) if draw else (),
            sheets=tuple(sheets.scenario_sheets(result, series[-1])),
        )
        if len(series) > 1:
            yield Section(
                title="As the work grows",
                pictures=tuple(pictures.growth_pictures(result, series)) if draw else (),
                sheets=tuple(sheets.growth_sheets(result, series)),
            )
    if result.standing:
        yield Section(
            title="While there is nothing to do",
            pictures=(pictures.standing_picture(result),) if draw else (),
            sheets=(sheets.standing_sheet(result),),
        )
    if result.start_ups or result.due_queries:
        yield Section(title="To find that nothing is due", sheets=(sheets.nothing_sheet(result),))
    if result.timeliness:
        yield Section(title="How late an account expires", sheets=(sheets.timeliness_sheet(result),))
    if result.recoveries:
        yield Section(title="After a run was killed half-way", sheets=(sheets.recovery_sheet(result),))
