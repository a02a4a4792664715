"""What time does to the tables, and dead rows to what is asked of them: a month in minutes, and the moment after a run.

The clock is a parameter: every service gets ``now``, hour after hour. Each figure is taken twice, by two contenders: on
tables that are vacuumed as autovacuum does by default, and on tables that nothing can clean, because autovacuum is off
and another session keeps an old snapshot open, as a forgotten transaction or a replication slot does.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from accounts import health, ledger, notices, services
from accounts.admin import overview
from accounts.metrics import TrialExpiry
from accounts.models import Account, ExpiryRun, Notice
from comparison.runners import Runner

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MONTH = 30  # days
SHOWN = (1, 10, 20, 30)  # days of which the tick's question is shown
SIGN_UPS = 1 / 200  # a day, for each account that there is at first: the oldest one signed up 200 days before
TABLES = ("accounts_account", "accounts_notice")
VACUUMED = "vacuumed"
ASKED = 10  # times

# Two of five customers pay two days before the end. One of twenty is extended by 14 days, the day before the end.
STATUS = """CASE WHEN id %% 10 < 4 AND created + %(trial)s - interval '2 days' <= %(now)s THEN 'active'
    WHEN {ends} < %(now)s - %(grace)s THEN 'trial_expired' ELSE 'trialing' END"""
ENDS = """created + %(trial)s + interval '14 days'
    * (id %% 20 = 19 AND created + %(trial)s - interval '1 day' <= %(now)s)::int"""
FILL = f"""
    INSERT INTO accounts_account (id, user_id, status, created, trial_ends_at)
    SELECT id, id, {STATUS.format(ends=ENDS)}, created, {ENDS}
    FROM (SELECT n AS id, %(now)s - (%(accounts)s - n) * interval '1 day' / (%(accounts)s * {SIGN_UPS}) AS created
        FROM generate_series(1::bigint, %(accounts)s) AS n) AS people ORDER BY id
"""  # noqa: S608 (our own words)
ASTRAY = f"SELECT count(*) FROM accounts_account WHERE (status, trial_ends_at) <> ({STATUS.format(ends=ENDS)}, {ENDS})"  # noqa: S608
SIGN_UP = """
    WITH people AS (
        SELECT n, %(now)s - interval '1 hour' * ((%(last)s - n)::float / (%(last)s - %(first)s + 1)) AS moment
        FROM generate_series(%(first)s, %(last)s) AS n
    ), users AS (
        INSERT INTO users_user (id, password, is_superuser, username, first_name, last_name, email, is_staff, is_active,
            date_joined)
        SELECT n, '!', false, 'user' || n, 'Ada', 'Berg', 'user' || n || '@example.com', false, true, moment FROM people
    )
    INSERT INTO accounts_account (id, user_id, status, created, trial_ends_at)
    SELECT n, n, 'trialing', moment, moment + %(trial)s FROM people
"""
PAY = """
    UPDATE accounts_account SET status = 'active' WHERE status = 'trialing' AND id %% 10 < 4
    AND trial_ends_at > %(now)s + interval '47 hours' AND trial_ends_at <= %(now)s + interval '48 hours'
"""
EXTEND = """
    UPDATE accounts_account SET trial_ends_at = trial_ends_at + interval '14 days'
    WHERE status = 'trialing' AND id %% 20 = 19 AND trial_ends_at = created + %(trial)s
    AND trial_ends_at > %(now)s + interval '23 hours' AND trial_ends_at <= %(now)s + interval '24 hours'
"""
SEND = "UPDATE accounts_notice SET status = 'sent', sent = queued WHERE status = 'pending'"
SEND_HALF = f"{SEND} AND id <= (SELECT avg(id) FROM accounts_notice)"  # noqa: S608
SIZES = """
    SELECT pg_table_size('accounts_account') AS table_bytes, pg_indexes_size('accounts_account') AS indexes_bytes,
        pg_total_relation_size('accounts_notice') AS notices_bytes,
        (SELECT sum(n_dead_tup) FROM pg_stat_user_tables WHERE relname = ANY(%(tables)s)) AS dead_rows
"""
INDEX_BYTES = """
    SELECT sum(pg_relation_size(indexrelid)) FROM pg_index
    WHERE indrelid = 'accounts_account'::regclass AND pg_get_indexdef(indexrelid) ~ %(begins)s
"""
MAINTENANCE = """
    SELECT relname,
        n_dead_tup > current_setting('autovacuum_vacuum_threshold')::float + reltuples
            * coalesce(own.scale, current_setting('autovacuum_vacuum_scale_factor'))::float,
        n_mod_since_analyze > current_setting('autovacuum_analyze_threshold')::float + reltuples
            * current_setting('autovacuum_analyze_scale_factor')::float
    FROM pg_stat_user_tables JOIN pg_class USING (relname), LATERAL (
        SELECT max(option_value) FILTER (WHERE option_name = 'autovacuum_vacuum_scale_factor') AS scale
        FROM pg_options_to_table(reloptions)
    ) AS own WHERE relname = ANY(%(tables)s)
