"""``python -m tests.engine_walk NAME``: an engine expires what is due, fails, is killed and recovers.

A program of its own, on a scratch database, because only a process with the settings of all engines can hand work to
them. It ends with an error when an engine does not do what its ``how`` and docs/engines.md say.
"""

import os
import sys
import tempfile
from pathlib import Path

import django

django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402
from django.db.models import Sum  # noqa: E402
from django.utils import timezone  # noqa: E402

from accounts.models import ExpiryRun  # noqa: E402
from comparison import sample  # noqa: E402
from comparison.engines.contenders import ENGINES  # noqa: E402
from comparison.runners import Runner, Site, Standing  # noqa: E402
from sandbox.servers import wait_for  # noqa: E402

NOW = timezone.now()
DUE = 40_000  # four slices
SLOW_SLICES = """
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$;
    CREATE TRIGGER wait AFTER UPDATE ON accounts_account FOR EACH STATEMENT EXECUTE FUNCTION wait();
"""
FAILING_RUNS = """
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'the database is away' USING ERRCODE = 'query_canceled'; END $$;  -- an OperationalError
    CREATE TRIGGER fail BEFORE INSERT ON accounts_expiryrun FOR EACH ROW EXECUTE FUNCTION fail();
"""
ATTEMPTS = "SELECT last_value FROM accounts_expiryrun_id_seq"  # which is not rolled back
RUNNING_TASKS = "SELECT count(*) FROM django_tasks_database_dbtaskresult WHERE status = 'RUNNING'"
FAILED_TASKS = RUNNING_TASKS.replace("RUNNING", "FAILED")
STALLED_JOBS = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing'"
NO_STORE = ("SELECT 0", 0)
AFTER_A_KILL = {
    "huey": ("SELECT count(*) FROM huey_task", 0),  # lost
    "procrastinate": (STALLED_JOBS, 1),
    "django-tasks": (RUNNING_TASKS, 1),
    "django-tasks-cron": (RUNNING_TASKS, 1),
    "loop": NO_STORE,
}
"""What the store says of the task that a killed worker was at."""
AFTER_A_FAILURE = {"django-tasks": (FAILED_TASKS, 1), "django-tasks-cron": (FAILED_TASKS, 1), "loop": NO_STORE}
"""What it says of a failed one, of those that do not retry."""


def sql(*statements: str) -> int:
    """Execute them; returns the number that the last one selects."""
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return int(cursor.fetchone()[0]) if cursor.description else 0


def fill() -> None:
    """Have accounts fall due, and no run on record."""
    sql("DROP TABLE IF EXISTS expected, others", "TRUNCATE accounts_account, accounts_expiryrun CASCADE")
    sample.fill_accounts(DUE * 5 // 4, kind="backlog", seed=61, now=NOW)


def all_is_right() -> bool:
    """Whether every due account has expired, and no other."""
    return not sample.what_is_wrong(paid=())


def retry(runner: Runner) -> None:
    """An attempt fails because of the database, and the next one succeeds, where there is one."""
    retries = runner.name in ("huey", "procrastinate")
    sql(FAILING_RUNS)
    before = sql(ATTEMPTS)
    if isinstance(runner, Standing):
        runner.trigger()
    else:
        runner.run()  # db_worker ends with exit code 0 although the task has failed
    wait_for("attempts to fail", lambda: sql(ATTEMPTS) > before + retries, seconds=60)
    sql("DROP FUNCTION fail CASCADE")
    if retries:
        wait_for("the next attempt to succeed", all_is_right, seconds=60)
    else:
        query, count = AFTER_A_FAILURE[runner.name]
        wait_for("the failure to be on record", lambda: sql(query) == count)
        assert not all_is_right()


def recover(runner: Runner) -> None:
    """It is killed with everything that belongs to it, and started again: the next tick expires the rest."""
    wait_for("a slice to be done", ExpiryRun.objects.filter(expired_count__gt=0).exists, seconds=60)
    runner.kill()
    assert not all_is_right()
    query, count = AFTER_A_KILL[runner.name]
    assert sql(query) == count
    sql("DROP FUNCTION wait CASCADE")
    runner.start()
    wait_for("the next tick to expire the rest", all_is_right, seconds=60)
    assert ExpiryRun.objects.aggregate(expired=Sum("expired_count")) == {"expired": DUE}
    if runner.name == "procrastinate":
        from procrastinate.contrib.django import app

        # As if the killed worker had been silent for half a minute.
        sql("DELETE FROM procrastinate_workers WHERE id < (SELECT max(id) FROM procrastinate_workers)")
        app.configure_task("retry_stalled_jobs").defer(timestamp=0)
        wait_for("the stalled job to run again", lambda: sql(STALLED_JOBS) == 0, seconds=60)


def walk(runner: Runner, site: Site, logs: Path) -> None:
    """Go through it all."""
    call_command("migrate", verbosity=0)
    sample.fill_users(DUE * 5 // 4, now=NOW)
    fill()
    with runner.standing(site, logs=logs):
        runner.run()
        assert all_is_right()
        fill()
        retry(runner)
    fill()
    sql(SLOW_SLICES)  # so that there is time to kill it between two
    with runner.standing(site, logs=logs, every=5):
        recover(runner)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        walk(
            next(engine() for engine in ENGINES if engine.name == sys.argv[1]),
            Site(database=os.environ["DATABASE_URL"], broker=os.environ["CELERY_BROKER_URL"]),
            Path(directory),
        )
