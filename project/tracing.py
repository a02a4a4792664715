"""OpenTelemetry: traces of requests, tasks, statements, runs, slices and mails. Imported only where it is on.

The libraries' own instrumentations trace Django, Celery and psycopg. This module adds the spans of the domain, around
the functions of ``accounts``, which know nothing of it.
"""

import logging
import os
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from celery.signals import worker_process_shutdown
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Status, StatusCode, Tracer

from accounts import delivery, services
from accounts.models import ExpiryRun
from accounts.slices import Change
from project.privacy import is_outcome, without_addresses

DEFAULTS = {
    "OTEL_SERVICE_NAME": "trial-expiry",
    "OTEL_PYTHON_DJANGO_EXCLUDED_URLS": "health/,metrics",  # a probe every few seconds
    "OTEL_EXPORTER_OTLP_TIMEOUT": "5",  # seconds; a collector that is away delays the end of a command by as much
}
"""Of the standard variables. The SDK reads these and all others itself: endpoint, headers, sampler, limits."""


def start() -> None:
    """Send traces from now on, of this process and those it forks."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from opentelemetry.instrumentation.django import DjangoInstrumentor  # reads the environment when imported

    # A collector that is away is one line for each batch, without one for each attempt: cron would mail them.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(WithoutAddresses(OTLPSpanExporter())))
    trace.set_tracer_provider(provider)
    for instrumentor in (DjangoInstrumentor, CeleryInstrumentor, PsycopgInstrumentor):
        instrumentor().instrument()
    add_spans(provider.get_tracer("trial-expiry"))
    # A process of the worker's pool ends without Python's atexit, at which the SDK sends what it has.
    worker_process_shutdown.connect(lambda **_: provider.force_flush(), weak=False)


class WithoutAddresses(SpanExporter):
    """Removes e-mail addresses, which URLs and the errors of a database or mail server may quote, then exports."""

    def __init__(self, exporter: SpanExporter) -> None:
        """Args: exporter: what sends the spans."""
        self.exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export the spans without addresses."""
        return self.exporter.export([cleaned(span) for span in spans])

    def shutdown(self) -> None:
        """End."""
        self.exporter.shutdown()


def cleaned(span: ReadableSpan) -> ReadableSpan:
    """A copy of the span without addresses."""
    return ReadableSpan(
        name=without_addresses(span.name),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=without_addresses(dict(span.attributes or {})),
        events=[
            Event(event.name, without_addresses(dict(event.attributes or {})), event.timestamp) for event in span.events
        ],
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code, without_addresses(span.status.description)),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def add_spans(tracer: Tracer) -> None:
    """Wrap the functions that do a run, an undo, a slice, a delivery and a mail, each in a span."""
    for owner, name, span, describe in SPANS:
        setattr(owner, name, in_span(tracer, span, getattr(owner, name), describe))


Describe = Callable[[Any], dict[str, Any]]
"""Returns the attributes of a span from the result of its function."""


def in_span(tracer: Tracer, name: str, function: Callable[..., Any], describe: Describe) -> Callable[..., Any]:
    """``function`` in a span. Of an exception the span states the class only, because its text may quote a customer."""

    @wraps(function)
    def traced(*args: Any, **options: Any) -> Any:
        with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
            try:
                result = function(*args, **options)
            except BaseException as error:
                span.set_attribute("trial_expiry.outcome", type(error).__name__)
                if not is_outcome(type(error)):
                    span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise
            span.set_attributes({f"trial_expiry.{key}": value for key, value in describe(result).items()})
            return result

    return traced


def of_run(run: ExpiryRun) -> dict[str, Any]:
    """The attributes of a run."""
    return {
        "run": run.pk,
        "path": str(run.path),
        "outcome": str(run.status),
        "due": run.due_count,
        "expired": run.expired_count,
    }


def of_delivery(outcome: delivery.Delivery) -> dict[str, Any]:
    """The attributes of a delivery."""
    return {"sent": outcome.sent, "taken_up": outcome.taken_up}


SPANS: list[tuple[Any, str, str, Describe]] = [
    (services, "expire_trials", "trial_expiry.run", of_run),
    (services, "undo_run", "trial_expiry.undo", lambda undone: {"undone": undone}),
    (Change, "on", "trial_expiry.slice", lambda changed: {"changed": changed}),
    (delivery, "deliver_notices", "trial_expiry.delivery", of_delivery),
    (delivery, "send", "trial_expiry.mail", lambda _: {}),
]
"""Where the function is looked up by whoever calls it, its name there, the name of the span, and its attributes."""