"""


class Vacuumed(Runner):
    """What a well-kept installation has."""

    name, title, path = VACUUMED, "vacuumed", "tables"
    how = (
        "Each simulated hour ends with VACUUM where autovacuum's thresholds ask for it: of accounts, 2 % of dead rows."
    )

    def run(self) -> None:
        """Nothing runs: time goes by in this process."""


class NeverVacuumed(Vacuumed):
    """The worst that can happen to the tables."""

    name, title = "never-vacuumed", "never vacuumed"
    how = "Autovacuum is off, and another session holds an old snapshot, so that no dead row can be removed."


@contextmanager
def kept(runner: Runner) -> Iterator[None]:
    """Have the tables kept as that contender keeps them."""
    for table in TABLES:
        execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    with nullcontext() if runner.name == VACUUMED else old_snapshot():
        yield


@contextmanager
def old_snapshot() -> Iterator[None]:
    """Hold a snapshot open during the block, in another session."""
    with closing(connection.copy()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SELECT 1 FROM accounts_account LIMIT 1")
        yield


def fill(accounts: int, *, now: datetime) -> None:
    """Give every user an account: sign-ups in the order of their keys, the last one at ``now``, and runs until then."""
    execute(FILL, now, accounts=accounts)


class Month:
    """Thirty days: sign-ups, payments, extensions, ticks and mails, hour after hour."""

    def __init__(self, *, accounts: int, start: datetime, vacuums: bool) -> None:
        self.accounts, self.start, self.vacuums = accounts, start, vacuums
        self.signed_up, self.expired, self.number_of_vacuums = 0, 0, 0
        self.wal_of_ticks = 0.0
        self.ticks: dict[int, list[float]] = {}  # seconds, by day

    def live(self, days: int) -> dict[str, float]:
        """The figures of so many days."""
        before, wal = sizes(), written()
        values: dict[str, float] = {}
        for day in range(1, days + 1):
            for hour in range(24):
                now = self.start + (day - 1) * DAY + (hour + 1) * HOUR
                self.hour(now, day)
                self.number_of_vacuums += maintain(vacuums=self.vacuums)
            if day in SHOWN:
                values |= {f"{what}_day_{day}_seconds": took for what, took in question(now).items()}
        after = sizes()
        grown = after["table_bytes"] + after["indexes_bytes"]
        return {
            **values,
            **after,
            "growth_share": grown / (before["table_bytes"] + before["indexes_bytes"]) - 1,
            "signed_up": self.signed_up,
            "expired": self.expired,
            "vacuums": self.number_of_vacuums,
            "wal_account_bytes": (written() - wal) / max(1, self.signed_up),
            "wal_ticks_bytes": self.wal_of_ticks / max(1, self.expired),
            "ticks_first_seconds": median(self.ticks[1]),
            "ticks_last_seconds": median(self.ticks[days]),
        }

    def hour(self, now: datetime, day: int) -> None:
        """One hour, and the tick at its end."""
        last = self.accounts + int((now - self.start) / DAY * self.accounts * SIGN_UPS)
        execute(SIGN_UP, now, first=self.accounts + self.signed_up + 1, last=last)
        self.signed_up = last - self.accounts
        for what in (PAY, EXTEND):
            execute(what, now)
        wal, began = written(), time.perf_counter()
        self.expired += tick(now).expired_count
        self.ticks.setdefault(day, []).append(time.perf_counter() - began)
        self.wal_of_ticks += written() - wal
        notices.queue_notices(now=now)
        execute(SEND)


def tick(now: datetime) -> ExpiryRun:
    """What cron does at that moment."""
    return services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)


def what_is_wrong(now: datetime) -> str:
    """Compare every account with what its life must have led to by ``now``; in words, empty when all is right."""
    ((astray,),) = execute(ASTRAY, now)
    return f"{astray} account(s) are not what the rule makes of them." if astray else ""


def question(now: datetime) -> dict[str, float]:
    """Seconds that a tick's question takes, is any account due: asked of all trials, and above the low-water mark."""
    due, mark = Account.objects.due(now), ledger.low_water_mark(now=ledger.database_now())
    return {"whole": seconds(due.first_end), "above": seconds(due.above(mark).first_end)}


