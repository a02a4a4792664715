"""Migrations run while the release before them serves, and it must go on, also after a downgrade."""

from importlib import import_module
from typing import Any

import pytest
from django.apps import apps
from django.db import connection
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


def migrate_autovacuum(*, back: bool = False) -> None:
    """Apply accounts/0009_autovacuum, or undo it; the test's transaction takes both back."""
    operation: Any = import_module("accounts.migrations.0009_autovacuum").Migration.operations[0]
    code = operation.reverse_code if back else operation.code
    with connection.schema_editor() as editor:
        code(apps, editor)


def autovacuum() -> list[str] | None:
    """What the table of accounts sets for itself."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT reloptions FROM pg_class WHERE oid = 'accounts_account'::regclass")
        options: list[str] | None = cursor.fetchone()[0]
    return options


@pytest.mark.postgres
@pytest.mark.django_db
def test_what_a_migration_sets_for_autovacuum_is_undone() -> None:
    assert autovacuum() == ["autovacuum_vacuum_scale_factor=0.02"]
    migrate_autovacuum(back=True)
    assert autovacuum() is None
    migrate_autovacuum()
    assert autovacuum() == ["autovacuum_vacuum_scale_factor=0.02"]


@pytest.mark.postgres
@pytest.mark.django_db
def test_what_an_administrator_set_for_autovacuum_stays() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE accounts_account SET (autovacuum_vacuum_scale_factor = 0.1)")
    for back in (False, True):
        migrate_autovacuum(back=back)
        assert autovacuum() == ["autovacuum_vacuum_scale_factor=0.1"]
