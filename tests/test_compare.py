"""``make compare``: what it measures, that a wrong contender is found out, and that it leaves no trace."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
from django.conf import settings
from django.core import mail
from django.core.management import CommandError, CommandParser, call_command
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from accounts import delivery, notices, services
from accounts.models import Account, ExpiryRun, Notice
from comparison import churn, contenders, faults, sample
from comparison.machine import database_process
from comparison.management.commands.compare_paths import SETTINGS, command_line_again
from comparison.management.commands.expire_otherwise import PART
from comparison.measurements import SCHEMA, Options, Spread
from comparison.measures import Turn, percentile, server_cpu_seconds
from comparison.run import measured, names, of_customers
from comparison.runners import Failed, Runner, Site
from comparison.server_log import SESSION_OPTIONS, ServerLog, longest_write, statements
from comparison.workloads import AfterHalf, Backlog, Churn, Mails, Workload
from sandbox.mail_server import Mailbox
from sandbox.servers import wait_for
from tests import comparison_example
from tests.conftest import NOW


def on_server(configured: str, query: str, *parameters: str) -> list[Any]:
    """Ask the server of the configured database, without connecting to that."""
    with psycopg.connect(urlsplit(configured)._replace(path="/postgres").geturl(), autocommit=True) as postgres:
        return postgres.execute(query, parameters).fetchall()


@pytest.fixture(scope="module")
def configured() -> Iterator[str]:
    """The URL of a database with somebody's data in it, on the tests' server."""
    name = f"configured_{os.getpid()}"
    server = urlsplit(os.environ["DATABASE_URL"])
    with psycopg.connect(server._replace(path="/postgres").geturl(), autocommit=True) as postgres:
        postgres.execute(f"CREATE DATABASE {name}")
        yield server._replace(path=f"/{name}").geturl()
        postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


Compare = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def compare(configured: str) -> Compare:
    """Start ``manage.py compare_paths`` as somebody would who has a database configured, and settings of their own."""

    def start(*arguments: str, temporary: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "manage.py", "compare_paths", "--sizes=1000", "--rounds=1", "--workers=2", *arguments],
            cwd=settings.BASE_DIR,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "project.settings",
                "DATABASE_URL": configured,
                "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
                "TRIAL_DAYS": "3000",
                "TMPDIR": str(temporary),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def compared(compare: Compare, configured: str, tmp_path: Path) -> Callable[..., Any]:
    """The JSON of a comparison, on the very server that the configured database is on.

    Its files are in ``tmp_path / "temporary"``.
    """

    def run(*arguments: str) -> Any:
        file, temporary = tmp_path / "result.json", tmp_path / "temporary"
        temporary.mkdir()
        with compare(*arguments, f"--database={configured}", f"--json={file}", temporary=temporary) as process:
            output, errors = process.communicate(timeout=900)
        assert process.returncode == 0, output + errors
        return json.loads(file.read_text())

    return run


def medians(document: Any) -> dict[tuple[str, str, str], float]:
    """By kind of scenario, contender and measure."""
    kinds = {each["name"]: each["kind"] for each in document["scenarios"]}
    return {
        (kinds[each["scenario"]], each["contender"], each["measure"]): each["spread"]["median"]
        for each in document["figures"]
    }


@pytest.mark.faults
@pytest.mark.postgres
def test_every_contender_works_and_nobody_connects_to_the_configured_one(
    compared: Callable[..., Any], configured: str, tmp_path: Path
) -> None:
    document = compared(
        "--scenarios", "nothing", "backlog", "mails", "idle", "late", "--mails=24", "--settings=project.settings"
    )

    of, names = medians(document), {each["kind"]: each["contenders"] for each in document["scenarios"]}
    assert document["wrong"] == {}
    assert list(names) == ["nothing", "backlog", "mails", "idle", "late"]
    own = ["raw-sql", "one-update", "row-by-row", "command", "command-jobs-2", "celery-2", "celery-threads-2"]
    assert names["backlog"][: len(own)] == own
    assert names["nothing"] == [name for name in names["backlog"] if name != "row-by-row"]
    assert names["mails"] == ["mail-command", "mail-jobs-8", "mail-celery-8", "mail-celery-threads-8"]
    assert names["idle"][:4] == ["command", "celery-2", "celery-threads-2", "celery-beat-inside"]
    assert names["late"][:2] == ["command", "celery-2"]
    timed = {(kind, name) for kind, name, measure in of if measure == "seconds"}
    assert timed == {(kind, name) for kind in ("nothing", "backlog", "mails") for name in names[kind]}
    assert [of.get(("nothing", name, "payments")) for name in names["nothing"]] == [None] * len(names["nothing"])
    for name in names["mails"]:
        assert (of["mails", name, "measured_on"], of.get(("mails", name, "payments"))) == (24, None)
    for name in names["backlog"]:
        assert of["backlog", name, "service_seconds"]
        assert ("backlog", name, "start_up_share") in of
        # Of psql, which at this size may be gone before anybody looks, there may be none to tell.
        assert of.get(("backlog", name, "peak_memory_bytes")) or name == "raw-sql"
        assert ("backlog", name, "cpu_seconds") in of
        assert of["backlog", name, "measured_on"] == (PART if name == "row-by-row" else 800)
        assert ("backlog", name, "wait_p99_seconds") not in of  # of a few payments
        assert of["backlog", name, "longest_transaction_seconds"] <= of["backlog", name, "seconds"]
    assert [of["idle", name, "processes"] for name in names["idle"][:4]] == [0, 5, 3, 3]
    roles = [
        [bool(of.get(("idle", name, f"{role}_bytes"))) for role in ("broker", "scheduler", "worker")]
        for name in own[5:]
    ]
    assert roles == [[True] * 3] * 2
    for name in names["idle"]:
        for measure in ("day_cpu_seconds", "minute_transactions"):
            # The loop sleeps until its next tick, and then takes nothing, or next to it.
            assert of["idle", name, measure] > 0 or (name == "loop" and of["idle", name, measure] == 0)
    for name in names["late"]:
        assert 0 < of["late", name, "late_median_seconds"] <= of["late", name, "late_worst_seconds"]
    assert [of["idle", name, "minute_commands"] > 0 for name in names["idle"][:2]] == [False, True]

    name = urlsplit(configured).path.removeprefix("/")
    counters = "SELECT sessions, xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"
    assert on_server(configured, counters, name) == [(0, 0)]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_json_has_every_figure_its_values_and_their_ratio() -> None:
    result = comparison_example.result()
    document = json.loads(result.to_json())

    assert document["schema"] == SCHEMA
    first = next(each for each in document["figures"] if each["measure"] == "seconds")
    assert (first["contender"], first["ratio"]["median"]) == ("raw-sql", 1)
    assert [
        (each["scenario"], each["contender"], each["measure"], each["values"], each["spread"]["median"])
        for each in document["figures"]
    ] == [
        (*key, {str(number): value for number, value in figure.values.items()}, figure.spread.median)
        for key, figure in result.figures.items()
    ]
    assert document["scenarios"][0]["contenders"] == list(result.scenarios[0].contenders)
    assert document["options"]["sizes"] == list(result.options.sizes)
    assert (document["machine"], document["wrong"]) == (result.machine, {})


def test_ratios_are_taken_round_by_round_and_a_wrong_outcome_has_no_figures() -> None:
    example = comparison_example.result()
    scenario = example.scenarios[0].name

    result = replace(
        example,
        values={
            (scenario, "raw-sql", "seconds"): {1: 1, 2: 10},
            (scenario, "command", "seconds"): {1: 2, 2: 20},  # twice as long in a slow round too
            (scenario, "one-update", "seconds"): {1: 1},
        },
        wrong={scenario: {"one-update": "It expired too many."}},
    )

    assert result.figures[scenario, "command", "seconds"].ratio == Spread(median=2, lowest=2, highest=2)
    assert (scenario, "one-update", "seconds") not in result.figures


def started_in(temporary: Path) -> list[tuple[str, dict[str, str]]]:
    """Command line and environment of the living processes whose temporary files go into that directory."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment = process.environ()
            if environment.get("TMPDIR", "").startswith(str(temporary)):
                found.append((" ".join(process.cmdline()), environment))
    return found


