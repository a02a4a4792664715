"""The plots of a report: which figures are drawn, and how each plot is to be read."""

from collections.abc import Iterator
from dataclasses import dataclass

from comparison import plots
from comparison.plots import Colour, Plot
from comparison.results import Contender, Result, Scenario
from comparison.sheets import taking_part, with_processes
from comparison.verdict import COMMAND, MAIL_COMMAND, ratios
from comparison.wording import duration, listed, memory, times


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A plot with what it needs to be read."""

    title: str
    plot: Plot
    caption: str


def scenario_pictures(result: Result, scenario: Scenario) -> Iterator[Picture]:
    """Time, and how long customers waited."""
    timed = [each for each in taking_part(result, scenario) if result.figure(scenario.name, each.name, "seconds")]
    relative = {each.name: ratios(result, scenario, each.name, scenario.baseline) for each in timed}
    middle = sorted(min(values) for values in relative.values() if values)
    titles = {each.name: each.title for each in result.contenders}
    show: plots.Show
    dots = "A dot is a round; the line, and the figure, is the median of all. "
    # Seconds where the baseline is so quick that a ratio to it says nothing.
    if middle and middle[len(middle) // 2] < 10:
        title, show = f"Time, as a multiple of “{titles[scenario.baseline]}”", times
        rows = [_row(result, each, relative[each.name]) for each in timed if relative[each.name]]
        caption = dots + "Each is divided by the baseline of its own round."
    else:
        title, show = "Time, seconds", duration
        samples = {each.name: [sample.seconds for sample in result.of(scenario.name, each.name)] for each in timed}
        rows = [_row(result, each, [value for value in samples[each.name] if value is not None]) for each in timed]
        caption = dots
    if rows:
        yield Picture(title="Time", plot=plots.rounds(title, rows, show=show), caption=caption.strip())
    waits = [_row(result, each, values) for each in timed if (values := _waited(result, scenario, each))]
    if waits:
        yield Picture(
            title="How long a paying customer waits",
            plot=plots.spans("Milliseconds", waits, show=lambda value: duration(value / 1000)),
            caption="● the median, ┃ the 99th percentile, ◆ the longest, which is the figure. "
            "The scale is logarithmic.",
        )


def growth_pictures(result: Result, series: list[Scenario]) -> Iterator[Picture]:
    """Time and memory against the number of due accounts."""
    for measure, title, unit, divisor in (
        ("seconds", "Time", "seconds", 1),
        ("peak_memory_bytes", "Peak memory", "MB", 1e6),
    ):
        lines = []
        for contender in taking_part(result, *series):
            points = [
                (scenario.due, figure.spread.median / divisor)
                for scenario in series
                if (figure := result.figure(scenario.name, contender.name, measure)) and scenario.due
            ]
            if len(points) > 1:
                lines.append(plots.Line(label=contender.title, points=points, colour=colour(result, contender)))
        if lines:
            yield Picture(
                title=f"{title} as the work grows",
                plot=plots.growth(title, lines, x_unit="due accounts", y_unit=f"{title}, {unit}"),
                caption="Medians. Both scales are logarithmic.",
            )


def standing_picture(result: Result) -> Picture:
    """Memory held while idle, by process."""
    fixed = [each for each in result.standing if each.role != "worker"]
    colours = {"beat": Colour.CELERY_LIGHT, "broker": Colour.REFERENCE, "worker": Colour.CELERY}
    bars: list[tuple[str, tuple[plots.Part, ...]]] = [("cron and command", ())]
    for worker in (each for each in result.standing if each.role == "worker"):
        parts = tuple(
            plots.Part(label=each.role, value=each.memory_bytes / 1e6, colour=colours.get(each.role, Colour.MUTED))
            for each in (worker, *fixed)
        )
        bars.append((with_processes("Celery", worker.concurrency), parts))
    order = listed(["worker", *(each.role for each in fixed)])
    return Picture(
        title="Memory while idle",
        plot=plots.stacks("Memory while idle, MB", bars, show=lambda value: memory(value * 1e6)),
        caption=f"From left to right: {order}. Pages that processes share are counted once, where the system tells.",
    )


def colour(result: Result, contender: Contender) -> Colour:
    """The command and Celery stand out; of several Celery contenders the last one most."""
    if contender.name in (COMMAND, MAIL_COMMAND):
        return Colour.COMMAND
    if contender.path != "celery":
        return Colour.REFERENCE
    rivals = {name for each in result.scenarios if contender.name in each.contenders for name in each.contenders}
    last = [each for each in result.contenders if each.path == "celery" and each.name in rivals][-1]
    return Colour.CELERY if contender == last else Colour.CELERY_LIGHT


def _row(result: Result, contender: Contender, values: list[float]) -> plots.Row:
    return plots.Row(label=contender.title, values=values, colour=colour(result, contender))


def _waited(result: Result, scenario: Scenario, contender: Contender) -> list[float]:
    """Median, 99th percentile and longest wait in milliseconds; empty when nobody paid during the run."""
    figures = [
        result.figure(scenario.name, contender.name, f"wait_{each}_seconds") for each in ("median", "p99", "max")
    ]
    if not all(figures):
        return []
    typical, tail, longest = (figure.spread for figure in figures if figure)
    return [typical.median * 1000, tail.median * 1000, longest.highest * 1000]
