"""Records what changed an account: one row for each change, written in the transaction of the change.

``accounts.services`` calls it; everything else only reads the events.
"""

from typing import TYPE_CHECKING

from django.core.exceptions import EmptyResultSet
from django.db import connection
from django.db.models import Value
from django.db.models.expressions import Combinable

from accounts.models import AccountEvent, AccountQuerySet

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser


def admin_user(user: "AbstractBaseUser | AnonymousUser") -> str:
    """The actor of a change that this user asked for in the admin. ``accounts.erasure`` looks for it."""
    return f"admin user {user.get_username()}"


def command_user(name: str) -> str:
    """The actor of a change that somebody of this name asked for on a command line. Erasure looks for it, too."""
    return f"command user {name}"


def record(accounts: AccountQuerySet, *, kind: AccountEvent.Kind, by: str, ends: Combinable | None = None) -> int:
    """Lock these accounts, and add an event for each, with the account as it is before the change; returns how many.

    Change the same accounts next, in the same transaction: the locks keep everybody else from changing them first.

    Args:
        accounts: a query of accounts, without joins.
        kind: the change.
        by: who asked for it.
        ends: the expression of the new end of the trial; without it the end does not change.
    """
    # Raw SQL, because the ORM has no INSERT ... SELECT, and what the accounts are before must be read under the lock.
    values: dict[str, str | Combinable] = {
        "account_id": "pk",
        "kind": Value(kind.value),
        "by": Value(by),
        "status_before": "status",
        "run_id": "expiry_run_id",
    }
    if ends is not None:
        values |= {"ends_before": "trial_ends_at", "ends_after": ends}
    # no_key, as an UPDATE locks: mails can be queued for the accounts meanwhile.
    before = accounts.select_for_update(no_key=True).values_list(*values.values())
    try:
        select, parameters = before.query.sql_with_params()
    except EmptyResultSet:  # the accounts are an empty list, as when all of a slice are locked
        return 0
    columns = ", ".join(map(connection.ops.quote_name, values))
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {AccountEvent._meta.db_table} ({columns}) {select}", parameters)
        return int(cursor.rowcount)
