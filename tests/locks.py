"""Helpers for concurrency: threads, locks, and triggers that block or fail an UPDATE of a row."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db import connection

from accounts.models import Account, Notice
from sandbox.servers import wait_for

Sql = psycopg.Connection[tuple[Any, ...]]


@contextmanager
def meanwhile(action: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run ``action`` in a thread with its own connection; its result is in the list after the block."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(action())
        except Exception as error:
            result.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    yield result
    thread.join(30)
    assert not thread.is_alive()


def wait_until_blocked(query: str) -> None:
    """Wait until a statement that begins with ``query`` waits for a lock."""

    def blocked() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s", [f"{query}%"]
            )
            return cursor.fetchone() is not None

    wait_for(f"{query} to be blocked", blocked)


@contextmanager
def trigger_on_update(row: Account | Notice, body: str, *more: Account | Notice) -> Iterator[None]:
    """Add a trigger that runs ``body`` when the row, or one of ``more``, is updated."""
    keys = ", ".join(str(each.pk) for each in (row, *more))
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE FUNCTION trap() RETURNS trigger AS $$ BEGIN {body} RETURN NEW; END $$ LANGUAGE plpgsql")
        cursor.execute(
            f"CREATE TRIGGER trap BEFORE UPDATE ON {row._meta.db_table} "
            f"FOR EACH ROW WHEN (NEW.id IN ({keys})) EXECUTE FUNCTION trap()"
        )
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION trap CASCADE")
