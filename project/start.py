"""The exit of a process that cannot start."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from django.core.exceptions import ImproperlyConfigured


@contextmanager
def one_line() -> Iterator[None]:
    """End the process when a setting is wrong: one line on stderr that names it, no traceback, exit code 1."""
    try:
        yield
    except ImproperlyConfigured as error:
        sys.exit(f"Not started: {error}")
