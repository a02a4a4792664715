"""``./manage.py compare_paths``: the paths side by side, measured on this machine, on a database to throw away."""

import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from comparison.compare import Comparison, cores
from comparison.contenders import Failed
from comparison.results import Options, Result
from comparison.scenarios import PERIOD, TITLES
from sandbox import scratch
from sandbox.servers import stop_signals_recorded

BAD_INPUT, INTERRUPTED = 2, 130
INTERVAL = 3600.0
"""Seconds between two ticks of the schedule that the migration of accounts creates, and of the crontab in docs."""

# Numbers of accounts, rounds, and mails, of which eight processes need 200 to have a share each.
DEFAULT = (10_000, 100_000, 1_000_000), 2, 200
QUICK = (10_000, 50_000), 1, 100
FULL = (10_000, 100_000, 1_000_000, 10_000_000), 2, 1000


class Command(BaseCommand):
    help = (
        "Measure the command and the Celery path, and what else there is to compare them with, on a scratch database "
        "and broker of its own. Never touches the configured database. Takes about five minutes; --quick less "
        "than one."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        extent = parser.add_mutually_exclusive_group()
        extent.add_argument("--quick", action="store_true", help="Up to 50,000 accounts, no mails, one round.")
        extent.add_argument(
            "--full", action="store_true", help="Up to 10,000,000 accounts: ten times the time, and disk."
        )
        parser.add_argument(
            "--sizes", type=int, nargs="+", metavar="N", help="Numbers of accounts (10000 100000 1000000)."
        )
        parser.add_argument("--rounds", type=int, metavar="N", help="Runs of each contender in each scenario (2).")
        parser.add_argument(
            "--scenarios", nargs="+", choices=TITLES, help="Only these (all of them; with --quick, all but the mails)."
        )
        parser.add_argument(
            "--workers", type=int, metavar="N", help="Processes of the larger worker (cores, at least 2)."
        )
        parser.add_argument("--mails", type=int, metavar="N", help="Notices to send through a slow mail server (200).")
        parser.add_argument("--seed", type=int, default=61, help="Of sample, customers and order (%(default)s).")
        server = parser.add_mutually_exclusive_group()
        server.add_argument("--sqlite", action="store_true", help="On SQLite instead of an embedded PostgreSQL.")
        server.add_argument(
            "--database",
            metavar="URL",
            help="On this PostgreSQL server, where a database of its own is created, and dropped at the end.",
        )
        parser.add_argument("--json", type=Path, metavar="FILE", help="Write every sample and figure there.")
        parser.add_argument("--html", type=Path, metavar="FILE", help="Write a report with plots there.")
        parser.add_argument("--svg", type=Path, metavar="FILE", help="Write the plot of growth there (two sizes).")

    def handle(self, *args: Any, **given: Any) -> None:
        sizes, rounds, mails = QUICK if given["quick"] else FULL if given["full"] else DEFAULT
        sizes = tuple(sorted(set(given["sizes"] or sizes)))
        rounds = rounds if given["rounds"] is None else given["rounds"]
        mails = mails if given["mails"] is None else given["mails"]
        everything = [kind for kind in TITLES if not (kind == "notices" and (given["quick"] or given["sqlite"]))]
        kinds = [kind for kind in TITLES if kind in (given["scenarios"] or everything)]
        workers = max(2, cores()) if given["workers"] is None else given["workers"]
        for option, number, lowest in (
            ("--sizes", sizes[0], PERIOD),
            ("--rounds", rounds, 1),
            ("--workers", workers, 1),
            ("--mails", mails, 1),
        ):
            if number < lowest:
                raise CommandError(f"{option} must be at least {lowest}, not {number}.", returncode=BAD_INPUT)
        for file in (given["json"], given["html"], given["svg"]):
            if file and not file.absolute().parent.is_dir():
                raise CommandError(
                    f"There is no directory {file.absolute().parent} for {file.name}.", returncode=BAD_INPUT
                )

        if given["sqlite"] and "notices" in kinds:
            raise CommandError(
                "The notices need PostgreSQL: on SQLite one process sends at a time.", returncode=BAD_INPUT
            )
        if given["svg"] and (len(sizes) < 2 or "backlog" not in kinds):
            raise CommandError(
                "--svg draws growth: it needs two --sizes and the scenario backlog.", returncode=BAD_INPUT
            )

        if settings.SETTINGS_MODULE != "comparison.settings":
            begin_again_on_a_scratch_database(database_url=given["database"], sqlite=given["sqlite"])
            return
        command = f"./manage.py compare_paths --sizes {' '.join(map(str, sizes))} --rounds {rounds} --workers {workers}"
        command += f" --seed {given['seed']} --mails {mails}"
        command += f" --scenarios {' '.join(kinds)}" if len(kinds) < len(TITLES) else ""
        command += " --sqlite" if given["sqlite"] else " --database URL" if given["database"] else ""
        now = timezone.now()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            result = measure(
                Options(
                    command=command,
                    measured=now.isoformat(timespec="seconds"),
                    sizes=sizes,
                    rounds=rounds,
                    seed=given["seed"],
                    workers=workers,
                    interval_seconds=INTERVAL,
                    mails=mails if "notices" in kinds else 0,
                ),
                kinds=kinds,
                now=now,
            )
        except (Failed, TimeoutError) as error:
            raise CommandError(f"The comparison cannot go on: {error}") from error
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)  # whoever started this process says it
        present(result, json=given["json"], html=given["html"], svg=given["svg"])


def begin_again_on_a_scratch_database(*, database_url: str | None, sqlite: bool) -> None:
    """Run the same command line in a process whose environment names a scratch database and broker, and no other.

    Raises:
        CommandError: no scratch database could be made, or the run was stopped by hand.
        SystemExit: that process failed, and has said why.
    """
    # Noted only, so that what is just starting is stopped as well.
    with stop_signals_recorded() as stopped:
        try:
            with (
                scratch.environment(database_url=database_url, sqlite=sqlite) as environment,
                # In a session of its own: Ctrl-C reaches this process only, which then stops things in order.
                subprocess.Popen(  # noqa: S603
                    [sys.executable, *sys.argv],
                    env={**environment, "DJANGO_SETTINGS_MODULE": "comparison.settings"},
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


def measure(options: Options, *, kinds: list[str], now: datetime) -> Result:
    """Run the comparison, with a progress bar on stderr."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with (
        tempfile.TemporaryDirectory() as directory,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task("")
        comparison = Comparison(
            options=options,
            kinds=kinds,
            now=now,
            directory=Path(directory),
            say=lambda what: progress.update(task, description=what),
            advance=lambda: progress.advance(task),
        )
        progress.update(task, total=comparison.steps)
        return comparison.run()


def present(result: Result, *, json: Path | None, html: Path | None, svg: Path | None) -> None:
    """The table, and the files that were asked for."""
    if json:
        json.write_text(result.to_json())
    from comparison.report import print_report, write_html, write_svg  # brings matplotlib

    print_report(result, Console(highlight=False))
    if html:
        write_html(result, html)
    if svg:
        write_svg(result, svg)
