"""The start of a process, and its exit when it cannot start."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError


def obey_log_format() -> None:
    """Write JSON from now on when LOG_FORMAT says so. Before the settings, so that one that is refused is JSON too."""
    if os.environ.get("LOG_FORMAT", "").strip().lower() == "json":
        from project.logging import write_json

        write_json()


@contextmanager
def one_line() -> Iterator[None]:
    """End the process when a setting is wrong: one line on stderr that names it, no traceback, exit code 1."""
    try:
        yield
    except ImproperlyConfigured as error:
        obey_log_format()
        sys.exit(f"Not started: {error}")


@contextmanager
def failure_reported() -> Iterator[None]:
    """Tell Sentry, where it is on, of the error behind a command that failed: Django turns it into one line and exits.

    A refusal, a wrong option and a stop are CommandErrors without a cause, and not reported.
    """
    try:
        yield
    except SystemExit as end:
        failure = end.__context__
        if (sentry := sys.modules.get("sentry_sdk")) and isinstance(failure, CommandError) and failure.__cause__:
            sentry.capture_exception(failure)
        raise