@pytest.mark.faults
@pytest.mark.postgres
def test_each_path_is_broken_in_every_way_and_recovers(compared: Callable[..., Any]) -> None:
    document = compared("--scenarios", "faults", "--only", "command", "celery-2")

    assert document["wrong"] == {}
    (scenario,) = document["scenarios"]
    of, never = medians(document), {"command": ("scheduler", "broker")}
    for name in ("command", "celery-2"):
        for fault in faults.FAULTS:
            assert (("faults", name, f"{fault}_seconds") in of) == (fault not in never.get(name, ()))
    assert scenario["contenders"] == ["command", "celery-2"]
    assert of["faults", "command", "missed_caught_up"] == 0  # cron does not


@pytest.mark.faults
@pytest.mark.postgres
def test_a_comparison_stopped_by_ctrl_c_leaves_nothing_behind(
    compare: Compare, configured: str, tmp_path: Path
) -> None:
    def scratch_database() -> str:
        """The name, once a worker was started on it."""
        workers = [environment for line, environment in started_in(tmp_path) if "-m celery" in line]
        return urlsplit(workers[0]["DATABASE_URL"]).path.removeprefix("/") if workers else ""

    of_the_comparison = "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
    with compare(f"--database={configured}", temporary=tmp_path) as process:
        name = wait_for("a worker to be started", scratch_database, seconds=60)
        assert on_server(configured, of_the_comparison, name) != []
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert errors.strip().splitlines()[-1].endswith("Stopped by hand; everything that was started is stopped too.")
    assert "Traceback" not in errors
    assert process.returncode == 130
    assert started_in(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert on_server(configured, of_the_comparison, name) == []


OPTIONS = Options(
    command="",
    measured="",
    kinds=("backlog",),
    sizes=(1000,),
    rounds=1,
    seed=1,
    workers=2,
    mails=10,
    rest_seconds=1,
    ticks=1,
    only=(),
)


def site() -> Site:
    """The tests' own database, whose sessions have their statements noted if its log can be read."""
    noted = SESSION_OPTIONS if ServerLog.from_now() else ""
    return Site(database=os.environ["DATABASE_URL"], broker=settings.CELERY_BROKER_URL, options=noted)


def filled(now: datetime) -> Backlog:
    """A backlog, in the tests' own database."""
    backlog = Backlog(accounts=1000, runners=(), options=OPTIONS, now=now, logs=Path())
    sample.fill_users(1000, now=now)
    backlog.fill()
    return backlog


@pytest.mark.postgres
@pytest.mark.django_db
def test_filled_tables_have_their_constraints_and_indexes_again(now: datetime) -> None:
    def constraints() -> dict[str, Any]:
        with connection.cursor() as cursor:
            look = connection.introspection
            return {table: look.get_constraints(cursor, table) for table in look.table_names(cursor)}

    before = constraints()
    filled(now)
    after = constraints()

    del after["expected"], after["others"]
    assert after == before
    assert len(before) > 10


def expire(now: datetime, **but: Any) -> None:
    """Expire what is due as the raw UPDATE does, ``but`` for some columns."""
    changes: dict[str, Any] = {"status": Account.TRIAL_EXPIRED, "trial_expired_at": now, "expiry_run_id": 0}
    Account.objects.due(now).update(**{**changes, **but})


@pytest.mark.postgres
@pytest.mark.django_db
def test_the_outcome_that_is_expected_is_right(now: datetime) -> None:
    filled(now)
    paid = Account.objects.due(now).values_list("pk", flat=True)[:2]
    early, late = paid
    services.activate(account_id=early)
    expire(now)
    services.activate(account_id=late)

    assert sample.what_is_wrong(paid={early, late}) == ""


@pytest.mark.postgres
@pytest.mark.django_db
@pytest.mark.parametrize(
    ("does", "wrong"),
    [
        (lambda now: None, "Of 800 due accounts, 800 or more did not expire, or lack a column."),
        (
            lambda now: expire(now, trial_expired_at=None),
            "Of 800 due accounts, 800 or more did not expire, or lack a column.",
        ),
        (
            lambda now: Account.objects.exclude(status=Account.ACTIVE).update(status=Account.TRIAL_EXPIRED),
            "Accounts that were not due have changed their status.",
        ),
    ],
    ids=["nothing", "a column less", "too many"],
)
def test_an_outcome_that_is_not_is_said_to_be_wrong(
    does: Callable[[datetime], None], wrong: str, now: datetime
) -> None:
    filled(now)
    does(now)

    assert sample.what_is_wrong(paid=set()) == wrong


@pytest.mark.postgres
@pytest.mark.django_db
def test_a_customer_who_paid_and_expired_makes_the_outcome_wrong(now: datetime) -> None:
    filled(now)
    expire(now)
    robbed = Account.objects.filter(expiry_run_id=0).values_list("pk", flat=True)[0]

    assert sample.what_is_wrong(paid={robbed}) == "1 account(s) expired although their customer had paid."


@pytest.mark.postgres
@pytest.mark.django_db
def test_customers_are_due_each_comes_once_and_half_of_them_at_most(now: datetime) -> None:
    filled(now)
    customers = sample.customers(seed=1)

    assert len(set(customers)) == len(customers) == 400
    assert Account.objects.due(now).filter(pk__in=customers).count() == 400


class InThisProcess(Runner):
    """A contender that needs no process."""

    name, title, how = "mine", "Mine", "Here."

    def __init__(self, do: Callable[[], object]) -> None:
        self.do = do

    def run(self) -> None:
        self.do()

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process()]

    def cpu_seconds(self) -> float:
        return 0.0


