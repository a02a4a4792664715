"""A table of command lines, each with its one line on stderr and its exit code. None changes a row."""

import logging
import math
import shlex
import signal
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command, load_command_class
from django.db import connection
from django.db.utils import ConnectionHandler
from django.utils import timezone
from pytest_django import Settings

from accounts.delivery import deliver_notices
from accounts.models import Account, ExpiryRun, Notice
from tests.conftest import ManagePy
from tests.factories import make_accounts
from tests.runs import DAY

pytestmark = pytest.mark.django_db


Row = tuple[str, str, int]


def argument(line: str, message: str) -> Row:
    """A row whose last argument argparse refuses, because of its value."""
    option = line.rsplit(maxsplit=1)[-1].rpartition("=")[0] or "RUN"
    return line, f"manage.py {line.split(maxsplit=1)[0]}: error: argument {option}: {message}", 2


def wrong_values(line: str, kind: str, *values: object) -> list[Row]:
    return [argument(f"{line}{value}", f"it must be {kind}, not '{value}'.") for value in values]


def whole_number(line: str, *, most: int = 1_000_000_000) -> list[Row]:
    values = (0, -1, 1.5, "ten", most + 1, 10**30)
    return wrong_values(line, f"a whole number from 1 to {most}", *values)


def hours(line: str) -> list[Row]:
    values = (0, -1, "nan", "inf", "1e9", "3h", 87601, 10**30)
    return wrong_values(line, "a number of hours above 0 and at most 87600", *values)


def moment(line: str) -> list[Row]:
    not_iso = "is not an ISO 8601 date and time such as 2026-03-01T00:00:00Z."
    far_away = "must lie in the years 1000 to 9000."
    return [
        argument(f"{line}soon", f"'soon' {not_iso}"),
        argument(f"{line}2026-02-30T00:00Z", f"'2026-02-30T00:00Z' {not_iso}"),
        argument(f"{line}2026-03-01", "2026-03-01 has no time zone. Add one, such as 2026-03-01T00:00:00Z for UTC."),
        *(
            argument(f"{line}{text}", f"{text} {far_away}")
            for text in ("0001-01-01T00:00Z", "0001-01-01T00:00+05:00", "0999-12-31T23:59Z", "9999-12-31T23:59-05:00")
        ),
    ]


VALUES: list[Row] = [
    *whole_number("expire_trials --batch-size="),
    *whole_number("expire_trials --max-accounts="),
    *whole_number("expire_trials --jobs=", most=64),
    *whole_number("send_trial_notices --jobs=", most=64),
    *whole_number("undo_expiry 1 --jobs=", most=64),
    *whole_number("send_trial_notices --limit="),
    *whole_number("send_trial_notices --max-notices="),
    *whole_number("undo_expiry "),
    *whole_number("undo_expiry 1 --batch-size="),
    *whole_number("undo_expiry 1 --extend-days=", most=3650),
    *wrong_values("expire_trials --throttle=", "a number from 0 to 100", -0.1, 100.1, "nan", "inf", "half"),
    *wrong_values("undo_expiry 1 --throttle=", "a number from 0 to 100", -1),
    *hours("expire_trials --if-stale="),
    *hours("check_expiry --max-age="),
    *moment("expire_trials --as-of="),
    *moment("expire_trials --dry-run --as-of="),
    *moment("send_trial_notices --dry-run --as-of="),
    argument(f"undo_expiry 1 --by={'x' * 201}", f"it must be 1 to 200 printable characters, not '{'x' * 59}…'."),
    argument("undo_expiry 1 --by=", "it must be 1 to 200 printable characters, not ''."),
]
"""Refused because of one value: on a command line and, with the same words, by ``call_command``."""

