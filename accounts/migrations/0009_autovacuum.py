"""Vacuum the accounts after 2 % of them have changed; PostgreSQL's default of 20 % is twenty of a hundred million.

Leaves a value alone that an administrator has set.
"""

from typing import Any

from django.db import migrations

NAME, VALUE = "autovacuum_vacuum_scale_factor", "0.02"


def set_unless_set(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql" and value(apps, schema_editor) is None:
        schema_editor.execute(f"ALTER TABLE {table(apps, schema_editor)} SET ({NAME} = {VALUE})")


def reset_ours(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql" and value(apps, schema_editor) == VALUE:
        schema_editor.execute(f"ALTER TABLE {table(apps, schema_editor)} RESET ({NAME})")


def table(apps: Any, schema_editor: Any) -> str:
    return str(schema_editor.quote_name(apps.get_model("accounts", "Account")._meta.db_table))


def value(apps: Any, schema_editor: Any) -> str | None:
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT reloptions FROM pg_class WHERE oid = %s::regclass", [table(apps, schema_editor)])
        (options,) = cursor.fetchone()
    return dict(option.split("=", 1) for option in options or []).get(NAME)


class Migration(migrations.Migration):
    dependencies = [("accounts", "0008_walk_indexes")]

    operations = [migrations.RunPython(set_unless_set, reset_ours)]
