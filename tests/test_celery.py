"""The Celery path with a real worker and a real beat, over a real broker, on the tests' own database."""

import importlib
import socket
from datetime import timedelta
from pathlib import Path

import pytest
from django.apps import apps
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks

from accounts import tasks
from accounts.models import Account, ExpiryRun
from project.celery import app
from sandbox.servers import wait_for
from tests.conftest import Process, Send
from tests.factories import make_accounts

pytestmark = pytest.mark.django_db(transaction=True)

migration = importlib.import_module("accounts.beat.migrations.0001_initial")


@pytest.fixture
def tick(transactional_db: None) -> PeriodicTask:
    """The hourly entry of the schedule, as the migration writes it (a flushed database has lost it)."""
    migration.add(apps, None)
    return PeriodicTask.objects.get(name="Expire trials")


def accounts_due_by_the_real_clock(count: int) -> None:
    make_accounts(count, ended=timedelta(days=10), now=timezone.now())


def closed_run() -> ExpiryRun | None:
    return ExpiryRun.objects.exclude(status=ExpiryRun.Status.RUNNING).first()


# --- The schedule ---


def test_the_schedule_ticks_hourly_in_utc_and_forgets_messages_before_the_next_tick(tick: PeriodicTask) -> None:
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


def test_a_running_beat_is_told_of_what_the_migration_changed(tick: PeriodicTask) -> None:
    PeriodicTasks.objects.all().delete()

    migration.add(apps, None)

    assert PeriodicTasks.last_change() is not None


def test_every_name_in_the_schedule_is_a_task_that_workers_know(tick: PeriodicTask) -> None:
    app.loader.import_default_modules()

    assert set(PeriodicTask.objects.values_list("task", flat=True)) <= set(app.tasks)


def test_the_tasks_have_the_names_that_messages_and_schedules_rely_on() -> None:
    assert [task.name for task in (tasks.expire_trials, tasks.expire_slice, tasks.finish_run)] == [
        "accounts.expire_trials",
        "accounts.expire_slice",
        "accounts.finish_run",
    ]


def test_only_json_is_spoken() -> None:
    assert app.conf.accept_content == ["json"]
    assert (app.conf.task_serializer, app.conf.result_serializer) == ("json", "json")


# --- Worker and beat ---


def test_beat_picks_the_schedule_up_from_the_database_and_several_slices_go_out_as_a_chord(
    celery: Process, tick: PeriodicTask, tmp_path: Path
) -> None:
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


def test_a_worker_runs_a_single_slice_in_the_task_itself_and_the_fuse_fails_the_task_which_says_why(
    celery: Process, send: Send, tmp_path: Path
) -> None:
    with celery("worker", "--concurrency=1", TRIAL_EXPIRY_MAX="2"):
        accounts_due_by_the_real_clock(2)
        task = send("accounts.expire_trials")
        run = wait_for("the run to be closed", closed_run)

        accounts_due_by_the_real_clock(3)
        send("accounts.expire_trials")
        refused = wait_for("the refusal", ExpiryRun.objects.filter(status=ExpiryRun.Status.REFUSED).first)
        log = tmp_path / "worker.log"
        wait_for("the worker to say so", lambda: "TooManyDue" in log.read_text())

    assert (run.path, run.status, run.task_id) == (ExpiryRun.Path.CELERY, ExpiryRun.Status.SUCCEEDED, task.id)
    assert (run.slice_count, run.expired_count) == (1, 2)
    assert (refused.due_count, refused.expired_count) == (3, 0)
    assert "Refused: 3 accounts are due and at most 2 may expire in one run." in log.read_text()


@pytest.mark.parametrize("role", ["worker", "beat"])
def test_worker_and_beat_refuse_to_start_with_a_wrong_setting_and_name_it(
    celery: Process, role: str, tmp_path: Path
) -> None:
    with celery(role, TRIAL_GRACE_DAYS="-1") as process:
        assert process.wait(30) != 0

    log = (tmp_path / f"{role}.log").read_text()
    assert "TRIAL_GRACE_DAYS is -1; it must be a whole number of days, 0 to 3650." in log


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
