"""``./manage.py expire_trials``: the command's face of ``accounts.services.expire_trials``."""

import pkgutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from math import inf
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, OperationalError, connection
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone

from accounts import migrations, services
from accounts.models import Account, ExpiryRun
from accounts.services import Slice, TooManyDue

BAD_INPUT, REFUSED, INTERRUPTED = 2, 3, 130


class Command(BaseCommand):
    help = (
        "Move every account whose trial has ended, plus TRIAL_GRACE_DAYS of grace, from trialing to trial expired. "
        "Accounts in any other status are never touched. Needs no broker and may run at any time, also beside Celery. "
        "Exit codes: 0 done, 1 failed (the next run takes what is left), 2 bad input, 3 refused: too many are due."
    )
    # Only the checks of this app: the others cost more than the work of an ordinary hour.
    requires_system_checks = ("accounts",)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="Only say how many accounts would expire.")
        parser.add_argument(
            "--as-of",
            metavar="ISO8601",
            help="Apply the rule to this moment instead of now, such as 2026-03-01T00:00:00Z. "
            "With --dry-run it may lie in the future.",
        )
        parser.add_argument(
            "--batch-size",
            type=int,
            default=services.BATCH_SIZE,
            metavar="N",
            help="Accounts expired in one transaction (default: %(default)s).",
        )
        parser.add_argument(
            "--max-accounts",
            type=int,
            metavar="N",
            help="Change nothing if more than N are due (default: the setting TRIAL_EXPIRY_MAX).",
        )
        parser.add_argument(
            "--if-stale",
            type=float,
            metavar="HOURS",
            help="Do nothing if a run succeeded within the last HOURS: for a cron line that stands in for Celery.",
        )

    def handle(
        self,
        *args: Any,
        dry_run: bool = False,
        as_of: str | datetime | None = None,
        batch_size: int = services.BATCH_SIZE,
        max_accounts: int | None = None,
        if_stale: float | None = None,
        verbosity: int = 1,
        **options: Any,
    ) -> None:
        clock = timezone.now()
        now = read_as_of(as_of, clock=clock, dry_run=dry_run)
        refuse_below_one({"--batch-size": batch_size, "--max-accounts": max_accounts})
        if if_stale is not None and not 0 < if_stale < inf:
            raise CommandError(f"--if-stale must be a number of hours above 0, not {if_stale:g}.", returncode=BAD_INPUT)
        self.verbosity = verbosity

        try:
            refuse_unapplied_migrations()
            if if_stale is not None and (run := ExpiryRun.objects.succeeded_since(clock - timedelta(hours=if_stale))):
                self.say(f"Nothing to do: a run by {run.path} succeeded at {run.finished:%Y-%m-%d %H:%M} UTC.")
                return
            self.say("Search for old trial accounts...")
            if dry_run:
                self.say_what_would_happen(now, limit=max_accounts or settings.TRIAL_EXPIRY_MAX)
                return
            run = services.expire_trials(
                path=ExpiryRun.Path.COMMAND,
                now=now,
                batch_size=batch_size,
                max_accounts=max_accounts,
                run_slices=self.run_slices,
            )
        except TooManyDue as refusal:
            raise CommandError(str(refusal), returncode=REFUSED) from None
        except Error as error:
            raise CommandError(explain(error)) from error
        except KeyboardInterrupt:
            raise CommandError(
                "Stopped by a signal. What was expired so far stays expired; run it again to go on.",
                returncode=INTERRUPTED,
            ) from None
        self.say(f"Expired {run.expired_count} trial(s)")
        self.say(
            f"Run {run.pk}: {run.due_count} due as of {run.as_of:%Y-%m-%d %H:%M:%S} UTC, {run.slice_count} slice(s), "
            f"the longest {run.longest_slice.total_seconds():.3f} s",
            verbosity=2,
        )

    def say(self, line: str, *, verbosity: int = 1) -> None:
        if self.verbosity >= verbosity:
            self.stdout.write(line)

    def say_what_would_happen(self, now: datetime, *, limit: int | None) -> None:
        due = Account.objects.due(now).count()
        self.say(f"Would expire {due} trial(s)")
        if limit is not None and due > limit:
            self.say(f"Would be refused: at most {limit} may expire in one run.")

    def run_slices(self, run: ExpiryRun, slices: Sequence[Slice]) -> None:
        with stop_signals_held_back() as stop:

            def after_slice(done: int, total: int) -> None:
                self.show_progress(done, total)
                if stop.is_set() and done < total:
                    raise KeyboardInterrupt

            services.in_turn(run, slices, after_slice=after_slice)

    def show_progress(self, done: int, total: int) -> None:
        if total > 1 and self.verbosity >= 1 and self.stdout.isatty():
            self.stdout.write(f"\r{done} of {total} slices", ending="\n" if done == total else "")
            self.stdout.flush()


