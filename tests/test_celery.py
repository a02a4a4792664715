"""The Celery path with a real worker and a real beat, over a real broker, on the tests' own database."""

import importlib
import re
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.backends.base import DisabledBackend
from celery.beat import SchedulingError
from django.apps import apps
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks
from django_celery_beat.schedulers import ModelEntry

from accounts import ledger, tasks
from accounts.base_tasks import BaseTask, WrongArguments
from accounts.models import Account, ExpiryRun
from accounts.services import TooManyDue
from accounts.slices import FIRST
from accounts.tasks import FIRST_WAVE
from project.beat import LOST, Scheduler
from project.celery import app
from sandbox.servers import wait_for
from tests.conftest import Process, Send
from tests.factories import make_accounts
from tests.runs import DAY

pytestmark = pytest.mark.django_db(transaction=True)

migration = importlib.import_module("accounts.beat.migrations.0001_initial")
first_tick = importlib.import_module("accounts.beat.migrations.0002_first_tick")


@pytest.fixture
def tick(transactional_db: None) -> PeriodicTask:
    """The hourly entry of the schedule, as the migration creates it (a flush of the database deletes it)."""
    migration.add(apps, None)
    return PeriodicTask.objects.get(name="Expire trials")


def accounts_due_by_the_real_clock(count: int) -> None:
    make_accounts(count, ended=timedelta(days=10), now=timezone.now())


def closed_run() -> ExpiryRun | None:
    return ExpiryRun.objects.exclude(status=ExpiryRun.Status.RUNNING).first()


# --- The schedule ---


def test_the_schedule_ticks_hourly_and_a_message_expires_before_the_next(tick: PeriodicTask) -> None:
    assert tick.enabled
    assert str(tick.crontab) == "0 * * * * (m/h/dM/MY/d) UTC"
    assert tick.expire_seconds < 3600


def test_what_an_admin_edits_stays_edited(tick: PeriodicTask) -> None:
    tick.enabled = False
    tick.kwargs = '{"batch_size": 5}'
    tick.save()

    migration.add(apps, None)

    tick.refresh_from_db()
    assert (tick.enabled, tick.kwargs) == (False, '{"batch_size": 5}')


def test_the_migration_is_reversible_and_takes_only_its_own_entry(tick: PeriodicTask) -> None:
    other = PeriodicTask.objects.create(name="somebody else's", task="accounts.expire_trials", crontab=tick.crontab)

    migration.remove(apps, None)

    assert list(PeriodicTask.objects.filter(task="accounts.expire_trials")) == [other]


def test_beat_sends_an_entry_that_never_ran_when_it_first_starts(tick: PeriodicTask) -> None:
    PeriodicTask.objects.update(start_time=None)
    tick.refresh_from_db()
    assert not ModelEntry(tick, app).is_due().is_due

    first_tick.make_due(apps, None)
    tick.refresh_from_db()

    assert ModelEntry(tick, app).is_due().is_due
    tick.last_run_at = timezone.now()
    assert not ModelEntry(tick, app).is_due().is_due


def test_beat_remembers_a_tick_that_the_broker_did_not_take(tick: PeriodicTask) -> None:
    scheduler = Scheduler(app, lazy=True)
    with app.connection_for_write("redis://127.0.0.1:1/0") as nowhere, pytest.raises(SchedulingError):
        scheduler.apply_async(ModelEntry(tick, app), producer=app.amqp.Producer(nowhere, auto_declare=False))

    assert scheduler.state == LOST


def test_a_running_beat_is_told_of_what_the_migration_changed(tick: PeriodicTask) -> None:
    PeriodicTasks.objects.all().delete()

    migration.add(apps, None)

    assert PeriodicTasks.last_change() is not None


def test_every_name_in_the_schedule_is_a_task_that_workers_know(tick: PeriodicTask) -> None:
    app.loader.import_default_modules()

    assert set(PeriodicTask.objects.values_list("task", flat=True)) <= set(app.tasks)


def test_the_tasks_have_the_names_that_messages_and_schedules_rely_on() -> None:
    assert [task.name for task in (tasks.expire_trials, tasks.expire_slice, tasks.continue_run)] == [
        "accounts.expire_trials",
        "accounts.expire_slice",
        "accounts.continue_run",
    ]