def turn(workload: Workload, runner: Runner) -> Turn:
    """Measure a contender in a scenario."""
    return measured(workload, workload.scenario(), runner, database=database_process())


UNSENT: dict[str, Any] = {"status": Notice.Status.PENDING, "sent": None, "next_attempt": NOW}


def fail() -> None:
    raise Failed("It ended with exit code 1: no word on stderr")


Measured = Callable[[Callable[[datetime], object]], Turn]


@pytest.fixture
def backlog(transactional_db: None) -> Iterator[Backlog]:
    """A scenario whose tables are filled."""
    yield filled(timezone.now())
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE expected")
        cursor.execute("DROP TABLE others")


@pytest.fixture
def measured_here(backlog: Backlog) -> Measured:
    """Measure what a function does in that backlog, called with its moment."""
    return lambda do: turn(backlog, InThisProcess(lambda: do(backlog.now)))


@pytest.mark.postgres
@pytest.mark.parametrize("contender", [contenders.RawUpdate, contenders.ExpireTrials], ids=["psql", "the command"])
def test_a_real_process_is_measured_and_tells_what_its_work_alone_took(
    contender: Callable[[], Runner],
    environment: Mapping[str, str],
    backlog: Backlog,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    runner = contender()
    runner.site, runner.settings = site(), environment["DJANGO_SETTINGS_MODULE"]
    taken = turn(backlog, runner)

    assert taken.wrong == ""
    assert taken.values["seconds"]
    if contender is contenders.ExpireTrials:  # psql may be gone before anybody looks
        assert taken.values["peak_memory_bytes"]
    # A server on another machine goes by another clock than the command.
    if database_process() or contender is contenders.RawUpdate:
        assert 0 < taken.values["service_seconds"] < taken.values["seconds"]
        share = 1 - taken.values["service_seconds"] / taken.values["seconds"]
        assert taken.values["start_up_share"] == pytest.approx(share)


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("does", "wrong"),
    [
        (lambda now: None, "Of 800 due accounts, "),
        (lambda now: fail(), "It ended with exit code 1: no word on stderr"),
    ],
    ids=["does nothing", "fails"],
)
def test_a_contender_that_is_wrong_is_reported_and_not_timed(
    measured_here: Measured, does: Callable[[datetime], object], wrong: str
) -> None:
    taken = measured_here(does)

    assert taken.wrong.startswith(wrong)
    assert taken.values == {}


