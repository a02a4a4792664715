"""One line for each run and for each slice that failed, as key=value or as JSON, in command, worker and web."""

import json
import logging
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
from django.db import DatabaseError
from django.utils import timezone

from accounts import delivery, ledger, notices, services
from accounts.log import Fields
from accounts.models import Account, ExpiryRun, Notice
from accounts.services import TooManyDue
from project.logging import JsonLines
from sandbox.mail_server import Mailbox
from sandbox.servers import free_port, process, wait_for
from tests.conftest import ManagePy, Process, Send
from tests.factories import make_accounts
from tests.locks import trigger_on_update
from tests.processes import manage
from tests.runs import DAY, expire


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    """The level and fields of every structured line."""
    return [(record.levelname, record.msg) for record in caplog.records if isinstance(record.msg, Fields)]


# --- Format ---


def test_fields_are_written_as_key_value_and_quoted_where_they_must_be() -> None:
    line = Fields(
        "expiry_run", run=7, path="command", seconds=0.25, expired=0, host='two "words"', sum="a=b", task_id=""
    )

    assert str(line) == r'expiry_run run=7 path=command seconds=0.25 expired=0 host="two \"words\"" sum="a=b"'


def record(message: object, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("accounts").makeRecord("accounts", logging.INFO, "", 0, message, (), None, extra=extra)
    made.created = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    return made


def test_json_has_time_host_level_logger_message_and_a_key_for_each_field() -> None:
    assert json.loads(JsonLines().format(record(Fields("expiry_run", run=7, path="command")))) == {
        "timestamp": "2026-03-01T12:00:00+00:00",
        "host": socket.gethostname(),
        "level": "INFO",
        "logger": "accounts",
        "message": "expiry_run",
        "run": 7,
        "path": "command",
    }


def test_what_libraries_attach_to_a_record_stays_out_of_the_json() -> None:
    written = JsonLines().format(record("Not Found: /x", request="<WSGIRequest: GET '/x?q=ann@example.com'>"))

    assert json.loads(written).keys() == {"timestamp", "host", "level", "logger", "message"}


def test_an_unknown_format_stops_the_start() -> None:
    result = manage("check", LOG_FORMAT="xml")

    assert (result.returncode, result.stderr) == (1, "Not started: LOG_FORMAT='xml' is none of line, json.\n")


# --- Lines and levels ---


@pytest.mark.django_db
def test_a_run_that_succeeded_is_one_line(now: datetime, caplog: pytest.LogCaptureFixture) -> None:
    make_accounts(3, ended=10 * DAY, now=now)

    with caplog.at_level(logging.INFO):
        run = expire(now, batch_size=2, task_id="some-id")

    ((level, said),) = lines(caplog)
    assert level == "INFO"
    assert said.pop("seconds") >= 0
    assert said == {
        "message": "expiry_run",
        "run": run.pk,
        "path": "command",
        "status": "succeeded",
        "due": 3,
        "expired": 3,
        "slices": 2,
        "task_id": "some-id",
    }


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("path", "refused", "failed"),
    [
        (ExpiryRun.Path.CELERY, "WARNING", "ERROR"),
        (ExpiryRun.Path.COMMAND, "INFO", "INFO"),  # the command says these itself, in one line on stderr
    ],
)
def test_every_other_end_of_a_run_is_one_line_too(
    now: datetime, caplog: pytest.LogCaptureFixture, path: ExpiryRun.Path, refused: str, failed: str
) -> None:
    def raise_error(run: ExpiryRun) -> None:
        raise error

    make_accounts(2, ended=10 * DAY, now=now)
    with caplog.at_level(logging.INFO):
        with pytest.raises(TooManyDue):
            expire(now, path=path, max_accounts=1)
        for error in (RuntimeError("no"), KeyboardInterrupt()):
            with pytest.raises(type(error)):
                expire(now, path=path, run_slices=raise_error)
        dead = expire(now, path=path, run_slices=lambda run: None)
        ExpiryRun.objects.filter(pk=dead.pk).update(heartbeat=dead.heartbeat - ledger.SILENT_FOR)
        undone = expire(now, path=path)
        ExpiryRun.objects.filter(pk=undone.pk).update(started=undone.started - timedelta(hours=1))
        services.undo_run(run=undone, now=now, by="ann@example.com")

    assert [(level, said["status"], said["expired"], said.get("undone")) for level, said in lines(caplog)] == [
        (refused, "refused", 0, None),
        (failed, "failed", 0, None),
        ("INFO", "interrupted", 0, None),  # stopped by a signal
        ("WARNING", "interrupted", 0, None),  # died
        ("INFO", "succeeded", 2, None),
        ("INFO", "undone", 2, 2),
    ]
    assert float(lines(caplog)[-1][1]["seconds"]) < 3600  # of the undo, not since the run began
    assert "@" not in caplog.text


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_slice_that_fails_is_a_line_that_quotes_nothing_of_the_database(
    now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    make_accounts(4, ended=10 * DAY, now=now)
    poison = Account.objects.order_by("pk")[1]

    with (
        trigger_on_update(poison, "RAISE EXCEPTION 'ann@example.com' USING ERRCODE = '23505';"),
        pytest.raises(DatabaseError),
    ):
        expire(now, path=ExpiryRun.Path.CELERY, batch_size=2)

    run = ExpiryRun.objects.get()
    (level, failed), (_, ended) = lines(caplog)
    assert level == "WARNING"
    assert failed == {
        "message": "slice_failed",
        "run": run.pk,
        "path": "celery",
        "upto": poison.pk,
        "attempt": 1,
        "error": "IntegrityError",
        "sqlstate": "23505",
    }
    assert ended["status"] == "failed"
    assert "@" not in caplog.text


# --- In real processes ---


@pytest.mark.django_db(transaction=True)
def test_the_command_is_silent_about_success_until_told_to_log_it(manage_py: ManagePy) -> None:
    make_accounts(1, ended=10 * DAY, now=timezone.now())

    assert manage_py("expire_trials", "--verbosity=0").stderr == ""  # or cron would mail it, every hour
    told = json.loads(manage_py("expire_trials", LOG_LEVEL="INFO", LOG_FORMAT="json").stderr)

    assert (told["level"], told["message"], told["status"], told["due"]) == ("INFO", "expiry_run", "succeeded", 0)


# --- LOG_FORMAT=json: every line of every process ---

Line = dict[str, Any]


def every_line(text: str) -> list[Line]:
    """The lines of a log, each of which must be JSON."""
    return [json.loads(line) for line in text.splitlines()]


def line_with(text: str, lines: list[Line]) -> Line:
    """The first line whose message contains the text."""
    return next(line for line in lines if text in line["message"])


@pytest.mark.faults
@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ("check_expiry --max-age=x", {}, "manage.py check_expiry: error: argument --max-age: it must be"),
        ("check", {"TRIAL_DAYS": "x"}, "Not started: TRIAL_DAYS='x' is not a whole number."),
        ("check", {"DJANGO_ENV_FILE": "/nowhere"}, "Not started: /nowhere does not exist."),
    ],
)
def test_what_a_command_says_before_it_starts_is_json(arguments: str, settings: dict[str, str], message: str) -> None:
    result = manage(*arguments.split(), LOG_FORMAT="json", **settings)

    (line,) = every_line(result.stderr)
    assert result.returncode != 0
    assert line["message"].startswith(message)
    assert line["level"] == "ERROR"


