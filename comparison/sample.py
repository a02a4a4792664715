"""The accounts of a scenario: how the tables are filled, which customers pay meanwhile, and what must come out."""

import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection

from accounts.models import Account

PERIOD = 1000  # statuses repeat after so many keys, so that a scenario of any size is filled by two statements
MOST_CUSTOMERS = 10_000  # more than come in half an hour
DUE_OF_PERIOD = {"nothing": 0, "normal": 1, "half": 500, "backlog": 800, "dear": 800}
OTHERS = {
    Account.TRIALING: 25,
    Account.ACTIVE: 50,
    Account.TRIAL_EXPIRED: 10,
    Account.CANCELED: 8,
    Account.PAST_DUE: 3,
    Account.BETA: 2,
    Account.EXEMPT: 2,
}
"""How often each status comes among the accounts that are not due."""


def fill_users(accounts: int, *, now: datetime) -> None:
    """Fill the empty table of users with that many."""
    with filled_at_once("users_user"), connection.cursor() as cursor:
        cursor.execute(
            """INSERT INTO users_user (id, password, is_superuser, username, first_name, last_name,
                email, is_staff, is_active, date_joined)
            SELECT n, '!', false, 'user' || n, 'Ada', 'Berg', 'user' || n || '@example.com', false, true, %s
            FROM generate_series(1, %s) AS n""",
            [now - timedelta(days=200), accounts],
        )


def fill_accounts(accounts: int, *, kind: str, seed: int, now: datetime) -> None:
    """Give every user an account, and note in the table ``expected`` which of them must expire.

    Of accounts in one status, the later key signed up later, and its trial ends later. One of fifty shares its end with
    the one before; one of twenty was extended, so its end is that of others who signed up later. Nothing falls due
    within the day after ``now`` that is not due at ``now``.
    """
    rows = period(kind, seed=seed, now=now)
    columns: dict[str, Any] = dict(
        zip(("statuses", "firsts", "lasts"), map(list, zip(*rows, strict=True)), strict=True)
    )
    trial = timedelta(days=settings.TRIAL_DAYS)
    with connection.cursor() as cursor:
        with filled_at_once("accounts_account"):
            cursor.execute(
                """INSERT INTO accounts_account (id, user_id, status, created, trial_ends_at)
                SELECT n, n, status, ends - %(trial)s - extended * interval '14 days', ends
                FROM (SELECT n, (n %% 20 = 7)::int AS extended,
                        CASE n %% 20 WHEN 7 THEN (n + %(accounts)s / 8) %% %(accounts)s
                            ELSE n - (n %% 50 = 0)::int END AS place
                    FROM generate_series(1::bigint, %(accounts)s) AS n) AS accounts
                JOIN unnest(%(statuses)s::text[], %(firsts)s::timestamptz[], %(lasts)s::timestamptz[]) WITH ORDINALITY
                    AS period(status, first, last, position) ON position = n %% %(period)s + 1,
                LATERAL (SELECT first + (last - first) * (place::float / %(accounts)s) AS ends) AS trial
                ORDER BY n""",
                columns | {"accounts": accounts, "trial": trial, "period": PERIOD},
            )
        due, parameters = Account.objects.due(now).values("pk").query.sql_with_params()
        cursor.execute("CREATE TABLE expected (id bigint PRIMARY KEY)")
        cursor.execute(f"INSERT INTO expected {due}", parameters)
        cursor.execute("CREATE TABLE others AS " + STATUS_OF_OTHERS)


def make_updates_dear() -> None:
    """Have the update of each account take 275 microseconds more: fifty times what one takes without."""
    with connection.cursor() as cursor:
        cursor.execute(
            """CREATE FUNCTION be_dear() RETURNS trigger LANGUAGE plpgsql AS $$
            DECLARE until timestamptz := clock_timestamp() + interval '275 microseconds';
            BEGIN
                WHILE clock_timestamp() < until LOOP END LOOP;
                RETURN NEW;
            END $$"""
        )
        cursor.execute(
            "CREATE TRIGGER be_dear BEFORE UPDATE ON accounts_account FOR EACH ROW EXECUTE FUNCTION be_dear()"
        )


def fill_mails(mails: int, *, now: datetime) -> None:
    """Give every user an account that is owed the reminder of a day before the end, and no other mail."""
    created, trial_ends_at = now - timedelta(days=settings.TRIAL_DAYS), now + timedelta(hours=12)
    Account.objects.bulk_create(
        Account(user_id=key, created=created, trial_ends_at=trial_ends_at) for key in range(1, mails + 1)
    )


