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
from comparison.quantities import duration, number, ratio_and_spread
from comparison.report import Report, print_table
from comparison.run import contestants, deciders, keepers, names, of_mails, scheduled
from comparison.verdict import Finding
from sandbox.mail_server import Mailbox
from tests import comparison_example
from tests.comparison_example import scenario

Rounds = Sequence[float]
PATHS = ("raw-sql", "one-update", "command", "command-jobs-2", "celery-2")


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
        ([4.0, 5.0, 4.5], [4.4, 4.9, 4.6], "time is no reason for Celery"),
        ([359.0] * 3, [200.0] * 3, "time is no reason for Celery"),
        ([361.0] * 3, [200.0] * 3, "Celery saves time that counts"),
        ([361.0] * 3, [200.0, 200.0, 362.0], "time is no reason for Celery"),
        ([3600.0] * 3, [1800.0] * 3, "too slow for its schedule"),
        ([3600.0] * 3, [3599.0] * 3, "Celery fits"),
        ([3600.0] * 3, [3600.0] * 3, "Neither fits"),
    ],
)
def test_the_short_answer_weighs_what_celery_saves_against_the_schedule(
    command: Rounds, celery: Rounds, expected: str
) -> None:
    result = measured({backlog(1000): {"command": [9999.0] * 3, "command-jobs-2": command, "celery-2": celery}})

    assert expected in said(verdict.short_answer(result))


def test_without_several_jobs_celery_is_compared_with_the_command_alone() -> None:
    result = measured({backlog(1000): {"command": [4.0] * 3, "celery-2": [2.0] * 3}})

    words = said(verdict.short_answer(result))

    assert "Celery with 2 processes took 2 s, the command 4 s: 0.50 of its time." in words


NO_DIFFERENCE, TOO_SHORT = "no difference beyond the spread", "too few rounds to call it a difference"


@pytest.mark.parametrize(
    ("celery", "expected"),
    [
        ([0.9, 0.9, 0.9], ""),
        ([0.9, 0.9, 1.0], NO_DIFFERENCE),
        ([1.1, 1.2, 1.3], ""),
        ([0.9, 1.1, 1.3], NO_DIFFERENCE),
        ([0.79, 0.79], ""),
        ([0.79, 0.81], TOO_SHORT),
        ([1.26, 1.26], ""),
        ([1.24, 1.26], TOO_SHORT),
        ([0.51], TOO_SHORT),
        ([0.49], ""),
        ([2.01], ""),
        ([1.99], TOO_SHORT),
    ],
)
def test_a_difference_is_one_only_beyond_the_spread_of_the_rounds(celery: Rounds, expected: str) -> None:
    nothing = replace(backlog(1000), name="nothing-1000", kind="nothing", due=0)

    words = said(verdict.standing_worker(measured({nothing: {"command": [1.0] * len(celery), "celery-2": celery}})))

    assert [each for each in (NO_DIFFERENCE, TOO_SHORT) if each in words] == ([expected] if expected else [])


def test_a_ratio_has_its_spread_beside_it() -> None:
    times = {"command": [4.0] * 3, "command-jobs-2": [2.0, 2.4, 3.0], "celery-2": [2.0, 2.4, 3.0]}
    result = measured({backlog(1000): times}, measure="service_seconds")

    words = said(verdict.concurrency(result))

    assert "The command with 2 jobs took 2.40 s, the command 4 s: 0.60 (0.50\N{EN DASH}0.75) of its time." in words
    assert "Celery with 2 processes 2.40 s: 1.00 of its time, no difference beyond the spread." in words


def test_what_a_standing_worker_buys_is_said_with_the_number_of_ticks() -> None:
    words = said(verdict.standing_worker(comparison_example.result()))

    assert "had expired within 31 ms by Celery and 810 ms by cron (medians of 10 ticks)." in words


def test_the_cost_at_rest_is_each_contenders_own() -> None:
    example = comparison_example.result()

    assert said(verdict.cost_at_rest(example)).partition(". ")[2] == (
        "command: nothing, and 18 s of CPU time for a day of hourly runs. "
        "Celery, 2 processes: 183 MB, 4 min of CPU time a day, 36 transactions and 107 broker commands a minute. "
        "Celery threads, -B: 97 MB, 2.67 min of CPU time a day, 36 transactions and 107 broker commands a minute."
    )
    assert said(verdict.engines(example)).partition(". ")[2] == (
        "procrastinate: 64 MB, 80 s of CPU time a day, 36 transactions and 0 broker commands a minute; "
        "a tick is 40 ms late."
    )


def test_the_wait_of_customers_is_a_percentile_only_of_many() -> None:
    example = comparison_example.result()
    few = replace(example, values={key: each for key, each in example.values.items() if key[2] != "wait_p99_seconds"})

    assert "the command 60.3 ms (99 % of 105 payments waited" in said(verdict.customers_wait(example))
    assert "the command 60.3 ms (the longest of 105 payments waited" in said(verdict.customers_wait(few))


