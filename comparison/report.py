"""A comparison's result for people: tables on the terminal, and one HTML page that needs nothing but itself.

Both show the same tables and the same verdict. A scenario of a new kind appears by itself.
"""

from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

from django.template.loader import render_to_string
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from comparison.charts import growth_chart
from comparison.measurements import Result
from comparison.tables import Table, glance, growth_tables, scenario_tables
from comparison.verdict import Finding, verdict


class Section(NamedTuple):
    """One scenario, or how those of one kind grow."""

    title: str
    tables: list[Table]


class Report:
    """All that is shown of a result, computed once.

    Of the scenarios of one kind the largest is a section, and how they grow is another.
    """

    def __init__(self, result: Result) -> None:
        self.result = result
        self.findings: list[Finding] = verdict(result)
        self.glance = glance(result)
        self.growth = growth_chart(result)
        self.sections = []
        for _, same_kind in groupby(result.scenarios, key=lambda scenario: scenario.kind):
            *smaller, largest = same_kind
            self.sections.append(Section(largest.title, list(scenario_tables(result, largest))))
            if smaller:
                tables = list(growth_tables(result, [*smaller, largest]))
                self.sections.append(Section("As the work grows", tables))

    def print(self, console: Console) -> None:
        """Print the tables and, last, the verdict."""
        for section in self.sections:
            console.rule(f"[bold]{section.title}")
            for table in section.tables:
                print_table(table, console)
        console.rule("[bold]What the figures say")
        if self.glance.rows:
            print_table(self.glance, console)
        for finding in self.findings:
            console.print(f"[bold]{finding.title}.[/bold] {finding.text}\n", highlight=False)

    def write_markdown(self, path: Path) -> None:
        """Write the verdict and the tables, for pages such as docs/which-path.md."""
        parts = [f"- **{each.title}.** {each.text}" for each in self.findings]
        for section in (Section("At a glance", [self.glance]), *self.sections):
            parts += [f"## {section.title}", *map(in_markdown, section.tables)]
        path.write_text("\n\n".join([f"`{self.result.options.command}`", *parts]) + "\n", encoding="utf-8")

    def write_html(self, path: Path) -> None:
        """Write a page that carries its style and its chart, and asks nobody for anything."""
        path.write_text(render_to_string("comparison/report.html", {"report": self}), encoding="utf-8")

    def write_svg(self, path: Path) -> None:
        """Write the chart of growth, which two sizes of the backlog make, for pages such as README.md."""
        path.write_text(render_to_string("comparison/growth.svg", {"chart": self.growth}), encoding="utf-8")


def in_markdown(table: Table) -> str:
    """The table as a page in docs has it."""
    lines = [table.columns, ("---", *["--:"] * (len(table.columns) - 1)), *table.rows]
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([f"{table.caption}:", "", *rows, *(["", table.note] if table.note else [])])


def print_table(table: Table, console: Console) -> None:
    """Print one table, its caption above and its note below; a heading is as narrow as its words and figures allow."""
    printed = RichTable(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(table.columns):
        widest = max((len(row[number]) for row in table.rows), default=0)
        words = fill(heading, max(widest, *map(len, heading.split() or [""]), 7), break_long_words=False)
        printed.add_column(words, justify="right" if number else "left", no_wrap=True)
    for row in table.rows:
        printed.add_row(*row)
    note = [table.note, ""] if table.note else []
    console.print(f"{table.caption}:", printed, *note, sep="\n", highlight=False)