@pytest.mark.postgres
def test_customers_come_while_a_contender_works_and_their_waits_are_measured(measured_here: Measured) -> None:
    def expire_when_somebody_has_paid(now: datetime) -> None:
        wait_for("a customer", Account.objects.filter(status=Account.ACTIVE, trial_ends_at__lt=now).exists)
        services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)

    taken = measured_here(expire_when_somebody_has_paid)

    assert taken.wrong == ""
    assert len(taken.waits) >= 1
    assert max(taken.waits) > 0


@pytest.mark.postgres
def test_what_is_measured_on_a_part_is_extrapolated_without_its_start_up(
    measured_here: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InThisProcess, "part", 8)  # of 800
    monkeypatch.setattr(InThisProcess, "work", {"seconds": 10.0, "cpu_seconds": 5.0})

    def expire_eight(now: datetime) -> None:
        keys = list(Account.objects.due(now).values_list("pk", flat=True)[:8])
        Account.objects.filter(pk__in=keys).update(status=Account.TRIAL_EXPIRED, trial_expired_at=now, expiry_run_id=0)

    taken = measured_here(expire_eight)

    assert taken.wrong == ""
    assert taken.values["measured_on"] == 8
    assert taken.waits == []
    assert taken.values["seconds"] == pytest.approx(99 * 10.0, abs=5)  # and what this run took
    assert taken.values["service_seconds"] == 100 * 10.0
    assert taken.values["cpu_seconds"] == 99 * 5.0


