"""``./manage.py compare_paths``: the paths side by side, measured on this machine, on a database to throw away."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from comparison.machine import cores
from comparison.measurements import Options, Result
from comparison.report import Report
from comparison.run import Comparison, names
from comparison.runners import Failed
from comparison.sample import PERIOD
from comparison.workloads import KINDS, AfterHalf, Backlog, Churn, DearBacklog, Faults, Late, Mails, NormalDay, Workload
from project import service_urls
from sandbox import scratch
from sandbox.servers import stop_signals_recorded

BAD_INPUT, INTERRUPTED = 2, 130
SETTINGS = "comparison.engines.settings"  # of the process that compares


class Extent(NamedTuple):
    """How much is measured."""

    sizes: tuple[int, ...]  # numbers of accounts
    rounds: int
    mails: int  # of which eight processes need 200 to have a part each
    rest_seconds: float
    ticks: int
    without: tuple[type[Workload], ...]


OF_FULL = (Faults, NormalDay, DearBacklog, Churn, AfterHalf)
DEFAULT = Extent((10_000, 100_000, 1_000_000), 2, 200, 30, 5, OF_FULL)
QUICK = Extent((50_000,), 1, 100, 10, 3, (*OF_FULL, Late, Mails))
FULL = Extent((10_000, 100_000, 1_000_000, 10_000_000), 2, 1000, 120, 30, ())


class Command(BaseCommand):
    help = (
        "Measure the command and the Celery path, and what else there is to compare them with, on a scratch database "
        "and broker of its own. Never touches the configured database. Takes about six minutes; --quick about "
        "one."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        extent = parser.add_mutually_exclusive_group()
        extent.add_argument("--quick", action="store_true", help="50,000 accounts, one round, no mails.")
        extent.add_argument("--full", action="store_true", help="Up to 10,000,000 accounts, a month, faults: an hour.")
        sizes = "Numbers of accounts (10000 100000 1000000)."
        parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help=sizes)
        parser.add_argument("--rounds", type=int, metavar="N", help="Runs of each contender in each scenario (2).")
        only_these = f"Only these (all but {', '.join(each.kind for each in OF_FULL)})."
        parser.add_argument("--scenarios", nargs="+", choices=KINDS, help=only_these)
        parser.add_argument("--only", nargs="+", metavar="NAME", help="Only these contenders, and the yardsticks.")
        workers = "How many work at once, on either path (cores, at least 2)."
        parser.add_argument("--workers", type=int, metavar="N", help=workers)
        parser.add_argument("--mails", type=int, metavar="N", help="Mails to send through a slow mail server (200).")
        parser.add_argument("--seed", type=int, default=61, help="Of sample, customers and order (%(default)s).")
        database = "On this PostgreSQL server, where a database of its own is created, and dropped at the end."
        parser.add_argument("--database", metavar="URL", help=database)
        parser.add_argument("--json", type=Path, metavar="FILE", help="Write every measurement and figure there.")
        parser.add_argument("--markdown", type=Path, metavar="FILE", help="Write the tables there, for docs.")
        parser.add_argument("--html", type=Path, metavar="FILE", help="Write the report as a page there.")
        parser.add_argument("--svg", type=Path, metavar="FILE", help="Write the chart of growth there (two sizes).")

    def handle(self, *args: Any, **given: Any) -> None:
        extent = QUICK if given["quick"] else FULL if given["full"] else DEFAULT
        all_kinds = [kind for kind in KINDS if kind not in [each.kind for each in extent.without]]
        options = Options(
            command="",
            measured=timezone.now().isoformat(timespec="seconds"),
            kinds=tuple(each for each in KINDS if each in (given["scenarios"] or all_kinds)),
            sizes=tuple(sorted(set(given["sizes"] or extent.sizes))),
            rounds=extent.rounds if given["rounds"] is None else given["rounds"],
            seed=given["seed"],
            workers=max(2, cores()) if given["workers"] is None else given["workers"],
            mails=extent.mails if given["mails"] is None else given["mails"],
            rest_seconds=extent.rest_seconds,
            ticks=extent.ticks,
            only=tuple(given["only"] or ()),
        )
        if wrong := what_is_wrong(options, given):
            raise CommandError(wrong, returncode=BAD_INPUT)
        if settings.SETTINGS_MODULE != SETTINGS:
            begin_again_on_a_scratch_database(given["database"])
            return
        options = replace(options, command=repeated_by(options))
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            report = Report(measured(options))
        except (Failed, TimeoutError) as error:
            raise CommandError(f"The comparison cannot go on: {error}") from error
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)  # whoever started this process says it
        if given["json"]:
            given["json"].write_text(report.result.to_json())
        report.print(Console(highlight=False))
        for written in ("markdown", "html", "svg"):
            if file := given[written]:
                getattr(report, f"write_{written}")(file)


def what_is_wrong(options: Options, given: dict[str, Any]) -> str:
    """What of the command line cannot be done, in one line; empty when all can."""
    for option, number, lowest in (
        ("--sizes", options.sizes[0], PERIOD),
        ("--rounds", options.rounds, 1),
        ("--workers", options.workers, 1),
        ("--mails", options.mails, 1),
    ):
        if number < lowest:
            return f"{option} must be at least {lowest}, not {number}."
    if strangers := sorted(set(options.only) - set(known := names(options.workers))):
        return f"--only knows no {', '.join(strangers)}. It knows {', '.join(known)}."
    for file in (given["json"], given["markdown"], given["html"], given["svg"]):
        if file and not file.absolute().parent.is_dir():
            return f"There is no directory {file.absolute().parent} for {file.name}."
    if given["svg"] and (len(options.sizes) < 2 or Backlog.kind not in options.kinds):
        return "--svg draws growth: it needs two --sizes and the scenario backlog."
    return wrong_database(given["database"])


def wrong_database(url: str | None) -> str:
    """What is wrong with the value of --database; empty when nothing is. Quotes no password."""
    if not url:
        return ""
    if not url.startswith(("postgres://", "postgresql://")):
        return f"--database is for PostgreSQL. It must be like {service_urls.LIKE_POSTGRES}."
    try:
        service_urls.database(url)
    except ValueError as error:
        return f"--database {error}"
    return ""


def repeated_by(options: Options) -> str:
    """The command line that measures the same again."""
    command = f"./manage.py compare_paths --sizes {' '.join(map(str, options.sizes))} --rounds {options.rounds}"
    command += f" --workers {options.workers} --seed {options.seed} --mails {options.mails}"
    command += f" --scenarios {' '.join(options.kinds)}"
    return command + (f" --only {' '.join(options.only)}" if options.only else "")


def command_line_again(argv: Sequence[str]) -> list[str]:
    """The same command line for the process that compares. The last --settings counts, also where one was given."""
    return [sys.executable, *argv, f"--settings={SETTINGS}"]


def begin_again_on_a_scratch_database(database_url: str | None) -> None:
    """Run the same command line in a process whose environment names a scratch database and broker, and no other.

    Raises:
        CommandError: no scratch database could be made, or the run was stopped by hand.
        SystemExit: that process failed, and has said why.
    """
    # Noted only, so that what is just starting is stopped as well.
    with stop_signals_recorded() as stopped:
        try:
            with (
                scratch.environment(database_url=database_url) as environment,
                # In a session of its own: Ctrl-C reaches this process only, which then stops things in order.
                subprocess.Popen(  # noqa: S603
                    command_line_again(sys.argv),
                    env={**environment, "DJANGO_SETTINGS_MODULE": SETTINGS},
                    start_new_session=True,
                ) as child,
            ):
                while child.poll() is None:
                    if stopped:
                        child.terminate()
                        child.wait()
                    time.sleep(0.1)
        except psycopg.Error as error:
            raise CommandError(f"No scratch database: {' '.join(str(error).split())}") from error
        except Exception:
            if not stopped:  # a server that was just starting may have heard Ctrl-C, too
                raise
    if stopped:
        raise CommandError("Stopped by hand; everything that was started is stopped too.", returncode=INTERRUPTED)
    if child.returncode:
        sys.exit(child.returncode)


def measured(options: Options) -> Result:
    """Run the comparison, with a progress bar on stderr."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with (
        tempfile.TemporaryDirectory() as logs,
        Progress(*columns, console=Console(stderr=True), transient=True) as bar,
    ):
        return Comparison(options, now=timezone.now(), logs=Path(logs), bar=bar).run()