@pytest.mark.parametrize(("jobs", "expected"), [([8.0], TOO_SHORT), ([20.0], "2.67 of its time. ")])
def test_mails_are_compared_at_the_same_number_at_once(jobs: Rounds, expected: str) -> None:
    by_name = {"mail-command": [55.0], "mail-jobs-8": jobs, "mail-celery-8": [7.5], "mail-celery-threads-8": [8.0]}
    of = scenario("mails", 1000, baseline="mail-celery-8", contenders=tuple(by_name))

    words = said(verdict.mails(measured({of: by_name})))

    assert "One after the other, the command sent 1,000 in 55 s: about 65,500 between two ticks." in words
    assert f"Celery with 8 processes 7.50 s: {expected if jobs == [20.0] else '1.07 of its time, ' + expected}" in words


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [(1, "ran once, which cannot"), (2, "ran twice, which cannot"), (3, "faster in every round")],
)
def test_the_verdict_says_how_sure_it_is(rounds: int, expected: str) -> None:
    example = comparison_example.result()

    assert expected in tables.glance(replace(example, options=replace(example.options, rounds=rounds))).note


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


def test_a_ratio_keeps_its_zeros_and_says_how_far_it_spreads() -> None:
    assert ratio_and_spread(Spread(median=1, lowest=1, highest=1)) == "1.00"
    assert ratio_and_spread(Spread(median=143.2, lowest=0.0472, highest=173)) == "143 (0.0472\N{EN DASH}173)"
    assert ratio_and_spread(Spread(median=0.73, lowest=0.631, highest=1.0)) == "0.73 (0.63\N{EN DASH}1.00)"


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
    assert max(len(line) for line in output.getvalue().splitlines()) <= width


def test_tables_fit_80_columns_with_each_row_on_one_line(result: Result) -> None:
    report = Report(result)
    for table in (report.glance, *(table for section in report.sections for table in section.tables)):
        output = StringIO()

        print_table(table, Console(file=output, width=80))

        lines = output.getvalue().splitlines()
        words = " ".join([*table.columns, *(cell for row in table.rows for cell in row)]).split()
        assert Counter(words) - Counter(output.getvalue().split()) == Counter()
        for row in table.rows:
            assert [line for line in lines if line.split() == " ".join(row).split()], (table.caption, row)


def test_the_names_of_all_contenders_are_short_and_unique() -> None:
    everybody = [*contestants(8), *scheduled(8), *deciders(), *keepers(), *of_mails(Mailbox("", 0), 1)]
    titles = {each.name: each.title for each in everybody}

    assert [title for title in titles.values() if len(title) > 20] == []
    assert list(titles) == names(8)


def test_a_percentile_of_few_payments_is_not_shown() -> None:
    example = comparison_example.result()
    largest = example.of_kind("backlog")[-1]
    _, _, others, *_ = tables.scenario_tables(example, largest)
    column, rows = others.columns.index("p99 wait, ms"), {row[0]: row for row in others.rows}

    assert (rows["command"][column], rows["Celery, 2 processes"][column]) == ("59.3", "too few")
    assert rows["save() loop"][column] == ""  # nobody paid beside it


def test_a_table_of_faults_says_what_ended_and_what_was_caught_up() -> None:
    example = comparison_example.result()

    assert cells(example, "faults", "command") == [("10.7", "", "9.90", "", "9.90")]
    assert cells(example, "faults", "Celery, 2 processes") == [
        ("6.10", "2.40", "4.20\N{DAGGER}", ">60", "2.90\N{DOUBLE DAGGER}")
    ]


def test_the_question_of_a_tick_is_shown_day_by_day() -> None:
    example = comparison_example.result()

    *_, whole, above = tables.scenario_tables(example, example.of_kind("churn")[-1])

    assert whole.columns == ("", "1, ms", "10, ms", "20, ms", "30, ms")
    assert whole.rows == (("vacuumed", "0.500", "5.00", "10.0", "15.0"), ("never vacuumed", "", "", "", "350"))
    assert above.rows[1][-1] == "0.700"


def test_what_dead_rows_cost_a_tick_is_said_of_the_tables_that_have_them() -> None:
    assert "took 350 ms to ask of all trials and 600 µs above the low-water mark. A tick took 10 ms, and 9 ms" in (
        said(verdict.dead_rows(comparison_example.result())).replace("\N{NO-BREAK SPACE}", " ")
    )


def test_the_glance_shows_what_celery_holds_and_a_command_does_not() -> None:
    rows = {name: figures for name, *figures in tables.glance(comparison_example.result()).rows}

    assert rows["Memory at rest"] == ["none", "none", "none", "183\N{NO-BREAK SPACE}MB"]
    assert rows["Processes at rest"] == ["none", "none", "none", "5"]
    assert rows["CPU a day at rest"] == ["", "18\N{NO-BREAK SPACE}s", "", "4\N{NO-BREAK SPACE}min"]


def test_a_column_has_its_unit_in_its_heading() -> None:
    result = measured({backlog(1000): {"command": [0.25, 0.75, 0.0]}}, measure="start_up_share")

    time, needs = tables.scenario_tables(result, result.scenarios[0])

    assert (time.columns[1], time.rows[2][1]) == ("time, s", "1.00")
    assert (needs.columns, needs.rows[2]) == (("", "start-up, %"), ("command", "25"))


def test_the_tables_are_written_for_docs_too(result: Result, tmp_path: Path) -> None:
    Report(result).write_markdown(tmp_path / "result.md")

    written = (tmp_path / "result.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "| Memory at rest | none | none | none | 183 MB |" in written
    assert (
        "|  | one update() | command | command, 2 jobs | Celery, 2 processes |\n| --- | --: | --: | --: | --: |"
        in written
    )


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