class Server:
    """A database server of which a backend ends, and is counted with it, just after it was read itself."""

    def __init__(self, backend: psutil.Process) -> None:
        self.backends = [backend]
        self.ended = 0.0

    def children(self) -> list[psutil.Process]:
        return self.backends

    def cpu_times(self) -> SimpleNamespace:
        times = SimpleNamespace(user=1.0, system=0.0, children_user=self.ended, children_system=0.0)
        self.backends, self.ended = [], 5.0
        return times


def test_a_backend_that_ends_while_the_servers_are_read_is_counted_once() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as backend:
        server = Server(psutil.Process(backend.pid))

    assert server_cpu_seconds(cast("psutil.Process", server)) == 1.0 + 5.0


@pytest.fixture
def mails_owed(transactional_db: None, mailbox: Mailbox, settings: Settings) -> Mails:
    """Ten mails owed, each by one notice."""
    settings.TRIAL_NOTICES = True
    mails = Mails(accounts=10, runners=(), options=OPTIONS, now=timezone.now(), logs=Path(), mailbox=mailbox)
    sample.fill_users(10, now=mails.now)
    mails.fill()
    return mails


def send(now: datetime, *, limit: int | None = None) -> delivery.Delivery:
    notices.queue_notices(now=now)
    return delivery.deliver_notices(now=now, limit=limit)


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("does", "wrong"),
    [
        (send, ""),
        (lambda now: send(now, limit=7), "3 mail(s) did not arrive."),
        (lambda now: None, "10 mail(s) did not arrive."),
        (
            lambda now: (send(now), Notice.objects.filter(pk__in=Notice.objects.all()[:2]).update(**UNSENT), send(now)),
            "2 mail(s) arrived more than once.",
        ),
        (
            lambda now: (send(now), Notice.objects.filter(pk__in=Notice.objects.all()[:2]).update(**UNSENT)),
            "10 notices are on record for 10 mails, 2 of them not as sent.",
        ),
        (
            lambda now: (send(now), mail.send_mail("Hello", "", None, ["stranger@example.com"])),
            "1 mail(s) went to somebody who was owed none.",
        ),
    ],
    ids=["all", "some", "none", "some twice", "not on record", "to a stranger"],
)
def test_mails_are_timed_only_when_each_arrived_once_and_is_on_record(
    mails_owed: Mails, does: Callable[[datetime], object], wrong: str
) -> None:
    taken = turn(mails_owed, InThisProcess(lambda: does(mails_owed.now)))

    assert taken.wrong == wrong
    assert ("seconds" not in taken.values) == bool(wrong)


