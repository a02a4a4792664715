"""What the commands share: options, words, exit codes, and ending in order when told to stop."""

import pkgutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, OperationalError, connection
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone

from accounts import migrations, services
from accounts.slices import AfterSlice

FAILED, BAD_INPUT, REFUSED, INTERRUPTED = 1, 2, 3, 130


class TrialCommand(BaseCommand):
    """A command that speaks as loudly as ``--verbosity`` says and shows its progress on a terminal."""

    # Only the checks of this app: the others cost more than the work of an ordinary hour.
    requires_system_checks = ("accounts",)
    verbosity = 1

    def add_batch_size(self, parser: CommandParser, *, verb: str) -> None:
        """Add ``--batch-size``."""
        parser.add_argument(
            "--batch-size",
            type=int,
            default=services.BATCH_SIZE,
            metavar="N",
            help=f"Accounts {verb} in one transaction (default: %(default)s).",
        )

    def say(self, line: str, *, verbosity: int = 1) -> None:
        """Write a line to stdout when ``--verbosity`` is at least that."""
        if self.verbosity >= verbosity:
            self.stdout.write(line)

    @contextmanager
    def progress(self) -> Iterator[AfterSlice]:
        """What to call after each slice: shows how far it is; raises KeyboardInterrupt once told to stop."""
        with stop_signals_held_back() as stop:

            def after_slice(done: int, total: int) -> None:
                if total > 1 and self.verbosity >= 1 and self.stdout.isatty():
                    self.stdout.write(f"\r{done} of {total} slices", ending="\n" if done == total else "")
                    self.stdout.flush()
                if stop.is_set() and done < total:
                    raise KeyboardInterrupt

            yield after_slice


def at_least_one(**options: int | None) -> None:
    """Raise CommandError when a number that was given is below 1; ``batch_size`` is the option ``--batch-size``."""
    for name, number in options.items():
        if number is not None and number < 1:
            option = f"--{name.replace('_', '-')}"
            raise CommandError(f"{option} must be at least 1, not {number}.", returncode=BAD_INPUT)


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


@contextmanager
def explained(*, failed: str, then: str) -> Iterator[None]:
    """Turn an error of the database into one line that says what it did, and what to do next.

    Args:
        failed: what did not work, such as "The run failed".
        then: what became of the work, and what to do.
    """
    try:
        yield
    except Error as error:
        reason = " ".join(str(error).split())
        if isinstance(error, OperationalError) and connection.connection is None:
            place = "{NAME} at {HOST} port {PORT}" if connection.settings_dict["HOST"] else "{NAME}"
            database = place.format(**connection.settings_dict)
            message = f"The database {database} does not answer ({reason}). Is it up, and is DATABASE_URL right?"
        else:
            message = f"{failed}: {reason}. {then}"
        raise CommandError(message, returncode=FAILED) from error
