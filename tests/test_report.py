"""What is made of a comparison's result: the verdict, the tables, and the page, looked at in a real browser."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import pytest
from playwright.sync_api import Browser
from rich.console import Console

from comparison import tables, verdict
from comparison.charts import growth_chart
from comparison.measurements import Key, Result, Scenario, Spread, Values
from comparison.quantities import duration, number, span, times
from comparison.report import Report, print_table
from comparison.verdict import Finding
from tests import comparison_example
from tests.comparison_example import scenario

Rounds = Sequence[float]
PATHS = ("raw-sql", "one-update", "command", "celery-2")


def backlog(due: int) -> Scenario:
    return scenario("backlog", due, contenders=PATHS)


def values(of: Scenario, by_contender: Mapping[str, Rounds], measure: str = "seconds") -> dict[Key, Values]:
    return {(of.name, name, measure): dict(enumerate(by_round, start=1)) for name, by_round in by_contender.items()}


def measured(
    scenarios: Mapping[Scenario, Mapping[str, Rounds]], *, measure: str = "seconds", interval: float = 3600
) -> Result:
    """A result of which only this was measured: one measure, for each contender a value a round. Seconds are all 1."""
    example = comparison_example.result()
    taken: dict[Key, Values] = {}
    for of, by_contender in scenarios.items():
        taken |= values(of, {name: [1.0] * len(by_round) for name, by_round in by_contender.items()})
        taken |= values(of, by_contender, measure)
    return replace(
        example,
        options=replace(example.options, interval_seconds=interval),
        scenarios=tuple(scenarios),
        values=taken,
    )


def said(finding: Finding | None) -> str:
    """The words, with ordinary spaces."""
    assert finding
    return f"{finding.title}. {finding.text}".replace("\N{NO-BREAK SPACE}", " ")


def cells(result: Result, kind: str, name: str) -> list[tuple[str, ...]]:
    """The row of that name in each table of the first scenario of that kind, with ordinary spaces."""
    made = tables.scenario_tables(result, result.of_kind(kind)[0])
    return [
        tuple(cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row[1:])
        for t in made
        for row in t.rows
        if row[0] == name
    ]


# --- The verdict ---


@pytest.mark.parametrize(
    ("command", "celery", "expected"),
    [
        ([4.0, 5.0, 4.5], [2.0, 2.5, 2.2], "time is no reason for Celery"),
        ([4.0, 5.0, 4.5], [4.4, 4.9, 4.6], "the command is enough. The command finished the largest backlog"),
        ([4.0, 5.0, 4.5], [4.1, 5.1, 4.6], "took longer, 4.60 s."),
        ([359.0] * 3, [200.0] * 3, "time is no reason for Celery"),
        ([361.0] * 3, [200.0] * 3, "Celery buys time that counts"),
        ([3599.0] * 3, [1800.0] * 3, "100% of that"),
        ([3600.0] * 3, [1800.0] * 3, "too slow for its schedule"),
        ([3600.0] * 3, [3599.0] * 3, "which fits"),
        ([3600.0] * 3, [3600.0] * 3, "which does not fit either"),
    ],
)
def test_the_short_answer_weighs_what_celery_saves_against_the_schedule(
    command: Rounds, celery: Rounds, expected: str
) -> None:
    result = measured({backlog(1000): {"command": command, "celery-2": celery}})

    assert expected in said(verdict.short_answer(result))


@pytest.mark.parametrize(
    ("celery", "expected"),
    [
        ([0.9, 0.9, 0.9], "The command took 1 s, Celery with 2 processes 900 ms."),
        ([0.9, 0.9, 1.0], "no difference"),
        ([1.1, 1.2, 1.3], "The command took 1 s, Celery with 2 processes 1.20 s."),
    ],
)
def test_a_difference_is_one_only_when_it_shows_in_every_round(celery: Rounds, expected: str) -> None:
    nothing = replace(backlog(1000), name="nothing-1000", kind="nothing", due=0)
    times_of_both = {"command": [1.0] * 3, "celery-2": celery}

    words = said(verdict.nothing_due(measured({backlog(1000): times_of_both, nothing: times_of_both})))

    assert expected in words
    assert ("no difference" in words) == (max(celery) == 1.0)


@pytest.mark.parametrize(
    ("faster_at", "expected"),
    [
        ((), "No crossover was found. Up to 300 due accounts"),
        (
            (100, 200, 300),
            "faster at every size measured. Celery with 2 processes finished before the command with 100 due",
        ),
        ((300,), "Where the crossover lies. Between 200 and 300 due accounts"),
        ((200, 300), "Where the crossover lies. Between 100 and 200 due accounts"),
        ((100, 300), "No clear crossover. Celery with 2 processes was faster with 100 and 300 due accounts"),
        ((100,), "No clear crossover. Celery with 2 processes was faster with 100 due accounts"),
    ],
)
def test_the_crossover_lies_between_two_sizes_that_were_measured(faster_at: tuple[int, ...], expected: str) -> None:
    result = measured(
        {
            backlog(due): {"command": [4.0, 4.2, 4.4], "celery-2": [3.0] * 3 if due in faster_at else [4.0, 4.3, 4.3]}
            for due in (100, 200, 300)
        }
    )

    words = said(verdict.crossover(result))

    assert expected in words
    assert ("It saved 1.20 s of 4.20 s" in words) == bool(faster_at)


@pytest.mark.parametrize(
    ("celery", "expected"),
    [
        ([0.04] * 3, "waited less for Celery"),
        ([0.04, 0.05, 0.06], "no difference"),
        ([0.06] * 3, "waited less for the command"),
    ],
)
def test_customers_waits_are_compared_between_the_paths(celery: Rounds, expected: str) -> None:
    waits = {"command": [0.05] * 3, "celery-2": celery, "one-update": [4.0] * 3}

    words = said(verdict.customers_wait(measured({backlog(1000): waits}, measure="wait_p99_seconds")))

    assert expected in words
    assert "one update() of all accounts it was 4 s, 80.0\N{MULTIPLICATION SIGN} as long" in words


def test_where_one_update_makes_nobody_wait_longer_it_is_not_said_to() -> None:
    waits = {"command": [0.05] * 3, "one-update": [0.04, 0.05, 0.06]}

    words = said(verdict.customers_wait(measured({backlog(1000): waits}, measure="wait_p99_seconds")))

    assert words.endswith("one update() of all accounts it was 50 ms.")


def test_lateness_is_shown_for_each_path_as_the_schedule_and_its_run_make_it() -> None:
    example = comparison_example.result()

    assert cells(example, "normal", "expire_trials")[-1] == ("30 min", "60 min")
    slow = replace(
        example,
        values={
            key: {number: value + 70 for number, value in by_round.items()} if key[1] == "celery-2" else by_round
            for key, by_round in example.values.items()
        },
    )
    assert cells(slow, "normal", "Celery, 2 processes")[-1] == ("31.2 min", "61.2 min")


def test_what_stands_while_idle_is_added_up_for_each_size_of_the_worker() -> None:
    example = comparison_example.result()

    assert cells(example, "idle", "Celery, 1 process") == [("4", "9 MB", "62 MB", "88 MB", "159 MB")]
    assert cells(example, "idle", "Celery, 2 processes") == [("5", "9 MB", "62 MB", "112 MB", "183 MB")]
    assert cells(example, "idle", "expire_trials") == [("none", "", "", "", "none")]


def test_the_glance_shows_what_celery_holds_and_a_command_does_not() -> None:
    *_, held, processes = tables.glance(comparison_example.result()).rows

    assert held == ("Memory held between two runs", "none", "none", "183\N{NO-BREAK SPACE}MB")
    assert processes == ("Processes between two runs", "none", "none", "5")


def test_what_a_killed_run_left_and_how_long_that_takes_is_shown() -> None:
    example = comparison_example.result()

    assert cells(example, "killed", "expire_trials") == [("391,000", "2.90 s", "60 min")]
    assert cells(example, "killed", "Celery, 2 processes") == [("380,000", "4.40 s", "10 min")]


@pytest.mark.parametrize(
    ("one", "eight", "expected"),
    [
        ([55.0], [8.0], "Celery with 8 processes was the first that was faster"),
        ([40.0], [8.0], "Celery with 1 process was the first that was faster"),
        (
            [55.0],
            [50.0],
            "None of them was faster. At this pace the command sends about 65,500 mails between two calls",
        ),
    ],
)
def test_mails_are_compared_with_the_command_and_with_the_schedule(one: Rounds, eight: Rounds, expected: str) -> None:
    by_name = {"mail-command": [55.0], "mail-celery-1": one, "mail-celery-8": eight}
    of = scenario("mails", 1000, baseline="mail-command", contenders=tuple(by_name))
    words = said(verdict.mails(measured({of: by_name})))

    assert expected in words
    assert ("Celery with 8 processes about 450,000" in words) == (eight == [8.0])


@pytest.mark.parametrize(
    ("celery", "expected"),
    [
        ([0.74], "Celery with 2 processes was faster"),
        ([0.76], "within the spread"),
        ([0.74, 0.76], "within the spread"),
        ([1.24], "within the spread"),
        ([1.26, 1.26], "took longer"),
        ([0.99, 0.99, 0.99], "Celery with 2 processes was faster"),
    ],
)
def test_fewer_than_three_rounds_must_differ_by_a_quarter(celery: Rounds, expected: str) -> None:
    result = measured({backlog(1000): {"command": [1.0] * len(celery), "celery-2": celery}})

    assert expected in said(verdict.short_answer(result))


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [(1, "ran once, which cannot"), (2, "ran twice, which cannot"), (3, "faster in every round")],
)
def test_the_verdict_says_how_sure_it_is(rounds: int, expected: str) -> None:
    example = comparison_example.result()

    assert expected in tables.glance(replace(example, options=replace(example.options, rounds=rounds))).note


def test_the_verdict_has_seven_findings_at_most() -> None:
    assert len(verdict.verdict(comparison_example.result())) <= len(verdict.FINDINGS) <= 7


def test_of_what_was_not_measured_nothing_is_said() -> None:
    assert verdict.verdict(measured({})) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (0.01234, "0.0123"), (1.204, "1.20"), (3.0, "3"), (9.996, "10"), (123.4, "123"), (12345, "12,300")],
)
def test_figures_have_three_significant_digits(value: float, expected: str) -> None:
    assert number(value) == expected


def test_durations_come_in_the_unit_that_suits() -> None:
    spoken = [duration(seconds) for seconds in (0, 0.00035, 0.9994, 0.9996, 119, 120, 3600, 7200)]

    assert [each.replace("\N{NO-BREAK SPACE}", " ") for each in spoken] == [
        *("0 ms", "350 µs", "999 ms", "1 s", "119 s", "2 min", "60 min", "2 h"),
    ]


def test_a_range_says_its_unit_once_and_a_ratio_keeps_its_zeros() -> None:
    def spread(lowest: float, highest: float) -> Spread:
        return Spread(median=lowest, lowest=lowest, highest=highest)

    assert span("seconds", spread(4.24, 4.77)) == f"4.24 to {duration(4.77)}"
    assert span("seconds", spread(0.9, 4.77)) == f"{duration(0.9)} to {duration(4.77)}"
    assert times(1) == "1.00\N{MULTIPLICATION SIGN}"


# --- The tables and the page ---

WRONG = "11 accounts expired that were not due."


@pytest.fixture
def result() -> Result:
    """The example, with what can go wrong in it, and a kind of scenario nobody foresaw."""
    example = comparison_example.result()
    contenders = ("mail-command", "mail-celery-1", "mail-celery-8")
    other = replace(
        scenario("letters", 1000, baseline="mail-command", contenders=contenders),
        title="1,000 letters through a slow <server>",
    )
    times_taken = {"mail-command": [101, 102, 103], "mail-celery-1": [104, 105, 106], "mail-celery-8": [53, 54, 55]}
    return replace(
        example,
        scenarios=(*example.scenarios, other),
        values={**example.values, **values(other, times_taken), **values(other, times_taken, "cpu_seconds")},
        wrong={"normal-1000000": {"one-update": WRONG}},
    )


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_shows_every_scenario_and_the_verdict(result: Result, width: int) -> None:
    output = StringIO()

    Report(result).print(Console(file=output, width=width))

    text = " ".join(output.getvalue().split())
    assert [each.title for each in result.scenarios[:2] if each.title not in text] == []
    assert [each.title for each in verdict.verdict(result) if each.title not in text] == []
    assert WRONG in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text  # nothing is cut off
    columns = [name for section in Report(result).sections for table in section.tables for name in table.columns]
    assert [word for name in columns for word in name.split() if word not in text.split()] == []
    assert max(len(line) for line in output.getvalue().splitlines()) <= width


def test_no_table_is_cut_off_on_a_terminal_of_80_columns(result: Result) -> None:
    report = Report(result)
    for table in (report.glance, *(table for section in report.sections for table in section.tables)):
        output = StringIO()

        print_table(table, Console(file=output, width=80))

        words = " ".join([*table.columns, *(cell for row in table.rows for cell in row)]).split()
        assert Counter(words) - Counter(output.getvalue().split()) == Counter()


def test_how_much_of_a_run_was_start_up_is_said_beside_what_it_needs() -> None:
    result = measured({backlog(1000): {"command": [0.25, 0.75, 0.0]}}, measure="start_up_share")

    _, needs = tables.scenario_tables(result, result.scenarios[0])

    assert (needs.columns, needs.rows[2]) == (("", "start-up share"), ("expire_trials", "25%"))


def test_the_page_needs_nothing_but_itself(result: Result, tmp_path: Path) -> None:
    Report(result).write_html(tmp_path / "report.html")

    html = (tmp_path / "report.html").read_text()
    assert re.findall(r"""(?:src|href)=["'](?!#|data:,)[^"']*|url\((?!["']?#)[^)]*|@import|<script""", html) == []
    assert "slow &lt;server&gt;" in html
    ids = re.findall(r'\sid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    charts = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert charts
    assert re.findall("#[0-9a-f]{3,6}", "".join(charts)) == []  # every colour of a chart is the page's


def test_the_chart_for_other_pages_is_an_svg_file_of_its_own(result: Result, tmp_path: Path) -> None:
    Report(result).write_svg(tmp_path / "growth.svg")

    root = ElementTree.parse(tmp_path / "growth.svg").getroot()  # noqa: S314 (ours)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "--command:" in (tmp_path / "growth.svg").read_text()


def test_the_same_figures_make_the_same_chart() -> None:
    chart = growth_chart(comparison_example.result())

    assert chart
    assert chart == growth_chart(comparison_example.result())


def test_a_chart_of_growth_needs_two_sizes() -> None:
    assert growth_chart(measured({backlog(1000): {"command": [1.0]}})) is None


SCROLLING = "tables => tables.filter(each => each.scrollWidth > each.clientWidth).map(each => each.ariaLabel)"
OVERLAPPING_TEXT = """() => [...document.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().width)
    .flatMap(svg => {
        const boxes = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
        return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
            .filter(([b, q]) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
                             && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3)
            .map(([b, q]) => `${svg.getAttribute('aria-label')}: ${a} / ${b}`));
    })"""


@pytest.mark.faults
def test_a_browser_shows_the_page_on_screen_and_phone_in_light_and_dark(
    result: Result, browser: Browser, tmp_path: Path
) -> None:
    Report(result).write_html(tmp_path / "report.html")
    page = browser.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")

    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto((tmp_path / "report.html").as_uri())

    # The short answer and its table are on the first screen, and the rest of the figures is folded.
    table = page.locator(".answer table").bounding_box()
    assert table
    assert table["y"] + table["height"] <= 800
    assert page.evaluate("document.documentElement.scrollHeight") < 5000
    assert page.get_by_text(WRONG).first.is_visible()
    for closed in page.locator("details").all():
        closed.locator("summary").click()
    backgrounds = set()
    for width in (1000, 375):
        page.set_viewport_size({"width": width, "height": 800})
        for scheme in schemes:
            page.emulate_media(color_scheme=scheme)
            backgrounds.add((scheme, page.evaluate("getComputedStyle(document.body).backgroundColor")))
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(OVERLAPPING_TEXT) == []
        assert width < 1000 or page.locator(".table").evaluate_all(SCROLLING) == []
        assert page.get_by_role("img").count() == page.locator("figure").count()
        assert page.get_by_text(WRONG).first.is_visible()
    assert len({background for _, background in backgrounds}) == len(backgrounds) == 2
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert page.console_messages() == []
    assert page.page_errors() == []
