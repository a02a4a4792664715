"""``make demo``: its output, that it stops what it starts, and that it changes nothing outside its own files."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.conf import settings
from django.core.management.base import CommandError

from accounts.models import Account
from sandbox import demo_database, environment
from sandbox.mail_server import mail_server
from sandbox.sample import create_sample
from sandbox.servers import wait_for


@pytest.mark.django_db
def test_the_sample_is_believable_and_the_same_for_the_same_seed(now: datetime) -> None:
    def sample(seed: int) -> list[Any]:
        create_sample(size=400, seed=seed, now=now)
        return list(Account.objects.order_by("pk").values("pk", "status", "created", "trial_ends_at", "user__email"))

    assert sample(1) == sample(1) != sample(2)

    assert set(Account.objects.values_list("status", flat=True)) == set(Account.Status)
    trialing = Account.objects.filter(status=Account.TRIALING)
    assert any(account.trial_ends_at > account.created + timedelta(days=60) for account in trialing)
    assert trialing.filter(created=now - timedelta(days=61)).count() >= 4  # exactly on the boundary
    assert not Account.objects.filter(created__lt=now - timedelta(days=200)).exists()


@pytest.mark.django_db
def test_two_runs_within_the_hour_find_the_same_accounts_due(now: datetime) -> None:
    create_sample(size=400, seed=1, now=now)

    def due(moment: datetime) -> set[int]:
        return set(Account.objects.due(moment).values_list("pk", flat=True))

    assert due(now + timedelta(microseconds=1)) == due(now + timedelta(minutes=59)) != due(now)


RECIPE = re.search(r"^demo:.*\n\t(.*)$", (settings.BASE_DIR / "Makefile").read_text(), re.MULTILINE)
HOSTILE = {
    "TRIAL_NOTICES": "1",
    "TRIAL_DAYS": "1",
    "TRIAL_EXPIRY_MAX": "1",
    "TRIAL_REMINDER_DAYS": "30",
    "LOG_FORMAT": "json",
    "SITE_NAME": "Somebody else",
    "DEFAULT_FROM_EMAIL": "real@example.com",
    "DATABASE_URL": "postgres://trials@127.0.0.1:1/real",
    "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
    "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/0",
    "PGHOST": "127.0.0.1",
}
"""Settings of a machine, all of them valid, that would change what the demo does if it obeyed them."""


@pytest.fixture
def demo_environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a newcomer, with another path of the demo's database."""
    return environment.fixed(DEMO_DATABASE=str(tmp_path / "demo.sqlite3"))


