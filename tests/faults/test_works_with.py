"""What README says the project works with, run on the real servers; without one, its tests are skipped and say so.

``.ci/run`` installs Debian's packages of these servers. The tests start their own, on loopback ports.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import psycopg
import pytest
import trustme
from django.conf import settings
from django.db import connection
from django.utils import timezone
from kombu import Connection
from psycopg.conninfo import make_conninfo

from accounts.models import Account, ExpiryRun, Notice
from project.celery import app
from sandbox import servers
from sandbox.servers import wait_for
from tests.conftest import ManagePy, Process
from tests.factories import make_accounts
from tests.faults import faults
from tests.faults.conftest import (
    ANOTHER,
    Customers,
    Tick,
    gate_before,
    run_that_succeeds,
    running,
    ticks_every_second,
)
from tests.locks import Sql

pytestmark = [pytest.mark.faults, pytest.mark.django_db(transaction=True)]

no_fault = pytest.mark.no_fault("nothing breaks: the server is another one")


def installed(program: str, package: str) -> str:
    """The path of a program, which may be in /usr/sbin; skips the test when it is not installed."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if not found:
        pytest.skip(f"no {program} is installed; on Debian: apt-get install {package}")
    return found


# --- PostgreSQL ---


@no_fault
@pytest.mark.parametrize("version", [15, 16, 17])
def test_migrations_locks_and_slices_work_on_older_versions_of_postgresql(version: int, tmp_path: Path) -> None:
    if version not in servers.postgres_versions():
        pytest.skip(f"PostgreSQL {version} is not installed")
    pytest_on = (sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", f"--basetemp={tmp_path / 'inner'}")

    with servers.postgres(version) as url:
        tests = subprocess.run(
            (*pytest_on, "tests/test_concurrency.py"),
            cwd=settings.BASE_DIR,
            env={**os.environ, "TEST_DATABASE_URL": url},
            capture_output=True,
            text=True,
            check=False,
        )

    assert tests.returncode == 0, tests.stdout


# --- PgBouncer ---


@pytest.fixture
def pgbouncer(transactional_db: None, tmp_path: Path) -> Iterator[str]:
    """The DATABASE_URL of a PgBouncer before the tests' database, in transaction mode.

    It has three connections to the server and takes them in turn, so that no two transactions of a client are
    on the same one.
    """
    program = installed("pgbouncer", "pgbouncer")
    port, ini = servers.free_port(), tmp_path / "pgbouncer.ini"
    params = connection.get_connection_params()
    server = make_conninfo(**{name: params[name] for name in ("host", "port", "user", "password") if params.get(name)})
    ini.write_text(
        f"[databases]\n* = {server}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 3\nmin_pool_size = 3\nserver_round_robin = 1\n"
    )
    # It does not run as root, and only the owner of the embedded server may open its socket.
    user = () if os.geteuid() else ("-u", Path(params["host"]).owner())
    with running(program, *user, str(ini), log=tmp_path / "pgbouncer.log"):
        url = f"postgres://trials@127.0.0.1:{port}/{connection.settings_dict['NAME']}"
        wait_for("PgBouncer to take its connections in turn", lambda: changes_server(url))
        yield url


def changes_server(url: str) -> bool:
    """Whether two transactions of a client run on two connections to the server."""
    try:
        with psycopg.connect(url) as one, psycopg.connect(url) as two:  # each takes a connection of its own
            one.execute("SELECT 1"), two.execute("SELECT 1")
        with psycopg.connect(url, autocommit=True) as client:
            return len({client.execute("SELECT pg_backend_pid()").fetchone() for _ in range(2)}) == 2
    except psycopg.OperationalError:
        return False


@no_fault
def test_a_run_with_jobs_and_its_undo_go_through_pgbouncer(
    customers: Customers, manage_py: ManagePy, pgbouncer: str, other: Sql
) -> None:
    other.execute("SELECT 1 FROM accounts_account WHERE id = %s FOR UPDATE", [customers.due[0].pk])

    run = manage_py("expire_trials", "--jobs=3", "--batch-size=2", DATABASE_URL=pgbouncer)

    assert "Expired 5 trial(s)" in run.stdout, run.stderr  # one is locked by another transaction
    other.rollback()
    with psycopg.connect(pgbouncer, autocommit=True) as client:
        lock_timeouts = {client.execute("SHOW lock_timeout").fetchone() for _ in range(3)}
    assert lock_timeouts == {("0",)}, "the lock timeout of a slice ends with its transaction"
    undo = manage_py("undo_expiry", str(ExpiryRun.objects.get().pk), "--jobs=3", DATABASE_URL=pgbouncer)
    assert undo.returncode == 0, undo.stderr
    assert Account.objects.due(timezone.now()).count() == 6


@no_fault
def test_a_worker_and_the_mails_go_through_pgbouncer(
    customers: Customers, celery: Process, tick: Tick, manage_py: ManagePy, pgbouncer: str
) -> None:
    make_accounts(3, ended=timedelta(days=-3), now=timezone.now())

    with celery("worker", "--concurrency=2", DATABASE_URL=pgbouncer):
        assert run_that_succeeds(tick.send()).expired_count == 6
    mails = manage_py("send_trial_notices", "--jobs=2", DATABASE_URL=pgbouncer, TRIAL_NOTICES="1")

    assert mails.returncode == 0, mails.stderr
    assert Notice.objects.filter(status=Notice.Status.SENT).count() >= 3


FORM = "from django.contrib.auth import forms; list(forms.UserChangeForm.base_fields['user_permissions'].choices)"
WITH_CURSORS = "from django.db import connection; connection.settings_dict['DISABLE_SERVER_SIDE_CURSORS'] = False; "


@no_fault
def test_the_admins_forms_use_no_cursor_that_pgbouncer_loses(manage_py: ManagePy, pgbouncer: str) -> None:
    by_default = manage_py("shell", "-c", FORM, DATABASE_URL=pgbouncer)
    with_cursors = manage_py("shell", "-c", WITH_CURSORS + FORM, DATABASE_URL=pgbouncer)

    assert by_default.returncode == 0, by_default.stderr
    assert "InvalidCursorName" in with_cursors.stderr


# --- RabbitMQ ---


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a RabbitMQ with a user of its own; started without the wrapper of Debian, which changes the user."""
    installed("rabbitmq-server", "rabbitmq-server")
    server = max(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    directory, port, names = tmp_path_factory.mktemp("rabbitmq"), servers.free_port(), servers.free_port()
    (directory / "rabbitmq.conf").write_text("default_user = trials\ndefault_pass = secret\nlog.console = true\n")
    env = {
        "HOME": str(directory),
        "ERL_EPMD_PORT": str(names),
        "RABBITMQ_NODENAME": f"trials{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(servers.free_port()),
        "RABBITMQ_MNESIA_BASE": str(directory / "data"),
        "RABBITMQ_LOG_BASE": str(directory),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        # One thread that does not spin, and nothing left behind: the name server is started here.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1 +sbwt none -start_epmd false"
        " -kernel inet_dist_use_interface {127,0,0,1}",
    }
    with (
        running("epmd", "-port", str(names), "-address", "127.0.0.1", log=directory / "epmd.log"),
        running(str(server), log=directory / "rabbitmq.log", **env),
    ):
        url = f"amqp://trials:secret@127.0.0.1:{port}//"
        wait_for("RabbitMQ", lambda: answers_amqp(url), seconds=180)
        yield url


def answers_amqp(url: str) -> bool:
    with Connection(url) as broker:
        try:
            broker.connect()
        except OSError:
            return False
        return True


@contextmanager
def sender(url: str) -> Iterator[Tick]:
    """Send ticks to another broker than that of the tests."""
    with app.connection_for_write(url) as to_the_broker:
        yield Tick(partial(app.send_task, connection=to_the_broker, ignore_result=True))


@no_fault
def test_without_results_the_tick_runs_every_slice_over_rabbitmq(
    customers: Customers, celery: Process, rabbitmq: str, tmp_path: Path
) -> None:
    ticks_every_second(one_off=True)
    over = {"CELERY_BROKER_URL": rabbitmq}

    with celery("worker", "--concurrency=2", **over), celery("beat", **over):
        run = wait_for("the run", ExpiryRun.objects.filter(status=ExpiryRun.Status.SUCCEEDED).first, seconds=60)
        with celery("inspect", "ping", "--timeout=5", **over) as probe:
            probe.wait(60)

    assert (run.path, run.slice_count, run.expired_count) == (ExpiryRun.Path.CELERY, 3, 6)
    logs = {role: (tmp_path / f"{role}.log").read_text() for role in ("worker", "beat", "inspect")}
    assert "CELERY_RESULT_BACKEND is not set" in logs["worker"]
    assert "2 nodes online" in logs["inspect"]
    assert "Traceback" not in logs["worker"] + logs["beat"]


def test_rabbitmq_redelivers_the_slices_of_a_killed_worker_at_once(
    customers: Customers, celery: Process, rabbitmq: str, empty_broker: str, tmp_path: Path
) -> None:
    over = {"CELERY_BROKER_URL": rabbitmq, "REDIS_URL": empty_broker}  # with a Redis for the results of a chord

    with gate_before(customers.due[2]) as gate, sender(rabbitmq) as tick:
        with celery("worker", "--concurrency=1", **over) as worker:
            task_id = tick.send()
            gate.wait_until_held()
            faults.kill(worker)
        gate.open()
        with celery(*ANOTHER, **over):
            assert run_that_succeeds(task_id).expired_count == 6
            customers.assert_settled_by(tick)
    assert "CELERY_RESULT_BACKEND is not set" not in (tmp_path / "worker.log").read_text()


# --- Redis itself; the other tests use Valkey ---


@no_fault
def test_redis_with_tls_and_a_user_with_a_password_carries_a_run(
    customers: Customers, celery: Process, tmp_path: Path
) -> None:
    program, port, authority = installed("redis-server", "redis-server"), servers.free_port(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    (tmp_path / "redis.conf").write_text(
        f"bind 127.0.0.1\nport 0\ntls-port {port}\ntls-auth-clients no\ntls-ca-cert-file {tmp_path}/authority.pem\n"
        f"tls-cert-file {tmp_path}/server.pem\ntls-key-file {tmp_path}/server.pem\n"
        f'dir {tmp_path}\nsave ""\nuser default off\nuser trials on >secret ~* &* +@all\n'
    )
    url = f"rediss://trials:secret@localhost:{port}/0?ssl_ca_certs={tmp_path}/authority.pem"

    with running(program, str(tmp_path / "redis.conf"), log=tmp_path / "redis.log"):
        wait_for("Redis", lambda: "Ready to accept connections" in (tmp_path / "redis.log").read_text())
        with celery("worker", "--concurrency=1", CELERY_BROKER_URL=url), sender(url) as tick:
            assert run_that_succeeds(tick.send()).expired_count == 6
