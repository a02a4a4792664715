"""``./manage.py expire_trials``: its output, its options, its exit codes, and that it needs no broker."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone
from pytest_django import Settings

from accounts import ledger, services, slices, words
from accounts.management.commands.expire_trials import Command
from accounts.models import Account, ExpiryRun
from sandbox.servers import wait_for
from tests.conftest import ManagePy
from tests.factories import AccountFactory, make_accounts
from tests.locks import Sql, meanwhile, trigger_on_update, wait_until_blocked
from tests.runs import DAY

pytestmark = pytest.mark.django_db


def run(*arguments: str, **options: Any) -> str:
    """What the command prints."""
    output = StringIO()
    call_command("expire_trials", *arguments, stdout=output, **options)
    return output.getvalue()


def accounts_due_by_the_real_clock(count: int) -> None:
    make_accounts(count, ended=10 * DAY, now=timezone.now())


# --- Output ---


def test_it_prints_the_two_lines_of_the_original() -> None:
    accounts_due_by_the_real_clock(3)

    assert run() == "Search for old trial accounts...\nExpired 3 trial(s)\n"

    assert ExpiryRun.objects.get().throttle == 0


def test_handle_works_without_any_option() -> None:
    accounts_due_by_the_real_clock(1)
    output = StringIO()

    Command(stdout=output).handle()

    assert output.getvalue() == "Search for old trial accounts...\nExpired 1 trial(s)\n"
    assert ExpiryRun.objects.get().path == ExpiryRun.Path.COMMAND


def test_it_is_silent_when_told_to_be() -> None:
    assert run(verbosity=0) == ""


def test_it_tells_more_when_asked_to() -> None:
    accounts_due_by_the_real_clock(3)

    last_line = run("--batch-size=2", verbosity=2).splitlines()[-1]

    assert last_line.startswith(f"Run {ExpiryRun.objects.get().pk}: 3 due as of ")
    assert "2 slice(s), the longest 0.0" in last_line


@contextmanager
def role_setting(name: str, value: str) -> Iterator[None]:
    """Sets a default of the role for new connections to this database; this process reconnects."""

    def set_to(value: str) -> None:
        with connection.cursor() as cursor:
            database = connection.ops.quote_name(str(connection.settings_dict["NAME"]))
            cursor.execute(f"ALTER ROLE CURRENT_USER IN DATABASE {database} SET {name} TO {value}")
        connection.close()

    set_to(f"'{value}'")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(connection.settings_dict["OPTIONS"], "options", "")  # those of a connection come first
            yield
    finally:
        set_to("DEFAULT")


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("batch_size", "progress"), [(2, "\r2 of 4 accounts\r4 of 4 accounts\n"), (4, "")], ids=["two slices", "one slice"]
)
def test_progress_is_shown_on_a_terminal_when_there_is_more_than_one_slice(batch_size: int, progress: str) -> None:
    accounts_due_by_the_real_clock(4)
    output = Terminal()

    Command(stdout=output).handle(batch_size=batch_size)

    assert output.getvalue() == f"Search for old trial accounts...\n{progress}Expired 4 trial(s)\n"


def test_a_second_command_beside_the_first_says_so_and_is_no_failure() -> None:
    accounts_due_by_the_real_clock(2)
    first = ExpiryRun.objects.create(path=ExpiryRun.Path.COMMAND, as_of=timezone.now())

    assert f"Run {first.pk} by command is at work since " in run()

    assert Account.objects.filter(status=Account.TRIALING).count() == 2
    ExpiryRun.objects.update(heartbeat=first.heartbeat - ledger.ALIVE_FOR)
    assert "Expired 2 trial(s)" in run()


def test_the_fallback_takes_a_run_at_work_for_fresh() -> None:
    accounts_due_by_the_real_clock(2)
    first = ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, as_of=timezone.now())

    assert f"Nothing to do: run {first.pk} by celery is at work since " in run("--if-stale=2")

    ExpiryRun.objects.update(heartbeat=first.heartbeat - ledger.ALIVE_FOR)
    assert "Expired 2 trial(s)" in run("--if-stale=2")


# --- Options ---


def test_a_dry_run_counts_and_writes_nothing() -> None:
    accounts_due_by_the_real_clock(2)

    assert run("--dry-run") == "Search for old trial accounts...\nWould expire 2 trial(s)\n"

    assert not ExpiryRun.objects.exists()
    assert not Account.objects.filter(status=Account.TRIAL_EXPIRED).exists()


def test_a_dry_run_tells_who_would_expire_by_a_moment_in_the_future() -> None:
    AccountFactory.create(created=timezone.now())

    soon, later = (timezone.now() + timedelta(days=days) for days in (60, 62))

    assert run("--dry-run", f"--as-of={soon.isoformat()}").endswith("Would expire 0 trial(s)\n")
    assert run("--dry-run", f"--as-of={later.isoformat()}").endswith("Would expire 1 trial(s)\n")


def test_a_dry_run_says_when_the_fuse_would_refuse(settings: Settings) -> None:
    settings.TRIAL_EXPIRY_MAX = 1
    accounts_due_by_the_real_clock(2)

    assert run("--dry-run").endswith("Would be refused: at most 1 may expire in one run.\n")
    assert run("--dry-run", "--max-accounts=2").endswith("Would expire 2 trial(s)\n")


def test_the_rule_is_applied_to_the_moment_given(now: datetime) -> None:
    AccountFactory.create(created=now - timedelta(days=61))

    assert run("--as-of=2026-03-01T12:00:00Z").endswith("Expired 0 trial(s)\n")
    assert run("--as-of=2026-03-01T13:00:00.000001+01:00").endswith("Expired 1 trial(s)\n")


def test_the_batch_size_sets_the_number_of_slices() -> None:
    accounts_due_by_the_real_clock(5)

    run("--batch-size=2")

    assert ExpiryRun.objects.get().slice_count == 3


@pytest.mark.parametrize(
    ("status", "age", "works"),
    [
        (ExpiryRun.Status.SUCCEEDED, timedelta(minutes=119), False),
        (ExpiryRun.Status.SUCCEEDED, timedelta(minutes=121), True),
        (ExpiryRun.Status.FAILED, timedelta(minutes=1), True),
        (ExpiryRun.Status.REFUSED, timedelta(minutes=1), True),
    ],
)
def test_if_stale_works_only_when_no_run_succeeded_within_that_time(
    status: ExpiryRun.Status, age: timedelta, works: bool
) -> None:
    accounts_due_by_the_real_clock(1)
    moment = timezone.now() - age
    ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, status=status, as_of=moment, finished=moment)

    output = run("--if-stale=2")

    assert ExpiryRun.objects.filter(path=ExpiryRun.Path.COMMAND).exists() is works
    if not works:
        assert output == f"Nothing to do: a run by celery succeeded at {words.moment(moment)}.\n"


# --- Failures and stops ---


@pytest.mark.parametrize("command", ["expire_trials", "send_trial_notices", "undo_expiry 1"])
def test_unapplied_migrations_are_named(command: str, settings: Settings) -> None:
    settings.TRIAL_NOTICES = True
    accounts_due_by_the_real_clock(1)
    MigrationRecorder(connection).record_unapplied("accounts", "0001_initial")

    with pytest.raises(CommandError) as error:
        call_command(*command.split())

    assert str(error.value) == (
        "The database lacks 1 migration(s) of accounts: 0001_initial. "
        "Run ./manage.py migrate first. Nothing was changed."
    )
    assert not ExpiryRun.objects.exists()


class DeletesTheRun(Terminal):
    """A terminal that deletes the ledger when progress is shown."""

    def write(self, text: str) -> int:
        if "2 of 4" in text:
            with connection.cursor() as cursor:
                cursor.execute("DELETE FROM accounts_expiryrun")
        return super().write(text)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("command", "lasting"),
    [
        ("expire_trials", "What it expired stays expired; the next run takes the rest."),
        ("undo_expiry", "What it put back stays on trial; run it again for the rest."),
    ],
)
def test_a_run_that_is_deleted_under_its_command_is_told_in_a_sentence(command: str, lasting: str) -> None:
    accounts_due_by_the_real_clock(4)
    arguments = []
    if command == "undo_expiry":
        arguments = [services.expire_trials(path=ExpiryRun.Path.COMMAND, now=timezone.now()).pk]

    with pytest.raises(CommandError) as error:
        call_command(command, *arguments, batch_size=2, stdout=DeletesTheRun(), stderr=StringIO())

    assert str(error.value) == f"The run was deleted from the ledger meanwhile. {lasting}"
    assert error.value.returncode == 1
    assert Account.objects.filter(status=Account.TRIAL_EXPIRED).count() == 2


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_statement_timeout_advises_smaller_batches() -> None:
    accounts_due_by_the_real_clock(4)
    slow = Account.objects.order_by("pk")[2]

    with (
        trigger_on_update(slow, "PERFORM pg_sleep(30);"),
        role_setting("statement_timeout", "1s"),
        pytest.raises(CommandError) as error,
    ):
        run("--batch-size=2")

    message = str(error.value)
    assert message.startswith("The run failed: canceling statement due to statement timeout ")
    assert message.endswith(
        ". What it expired stays expired; the next run takes the rest. "
        "If the role has a statement_timeout, raise it, or try a smaller --batch-size."
    )
    assert error.value.returncode == 1
    assert ExpiryRun.objects.get().expired_count == 2


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_repeatable_read_as_the_role_s_default_expires_all_but_who_pays(
    other: Sql, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slices, "LOCK_TIMEOUT", "20s")
    accounts_due_by_the_real_clock(3)
    payer = Account.objects.order_by("pk")[1]

    with role_setting("default_transaction_isolation", "repeatable read"), caplog.at_level(logging.INFO):
        other.execute("UPDATE accounts_account SET status = 'active' WHERE id = %s", [payer.pk])
        with meanwhile(run) as printed:
            wait_until_blocked('UPDATE "accounts_account"')
            other.commit()

    assert printed == ["Search for old trial accounts...\nExpired 2 trial(s)\n"]
    assert "slice_retried" in caplog.text
    assert "sqlstate=40001" in caplog.text
    assert ExpiryRun.objects.get().accounts.count() == 2


# --- As cron runs it: in a separate process ---


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_it_works_and_ends_the_same_with_no_broker_that_answers(manage_py: ManagePy) -> None:
    accounts_due_by_the_real_clock(2)

    result = manage_py("expire_trials", CELERY_BROKER_URL="redis://127.0.0.1:1/0")

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "Search for old trial accounts...\nExpired 2 trial(s)\n"
    assert ExpiryRun.objects.get().status == ExpiryRun.Status.SUCCEEDED
    assert Account.objects.filter(status=Account.TRIAL_EXPIRED).count() == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"DATABASE_URL": "postgres://nobody:secret@127.0.0.1:1/nowhere"},
            "CommandError: The database nowhere at 127.0.0.1 port 1 does not answer",
        ),
        ({"DATABASE_URL": "mysql://root:secret@localhost/x"}, "DATABASE_URL is not like postgres://"),
        ({"DATABASE_URL": "postgres://u:secret@h:port/x"}, "DATABASE_URL is not like postgres://"),
        ({"TRIAL_DAYS": "sixty"}, "TRIAL_DAYS='sixty' is not a whole number"),
        ({"DJANGO_DEBUG": "0"}, "DJANGO_SECRET_KEY is not set"),
    ],
    ids=["database down", "unknown scheme", "unreadable URL", "unreadable number", "no secret key"],
)
def test_a_wrong_environment_is_one_line_on_stderr(manage_py: ManagePy, wrong: dict[str, str], message: str) -> None:
    line = one_line(manage_py("expire_trials", **wrong))

    assert message in line
    assert "secret@" not in line


def test_trial_days_below_one_stop_the_command(manage_py: ManagePy) -> None:
    line = one_line(manage_py("expire_trials", TRIAL_DAYS="0"))

    assert line == "Not started: TRIAL_DAYS is 0; it must be a whole number of days, 1 to 3650."
    assert not ExpiryRun.objects.exists()


def start(environment: Mapping[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "manage.py", "expire_trials", *arguments],
        cwd=django_settings.BASE_DIR,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_half_way() -> None:
    wait_for("the run to expire somebody", lambda: ExpiryRun.objects.filter(expired_count__gt=0).exists())


def test_killed_half_way_the_ledger_is_true_and_the_next_run_finishes(
    environment: Mapping[str, str],
) -> None:
    accounts_due_by_the_real_clock(2000)

    with start(environment, "--batch-size=1") as process:
        wait_until_half_way()
        process.send_signal(signal.SIGKILL)

    dead = ExpiryRun.objects.get()
    assert dead.status == ExpiryRun.Status.RUNNING
    assert 0 < dead.expired_count < 2000
    assert dead.expired_count == Account.objects.filter(status=Account.TRIAL_EXPIRED).count()

    ExpiryRun.objects.update(heartbeat=dead.heartbeat - ledger.SILENT_FOR)  # ten minutes later
    assert run().endswith(f"Expired {2000 - dead.expired_count} trial(s)\n")
    dead.refresh_from_db()
    assert dead.status == ExpiryRun.Status.INTERRUPTED


@pytest.mark.django_db(transaction=True)
def test_a_thread_that_may_not_handle_signals_can_run_it_too() -> None:
    accounts_due_by_the_real_clock(2)
    outcome: list[object] = []

    def run_and_close() -> None:
        try:
            outcome.append(run())
        except Exception as error:
            outcome.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=run_and_close)
    thread.start()
    thread.join(30)

    assert outcome == ["Search for old trial accounts...\nExpired 2 trial(s)\n"]