def started_by_the_demo(database: str) -> list[str]:
    """The command lines of the running processes that use the demo's database."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("DATABASE_URL") == f"sqlite:///{database}":
                found.append(" ".join(process.cmdline()))
    return found


def make_demo(given: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """``make demo ARGS=--accounts=300``, in the Python of the tests."""
    assert RECIPE
    command = RECIPE[1].replace(".venv/bin/python", sys.executable).replace("$(ARGS)", "--accounts=300")
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=settings.BASE_DIR,
        env=given,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def manage_py_demo(given: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", "demo", "--accounts=300"],
        cwd=settings.BASE_DIR,
        env=given,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_the_demo_is_as_always(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"Both paths expired the same \d+ accounts, and no other\.", result.stdout)
    for end in ("ends in [3-7] days", "ends in [0-9]+ hours", "has ended"):
        assert re.search(
            rf"To: \S+@example.com  Subject: Your Trial expiry trial {end}\n    your trial of", result.stdout
        )
    assert re.findall(r"GET /app/  (\d+)", result.stdout) == ["402", "200", "402", "200"]
    assert result.stdout.rstrip().endswith("make test")


def assert_the_database_agrees(database: str) -> None:
    """The ledger, the accounts and beat's schedule tell what the demo showed, and something is due."""

    def rows(sql: str) -> list[Any]:
        return connection.execute(sql).fetchall()

    with closing(sqlite3.connect(database)) as connection:
        runs = rows("SELECT path, status, expired_count, undone_count FROM accounts_expiryrun ORDER BY id")
        pointing = rows("SELECT expiry_run_id, count(*) FROM accounts_account WHERE expiry_run_id > 0 GROUP BY 1")
        ticks = rows("SELECT last_run_at > '2' FROM django_celery_beat_periodictask WHERE task LIKE '%expire_trials'")
        due = rows(
            "SELECT count(*) FROM accounts_account "
            "WHERE status = 'trialing' AND trial_ends_at < datetime('now', '-1 day', '-30 minutes')"
        )

    expired = runs[0][2]
    assert runs == [
        ("command", "undone", expired, expired),
        ("celery", "succeeded", expired, 0),
        ("command", "undone", 1, 1),
    ]
    assert pointing == [(2, expired)]
    assert ticks == [(1,)]
    assert due == [(300 // 40,)]


@pytest.mark.postgres  # once is enough: it uses a database of its own
@pytest.mark.faults
def test_make_demo_obeys_no_setting_of_the_machine_and_leaves_no_process(
    demo_environment: dict[str, str], tmp_path: Path
) -> None:
    unreadable = tmp_path / ".env"
    unreadable.write_bytes(b"\xff\xfe this is no assignment\n")
    with mail_server() as configured:
        result = make_demo(
            {
                **demo_environment,
                **HOSTILE,
                "EMAIL_URL": configured.url,
                "DJANGO_ENV_FILE": str(unreadable),
                "DJANGO_DEBUG": "0",
                "DJANGO_SETTINGS_MODULE": "somebody.elses.settings",
                "LOG_LEVEL": "LOUD",
            }
        )

    assert_the_demo_is_as_always(result)
    assert_the_database_agrees(demo_environment["DEMO_DATABASE"])
    assert configured.connections == 0
    assert started_by_the_demo(demo_environment["DEMO_DATABASE"]) == []


@pytest.mark.faults  # for its length
@pytest.mark.postgres
def test_the_command_demo_obeys_no_setting_of_an_env_file(demo_environment: dict[str, str], tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    with mail_server() as configured:
        hostile = {**HOSTILE, "EMAIL_URL": configured.url}
        env_file.write_text("".join(f"{name}={value}\n" for name, value in hostile.items()))
        result = manage_py_demo({**demo_environment, "DJANGO_ENV_FILE": str(env_file)})

    assert_the_demo_is_as_always(result)
    assert configured.connections == 0


@pytest.mark.parametrize("database", [{}, {"DEMO_DATABASE": ""}], ids=["not set", "empty"])
def test_without_a_name_the_demo_uses_its_own_file(monkeypatch: pytest.MonkeyPatch, database: dict[str, str]) -> None:
    monkeypatch.delenv("DEMO_DATABASE", raising=False)
    for name, value in database.items():
        monkeypatch.setenv(name, value)

    assert demo_database.path() == settings.BASE_DIR / "demo.sqlite3"


def contents(directory: Path) -> dict[str, bytes | None]:
    """Every file below ``directory`` with its content; None for a directory."""
    return {
        str(file): str(file.readlink()).encode() if file.is_symlink() else file.read_bytes() if file.is_file() else None
        for file in directory.rglob("*")
    }


def test_the_demo_replaces_its_own_database_and_no_neighbour(tmp_path: Path) -> None:
    database = tmp_path / "demo.sqlite3"
    demo_database.create_anew(database)
    neighbours = [tmp_path / f"demo.sqlite3{suffix}" for suffix in (".backup", "x", "-wal.old", ".bak-wal")]
    for file in neighbours:
        file.write_text("somebody else's")
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE old (id)")
    connection.commit()
    assert (tmp_path / "demo.sqlite3-wal").exists()

    demo_database.create_anew(database)
    connection.close()

    assert [file.read_text() for file in neighbours] == ["somebody else's"] * 4
    assert sorted(tmp_path.iterdir()) == sorted([database, *neighbours])
    assert table_names(database) == []


def table_names(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]


def a_text(database: Path) -> None:
    database.write_text("A README, say.")


def an_empty_file(database: Path) -> None:
    database.touch()


def a_database_of_somebody_else(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE customers (id)")


def a_directory(database: Path) -> None:
    database.mkdir()
    (database / "file").write_text("somebody else's")


def a_link_to_a_database_of_the_demo(database: Path) -> None:
    real = database.parent / "real.sqlite3"
    demo_database.create_anew(real)
    database.symlink_to(real)


def a_link_to_nothing(database: Path) -> None:
    database.symlink_to(database.parent / "nothing")


def a_pipe(database: Path) -> None:
    os.mkfifo(database)


def a_write_ahead_log_alone(database: Path) -> None:
    database.with_name("demo.sqlite3-wal").write_text("somebody else's")


def a_directory_for_a_write_ahead_log(database: Path) -> None:
    demo_database.create_anew(database)
    database.with_name("demo.sqlite3-wal").mkdir()


@pytest.mark.parametrize(
    "put",
    [
        a_text,
        an_empty_file,
        a_database_of_somebody_else,
        a_directory,
        a_link_to_a_database_of_the_demo,
        a_link_to_nothing,
        a_pipe,
        a_write_ahead_log_alone,
        a_directory_for_a_write_ahead_log,
    ],
)
def test_the_demo_refuses_what_it_has_not_made_and_deletes_nothing(tmp_path: Path, put: Callable[[Path], None]) -> None:
    database = tmp_path / "demo.sqlite3"
    put(database)
    before = contents(tmp_path)

    with pytest.raises(CommandError) as refused:
        demo_database.create_anew(database)

    assert str(refused.value) == (
        f"{database} is not a database that the demo made, so the demo does not replace it. "
        "Delete it yourself, or name another file in DEMO_DATABASE."
    )
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing/demo.sqlite3", "No such file or directory"), ("file/demo.sqlite3", "Not a directory")],
)
def test_a_database_that_cannot_be_written_is_one_line(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(CommandError) as failed:
        demo_database.create_anew(tmp_path / name)

    assert str(failed.value) == f"The demo cannot write its database {tmp_path / name}: {reason}."


def test_a_fixed_environment_keeps_what_a_terminal_needs_and_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        monkeypatch.delenv(name)
    terminal = {"PATH": "/bin", "LC_ALL": "C", "NO_COLOR": "1", "PYTHONHASHSEED": "0", "VIRTUAL_ENV": "/venv"}
    for name, value in {**HOSTILE, **terminal, "SENTRY_DSN": "x", "DJANGO_DEBUG": "0", "EMAIL_URL": "x"}.items():
        monkeypatch.setenv(name, value)

    fixed = environment.fixed(TRIAL_DAYS="60")

    files = {"DJANGO_ENV_FILE": os.devnull, "DJANGO_SETTINGS_MODULE": "project.settings"}
    assert fixed == {**terminal, **files, "TRIAL_DAYS": "60"}


@pytest.mark.faults
@pytest.mark.postgres
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_stopped_by_hand_stops_what_it_started(demo_environment: dict[str, str], how: signal.Signals) -> None:
    database = demo_environment["DEMO_DATABASE"]
    with subprocess.Popen(
        [sys.executable, "manage.py", "demo", "--accounts=300"],
        cwd=settings.BASE_DIR,
        env=demo_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        wait_for(
            "a worker and beat to be started",
            lambda: sum("-m celery" in line for line in started_by_the_demo(database)) >= 2,
            seconds=60,
        )
        demo.send_signal(how)
        _, errors = demo.communicate(timeout=60)

    assert demo.returncode == 128 + how
    assert "Traceback" not in errors
    assert started_by_the_demo(database) == []
