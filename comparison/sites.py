"""A database and a broker of a contender's own, where it can rest, be late and be broken beside the others."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from django.db import connection
from psycopg.sql import SQL, Identifier

from comparison.runners import Site
from sandbox import servers
from sandbox.scratch import ScratchDatabase


@dataclass
class OwnSite:
    """A site whose servers can be taken away."""

    site: Site
    directory: Path  # of the broker's data, which outlive it as they do in docker-compose.yml
    broker: ExitStack = field(default_factory=ExitStack)

    def take_database_away(self) -> None:
        """Refuse connections, as a server does that is being restarted, and end those that there are."""
        self._allow(False)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [self.site.name]
            )

    def bring_database_back(self) -> None:
        """Accept connections again."""
        self._allow(True)

    def _allow(self, allowed: bool) -> None:
        statement = SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(Identifier(self.site.name), SQL(str(allowed)))
        with connection.cursor() as cursor:
            cursor.execute(statement)

    def take_broker_away(self) -> None:
        """Stop it."""
        self.broker.close()

    def bring_broker_back(self) -> None:
        """Start it on the same port, with what it had stored."""
        port = urlsplit(self.site.broker).port
        self.broker.enter_context(servers.valkey(self.directory, port=port, appendonly="yes"))


@contextmanager
def own_site(database: ScratchDatabase, tables: str, *, name: str) -> Iterator[OwnSite]:
    """One whose database is a copy of the snapshot ``tables``."""
    with TemporaryDirectory(prefix="broker-") as directory, database.copied(tables, name) as url:
        site = Site(database=url, broker=f"redis://127.0.0.1:{servers.free_port()}/0")
        own = OwnSite(site, Path(directory))
        own.bring_broker_back()
        with own.broker:
            yield own
