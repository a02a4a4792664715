"""Sentry: told of the errors of every process. Imported only where ``SENTRY_DSN`` is set.

Not told: what the ledger, ``check_expiry`` and the metrics tell, such as a run that was refused, or a task that was
sent wrong arguments; and never the e-mail address of a customer.
"""

import logging
from typing import Any

import sentry_sdk
from sentry_sdk.integrations.atexit import AtexitIntegration
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.integrations.django import DjangoIntegration
from sentry_sdk.integrations.logging import ignore_logger

from accounts.log import Fields
from project.privacy import is_outcome, without_addresses

TOLD_ELSEWHERE = {"expiry_run", "task_refused"}
"""Log lines that are no events of their own: the exception of a failed run is one already, and a refusal is none."""


def start(dsn: str) -> None:
    """Report uncaught exceptions and log lines of level ERROR from now on, in this process and those it forks.

    The library reads ``SENTRY_ENVIRONMENT`` and ``SENTRY_RELEASE`` itself.
    """
    sentry_sdk.init(
        dsn=dsn,
        send_default_pii=False,
        include_local_variables=False,  # they hold users and their addresses
        max_request_body_size="never",
        before_send=clean,  # type: ignore[arg-type]
        auto_enabling_integrations=False,
        auto_session_tracking=False,
        integrations=[
            DjangoIntegration(),
            CeleryIntegration(propagate_traces=False),
            AtexitIntegration(
                callback=lambda pending, timeout: None
            ),  # by default it prints to stderr, which cron mails
        ],
    )
    ignore_logger("django.security.DisallowedHost")  # scanners of the internet cause it
    ignore_logger("opentelemetry.*")  # the collector is away
    # A Sentry that is away fails nothing and is not told: cron would mail three lines for each attempt.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def clean(event: dict[str, Any], hint: dict[str, Any]) -> dict[str, Any] | None:
    """The event without addresses; None when it tells of an outcome and not of an error. Sentry's ``before_send``."""
    kind, *_ = hint.get("exc_info") or [None]
    line = getattr(hint.get("log_record"), "msg", None)
    if is_outcome(kind) or (isinstance(line, Fields) and line["message"] in TOLD_ELSEWHERE):
        return None
    cleaned: dict[str, Any] = without_addresses(event)
    return cleaned
