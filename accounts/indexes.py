"""Migration operations that create and drop an index while others write to its table.

As those of ``django.contrib.postgres``, which fail on SQLite. Such a migration needs ``atomic = False``, and holds
nothing else, because what it has done stays done when it fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import ProjectState


@contextmanager
def _without_limit(schema_editor: BaseDatabaseSchemaEditor) -> Iterator[None]:
    # Because this waits for transactions and nobody waits for it. "migrate" may have a lock_timeout.
    schema_editor.execute("SET lock_timeout = 0")
    yield
    schema_editor.execute("RESET lock_timeout")


def _drop(schema_editor: BaseDatabaseSchemaEditor, name: str) -> None:
    schema_editor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {schema_editor.quote_name(name)}")


class AddIndexConcurrently(migrations.AddIndex):
    """Add an index. What a killed attempt left, an index that PostgreSQL calls invalid, is dropped first."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        """Create the index."""
        if schema_editor.connection.vendor != "postgresql":
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        model: Any = to_state.apps.get_model(app_label, self.model_name)
        with _without_limit(schema_editor):
            _drop(schema_editor, self.index.name)
            schema_editor.execute(self.index.create_sql(model, schema_editor, concurrently=True))

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        """Drop the index."""
        if schema_editor.connection.vendor != "postgresql":
            super().database_backwards(app_label, schema_editor, from_state, to_state)
            return
        with _without_limit(schema_editor):
            _drop(schema_editor, self.index.name)


class RemoveIndexConcurrently(migrations.RemoveIndex):
    """Remove an index."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        """Drop the index."""
        if schema_editor.connection.vendor != "postgresql":
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        with _without_limit(schema_editor):
            _drop(schema_editor, self.name)