LINES: list[Row] = [
    (
        "expire_trials --as-of=9000-12-31T23:59Z",
        "CommandError: --as-of 9000-12-31T23:59:00+00:00 lies in the future. "
        "Add --dry-run to see who would expire by then.",
        2,
    ),
    (
        "send_trial_notices --as-of=2026-03-01T00:00:00Z",
        "CommandError: --as-of needs --dry-run: a mail speaks of today.",
        2,
    ),
    (
        "undo_expiry 1000000000",
        "CommandError: There is no run 1000000000. The ledger, Expiry runs in the admin, has the numbers.",
        2,
    ),
    (
        "expire_trials --max-accounts=1",
        "CommandError: Refused: 2 accounts are due and at most 1 may expire in one run. Nothing was changed. If the "
        "number is right, allow it once with ./manage.py expire_trials --max-accounts 2, or raise TRIAL_EXPIRY_MAX; "
        "if not, look at TRIAL_DAYS, TRIAL_GRACE_DAYS, the trial ends of these accounts and the clock.",
        3,
    ),
    (
        "send_trial_notices --max-notices=1",
        "CommandError: Refused: 2 mails are owed and at most 1 are allowed. Nothing was queued or sent. If the number "
        "is right, allow it with --max-notices 2; if not, look at TRIAL_REMINDER_DAYS, TRIAL_NOTICE_WINDOW_DAYS and "
        "the clock.",
        3,
    ),
]
"""Refused because of what is stored, or of two options together."""

SYNTAX: list[Row] = [
    ("expire_trials now", "manage.py expire_trials: error: unrecognized arguments: now", 2),
    ("expire_trials --threads=2", "manage.py expire_trials: error: unrecognized arguments: --threads=2", 2),
    ("expire_trials --as-of", "manage.py expire_trials: error: argument --as-of: expected one argument", 2),
    ("undo_expiry", "manage.py undo_expiry: error: the following arguments are required: RUN", 2),
    (
        "check_expiry --verbosity=loud",
        "manage.py check_expiry: error: argument -v/--verbosity: invalid int value: 'loud'",
        2,
    ),
]
"""No command line of these commands."""


def stored() -> list[Any]:
    """Every row that a refused command must not change; the ledger also records the refusal."""
    return [
        *Account.objects.order_by("pk").values(),
        *Notice.objects.order_by("pk").values(),
        *ExpiryRun.objects.exclude(status=ExpiryRun.Status.REFUSED).order_by("pk").values(),
    ]


@pytest.fixture
def customers(settings: Settings) -> None:
    """Two accounts that are due and two that are owed a reminder, by the real clock."""
    settings.TRIAL_NOTICES = settings.DEBUG = True
    make_accounts(2, ended=10 * DAY, now=timezone.now())
    make_accounts(2, ended=-DAY / 2, now=timezone.now())


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Prevents that ``run_from_argv`` changes this process's connection and signal handlers."""
    monkeypatch.setattr(ConnectionHandler, "close_all", lambda self: None)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("customers", "in_process")