KEYS_AND_INDEXES = """
    SELECT format('ALTER TABLE %%s DROP CONSTRAINT %%I', conrelid::regclass, conname),
        format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', conrelid::regclass, conname, pg_get_constraintdef(oid)),
        contype = 'f' AS is_foreign
    FROM pg_constraint WHERE contype IN ('p', 'u', 'f') AND %(table)s::regclass IN (conrelid, confrelid)
    UNION ALL
    SELECT format('DROP INDEX %%s', indexrelid::regclass), pg_get_indexdef(indexrelid), false FROM pg_index
    WHERE indrelid = %(table)s::regclass AND indexrelid NOT IN (SELECT conindid FROM pg_constraint)
    ORDER BY is_foreign  -- last, as foreign keys need the keys that they refer to
"""  # the statement that drops each, and the one that builds it again


@contextmanager
def filled_at_once(table: str) -> Iterator[None]:
    """Drop the table's keys and indexes, and build them again afterwards: row by row they take twice the time."""
    with connection.cursor() as cursor:
        cursor.execute(KEYS_AND_INDEXES, {"table": table})
        statements: list[tuple[str, str, bool]] = cursor.fetchall()
        for drop, _, _ in reversed(statements):
            cursor.execute(drop)
        yield
        for _, build, _ in statements:
            cursor.execute(build)


def period(kind: str, *, seed: int, now: datetime) -> list[tuple[str, datetime, datetime]]:
    """Of ``PERIOD`` consecutive accounts the status, and between which moments the trials of all like it end."""
    rng = random.Random(f"{kind}-{seed}")  # noqa: S311 (a sample, not a secret)

    def within(status: str, *days: float) -> tuple[str, datetime, datetime]:
        first, last = (now + timedelta(days=each) for each in days)
        return str(status), first, last

    on_trial = within(Account.TRIALING, 2, settings.TRIAL_DAYS)
    due = within(Account.TRIALING, *(-settings.TRIAL_GRACE_DAYS - ago for ago in (30, 1 / 24)))
    others = rng.choices(list(OTHERS), weights=list(OTHERS.values()), k=PERIOD - DUE_OF_PERIOD[kind])
    rows = [on_trial if status == Account.TRIALING else within(status, -400, 50) for status in others]
    rows += DUE_OF_PERIOD[kind] * [due]
    rng.shuffle(rows)
    return rows


def customers(*, seed: int) -> list[int]:
    """Keys of due accounts, at random and each once: at most half of them, so that work is left."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM expected ORDER BY hashint8extended(id, %s) LIMIT (SELECT count(*) / 2 FROM expected)",
            [seed],
        )
        return [key for (key,) in cursor.fetchmany(MOST_CUSTOMERS)]


STATUS_OF_OTHERS = """
    SELECT status, count(*) AS number FROM accounts_account
    WHERE NOT EXISTS (SELECT 1 FROM expected WHERE expected.id = accounts_account.id) GROUP BY status
"""
NOT_EXPIRED = """
    SELECT id FROM expected JOIN accounts_account USING (id)
    WHERE status <> 'trial_expired' OR trial_expired_at IS NULL OR expiry_run_id IS NULL
"""


def what_is_wrong(*, paid: Collection[int], expired: int | None = None) -> str:
    """Compare the accounts with the table ``expected``; in words, empty when all is right.

    Args:
        paid: accounts whose customer paid meanwhile; they must be active.
        expired: of the due accounts, only so many were to be expired; by default all.
    """
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM ({STATUS_OF_OTHERS} EXCEPT SELECT * FROM others) AS changed")  # noqa: S608
        if cursor.fetchone()[0]:
            return "Accounts that were not due have changed their status."
        cursor.execute("SELECT count(*) FROM expected")
        due = cursor.fetchone()[0]
        cursor.execute(NOT_EXPIRED)
        if expired is not None:
            did = due - cursor.rowcount
            return "" if did == expired else f"{did} accounts expired instead of {expired}."
        left_over = {key for (key,) in cursor.fetchmany(len(paid) + 1000)}
    robbed = set(paid) - set(Account.objects.filter(pk__in=paid, status=Account.ACTIVE).values_list("pk", flat=True))
    if robbed:
        return f"{len(robbed)} account(s) expired although their customer had paid."
    if left_over - set(paid):
        return f"Of {due} due accounts, {len(left_over - set(paid))} or more did not expire, or lack a column."
    return ""
