"""What PostgreSQL reads for a query."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from django.db import connection

LARGE = ('FROM "accounts_account"', 'FROM "accounts_notice"')
"""How a query reads a table that may have millions of rows."""


def of_large_tables(queries: Iterable[dict[str, str]]) -> list[str]:
    """The captured queries that read a large table."""
    return [query["sql"] for query in queries if any(table in query["sql"] for table in LARGE)]


def steps(sql: str) -> list[dict[str, Any]]:
    """The steps of the query's plan, each with the rows and dead entries that it read; runs the query."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")
        [(answer,)] = cursor.fetchall()
    [tree] = json.loads(answer) if isinstance(answer, str) else answer
    return list(_walk(tree["Plan"]))


def _walk(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    read = max(step["Actual Rows"] * step["Actual Loops"], step.get("Heap Fetches", 0))
    yield {**step, "read": read + step.get("Rows Removed by Filter", 0) * step["Actual Loops"]}
    for child in step.get("Plans", ()):
        yield from _walk(child)


def tables_scanned(sql: str) -> list[str]:
    """The large tables that the query reads from beginning to end."""
    return [step["Relation Name"] for step in steps(sql) if step["Node Type"] == "Seq Scan"]


def rows_read(sql: str) -> int:
    """The rows and dead entries that the query's scans read."""
    return sum(int(step["read"]) for step in steps(sql) if "Relation Name" in step)