def after_half(*, now: datetime, vacuums: bool) -> dict[str, float]:
    """Expire what is due, half of all, and see what a tick, pages and mails then take."""
    execute("UPDATE django_celery_beat_periodictask SET enabled = false")  # else the overview pings a worker
    before_all_ends = now - 10 * MONTH * DAY
    values = {"tick_before_seconds": seconds(lambda: tick(before_all_ends))}
    began, firsts = time.perf_counter(), list[float]()

    def after_slice(done: int, total: int) -> None:
        firsts.append(time.perf_counter() - began)

    def run_slices(run: ExpiryRun) -> None:
        services.run_here(run, after_slice=after_slice)

    values |= bytes_of_an_account()
    wal = written()
    run = services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now, run_slices=run_slices)
    values |= {
        "first_slice_seconds": firsts[0],
        "run_seconds": time.perf_counter() - began,
        "wal_expiry_bytes": (written() - wal) / run.expired_count,
        "run_index_bytes": index_bytes("expiry_run") / run.expired_count,
    }
    wal, began = written(), time.perf_counter()
    mails = notices.queue_notices(now=now).total
    values |= {"plan_mails_seconds": time.perf_counter() - began, "wal_mail_bytes": (written() - wal) / mails}
    execute(SEND_HALF)
    maintain(vacuums=vacuums)
    pages: dict[str, Callable[[], Any]] = {
        "tick_after": lambda: tick(now),
        "claim": claim,
        "health": lambda: health.check(now=now, max_age=timedelta(hours=settings.TRIAL_RUN_MAX_AGE_HOURS)),
        "metrics": lambda: list(TrialExpiry(now).collect()),
        "overview": lambda: overview.collect(now=now),
    }
    values |= {f"{what}_seconds": took for what, took in question(now).items()}
    return values | {f"{name}_seconds": seconds(page) for name, page in pages.items()}


def undo() -> dict[str, float]:
    """Put back what the last run expired."""
    run, wal, began = ExpiryRun.objects.filter(expired_count__gt=0).latest("pk"), written(), time.perf_counter()
    undone = services.undo_run(run=run, now=timezone.now(), by="compare_paths")
    return {"undo_seconds": time.perf_counter() - began, "wal_undo_bytes": (written() - wal) / max(1, undone)}


def bytes_of_an_account() -> dict[str, float]:
    """Of the row, and of its entry in each index; of the index of trials, of an account that is in it."""
    accounts = Account.objects.count()
    ((row,),) = execute("SELECT pg_table_size('accounts_account')")
    return {
        "row_bytes": row / accounts,
        "key_index_bytes": index_bytes("id") / accounts,
        "user_index_bytes": index_bytes("user_id") / accounts,
        "due_index_bytes": index_bytes("trial_ends_at") / Account.objects.filter(status=Account.TRIALING).count(),
    }


def index_bytes(column: str) -> float:
    """Of the indexes of accounts that begin with that column, or its foreign key."""
    ((size,),) = execute(INDEX_BYTES, begins=rf"\(\m{column}(_id)?\M")
    return float(size)


def claim() -> None:
    """Lock the mail that is next, and let it be."""
    with transaction.atomic():
        Notice.objects.deliverable(timezone.now()).select_for_update(skip_locked=True).first()
        transaction.set_rollback(True)


def maintain(*, vacuums: bool) -> int:
    """Do what autovacuum's thresholds ask for; returns how many tables were vacuumed. Statistics are always renewed."""
    execute("SELECT pg_stat_force_next_flush()")
    number = 0
    for table, dead_rows, changes in execute(MAINTENANCE):
        if dead_rows and vacuums:
            execute(f"VACUUM (ANALYZE) {table}")
            number += 1
        elif changes:
            execute(f"ANALYZE {table}")
    return number


def sizes() -> dict[str, float]:
    """Bytes of the tables and indexes, and dead rows as the statistics have them."""
    ((table, indexes, notices_table, dead),) = execute(SIZES)
    return {
        "table_bytes": float(table),
        "indexes_bytes": float(indexes),
        "trials_bytes": index_bytes("trial_ends_at"),
        "notices_bytes": float(notices_table),
        "dead_rows": float(dead),
    }


def written() -> float:
    """Bytes of WAL that the server has written so far."""
    (((lsn,),)) = execute("SELECT pg_current_wal_insert_lsn() - '0/0'")
    return float(lsn)


def seconds(do: Callable[[], object], *, times: int = ASKED) -> float:
    """The shortest of so many times: what else the machine does only adds to it."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        do()
        taken.append(time.perf_counter() - began)
    return min(taken)


def execute(statement: str, now: datetime | None = None, **parameters: Any) -> list[tuple[Any, ...]]:
    """Run one statement about the moment ``now``."""
    trial, grace = timedelta(days=settings.TRIAL_DAYS), timedelta(days=settings.TRIAL_GRACE_DAYS)
    known: dict[str, Any] = {"now": now, "trial": trial, "grace": grace, "tables": list(TABLES)}
    with connection.cursor() as cursor:
        cursor.execute(statement, known | parameters)
        return cursor.fetchall() if cursor.description else []