@pytest.mark.faults
def test_a_printed_traceback_a_warning_and_a_plain_print_are_json_each() -> None:
    code = """
import sys, threading, traceback, warnings
warnings.warn("old")
print("two\\nlines", file=sys.stderr)
try:
    1 / 0
except ZeroDivisionError as error:
    traceback.print_exc()
    threading.Thread(target=lambda: [].pop()).start()
    raise ValueError("x\\n y") from error
"""
    result = manage("shell", "--no-imports", "-c", code.replace("\\\\", "\\"), LOG_FORMAT="json")

    lines = every_line(result.stderr)
    assert [line["message"] for line in lines if "exc_info" not in line] == [
        "<string>:3: UserWarning: old\n",
        "two",
        "lines",
    ]
    raised = {line["message"]: line["exc_info"] for line in lines if "exc_info" in line}
    assert set(raised) == {
        "ZeroDivisionError: division by zero",
        "IndexError: pop from empty list",
        "ValueError: x\n y",
    }
    assert all(text.startswith("Traceback (most recent call last):\n") for text in raised.values())
    assert "direct cause" in raised["ValueError: x\n y"]


@pytest.mark.django_db(transaction=True)
def test_the_error_of_a_command_is_json_and_its_output_stays_plain(manage_py: ManagePy) -> None:
    make_accounts(2, ended=10 * DAY, now=timezone.now())

    refused = manage_py("expire_trials", "--max-accounts=1", LOG_FORMAT="json", LOG_LEVEL="INFO")

    assert refused.stdout == "Search for old trial accounts...\n"
    logged, error = every_line(refused.stderr)
    assert (logged["message"], logged["status"]) == ("expiry_run", "refused")
    assert error["message"].startswith("CommandError: Refused: 2 accounts are due")


