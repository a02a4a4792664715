"""Sentry and OpenTelemetry: off by default; on, they learn of runs, slices, mails and errors, and of no customer."""

import gzip
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from django.db import DatabaseError
from django.utils import timezone
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pytest_django import Settings

from accounts import delivery, notices
from accounts.models import Account
from accounts.services import TooManyDue
from project import tracing
from project.privacy import without_addresses
from sandbox.mail_server import Mailbox
from sandbox.servers import free_port, process, wait_for
from tests.conftest import ManagePy, Process, Send
from tests.factories import make_accounts
from tests.faults.conftest import ticks_every_second
from tests.locks import trigger_on_update
from tests.processes import manage
from tests.runs import DAY, expire

DSN = "http://key@127.0.0.1:1/1"

# --- Off, and on without the packages ---


@pytest.mark.faults
def test_off_nothing_of_them_is_imported() -> None:
    code = "import sys; print([name for name in sys.modules if name.split('.')[0] in ('sentry_sdk', 'opentelemetry')])"

    assert manage("shell", "--no-imports", "-c", code).stdout == "[]\n"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("package", "settings", "variable"),
    [
        ("sentry_sdk", {"SENTRY_DSN": DSN}, "SENTRY_DSN"),
        (
            "opentelemetry",
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
            "OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_TRACES_EXPORTER",
        ),
    ],
)
def test_on_without_its_packages_is_one_line_that_says_what_to_install(
    package: str, settings: dict[str, str], variable: str, tmp_path: Path
) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError(name={package!r})")

    result = manage("check", PYTHONPATH=str(tmp_path), **settings)

    assert (result.returncode, result.stderr) == (
        1,
        f"Not started: {variable} is set, and the package of {package} is not installed. "
        "Install it: pip install -r requirements-extras.txt\n",
    )


@pytest.mark.parametrize(
    "text",
    [
        "Key (email)=(ann@example.com) exists",
        "/admin/?q=ann%40example.com&p=1",
        "<ann.b+c@mail.example.com>",
        "a@b.example",
    ],
)
def test_an_address_is_removed_wherever_it_is(text: str) -> None:
    cleaned = without_addresses({"list": [text], "tuple": (1, {text: text})})

    assert "example" not in str(cleaned)
    assert "(address)" in cleaned["list"][0]


# --- Spans ---


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans of this process, while the functions are wrapped."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(tracing.WithoutAddresses(exporter)))
    for owner, name, *_ in tracing.SPANS:
        monkeypatch.setattr(owner, name, getattr(owner, name))  # so that they are restored
    tracing.add_spans(provider.get_tracer("tests"))
    return exporter


def named(name: str, spans: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == f"trial_expiry.{name}"]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return {name.removeprefix("trial_expiry."): value for name, value in (span.attributes or {}).items()}


@pytest.mark.django_db(transaction=True)
def test_a_run_is_a_span_with_one_for_each_slice_in_it(now: datetime, spans: InMemorySpanExporter) -> None:
    make_accounts(3, ended=10 * DAY, now=now)

    made = expire(now, batch_size=2)

    (run,) = named("run", spans)
    assert attributes(run) == {"run": made.pk, "path": "command", "outcome": "succeeded", "due": 3, "expired": 3}
    slices = named("slice", spans)
    assert [attributes(span)["changed"] for span in slices] == [2, 1]
    assert {span.parent.span_id for span in slices if span.parent} == {run.context.span_id}


@pytest.mark.django_db
def test_a_refusal_is_an_outcome_and_no_error(now: datetime, spans: InMemorySpanExporter) -> None:
    make_accounts(2, ended=10 * DAY, now=now)
    with pytest.raises(TooManyDue):
        expire(now, max_accounts=1)

    (run,) = named("run", spans)
    assert attributes(run) == {"outcome": "TooManyDue"}
    assert run.status.is_unset


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_an_error_is_stated_by_its_class_only(now: datetime, spans: InMemorySpanExporter) -> None:
    make_accounts(1, ended=10 * DAY, now=now)
    quoting = "RAISE EXCEPTION 'ann@example.com' USING ERRCODE = '23505';"
    with trigger_on_update(Account.objects.get(), quoting), pytest.raises(DatabaseError):
        expire(now)

    for span in (*named("run", spans), *named("slice", spans)):
        assert attributes(span) == {"outcome": "IntegrityError"}
        assert (span.status.is_ok, span.status.description) == (False, "IntegrityError")
        assert not span.events


@pytest.mark.django_db(transaction=True)
def test_each_mail_is_a_span_in_that_of_its_delivery(
    now: datetime, spans: InMemorySpanExporter, mailbox: Mailbox, settings: Settings
) -> None:
    settings.TRIAL_NOTICES = True
    make_accounts(2, ended=2 * DAY, now=now)
    expire(now)
    notices.queue_notices(now=now)

    delivery.deliver_notices(now=now)

    (delivered,) = named("delivery", spans)
    assert attributes(delivered) == {"sent": 2, "taken_up": 2}
    assert [span.parent and span.parent.span_id for span in named("mail", spans)] == [delivered.context.span_id] * 2


# --- From real processes of all four kinds, to a server that takes what is sent ---