@contextmanager
def stop_signals_held_back() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event, for the caller to stop at when it suits; a second one stops at once.

    Raised just anywhere, an interrupt can hit the middle of a COMMIT and leave a connection that tells nobody anything.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield asked
        return

    def ask(*_: object) -> None:
        asked.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        restore()


def read_as_of(value: str | datetime | None, *, clock: datetime, dry_run: bool) -> datetime:
    """The moment that ``--as-of`` names, or ``clock`` without it.

    Raises:
        CommandError: it cannot be read, has no time zone, or lies in the future although this is no dry run.
    """
    if value is None:
        return clock
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except ValueError:
        raise CommandError(
            f"--as-of {value!r} is not an ISO 8601 date and time such as 2026-03-01T00:00:00Z.", returncode=BAD_INPUT
        ) from None
    if timezone.is_naive(moment):
        raise CommandError(
            f"--as-of {value} has no time zone. Add one, such as {moment.isoformat()}Z for UTC.", returncode=BAD_INPUT
        )
    if moment > clock and not dry_run:
        raise CommandError(
            f"--as-of {value} lies in the future. Add --dry-run to see who would expire by then.", returncode=BAD_INPUT
        )
    try:
        moment - timedelta(days=settings.TRIAL_GRACE_DAYS)
    except OverflowError:
        raise CommandError(
            f"--as-of {value} is too far in the past to subtract the days of grace.", returncode=BAD_INPUT
        ) from None
    return moment


def refuse_below_one(options: Mapping[str, int | None]) -> None:
    """Raise CommandError when one of these options was given a number below 1."""
    for option, number in options.items():
        if number is not None and number < 1:
            raise CommandError(f"{option} must be at least 1, not {number}.", returncode=BAD_INPUT)


def refuse_unapplied_migrations() -> None:
    """Raise CommandError when this app has migrations that the database lacks.

    Django's own check builds the graph of every migration, which takes longer than expiring a thousand accounts.
    """
    applied = {name for app, name in MigrationRecorder(connection).applied_migrations() if app == "accounts"}
    missing = [module.name for module in pkgutil.iter_modules(migrations.__path__) if module.name not in applied]
    if missing:
        raise CommandError(
            f"The database lacks {len(missing)} migration(s) of accounts: {', '.join(missing)}. "
            "Run ./manage.py migrate first. Nothing was changed."
        )


def explain(error: Error, *, then: str = "What it expired stays expired; the next run takes the rest.") -> str:
    """One line that says what the database did, and what happens next."""
    reason = " ".join(str(error).split())
    if isinstance(error, OperationalError) and connection.connection is None:
        place = "{NAME} at {HOST} port {PORT}" if connection.settings_dict["HOST"] else "{NAME}"
        database = place.format(**connection.settings_dict)
        return f"The database {database} does not answer ({reason}). Is it up, and is DATABASE_URL right?"
    return f"The run failed: {reason}. {then}"
