"""Migrations run while the release before them serves, and it must go on, also after a downgrade."""

import pytest
from django_migration_linter.migration_linter import MigrationLinter


@pytest.mark.postgres
@pytest.mark.django_db
def test_no_migration_breaks_the_release_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    """None drops or renames what that release uses, adds a column that it cannot fill, or locks a table for long."""
    linter = MigrationLinter(
        include_apps=["accounts", "accounts_beat", "users"],
        ignore_initial_migrations=True,  # nothing runs before them
        all_warnings_as_errors=True,
        quiet=["ignore", "ok"],
    )

    linter.lint_all_migrations()

    assert not linter.has_errors, capsys.readouterr().out