@pytest.mark.parametrize(("line", "message", "code"), [*VALUES, *LINES, *SYNTAX])
def test_bad_input_is_one_line_on_stderr_and_changes_nothing(
    line: str, message: str, code: int, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = stored()
    name, *arguments = shlex.split(line)

    with pytest.raises(SystemExit) as end:
        load_command_class("accounts", name).run_from_argv(["manage.py", name, *arguments])

    assert capsys.readouterr().err == f"{message}\n"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert end.value.code == code
    assert stored() == before


@pytest.mark.usefixtures("customers")
@pytest.mark.parametrize(("line", "message", "code"), [*VALUES, *LINES])
def test_call_command_refuses_the_same_values_with_the_same_words(line: str, message: str, code: int) -> None:
    before = stored()
    name, *arguments = shlex.split(line)
    options = dict(argument.removeprefix("--").split("=") for argument in arguments if "=" in argument)
    others = [argument for argument in arguments if "=" not in argument]

    with pytest.raises(CommandError) as error:
        call_command(name, *others, **{option.replace("-", "_"): value for option, value in options.items()})

    assert str(error.value) == message.removeprefix("CommandError: ").removeprefix(f"manage.py {name}: error: ")
    assert error.value.returncode == code
    assert stored() == before


@pytest.mark.usefixtures("in_process")
def test_a_default_that_is_a_wrong_setting_is_named_as_the_setting(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.TRIAL_RUN_MAX_AGE_HOURS = 0

    with pytest.raises(SystemExit):
        load_command_class("accounts", "check_expiry").run_from_argv(["manage.py", "check_expiry"])

    errors = capsys.readouterr().err
    assert "TRIAL_RUN_MAX_AGE_HOURS" in errors
    assert "--max-age" not in errors


NUMBER = "it must be a whole number from 1 to 1000000000, not"
HOURS = "it must be a number of hours above 0 and at most 87600, not"
NO_ZONE = "has no time zone. Add one, such as 2026-03-01T00:00:00Z for UTC."


@pytest.mark.usefixtures("customers")
@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("expire_trials", "batch-size", 1.5, f"{NUMBER} '1.5'."),
        ("expire_trials", "batch-size", 10_000.0, f"{NUMBER} '10000.0'."),
        ("expire_trials", "batch-size", math.nan, f"{NUMBER} 'nan'."),
        ("expire_trials", "max-accounts", True, f"{NUMBER} 'True'."),
        ("send_trial_notices", "limit", 0.0, f"{NUMBER} '0.0'."),
        ("expire_trials", "if-stale", math.nan, f"{HOURS} 'nan'."),
        ("expire_trials", "if-stale", 10**400, f"{HOURS} '1{'0' * 58}…'."),
        ("check_expiry", "max-age", timedelta(hours=3), f"{HOURS} '3:00:00'."),
        ("expire_trials", "as-of", datetime.fromisoformat("2026-03-01"), f"2026-03-01 00:00:00 {NO_ZONE}"),
        ("expire_trials", "as-of", date(2026, 3, 1), f"2026-03-01 {NO_ZONE}"),
    ],
)
def test_call_command_refuses_what_no_command_line_can_hold(name: str, option: str, value: Any, message: str) -> None:
    before = stored()

    with pytest.raises(CommandError) as error:
        call_command(name, **{option.replace("-", "_"): value})

    assert (str(error.value), error.value.returncode) == (f"argument --{option}: {message}", 2)
    assert stored() == before


@pytest.mark.usefixtures("customers")
def test_call_command_takes_none_for_an_option_that_is_not_given() -> None:
    options = dict.fromkeys(("batch_size", "as_of", "max_accounts", "throttle", "jobs"))
    call_command("expire_trials", **options, stdout=StringIO())

    assert ExpiryRun.objects.get().expired_count == 2


@pytest.mark.parametrize(
    ("line", "message", "code"), [VALUES[0], SYNTAX[0], *(row for row in LINES if row[0].startswith("expire_trials"))]
)
@pytest.mark.django_db(transaction=True)
def test_as_a_process_it_is_one_line_too(
    line: str, message: str, code: int, customers: None, manage_py: ManagePy
) -> None:
    before = stored()

    result = manage_py(*shlex.split(line))

    assert (result.stderr, result.returncode) == (f"{message}\n", code)
    assert stored() == before


@pytest.mark.skipif(connection.vendor == "postgresql", reason="shows what SQLite cannot do")
@pytest.mark.usefixtures("customers")
@pytest.mark.parametrize("command", ["expire_trials", "undo_expiry 1", "send_trial_notices"])
def test_more_than_one_job_is_refused_on_sqlite(command: str, now: datetime) -> None:
    before = stored()

    with pytest.raises(CommandError) as error:
        call_command(*command.split(), jobs=4)

    message = "argument --jobs: 4 needs PostgreSQL: SQLite has one writer. Use 1, the default."
    assert (str(error.value), error.value.returncode) == (message, 2)
    with pytest.raises(ValueError, match="jobs must be 1 on SQLite, which has one writer, got 4"):
        deliver_notices(now=now, jobs=4)
    assert stored() == before
