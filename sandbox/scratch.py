"""The comparison's temporary database and broker, and the environment of processes that use them."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import psycopg
from django.db import connection, connections
from psycopg.sql import SQL, Identifier

from sandbox import SCRATCH, servers
from sandbox.environment import fixed


@contextmanager
def environment(*, database_url: str | None = None) -> Iterator[dict[str, str]]:
    """Yield the environment of a process that uses only a scratch database and broker; deletes both afterwards.

    Args:
        database_url: the PostgreSQL server on which the database is created; by default an embedded one.

    Raises:
        psycopg.Error: the server does not answer, or this user may not create a database.
    """
    name = SCRATCH + secrets.token_hex(4)
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-paths-"))
        server = database_url or stack.enter_context(servers.postgres())
        maintenance = urlsplit(server)._replace(path="/postgres").geturl()
        with psycopg.connect(maintenance, autocommit=True, connect_timeout=5) as postgres:
            postgres.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        stack.callback(drop_databases, maintenance, name)
        broker = stack.enter_context(servers.valkey())
        yield fixed(
            DJANGO_DEBUG="0",  # as in production: Django then records no queries
            DJANGO_SECRET_KEY=secrets.token_urlsafe(50),
            DJANGO_ALLOWED_HOSTS="localhost",
            DATABASE_URL=urlsplit(server)._replace(path=f"/{name}").geturl(),
            CELERY_BROKER_URL=broker,
            TMPDIR=directory,
        )


def drop_databases(url: str, name: str) -> None:
    """Drop the database ``name`` and every database whose name begins with ``name`` and ``_``."""
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as postgres:
        mine = "SELECT datname FROM pg_database WHERE datname = %s OR starts_with(datname, %s)"
        for (database,) in postgres.execute(mine, [name, f"{name}_"]).fetchall():
            postgres.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(database)))


class ScratchDatabase:
    """Snapshots of the scratch database.

    A snapshot is a copy of its files, so that every contender starts with identical tables and indexes.
    """

    def __init__(self) -> None:
        self.name = str(connection.settings_dict["NAME"])

    def snapshot(self, name: str) -> None:
        """Copy the database in its current state."""
        with connection.cursor() as cursor:
            cursor.execute("VACUUM (FREEZE, ANALYZE)")
        self._copy(self.name, f"{self.name}_{name}")

    def restore(self, name: str) -> None:
        """Replace the database by the snapshot ``name``."""
        self._copy(f"{self.name}_{name}", self.name)

    @contextmanager
    def copied(self, snapshot: str, name: str) -> Iterator[str]:
        """The URL of another copy of the snapshot, which is deleted when the block ends."""
        copy = f"{self.name}_of_{name}"
        self._copy(f"{self.name}_{snapshot}", copy)
        try:
            yield urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{copy}").geturl()
        finally:
            with connection._nodb_cursor() as cursor:
                cursor.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(copy)))

    def drop_snapshot(self, name: str) -> None:
        """Delete the snapshot ``name``."""
        with connection._nodb_cursor() as cursor:
            cursor.execute(SQL("DROP DATABASE {}").format(Identifier(f"{self.name}_{name}")))

    def _copy(self, source: str, target: str) -> None:
        connections.close_all()
        statements = (
            SQL("DROP DATABASE IF EXISTS {target} WITH (FORCE)"),
            # Copies files instead of writing WAL: several times faster for a large database. Ends with a checkpoint.
            SQL("CREATE DATABASE {target} TEMPLATE {source} STRATEGY file_copy"),
        )
        with connection._nodb_cursor() as cursor:
            for statement in statements:
                cursor.execute(statement.format(source=Identifier(source), target=Identifier(target)))