@dataclass
class Received:
    """What was sent to a server in place of Sentry and of a collector."""

    url: str
    bodies: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a process that sends to it, at once."""
        return {
            "SENTRY_DSN": self.url.replace("//", "//key@") + "/1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    @property
    def spans(self) -> list[Any]:
        """Every span, as in the protocol."""
        requests = [ExportTraceServiceRequest.FromString(body) for path, body in self.bodies if path == "/v1/traces"]
        groups = [
            group for request in requests for resource in request.resource_spans for group in resource.scope_spans
        ]
        return [span for group in groups for span in group.spans]

    def traces(self, name: str) -> set[bytes]:
        """The traces that have a span of this name."""
        return {span.trace_id for span in self.spans if span.name == name}

    @property
    def errors(self) -> list[str]:
        """The class of the exception, or the message, of every event of Sentry."""
        envelopes = [body.splitlines() for path, body in self.bodies if path.endswith("/envelope/")]
        events = [json.loads(lines[2]) for lines in envelopes if b'"type":"event"' in lines[1].replace(b" ", b"")]
        return [
            "/".join(value["type"] for value in event["exception"]["values"])
            if event.get("exception")
            else event["logentry"]["message"]
            for event in events
        ]


@contextmanager
def receiver() -> Iterator[Received]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            packed = self.headers.get("Content-Encoding") == "gzip"
            received.bodies.append((self.path, gzip.decompress(body) if packed else body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        received = Received(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield received
        server.shutdown()


@pytest.mark.faults
@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_all_four_processes_report_errors_and_traces_and_no_customer(  # noqa: PLR0917
    environment: Mapping[str, str], manage_py: ManagePy, celery: Process, send: Send, mailbox: Mailbox, tmp_path: Path
) -> None:
    make_accounts(3, ended=2 * DAY, now=timezone.now())
    account = Account.objects.select_related("user").latest("pk")
    poison = f"RAISE EXCEPTION '{account.user.email}' USING ERRCODE = '23505';"
    with receiver() as received:
        on = received.environment

        # Nothing listens: that fails no command, and is one line.
        away = {
            "SENTRY_DSN": DSN,
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        }
        alone = manage_py("expire_trials", "--as-of=2000-01-01T00:00:00Z", **away)
        assert (alone.returncode, alone.stderr.count("\n")) == (0, 1)
        assert "Failed to export spans" in alone.stderr

        # Command: a refusal, and an error that quotes an address.
        assert manage_py("expire_trials", "--max-accounts=1", **on).returncode == 3
        with trigger_on_update(account, poison):
            failed = manage_py("expire_trials", "--batch-size=2", **on)
        assert failed.returncode == 1
        assert failed.stderr.count("\n") == 1  # Sentry prints nothing
        assert received.errors == ["UniqueViolation/IntegrityError/CommandError"]
        assert {"trial_expiry.run", "trial_expiry.slice", "UPDATE"} <= {span.name for span in received.spans}

        # Worker: the same, and mails of a run that succeeds.
        mails = {"TRIAL_NOTICES": "1", "EMAIL_URL": mailbox.url, "DEFAULT_FROM_EMAIL": "Trials <trials@example.com>"}
        with celery("worker", "--concurrency=1", **mails, **on):
            make_accounts(1, ended=2 * DAY, now=timezone.now())
            send("accounts.expire_trials", kwargs={"batch_size": 0})
            send("accounts.expire_trials", kwargs={"max_accounts": 1})
            with trigger_on_update(account, poison):
                send("accounts.expire_trials")
                wait_for("the worker's error", lambda: received.errors[1:])
            # A tick by beat, its run, and the task that mails are one trace.
            ticks_every_second()
            one_trace = ("apply_async/accounts.expire_trials", "trial_expiry.run", "run/accounts.send_trial_notices")
            with celery("beat", **on):
                wait_for("a trace", lambda: set.intersection(*map(received.traces, one_trace)))
                wait_for("a mail", lambda: received.traces("trial_expiry.mail"))
        assert received.errors[1:] == ["UniqueViolation/IntegrityError"]

        # Beat: a broker that is away.
        with celery("beat", CELERY_BROKER_URL="redis://127.0.0.1:1/0", **on):
            wait_for("beat's error", lambda: received.errors[2:])

        # Web: a page that asks a database that is away.
        port = free_port()
        command = ("-m", "gunicorn", "project.wsgi", "--config", "project/gunicorn.py", "--bind", f"127.0.0.1:{port}")
        no_database = {"DATABASE_URL": "postgres://nobody@127.0.0.1:1/nowhere"}
        log = tmp_path / "web.log"
        before = len(received.errors)
        with process(*command, "--no-control-socket", env={**environment, **no_database, **on}, log=log):
            wait_for("gunicorn", lambda: "Booting worker" in log.read_text())
            page = f"http://127.0.0.1:{port}/app/?from={account.user.email}"
            with suppress(HTTPError):
                urlopen(Request(page, headers={"Cookie": f"sessionid={32 * 'x'}"}), timeout=20)
            wait_for("the error of web", lambda: received.errors[before:])
            wait_for("its span", lambda: received.traces("GET app/"))
        assert "OperationalError" in received.errors[-1]

        everything = b"".join(body for _, body in received.bodies)
    assert b"example.com" not in everything