@pytest.mark.postgres
@pytest.mark.django_db
def test_trial_ends_of_the_sample_follow_the_keys_but_for_extended_ones(now: datetime) -> None:
    filled(now)
    found = list(Account.objects.due(now).order_by("pk").values_list("trial_ends_at", "created"))
    ends = [end for end, created in found if end - created == timedelta(days=60)]

    assert 0 < len(found) - len(ends) < len(found) / 10  # were extended
    assert ends == sorted(ends)
    assert 0 < len(found) - len({end for end, _ in found}) < len(found) / 10  # ties


@pytest.mark.postgres
@pytest.mark.django_db
def test_an_update_that_was_made_dear_takes_fifty_times_as_long(now: datetime) -> None:
    filled(now)
    sample.make_updates_dear()
    began = time.monotonic()
    expire(now)

    assert time.monotonic() - began >= 800 * 275e-6


MONTH: dict[str, Any] = {"accounts": 1000, "runners": (), "options": OPTIONS, "logs": Path()}


@pytest.fixture
def no_traces() -> Iterator[None]:
    """Undo what a churn does to tables that are only emptied after a test."""
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS expected, others")
        for table in churn.TABLES:
            cursor.execute(f"ALTER TABLE {table} RESET (autovacuum_enabled)")


@pytest.mark.postgres
@pytest.mark.django_db
def test_an_account_that_a_month_led_astray_is_found(now: datetime) -> None:
    sample.fill_users(1000, now=now)
    churn.fill(1000, now=now)
    services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)
    assert churn.what_is_wrong(now) == ""
    assert {status for (status,) in Account.objects.values_list("status")} == {"active", "trialing", "trial_expired"}

    services.cancel(account_id=Account.objects.filter(status=Account.TRIALING)[0].pk)

    assert churn.what_is_wrong(now) == "1 account(s) are not what the rule makes of them."


@pytest.mark.faults
@pytest.mark.postgres
@pytest.mark.parametrize("keeper", [churn.Vacuumed, churn.NeverVacuumed])
def test_two_days_of_a_month_lead_every_account_where_the_rule_does(
    keeper: type[churn.Vacuumed], transactional_db: None, no_traces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Churn, "days", 2)
    month = Churn(**MONTH, now=timezone.now())
    sample.fill_users(1000, now=month.now)
    month.fill()

    taken = turn(month, keeper())

    assert taken.wrong == ""
    assert taken.values["signed_up"] == 10
    assert taken.values["expired"] == Account.objects.filter(trial_expired_at__isnull=False).count() == 5
    assert Account.objects.filter(created__gt=month.start).count() == 10
    assert Notice.objects.filter(status=Notice.Status.SENT).count() == Notice.objects.count() > 5
    assert {name for name in taken.values if "_day_" in name} == {"whole_day_1_seconds", "above_day_1_seconds"}


