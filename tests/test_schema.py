"""A database of another release than the code."""

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from accounts.schema import warn_at_start


@pytest.mark.django_db
def test_a_database_ahead_of_the_code_is_told_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    MigrationRecorder(connection).record_applied("accounts", "0999_of_the_next_release")

    call_command("expire_trials", verbosity=0)

    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "The database is ahead of this code: it has 1 migration(s) of accounts that this code does not know: "
        "0999_of_the_next_release. That is safe for the release just before them, and for no older one."
    )


@pytest.mark.django_db(transaction=True)
def test_a_process_that_starts_without_a_database_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "NAME", "/nowhere/no-such-database")

    warn_at_start()
