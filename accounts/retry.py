"""Retries of a transaction that the database rolled back, or whose connection was lost."""

import time
from collections.abc import Callable
from typing import TypeVar

from django.db import InterfaceError, OperationalError, connection

from accounts.slices import ROLLED_BACK

T = TypeVar("T")

PAUSES = (0, 1, 2, 4, 8)
"""Seconds before each retry. A restart of PostgreSQL takes a few seconds; the sum is below every stop grace period."""


def with_retries(change: Callable[[], T]) -> T:
    """Call ``change``, and retry it after a deadlock, a serialization failure or a lost connection.

    The connection may have been lost after the commit, so ``change`` must be idempotent.
    """
    for pause in PAUSES:
        try:
            return change()
        except (OperationalError, InterfaceError) as error:
            if connection.in_atomic_block:
                raise  # only the whole transaction could be repeated
            if not connection.is_usable():
                connection.close()  # the next statement opens another
            elif getattr(error.__cause__, "sqlstate", None) not in ROLLED_BACK:
                raise
        time.sleep(pause)
    return change()
