"""One line for each run and for each slice that failed, as key=value or as JSON, in command, worker and web."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError
from django.utils import timezone

from accounts import delivery, ledger, notices, services
from accounts.log import Fields
from accounts.models import Account, ExpiryRun, Notice
from accounts.services import TooManyDue
from project.logging import JsonLines
from sandbox.mail_server import Mailbox
from sandbox.servers import wait_for
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


def test_json_has_time_level_logger_message_and_a_key_for_each_field() -> None:
    assert json.loads(JsonLines().format(record(Fields("expiry_run", run=7, path="command")))) == {
        "timestamp": "2026-03-01T12:00:00+00:00",
        "level": "INFO",
        "logger": "accounts",
        "message": "expiry_run",
        "run": 7,
        "path": "command",
    }


def test_what_libraries_attach_to_a_record_stays_out_of_the_json() -> None:
    written = JsonLines().format(record("Not Found: /x", request="<WSGIRequest: GET '/x?q=ann@example.com'>"))

    assert json.loads(written).keys() == {"timestamp", "level", "logger", "message"}


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
        services.undo_run(run=undone, now=now, by="ann@example.com")

    assert [(level, said["status"], said["expired"], said.get("undone")) for level, said in lines(caplog)] == [
        (refused, "refused", 0, None),
        (failed, "failed", 0, None),
        ("INFO", "interrupted", 0, None),  # stopped by a signal
        ("WARNING", "interrupted", 0, None),  # died
        ("INFO", "succeeded", 2, None),
        ("INFO", "undone", 2, 2),
    ]
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


@pytest.mark.faults
@pytest.mark.django_db(transaction=True)
def test_a_worker_writes_the_same_lines(celery: Process, send: Send, tmp_path: Path) -> None:
    make_accounts(3, ended=10 * DAY, now=timezone.now())
    log = tmp_path / "worker.log"
    with celery("worker", "--concurrency=1", "--loglevel=info", LOG_FORMAT="json"):
        task_id = send("accounts.expire_trials", kwargs={"batch_size": 2}).id
        wait_for("the line", lambda: "expiry_run" in log.read_text())

    every_line = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    told = next(line for line in every_line if line["message"] == "expiry_run")
    assert (told["level"], told["path"], told["expired"], told["task_id"]) == ("INFO", "celery", 3, task_id)
    assert any(line["message"].startswith("Task accounts.continue_run") for line in every_line)


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