@pytest.mark.faults
@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_every_line_of_a_worker_and_beat_is_json(celery: Process, send: Send, tmp_path: Path) -> None:
    """Banner, a run, a task that raises, one that is refused, a killed process, a database that is away, the end."""
    make_accounts(3, ended=10 * DAY, now=timezone.now())
    poison = Account.objects.latest("pk")
    log, beat = tmp_path / "worker.log", tmp_path / "beat.log"
    json_lines = {"LOG_FORMAT": "json"}
    with celery("worker", "--concurrency=1", "--loglevel=info", **json_lines) as worker:
        with trigger_on_update(poison, "RAISE EXCEPTION 'no' USING ERRCODE = '23505';"):
            send("accounts.expire_trials")
            wait_for("a failure", lambda: "raised unexpected" in log.read_text())
        task_id = send("accounts.expire_trials").id
        wait_for("a run", lambda: task_id in log.read_text() and '"succeeded"' in log.read_text())
        send("accounts.expire_trials", kwargs={"batch_size": 0})
        wait_for("a refusal", lambda: "task_refused" in log.read_text())
        (pool_process,) = psutil.Process(worker.pid).children()
        pool_process.kill()
        wait_for("the end of a process", lambda: "SIGKILL" in log.read_text())
    with celery("beat", "--loglevel=info", **json_lines):
        wait_for("beat", lambda: "beat_starts" in beat.read_text())
    with celery("beat", DATABASE_URL="postgres://nobody@127.0.0.1:1/nowhere", **json_lines) as ends:
        assert ends.wait(30) != 0

    lines = every_line(log.read_text())
    assert line_with("worker_starts", lines)["concurrency"] == 1
    assert line_with("expiry_run", lines[::-1])["expired"] == 3
    assert line_with("raised unexpected", lines)["exc_info"].startswith("Traceback (most recent call last):\n")
    assert line_with("worker: Warm shutdown", lines)
    lines = every_line(beat.read_text())
    assert line_with("beat_starts", lines)
    assert any("connection refused" in line.get("exc_info", "").lower() for line in lines)


@pytest.mark.faults
@pytest.mark.django_db(transaction=True)
def test_every_line_of_web_is_json_gunicorns_own_and_its_access_log_too(
    environment: Mapping[str, str], tmp_path: Path
) -> None:
    log, port = tmp_path / "web.log", free_port()
    command = ("-m", "gunicorn", "project.wsgi", "--config", "project/gunicorn.py", "--bind", f"127.0.0.1:{port}")
    env = {
        **environment,
        "LOG_FORMAT": "json",
        "GUNICORN_CMD_ARGS": "--access-logfile=- --no-control-socket",
        "DATABASE_URL": "postgres://nobody@127.0.0.1:1/nowhere",
    }
    with process(*command, env=env, log=log) as web:
        wait_for("gunicorn", lambda: "Booting worker" in log.read_text())
        for page in ("/health/", "/app/", "/nowhere"):
            with suppress(HTTPError):
                urlopen(
                    Request(f"http://127.0.0.1:{port}{page}", headers={"Cookie": f"sessionid={32 * 'x'}"}), timeout=20
                )
        web.send_signal(signal.SIGHUP)
        wait_for("a reload", lambda: log.read_text().count("Booting worker") == 2)
    with process(*command, env={**env, "TRIAL_DAYS": "x"}, log=log) as refused:
        assert refused.wait(30) != 0

    lines = every_line(log.read_text())
    assert line_with("Starting gunicorn", lines)["logger"] == "gunicorn.error"
    assert line_with('"GET /nowhere HTTP/1.1" 404', lines)["logger"] == "gunicorn.access"
    assert "OperationalError" in line_with("Internal Server Error: /app/", lines)["exc_info"]
    assert line_with("Handling signal: term", lines)
    assert line_with("Not started: TRIAL_DAYS='x'", lines)


@pytest.mark.django_db
def test_a_mail_that_fails_is_a_line_without_the_customer_s_address(
    now: datetime, mailbox: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    make_accounts(1, ended=-DAY, now=now)
    mailbox.on_rcpt = lambda address: f"550 5.1.1 <{address}> no such user"

    with caplog.at_level(logging.INFO, logger="accounts"):
        notices.queue_notices(now=now)
        delivery.deliver_notices(now=now)

    notice = Notice.objects.get()
    assert notice.account.user.email in notice.last_error  # the admin shows it, to those who may see addresses
    failed = next(said for _, said in lines(caplog) if "notice" in said)
    assert (failed["notice"], failed["outcome"], failed["error"]) == (notice.pk, "refused", "SMTPRecipientsRefused")
    assert not any("@" in record.getMessage() for record in caplog.records if record.name.startswith("accounts"))
    (_, queued), *_, (_, ended) = lines(caplog)
    assert queued == {"message": "queue_notices", "as_of": now.isoformat(), "ending_soon": 1, "ended": 0}
    assert ended == {
        "message": "deliver_notices",
        "sent": 0,
        "skipped": 0,
        "refused": 1,
        "given_up": 0,
        "deferred": 0,
        "finished": True,
    }
