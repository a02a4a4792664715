"""The migrations of ``accounts`` that the database has, compared with those that this code has."""

import logging
import pkgutil

from django.db import Error, connection
from django.db.migrations.recorder import MigrationRecorder

from accounts import migrations

logger = logging.getLogger(__name__)


def lacking_and_unknown() -> tuple[list[str], list[str]]:
    """The names of the migrations that the database lacks, and of those that this code does not know.

    Django's own loader imports every migration of every app, which takes longer than expiring a thousand accounts.
    """
    applied = {name for app, name in MigrationRecorder(connection).applied_migrations() if app == "accounts"}
    known = {module.name for module in pkgutil.iter_modules(migrations.__path__)}
    return sorted(known - applied), sorted(applied - known)


def warn_of_unknown(unknown: list[str]) -> None:
    """Log one line when the database is ahead of this code, as it is after a downgrade."""
    if unknown:
        logger.warning(
            "The database is ahead of this code: it has %s migration(s) of accounts that this code does not know: %s. "
            "That is safe for the release just before them, and for no older one.",
            len(unknown),
            ", ".join(unknown),
        )


def warn_at_start() -> None:
    """For a process that starts and will fork: log the line, keep no connection, and go on without a database."""
    try:
        warn_of_unknown(lacking_and_unknown()[1])
    except Error:
        pass  # whoever needs the database says so
    finally:
        connection.close()