def test_only_json_is_spoken() -> None:
    assert app.conf.accept_content == ["json"]
    assert (app.conf.task_serializer, app.conf.result_serializer) == ("json", "json")


def test_the_fuse_of_a_schedule_s_arguments_holds() -> None:
    make_accounts(2, ended=10 * DAY, now=timezone.now())

    result = tasks.expire_trials.apply(kwargs={"max_accounts": 1})

    assert (result.state, type(result.result)) == ("FAILURE", TooManyDue)
    assert not Account.objects.filter(status=Account.TRIAL_EXPIRED).exists()


# --- In any project's Celery app ---


OURS = [task for name, task in app.tasks.items() if name.startswith("accounts.")]


@pytest.mark.parametrize("task", OURS, ids=lambda task: task.name)
def test_the_options_that_a_task_needs_stand_on_the_task(task: BaseTask) -> None:
    assert isinstance(task, BaseTask)
    assert (task.serializer, task.time_limit, task.soft_time_limit) == ("json", 300, 270)
    # Only the chord reads results: those of its slices.
    assert task.ignore_result == (task.name != "accounts.expire_slice")
    assert task.time_limit < app.conf.broker_transport_options["visibility_timeout"]


def test_without_a_result_backend_the_slices_run_in_the_task_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Celery, "backend", DisabledBackend(app))
    accounts_due_by_the_real_clock(5)

    tasks.expire_trials(batch_size=2)

    run = ExpiryRun.objects.get()
    assert (run.status, run.slice_count, run.expired_count) == (ExpiryRun.Status.SUCCEEDED, 3, 5)


def test_a_failed_slice_is_on_record_before_the_next_wave_and_its_error_after() -> None:
    run = ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, as_of=timezone.now())

    tasks.continue_run(run_id=run.pk, after=HERE, size=2, has_failed=True)

    run.refresh_from_db()
    assert (run.status, run.error) == (ExpiryRun.Status.FAILED, "A slice failed; the log of its worker says why.")
    ledger.fail_run(run_id=run.pk, error=RuntimeError("disk full"))
    ledger.fail_run(run_id=run.pk, error=RuntimeError("later"))
    run.refresh_from_db()
    assert run.error == "RuntimeError: disk full"


# --- Arguments ---

NUMBER = "must be a whole number from 1 to 2147483647, not"
POSITION = "must be the end of a trial and the key of an account, not"
HERE = ["2026-03-01T12:00:00Z", 2]


