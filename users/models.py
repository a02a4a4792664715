"""The user model."""

from typing import Any, ClassVar

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.ddl_references import Statement
from django.db.models.functions import Upper


class PrefixIndex(models.Index):
    """An index of ``UPPER(field)`` that serves ``istartswith`` and ``iexact`` on PostgreSQL; SQLite reads all rows.

    ``OpClass`` of ``django.contrib.postgres`` does the same, but a migration with it fails on SQLite.
    """

    def create_sql(
        self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor, using: str = "", **kwargs: Any
    ) -> Statement:
        """Add the operator class that compares character by character, as LIKE does, whatever the collation is."""
        statement = super().create_sql(model, schema_editor, using, **kwargs)
        if schema_editor.connection.vendor == "postgresql":
            parts: dict[str, Any] = statement.parts
            parts["columns"] = f"{parts['columns']} text_pattern_ops"
        return statement


class User(AbstractUser):
    """The project's own user model, because replacing ``auth.User`` later needs a difficult migration."""

    class Meta(AbstractUser.Meta):
        # They serve the admin's search by the beginning of an e-mail address or a name.
        indexes: ClassVar = [
            PrefixIndex(Upper(field), name=f"users_user_{field}_prefix")
            for field in ("email", "username", "first_name", "last_name")
        ]
