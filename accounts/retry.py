"""Trying again what the database could not do just then: a transaction it rolled back, a connection that was ended."""

import time
from collections.abc import Callable
from typing import TypeVar

from django.db import InterfaceError, OperationalError, connection

T = TypeVar("T")

ROLLED_BACK = {"40P01", "40001"}
"""The SQLSTATE of a deadlock and of a serialization failure: the same transaction may succeed when repeated."""

PAUSES = (0, 1, 2, 4, 8)
"""Seconds before each further try. A restart of PostgreSQL takes a few; together they are less than any stop grace."""


def with_retries(change: Callable[[], T]) -> T:
    """Call ``change``, and again a few times after a deadlock, a serialization failure or a lost connection.

    A lost connection may have been lost just after the commit, so ``change`` must be harmless when it is done twice.
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
