"""What the commands share: checked options, an error in one line, exit codes, and stopping in order."""

import pkgutil
import signal
import threading
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, NoReturn

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, OperationalError, connection
from django.db.migrations.recorder import MigrationRecorder

from accounts import migrations, services
from accounts.log import one_line
from accounts.management.options import whole_number
from accounts.models import ExpiryRun
from accounts.notices import TooManyNotices
from accounts.services import RunRefused
from accounts.slices import AfterSlice

FAILED, BAD_INPUT, REFUSED, INTERRUPTED = 1, 2, 3, 130

QUERY_CANCELED = "57014"  # by statement_timeout, as a rule


class TrialCommand(BaseCommand):
    """A command whose errors are one line on stderr, and an exit code that says which kind."""

    work: ClassVar[str]
    """What to call what the command does, such as "run"."""
    lasting: ClassVar[str]
    """A sentence on what lasts of it when it fails or is stopped, and what to do next."""

    # Only the checks of this app: the others cost more than the work of an ordinary hour.
    requires_system_checks = ("accounts",)
    requires_migrations_checks = True
    verbosity = 1

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Django's parser, but an error is one line: no usage, and the same exit code for ``call_command``."""
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.error = partial(_refuse, parser)  # type: ignore[method-assign]
        return parser

    def add_batch_size(self, parser: CommandParser, *, verb: str) -> None:
        """Add ``--batch-size``."""
        parser.add_argument(
            "--batch-size",
            type=whole_number(),
            default=services.BATCH_SIZE,
            metavar="N",
            help=f"Accounts {verb} in one transaction (default: %(default)s).",
        )

    def run_from_argv(self, argv: list[str]) -> None:
        """Run as a process of its own, where SIGTERM stops as Ctrl-C does."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        super().run_from_argv(argv)

    def execute(self, *args: Any, **options: Any) -> str | None:
        """Run the command with the options checked; whatever an operator can meet becomes one line and an exit code."""
        options = self._checked(options)
        self.verbosity = options["verbosity"]
        try:
            return super().execute(*args, **options)
        except KeyboardInterrupt:
            raise CommandError(f"Stopped by a signal. {self.lasting}", returncode=INTERRUPTED) from None
        except (RunRefused, TooManyNotices) as refusal:
            raise CommandError(str(refusal), returncode=REFUSED) from None
        except ExpiryRun.DoesNotExist as error:
            message = f"The run was deleted from the ledger meanwhile. {self.lasting}"
            raise CommandError(message, returncode=FAILED) from error
        except Error as error:
            raise CommandError(self._explanation(error, options), returncode=FAILED) from error

    def check_migrations(self) -> None:
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

    def say(self, line: str, *, verbosity: int = 1) -> None:
        """Write a line to stdout when ``--verbosity`` is at least that."""
        if self.verbosity >= verbosity:
            self.stdout.write(line)

    @contextmanager
    def progress(self) -> Iterator[AfterSlice]:
        """What to call after each slice: shows how far it is; raises KeyboardInterrupt once told to stop."""
        with stop_signals_deferred() as stop:

            def after_slice(done: int, total: int) -> None:
                if total > 1 and self.verbosity >= 1 and self.stdout.isatty():
                    self.stdout.write(f"\r{done} of {total} slices", ending="\n" if done == total else "")
                    self.stdout.flush()
                if stop.is_set() and done < total:
                    raise KeyboardInterrupt

            yield after_slice

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options, each read by its type: ``call_command`` hands on keywords that argparse has not seen."""
        parser = self.create_parser("", "")
        for action in parser._actions:
            value = options.get(action.dest)
            if action.type and value is not action.default:  # a default from the settings is checked with them
                try:
                    read = action.default if value is None else parser._get_value(action, str(value))
                except ArgumentError as error:
                    parser.error(str(error))
                options = {**options, action.dest: read}
        return options

    def _explanation(self, error: Error, options: dict[str, Any]) -> str:
        reason = one_line(str(error), most=1000)
        if isinstance(error, OperationalError) and connection.connection is None:
            place = "{NAME} at {HOST} port {PORT}" if connection.settings_dict["HOST"] else "{NAME}"
            database = place.format(**connection.settings_dict)
            return f"The database {database} does not answer ({reason}). Is it up, and is DATABASE_URL right?"
        message = f"The {self.work} failed: {reason}. {self.lasting}"
        if getattr(error.__cause__, "sqlstate", None) == QUERY_CANCELED:
            smaller = ", or try a smaller --batch-size" if "batch_size" in options else ""
            message += f" If the role has a statement_timeout, raise it{smaller}."
        return message


def _refuse(parser: CommandParser, message: str) -> NoReturn:
    if parser.called_from_command_line:
        parser.exit(BAD_INPUT, f"{parser.prog}: error: {message}\n")
    raise CommandError(message, returncode=BAD_INPUT)


@contextmanager
def stop_signals_deferred() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event, for the caller to stop at when it suits; a second one stops at once.

    Raised just anywhere, KeyboardInterrupt can hit the middle of a COMMIT and leave a connection that cannot be used.
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
