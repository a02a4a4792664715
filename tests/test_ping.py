"""The dead-man's ping, at a real HTTP server: what each path tells, and that no monitor fails a run."""

import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest
from celery.signals import task_failure
from django.core.management import CommandError, call_command
from django.utils import timezone
from pytest_django import Settings

from accounts import decisions, ping, services, tasks
from accounts.models import ExpiryRun
from tests.factories import make_accounts
from tests.runs import DAY

pytestmark = pytest.mark.django_db


class Monitor(ThreadingHTTPServer):
    """Keeps the paths that were requested; answers with ``status``, or in no HTTP, once ``answers`` is set."""

    daemon_threads = False  # closing it then waits for them: another test may count threads

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[str] = []
        self.status = 200
        self.babbles = False
        self.answers = Event()
        self.answers.set()

    def told(self) -> list[str]:
        """The paths since the last call."""
        seen, self.seen = self.seen, []
        return seen


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Monitor)
        server.seen.append(self.path)
        server.answers.wait(30)
        if server.babbles:
            self.wfile.write(b"This is no HTTP.\r\n")
            return
        self.send_response(server.status)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def monitor(settings: Settings) -> Iterator[Monitor]:
    with Monitor() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        settings.TRIAL_PING_URL = f"http://127.0.0.1:{server.server_port}/S3CRET"
        yield server
        server.answers.set()
        server.shutdown()
    for rest in [thread, *(each for each in threading.enumerate() if each.name == ping.NAME)]:
        rest.join(10)


def test_the_command_tells_its_start_and_its_exit_code(monitor: Monitor) -> None:
    make_accounts(2, ended=10 * DAY, now=timezone.now())
    call_command("expire_trials", dry_run=True)
    assert monitor.told() == []

    with pytest.raises(CommandError):
        call_command("expire_trials", max_accounts=1)
    assert monitor.told() == ["/S3CRET/start", "/S3CRET/3"]

    call_command("expire_trials")
    assert monitor.told() == ["/S3CRET/start", "/S3CRET/0"]

    decisions.pause(until=timezone.now() + DAY, by="anna", reason="a look")
    call_command("expire_trials")
    assert monitor.told() == ["/S3CRET/start", "/S3CRET/0"]


def test_the_task_tells_its_start_and_how_its_run_ended(monitor: Monitor) -> None:
    make_accounts(2, ended=10 * DAY, now=timezone.now())
    tasks.expire_trials.apply(kwargs={"max_accounts": 1})
    assert monitor.told() == ["/S3CRET/start", "/S3CRET/fail"]

    tasks.expire_trials.apply()
    assert monitor.told() == ["/S3CRET/start", "/S3CRET"]

    run = ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, as_of=timezone.now())
    tasks.continue_run.apply(kwargs={"run_id": run.pk, "after": ["2026-03-01T12:00:00Z", 1], "size": 2})
    assert monitor.told() == ["/S3CRET"]

    error = RuntimeError("the lights went out")
    for task in (tasks.expire_slice, tasks.continue_run, tasks.deliver_notices):
        task_failure.send(sender=task, task_id="1", exception=error, kwargs={})
    assert monitor.told() == ["/S3CRET/fail"] * 2

    decisions.pause(until=timezone.now() + DAY, by="anna", reason="a look")
    tasks.expire_trials.apply()
    assert monitor.told() == ["/S3CRET/start", "/S3CRET"]


def test_a_run_by_a_service_call_tells_nothing(monitor: Monitor) -> None:
    services.expire_trials(path=ExpiryRun.Path.COMMAND, now=timezone.now())

    assert monitor.told() == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://hc-ping.com/uuid", "https://hc-ping.com/uuid/start"),
        ("https://hc.example/ping/key/slug/?create=1", "https://hc.example/ping/key/slug/start?create=1"),
        ("https://o1.sentry.example/cron/x/key/?status=", "https://o1.sentry.example/cron/x/key/?status=in_progress"),
    ],
)
def test_the_url_is_that_of_healthchecks_or_of_sentry(url: str, expected: str) -> None:
    assert ping.url_for(url, "start", "in_progress") == expected


@pytest.mark.parametrize("trouble", ["hangs", "refuses", "is away", "babbles"])
def test_a_monitor_in_trouble_costs_a_line_of_log_and_no_run(
    monitor: Monitor,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    if trouble == "hangs":
        monkeypatch.setattr(ping, "SECONDS", 0.3)
    expected = {
        "hangs": "no answer within 0.3 s",
        "refuses": "HTTP 404",
        "is away": "Connection refused",
        "babbles": "BadStatusLine",
    }[trouble]
    match trouble:
        case "hangs":
            monitor.answers.clear()
        case "refuses":
            monitor.status = 404
        case "babbles":
            monitor.babbles = True
        case "is away":
            settings.TRIAL_PING_URL = "http://127.0.0.1:1/S3CRET"

    with caplog.at_level(logging.WARNING, logger="accounts"):
        call_command("expire_trials")

    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(" service=")[0] for line in lines] == [
        "ping_failed status=in_progress",
        "ping_failed status=ok",
    ]
    assert all(expected in line and "S3CRET" not in line for line in lines)
    assert ExpiryRun.objects.get().status == ExpiryRun.Status.SUCCEEDED