@pytest.mark.parametrize(
    ("task", "arguments", "says"),
    [
        (tasks.expire_trials, {"batch_size": 0}, f"batch_size {NUMBER} 0. Nothing was changed."),
        (tasks.expire_trials, {"batch_size": -1}, f"batch_size {NUMBER} -1."),
        (tasks.expire_trials, {"batch_size": "5"}, f"batch_size {NUMBER} '5'."),
        (tasks.expire_trials, {"batch_size": 1.5}, f"batch_size {NUMBER} 1.5."),
        (tasks.expire_trials, {"batch_size": True}, f"batch_size {NUMBER} True."),
        (tasks.expire_trials, {"throttle": -1}, "throttle must be a number from 0 to 100, not -1."),
        (tasks.expire_trials, {"throttle": "1"}, "throttle must be a number from 0 to 100, not '1'."),
        (tasks.expire_trials, {"throttle": float("nan")}, "throttle must be a number from 0 to 100, not nan."),
        (tasks.expire_trials, {"batch_size": 10**30}, f"batch_size {NUMBER} 1000"),
        (tasks.expire_trials, {"batch_size": float("nan")}, f"batch_size {NUMBER} nan."),
        (tasks.expire_trials, {"batch_size": [1]}, f"batch_size {NUMBER} [1]."),
        (tasks.expire_trials, {"max_accounts": 0}, f"max_accounts {NUMBER} 0."),
        (tasks.expire_trials, {"max_accounts": "all"}, f"max_accounts {NUMBER} 'all'."),
        (tasks.expire_trials, {"bach_size": 5}, "got an unexpected keyword argument 'bach_size'."),
        (tasks.expire_slice, {"after": None, "upto": HERE}, "missing a required argument: 'run_id'."),
        (tasks.expire_slice, {"run_id": 1}, "missing a required argument: 'after'."),
        (tasks.expire_slice, {"run_id": "x", "after": None, "upto": HERE}, f"run_id {NUMBER} 'x'."),
        (tasks.expire_slice, {"run_id": 404, "after": None, "upto": HERE}, "There is no run 404: it was deleted, or"),
        (tasks.expire_slice, {"run_id": None, "after": None, "upto": HERE}, f"run_id {NUMBER} None."),
        (tasks.continue_run, {"after": HERE, "size": 1}, "missing a required argument: 'run_id'."),
        (tasks.continue_run, {"run_id": 0, "after": HERE, "size": 1}, f"run_id {NUMBER} 0."),
        (tasks.continue_run, {"run_id": 404, "after": HERE, "size": 1}, "There is no run 404: it was deleted, or"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_wrong_arguments_are_refused_in_a_sentence(task: BaseTask, arguments: dict[str, Any], says: str) -> None:
    accounts_due_by_the_real_clock(1)

    with pytest.raises(WrongArguments, match=re.escape(says)):
        task(**arguments)

    assert Account.objects.filter(status=Account.TRIAL_EXPIRED).count() == 0
    assert not ExpiryRun.objects.exists()


NO_POSITIONS = [
    *("x", [], {}, 7, float("inf"), [HERE], [HERE[0]], [*HERE, 3], ["yesterday", 2], ["2026-03-01T12:00:00", 2]),
    *([HERE[0], "x"], [HERE[0], None], [None, 2], [HERE[0], float("inf")], [HERE[0], float("nan")], [5, 2]),
]


@pytest.mark.parametrize("value", NO_POSITIONS, ids=str)
def test_a_slice_that_begins_or_ends_nowhere_is_refused(value: Any) -> None:
    accounts_due_by_the_real_clock(1)
    run = ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, as_of=timezone.now(), cutoff=timezone.now())

    for name in ("after", "upto"):
        with pytest.raises(WrongArguments, match=re.escape(f"{name} {POSITION} {value!r:.60}. Nothing was changed.")):
            tasks.expire_slice(**{"run_id": run.pk, "after": None, "upto": HERE, name: value})

    assert Account.objects.filter(status=Account.TRIAL_EXPIRED).count() == 0


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(WrongArguments, match="too many positional arguments"):
        tasks.expire_trials(5)


def test_a_tick_beside_a_run_of_its_path_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    accounts_due_by_the_real_clock(2)
    running = ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, as_of=timezone.now())

    with caplog.at_level("INFO", "accounts"):
        tasks.expire_trials.apply(throw=True)

    assert f"expiry_already_running path=celery run={running.pk}" in caplog.text
    assert ExpiryRun.objects.count() == 1


# --- Worker and beat ---


@pytest.mark.faults
def test_a_tick_of_beat_expires_many_slices_as_a_chord(celery: Process, tick: PeriodicTask, tmp_path: Path) -> None:
    accounts_due_by_the_real_clock(200)
    tick.crontab, tick.interval = None, IntervalSchedule.objects.create(every=1, period=IntervalSchedule.SECONDS)
    tick.kwargs, tick.one_off = '{"batch_size": 3}', True
    tick.save()

    with celery("worker", "--concurrency=2"), celery("beat"):
        run = wait_for("the run to be closed", closed_run)

    assert (run.path, run.status) == (ExpiryRun.Path.CELERY, ExpiryRun.Status.SUCCEEDED)
    assert (run.slice_count, run.expired_count) == (67, 200)
    assert Account.objects.filter(expiry_run=run, status=Account.TRIAL_EXPIRED).count() == 200
    assert "Connection to broker lost" not in (tmp_path / "worker.log").read_text()


@pytest.mark.faults
def test_a_run_on_workers_learns_the_size_of_its_slices(celery: Process, send: Send) -> None:
    accounts_due_by_the_real_clock(6000)

    with celery("worker", "--concurrency=2"):
        send("accounts.expire_trials", kwargs={"throttle": 0.1})
        run = wait_for("the run to be closed", closed_run)

    assert (run.status, run.expired_count, run.throttle) == (ExpiryRun.Status.SUCCEEDED, 6000, 0.1)
    assert run.slice_count > FIRST_WAVE
    assert run.slice_size != FIRST


@pytest.mark.faults
def test_a_single_slice_needs_no_chord_and_what_is_refused_is_one_line(
    celery: Process, send: Send, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    with celery("worker", "--concurrency=1", "--loglevel=INFO", TRIAL_EXPIRY_MAX="2"):
        accounts_due_by_the_real_clock(2)
        task = send("accounts.expire_trials")
        run = wait_for("the run to be closed", closed_run)

        accounts_due_by_the_real_clock(3)
        send("accounts.expire_trials")
        send("accounts.expire_trials", kwargs={"batch_size": 0})
        send("accounts.expire_slice", kwargs={"run_id": 404, "after": None, "upto": HERE})
        send("accounts.expire_slice", kwargs={"run_id": [1]})
        refused = wait_for("the refusal", ExpiryRun.objects.filter(status=ExpiryRun.Status.REFUSED).first)
        running = ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, as_of=timezone.now(), cutoff=timezone.now())
        send("accounts.expire_slice", kwargs={"run_id": running.pk, "after": "x", "upto": HERE})
        failed = wait_for("its run to fail", ExpiryRun.objects.filter(status=ExpiryRun.Status.FAILED).first)

    assert (run.path, run.status, run.task_id) == (ExpiryRun.Path.CELERY, ExpiryRun.Status.SUCCEEDED, task.id)
    assert (run.slice_count, run.expired_count) == (1, 2)
    assert (refused.due_count, refused.expired_count) == (3, 0)
    assert failed.error == f"WrongArguments: after {POSITION} 'x'. Nothing was changed."
    reasons = re.findall(r' task_refused .* error="(.*)"', log.read_text())
    assert reasons.pop(0).startswith("Refused: 3 accounts are due and at most 2 may expire in one run.")
    assert reasons == [
        f"batch_size {NUMBER} 0. Nothing was changed.",
        "There is no run 404: it was deleted, or pruned. Nothing was changed.",
        "The arguments of the task are wrong: missing a required argument: 'after'. Nothing was changed.",
        f"after {POSITION} 'x'. Nothing was changed.",
    ]
    hosts = re.findall(r"^\[.* (\S+)\] (?:Task|task_refused|expiry_run) ", log.read_text(), re.MULTILINE)
    assert set(hosts) == {socket.gethostname()}
    assert "Retry in" not in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.faults
@pytest.mark.parametrize("role", ["worker", "beat"])
def test_worker_and_beat_end_with_a_wrong_setting_and_name_it(celery: Process, role: str, tmp_path: Path) -> None:
    with celery(role, TRIAL_GRACE_DAYS="-1") as process:
        assert process.wait(30) != 0

    log = (tmp_path / f"{role}.log").read_text()
    assert "TRIAL_GRACE_DAYS is -1; it must be a whole number of days, 0 to 3650." in log


@pytest.mark.parametrize("role", ["worker", "beat"])
def test_worker_and_beat_end_with_a_broker_that_celery_does_not_know(
    celery: Process, role: str, tmp_path: Path
) -> None:
    with celery(role, CELERY_BROKER_URL="kafkaesque://:S3CRET@h/0") as process:
        assert process.wait(30) != 0

    log = (tmp_path / f"{role}.log").read_text()
    assert "CELERY_BROKER_URL has a scheme that Celery lacks here." in log
    assert "Traceback" not in log
    assert "S3CRET" not in log


@pytest.mark.faults
def test_a_probe_tells_a_living_worker_and_beat_from_dead_ones(celery: Process, tmp_path: Path) -> None:
    host = socket.gethostname()
    nodes = [f"celery@{host}", f"celerybeat@{host}"]

    def all_answer() -> bool:
        log = tmp_path / "inspect.log"
        log.unlink(missing_ok=True)
        with celery("inspect", "ping", "--destination", ",".join(nodes), "--timeout=2") as probe:
            probe.wait(30)
        return all(f"{node}: OK" in log.read_text() for node in nodes)

    with celery("worker", "--concurrency=1"), celery("beat"):
        wait_for("worker and beat to answer", all_answer)
    assert not all_answer()
