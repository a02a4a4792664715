"""Fixtures of all tests: the moment of the test, and real processes on the tests' own database and broker."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from celery import _state
from celery.result import AsyncResult
from django.conf import settings as django_settings
from django.core.cache import cache
from django.db import connection
from django.db.backends.postgresql.operations import DatabaseOperations
from django_celery_beat.models import CrontabSchedule, PeriodicTask
from playwright.sync_api import Browser, sync_playwright
from pytest_django import Settings

from accounts import access
from accounts.admin import schedule
from accounts.admin.schedule import Processes
from project.celery import app
from sandbox import servers
from sandbox.mail_server import Mailbox, mail_server
from tests.locks import Sql

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

Process = Callable[..., AbstractContextManager[subprocess.Popen[bytes]]]


@pytest.fixture
def now() -> datetime:
    """The moment of the test. The clock is not frozen: tests pass this moment."""
    return NOW


@pytest.fixture(autouse=True)
def the_database_is_asked_again() -> None:
    """Forget what the previous test's database said; a process asks some questions once a minute or an hour."""
    access._is_on_hold.cache_clear()
    cache.clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need PostgreSQL when the database is SQLite."""
    if connection.vendor != "postgresql":
        for item in items:
            if item.get_closest_marker("postgres"):
                item.add_marker(pytest.mark.skip(reason="shows what only PostgreSQL can do"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many schedules the tests of interleavings ran."""
    properties = [dict(report.user_properties) for report in terminalreporter.getreports("passed")]
    ran = [each for each in properties if "schedules" in each]
    if ran:
        schedules, exceptions = (sum(int(str(each[name])) for each in ran) for name in ("schedules", "exceptions"))
        terminalreporter.write_line(f"{len(ran)} tests ran {schedules:,} schedules; exceptions: {exceptions}")


@pytest.fixture(scope="session", autouse=True)
def flush_only_what_was_used() -> Iterator[None]:
    """Truncate only tables that have rows, and keep content types and permissions, which every flush would write again.

    To truncate all thirty tables after each test with real transactions took a fifth of the tests' time.
    """

    def sql_flush(self: DatabaseOperations, style: Any, tables: Iterable[str], **options: Any) -> list[str]:
        kept = {"django_content_type", "auth_permission"}
        rows = [f"(SELECT '{table}' FROM {self.quote_name(table)} LIMIT 1)" for table in set(tables) - kept]  # noqa: S608
        with self.connection.cursor() as cursor:
            cursor.execute(" UNION ALL ".join(rows))
            used = [table for (table,) in cursor.fetchall()]
        return truncate(self, style, used, **{**options, "allow_cascade": True}) if used else []

    truncate = DatabaseOperations.sql_flush
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatabaseOperations, "sql_flush", sql_flush)
        yield


@pytest.fixture(scope="session", autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Reset SIGINT and SIGHUP in this process and its children, because `nohup make test &` ignores them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """The URL of a real Redis-compatible server; of TEST_REDIS_URL, a database for each parallel test process."""
    if url := os.environ.get("TEST_REDIS_URL"):
        number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        yield urlsplit(url)._replace(path=f"/{number}").geturl()
    else:
        with servers.valkey() as url:
            yield url


def database_url() -> str:
    """The DATABASE_URL of the tests' database, for other processes."""
    name = str(connection.settings_dict["NAME"])
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    return urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}").geturl()


@pytest.fixture
def environment(transactional_db: None) -> Mapping[str, str]:
    """The environment of a process that uses the tests' database, and a broker URL at which no server answers."""
    return {
        "DJANGO_SETTINGS_MODULE": os.environ.get("TEST_PROCESS_SETTINGS", "project.settings"),
        "DATABASE_URL": database_url(),
        "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
    }


ManagePy = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def manage_py(environment: Mapping[str, str]) -> ManagePy:
    """Run ``manage.py`` as cron does, in a separate process; returns its exit code and output."""

    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=django_settings.BASE_DIR,
            env={**os.environ, **environment, **extra},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium, headless, controlled by Playwright; skips the test when it is not installed.

    Without session scope: Playwright keeps an event loop in this thread, in which other tests must not run.
    """
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not executable:
        pytest.skip("no chromium is installed; on Debian: apt-get install chromium")
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # Django refuses database queries in a thread with an event loop.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # root has no sandbox
        browser = playwright.chromium.launch(executable_path=executable, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def entry(db: None) -> PeriodicTask:
    """The hourly entry in beat's schedule; a test that flushed the tables may have deleted the migration's."""
    hourly, _ = CrontabSchedule.objects.get_or_create(minute="0", hour="*", timezone="UTC")
    entry, _ = PeriodicTask.objects.get_or_create(
        task="accounts.expire_trials", defaults={"name": "Expire trials", "crontab": hourly}
    )
    return entry


Send = Callable[..., AsyncResult[Any]]


@pytest.fixture
def send(broker: str) -> Iterator[Send]:
    """Send a task by name to the tests' broker."""
    with app.connection_for_write(broker) as to_the_broker:
        yield partial(app.send_task, connection=to_the_broker, ignore_result=True)


@pytest.fixture
def empty_broker(broker: str) -> str:
    """The URL of the tests' broker, which is emptied first."""
    redis.Redis.from_url(broker).flushdb()
    return broker


@pytest.fixture
def own_broker(broker: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tests' broker as the one that this process sends to; returns its URL."""
    monkeypatch.setattr(app.conf, "broker_write_url", broker)
    # Another test may have made this process's pool of connections, to a broker at which no server answers.
    monkeypatch.setattr(app.amqp, "_producer_pool", None)
    monkeypatch.setattr(_state, "default_app", app)  # that of the web server's threads
    return broker


@pytest.fixture
def celery(environment: Mapping[str, str], empty_broker: str, tmp_path: Path) -> Process:
    """A context manager that runs ``celery -A project ARGUMENTS`` on the tests' database and broker."""

    def start(role: str, *arguments: str, **extra: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        return servers.process(
            *("-m", "celery", "-A", "project", role, *arguments),
            env={**environment, "CELERY_BROKER_URL": empty_broker, **extra},
            log=tmp_path / f"{role}.log",
        )

    return start


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker of Celery answers, which is known without asking a broker."""
    monkeypatch.setattr(schedule, "processes", lambda: Processes(broker=False))


@pytest.fixture
def mailbox(settings: Settings) -> Iterator[Mailbox]:
    """A real mail server, to which this process sends; other processes need ``EMAIL_URL=mailbox.url``."""
    with mail_server() as mailbox:
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = mailbox.host, mailbox.port
        settings.DEFAULT_FROM_EMAIL = "Trials <trials@example.com>"
        yield mailbox


@pytest.fixture
def other() -> Iterator[Sql]:
    """A second connection to the tests' database, with a transaction that is rolled back unless it commits."""
    with psycopg.connect(**connection.get_connection_params()) as second:
        yield second
        second.rollback()
