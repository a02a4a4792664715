"""The base class of the commands: checked options, errors in one line, exit codes, and a clean stop on a signal."""

import signal
import threading
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, NoReturn

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, OperationalError, connection

from accounts import absence, schema, services
from accounts.log import one_line
from accounts.management import options as types
from accounts.models import ExpiryRun
from accounts.notices import TooManyNotices
from accounts.services import Progress, RunRefused

FAILED, BAD_INPUT, REFUSED, INTERRUPTED = 1, 2, 3, 130

QUERY_CANCELED = "57014"  # usually by statement_timeout


class TrialCommand(BaseCommand):
    """A command whose errors are one line on stderr and an exit code for each kind."""

    work: ClassVar[str]
    """A noun for what the command does, such as "run"."""
    lasting: ClassVar[str]
    """A sentence about what remains done when the command fails or is stopped, and what to do next."""

    # Only the checks of this app: the others take longer than an hourly run usually does.
    requires_system_checks = ("accounts",)
    requires_migrations_checks = True
    verbosity = 1

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Django's parser, with errors in one line: no usage, and the same exit code for ``call_command``."""
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.error = partial(_refuse, parser)  # type: ignore[method-assign]
        return parser

    def add_batch_size(self, parser: CommandParser, *, verb: str) -> None:
        """Add ``--batch-size`` and ``--throttle``."""
        parser.add_argument(
            "--batch-size",
            type=types.whole_number(),
            metavar="N",
            help=f"Accounts {verb} in one transaction (default: as many as stay locked for about 0.1 s).",
        )
        parser.add_argument(
            "--throttle",
            type=types.factor(at_most=services.MOST_THROTTLE),
            default=0,
            metavar="F",
            help="After each transaction, pause F times as long as it took, for replicas that lag (default: 0).",
        )

    def add_jobs(self, parser: CommandParser, *, what: str, over: str = "a database connection of its own") -> None:
        """Add ``--jobs``."""
        parser.add_argument(
            "--jobs",
            type=types.jobs,
            default=1,
            metavar="N",
            help=f"{what} at a time, each over {over} (default: %(default)s). More than 1 needs PostgreSQL.",
        )

    def run_from_argv(self, argv: list[str]) -> None:
        """Run as a process, in which SIGTERM stops the command as Ctrl-C does."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        super().run_from_argv(argv)

    def execute(self, *args: Any, **options: Any) -> str | None:
        """Check the options and run the command; every error an operator can meet becomes one line and an exit code."""
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
        """Raise CommandError when a migration of this app is not applied; warn when the database has more of them."""
        lacking, unknown = schema.lacking_and_unknown()
        if lacking:
            raise CommandError(
                f"The database lacks {len(lacking)} migration(s) of accounts: {', '.join(lacking)}. "
                "Run ./manage.py migrate first. Nothing was changed."
            )
        schema.warn_of_unknown(unknown)

    def say(self, line: str, *, verbosity: int = 1) -> None:
        """Write a line to stdout when ``--verbosity`` is at least ``verbosity``."""
        if self.verbosity >= verbosity:
            self.stdout.write(line)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Yield a callback for after each slice, which shows progress and, after a signal, raises KeyboardInterrupt."""
        is_shown = self.verbosity >= 1 and self.stdout.isatty()
        slices = 0
        with stop_signals_deferred() as stop:

            def after_slice(done: int, total: int) -> None:
                nonlocal slices
                slices += 1
                if is_shown and (slices > 1 or done < total):
                    self.stdout.write(f"\r{done} of {total} accounts", ending="\n" if done == total else "")
                    self.stdout.flush()
                if stop.is_set() and done < total:
                    raise KeyboardInterrupt

            yield after_slice

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        """Convert each option by its type, because ``call_command`` passes keywords past argparse."""
        parser = self.create_parser("", "")
        for action in parser._actions:
            value = options.get(action.dest)
            if action.type and value is not action.default:  # the system checks cover a default from the settings
                try:
                    read = action.default if value is None else parser._get_value(action, str(value))
                except ArgumentError as error:
                    parser.error(str(error))
                options = {**options, action.dest: read}
        return options

    def _explanation(self, error: Error, options: dict[str, Any]) -> str:
        if isinstance(error, OperationalError) and connection.connection is None:
            return f"{absence.explanation(error)} Is it up, and is DATABASE_URL right?"
        message = f"The {self.work} failed: {one_line(str(error), most=1000)}. {self.lasting}"
        sqlstate = getattr(error.__cause__, "sqlstate", None)
        if isinstance(error, OperationalError) and sqlstate is None and (jobs := options.get("jobs", 1)) > 1:
            message += f" If the database has too few connections, use a smaller --jobs: it needs {jobs + 1}."
        if sqlstate == QUERY_CANCELED:
            smaller = ", or try a smaller --batch-size" if "batch_size" in options else ""
            message += f" If the role has a statement_timeout, raise it{smaller}."
        return message


def _refuse(parser: CommandParser, message: str) -> NoReturn:
    if parser.called_from_command_line:
        parser.exit(BAD_INPUT, f"{parser.prog}: error: {message}\n")
    raise CommandError(message, returncode=BAD_INPUT)


@contextmanager
def stop_signals_deferred() -> Iterator[threading.Event]:
    """Set an event on Ctrl-C or SIGTERM, so that the caller can stop between two steps; a second signal stops at once.

    A KeyboardInterrupt raised during a COMMIT would leave an unusable connection.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop
        return

    def request_stop(*_: object) -> None:
        stop.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        restore()