@pytest.mark.faults
@pytest.mark.postgres
@pytest.mark.parametrize("keeper", [churn.Vacuumed, churn.NeverVacuumed])
def test_after_half_expired_everybody_is_asked_and_all_are_put_back(
    keeper: type[churn.Vacuumed], transactional_db: None, no_traces: None
) -> None:
    half = AfterHalf(**MONTH, now=timezone.now())
    sample.fill_users(1000, now=half.now)
    half.fill()

    run = turn(half, keeper())
    expired = Account.objects.due(half.now).count()

    assert run.wrong == ""
    assert min(run.values.values()) > 0
    assert ExpiryRun.objects.get(expired_count__gt=0).undone_count == expired == 500
    assert min(Notice.objects.pending().count(), Notice.objects.filter(status=Notice.Status.SENT).count()) >= 250


@pytest.mark.postgres
@pytest.mark.parametrize("keeper", [churn.Vacuumed, churn.NeverVacuumed])
def test_only_an_old_snapshot_keeps_dead_rows(
    keeper: type[churn.Vacuumed], transactional_db: None, no_traces: None
) -> None:
    sample.fill_users(1000, now=timezone.now())
    churn.fill(1000, now=timezone.now())

    with churn.kept(keeper()):
        Account.objects.update(status=Account.ACTIVE)
        churn.maintain(vacuums=keeper is churn.Vacuumed)
        churn.execute("SELECT pg_stat_force_next_flush()")
        dead = churn.sizes()["dead_rows"]

    assert dead >= 1000 if keeper is churn.NeverVacuumed else dead == 0


def noted(*lines: str) -> float:
    """The longest transaction by a log. A line: minute and seconds, session (a letter), milliseconds, statement."""
    entries = [line.split(maxsplit=3) for line in lines]
    log = "".join(
        f"2026-11-25 10:{moment} UTC [{ord(session)}] LOG:  duration: {ms} ms  {statement}\n"
        for moment, session, ms, statement in entries
    )
    return longest_write(statements(log))


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        (["00:09.000 a 9000 statement: UPDATE t SET i = 1"], 9),
        (["00:09.000 a 9000 statement: \n\tUPDATE t\n\t SET i = 1"], 9),
        (["00:09.000 a 9000 statement: SELECT count(*) FROM t"], 0),
        (["00:09.000 a 9000 statement: SELECT 1 FROM t FOR UPDATE"], 9),
        (["00:09.000 a 9000 execute <unnamed>: update t SET i = $1", "00:20.000 a 5000 bind <unnamed>: UPDATE t"], 9),
        (
            [
                "00:01.000 a 1000 statement: BEGIN",
                "00:02.000 a 500 statement: UPDATE t SET i = 1",
                "00:04.000 b 2500 statement: DELETE FROM t",
                "00:04.500 a 1 statement: ROLLBACK TO SAVEPOINT s",
                "00:05.000 a 1000 statement: ",
                "00:06.000 a 400 statement: COMMIT",
            ],
            6,
        ),
        (["00:01.000 a 0 statement: BEGIN", "00:09.000 a 1 statement: SELECT 1", "00:09.000 a 0 statement: COMMIT"], 0),
    ],
    ids=["one statement", "of several lines", "reads", "locks", "extended", "a transaction beside another", "it reads"],
)
def test_the_longest_transaction_is_read_from_the_log_of_the_server(lines: list[str], seconds: float) -> None:
    assert noted(*lines) == pytest.approx(seconds)


