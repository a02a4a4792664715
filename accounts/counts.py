"""Counts that stop at many, so that no page and no scrape reads the whole of a large table."""

from typing import Any

from django.db import connection
from django.db.models import QuerySet


def counts(*rows: QuerySet[Any], most: int) -> list[int]:
    """Count each of ``rows``, ``most`` of each at the most, in one statement.

    Args:
        rows: ordered by the index that serves them. Without an order PostgreSQL may read a table from its beginning,
            past all the old rows, until it has found so many.
        most: reaching it means that there may be more.
    """
    counted: list[str] = []
    parameters: list[Any] = []
    for each in rows:
        sql, values = each.values("pk")[:most].query.sql_with_params()
        counted.append(f"(SELECT COUNT(*) FROM ({sql}) AS counted)")  # noqa: S608 (the SQL comes from the ORM)
        parameters += values
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(counted)}", parameters)
        return list(cursor.fetchone())