@pytest.mark.postgres
@pytest.mark.django_db
def test_the_longest_transaction_is_one_that_is_known() -> None:
    if not (log := ServerLog.from_now()):
        pytest.skip("the log of this server cannot be read")
    with psycopg.connect(os.environ["DATABASE_URL"], options=SESSION_OPTIONS, autocommit=True) as postgres:
        postgres.execute("CREATE TEMPORARY TABLE t (i int)")
        began = time.monotonic()
        with postgres.transaction():
            postgres.execute("INSERT INTO t VALUES (%s)", [1])
            postgres.execute("SELECT pg_sleep(0.1)")
        took = time.monotonic() - began
        postgres.execute("SELECT pg_sleep(0.2)")

    assert 0.1 <= longest_write(log.statements()) <= took + 0.001  # the log has milliseconds


def test_customers_of_all_rounds_are_taken_together_and_a_percentile_takes_a_hundred() -> None:
    waits = [number / 1000 for number in range(1, 100)]

    assert of_customers([]) == {}
    assert of_customers(waits) == {"payments": 99, "wait_median_seconds": 0.05, "wait_max_seconds": 0.099}
    assert of_customers([*waits, 0.1])["wait_p99_seconds"] == 0.099


def test_another_settings_module_does_not_make_it_begin_again_and_again() -> None:
    again = command_line_again(["manage.py", "compare_paths", "--settings=project.settings", "--quick"])
    django = CommandParser(add_help=False)  # as execute_from_command_line parses it
    django.add_argument("--settings")

    assert again[:2] == [sys.executable, "manage.py"]
    assert django.parse_known_args(again[3:])[0].settings == SETTINGS


def test_the_99th_percentile_of_a_hundred_is_the_second_largest() -> None:
    assert percentile([float(number) for number in range(1, 101)], 99) == 99
    assert percentile([7.0], 99) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "10"], "--sizes must be at least 1000, not 10."),
        (["--rounds", "0"], "--rounds must be at least 1, not 0."),
        (["--workers", "0"], "--workers must be at least 1, not 0."),
        (
            ["--only", "command", "nobody", "--workers", "2"],
            "--only knows no nobody. It knows " + ", ".join(names(2)) + ".",
        ),
        (["--json", "/nowhere/at/all.json"], "There is no directory /nowhere/at for all.json."),
        (
            ["--svg", "a.svg", "--sizes", "1000"],
            "--svg draws growth: it needs two --sizes and the scenario backlog.",
        ),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError) as error:
        call_command("compare_paths", *arguments)

    assert str(error.value) == message
    assert error.value.returncode == 2


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:S3CR3T@127.0.0.1/x",
        "sqlite:///S3CR3T.sqlite3",
        "S3CR3T",
        "postgres://u:S3/CR3T@127.0.0.1/x",
        "postgres://u:S3?CR3T@127.0.0.1/x",
        "postgres://u:3#CR3T@127.0.0.1/x",
        "postgres://u:3/CR3T@127.0.0.1/x",
        "postgres://u:S3CR3T@[127.0.0.1/x",
        "postgres://u:S3CR3T@127.0.0.1/x?sslmoode=S3CR3T",
    ],
)
def test_a_database_url_that_cannot_be_used_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(CommandError) as error:
        call_command("compare_paths", f"--database={url}")

    assert str(error.value).startswith("--database ")
    assert "postgres://user:password@host:5432/name" in str(error.value) or "an option" in str(error.value)
    assert "CR3T" not in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.returncode == 2


def test_a_server_that_does_not_answer_is_one_line() -> None:
    with pytest.raises(CommandError, match=r"^No scratch database: .*127\.0\.0\.1.*refused"):
        call_command("compare_paths", "--database=postgres://nobody@127.0.0.1:1/nothing")


def test_the_measured_commands_refuse_the_configured_database() -> None:
    with pytest.raises(CommandError, match=r"Did you mean \./manage\.py expire_trials\?"):
        call_command("expire_otherwise", "one-update")


def test_the_settings_of_the_comparison_refuse_the_configured_database() -> None:
    result = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=settings.BASE_DIR,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "comparison.settings"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 1
    assert result.stderr.startswith("Not started: comparison.settings are for scratch databases")
