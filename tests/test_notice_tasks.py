"""The mails by Celery, with a real worker, broker and mail server; with TRIAL_NOTICES off, the tasks do nothing."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from celery import group
from django.apps import apps
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_celery_beat.models import PeriodicTask
from pytest_django import DjangoAssertNumQueries, Settings

from accounts import ledger, notices, services, tasks
from accounts.base_tasks import WrongArguments
from accounts.models import ExpiryRun, Notice
from project.celery import app
from sandbox.mail_server import Mailbox, mail_server
from sandbox.servers import free_port, wait_for
from tests.conftest import Process, Send
from tests.factories import make_accounts
from tests.runs import DAY

migration = importlib.import_module("accounts.beat.migrations.0001_initial")


def sent() -> int:
    return Notice.objects.filter(status=Notice.Status.SENT).count()


@pytest.mark.faults  # the mail server is away at first; and a worker takes seconds to start
@pytest.mark.django_db(transaction=True)
def test_the_mails_of_a_run_wait_for_the_mail_server_and_go_on_to_the_last(
    celery: Process, send: Send, tmp_path: Path
) -> None:
    make_accounts(12, ended=10 * DAY, now=timezone.now())
    make_accounts(5, ended=-DAY / 2, now=timezone.now())
    port = free_port()
    on = {"TRIAL_NOTICES": "1", "EMAIL_URL": f"smtp://127.0.0.1:{port}", "DEFAULT_FROM_EMAIL": "trials@example.com"}

    with celery("worker", "--concurrency=2", "--loglevel=INFO", **on):
        send("accounts.expire_trials", kwargs={"batch_size": 5})
        log = tmp_path / "worker.log"
        wait_for("the mail server to be missed", lambda: "The mail server cannot be used" in log.read_text())
        with mail_server(port) as mailbox:
            wait_for("everybody to be told", lambda: sent() == 17)

            make_accounts(7, ended=-DAY / 2, now=timezone.now())
            send("accounts.send_trial_notices", kwargs={"concurrency": 2, "batch_size": 1})
            wait_for("the others to be reminded", lambda: sent() == 24)

    assert len(set(mailbox.recipients)) == len(mailbox.recipients) == 24


@pytest.fixture
def sent_messages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Records the tasks that would have been sent to the broker."""
    messages: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        tasks.send_trial_notices, "apply_async", lambda **options: messages.append(("send", options["expires"]))
    )
    return messages


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("on", "path", "count", "asked"),
    [
        (True, ExpiryRun.Path.CELERY, 1, 1),
        (True, ExpiryRun.Path.CELERY, 0, 0),
        (True, ExpiryRun.Path.COMMAND, 1, 0),
        (False, ExpiryRun.Path.CELERY, 1, 0),
    ],
)
def test_only_a_run_by_celery_that_expired_somebody_asks_for_the_mails(
    settings: Settings, sent_messages: list[Any], *, on: bool, path: ExpiryRun.Path, count: int, asked: int
) -> None:
    settings.TRIAL_NOTICES = on
    make_accounts(count, ended=10 * DAY, now=timezone.now())

    services.expire_trials(path=path, now=timezone.now())

    assert len(sent_messages) == asked


@pytest.mark.django_db
def test_switched_off_the_tasks_return_at_once(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    make_accounts(1, ended=-DAY / 2, now=timezone.now())

    with django_assert_num_queries(0):
        tasks.send_trial_notices()
        tasks.deliver_notices()


@pytest.mark.django_db
def test_switched_off_an_expiry_asks_the_database_nothing_more() -> None:
    def queries_of_a_run() -> int:
        make_accounts(1, ended=10 * DAY, now=timezone.now())
        with CaptureQueriesContext(connection) as queries:
            services.expire_trials(path=ExpiryRun.Path.CELERY, now=timezone.now())
        return len(queries)

    with_it = queries_of_a_run()
    assert ledger.trials_expired.disconnect(tasks.send_notices_of_run)
    try:
        assert queries_of_a_run() == with_it
    finally:
        ledger.trials_expired.connect(tasks.send_notices_of_run)


@pytest.mark.django_db
def test_a_delivery_goes_on_until_its_tick_is_over_or_nothing_is_left(
    settings: Settings, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.TRIAL_NOTICES = True
    again: list[dict[str, Any]] = []
    monkeypatch.setattr(tasks.deliver_notices, "apply_async", lambda **options: again.append(options))
    make_accounts(2, ended=-DAY / 2, now=timezone.now())
    notices.queue_notices(now=timezone.now())

    tasks.deliver_notices.push_request(expires="2026-03-01T12:00:00+00:00")
    for _ in range(3):
        tasks.deliver_notices.run(batch_size=1)
    tasks.deliver_notices.pop_request()

    assert again == [{"kwargs": {"batch_size": 1}, "expires": "2026-03-01T12:00:00+00:00"}] * 2
    assert len(mailbox.mails) == 2


NUMBER = "must be a whole number from 1 to 2147483647, not"


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        (tasks.deliver_notices, {"batch_size": 0}, f"batch_size {NUMBER} 0. Nothing was changed."),
        (tasks.deliver_notices, {"batch_size": -5}, f"batch_size {NUMBER} -5. Nothing was changed."),
        (tasks.deliver_notices, {"batch_size": "x"}, f"batch_size {NUMBER} 'x'. Nothing was changed."),
        (tasks.send_trial_notices, {"concurrency": 0}, f"concurrency {NUMBER} 0. Nothing was changed."),
        (tasks.send_trial_notices, {"batch_size": 1.5}, f"batch_size {NUMBER} 1.5. Nothing was changed."),
        (tasks.send_trial_notices, {"max_notices": 0}, f"max_notices {NUMBER} 0. Nothing was changed."),
    ],
)
def test_a_wrong_argument_fails_a_task_once_with_a_sentence(task: Any, arguments: dict[str, Any], message: str) -> None:
    result = task.apply(kwargs=arguments)

    assert (result.state, type(result.result), str(result.result)) == ("FAILURE", WrongArguments, message)


@pytest.mark.django_db
@pytest.mark.parametrize(("waiting", "count"), [(0, None), (1, 1), (25, 1), (26, 2), (300, 8)])
def test_mails_are_delivered_by_as_many_tasks_as_they_are_worth(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, waiting: int, count: int | None
) -> None:
    settings.TRIAL_NOTICES = True
    make_accounts(waiting, ended=-DAY / 2, now=timezone.now())
    asked: list[int] = []
    monkeypatch.setattr(group, "apply_async", lambda deliveries, **_: asked.append(len(deliveries.tasks)))

    tasks.send_trial_notices()

    assert asked == ([] if count is None else [count])


@pytest.mark.django_db
def test_the_fuse_of_a_schedule_s_arguments_holds(settings: Settings) -> None:
    settings.TRIAL_NOTICES = True
    make_accounts(2, ended=-DAY / 2, now=timezone.now())

    result = tasks.send_trial_notices.apply(kwargs={"max_notices": 1})

    assert (result.state, type(result.result)) == ("FAILURE", notices.TooManyNotices)
    assert not Notice.objects.exists()


def test_a_delivery_ends_before_its_task_is_stopped_and_before_the_next_tick(settings: Settings) -> None:
    assert tasks.deliver_notices.soft_time_limit > tasks.BATCH_SECONDS + settings.EMAIL_TIMEOUT
    assert tasks.TICK_SECONDS < 3600


# --- The schedule ---


@pytest.fixture
def tick(transactional_db: None) -> PeriodicTask:
    migration.add(apps, None)
    return PeriodicTask.objects.get(name="Send trial notices")


def test_the_schedule_ticks_hourly_half_an_hour_from_the_expiry(tick: PeriodicTask) -> None:
    assert (tick.enabled, tick.task) == (True, tasks.send_trial_notices.name)
    assert str(tick.crontab) == "30 * * * * (m/h/dM/MY/d) UTC"
    assert tick.expire_seconds < 3600
    assert tick.task in app.tasks


def test_the_migration_leaves_an_admins_edits_and_others_entries_alone(tick: PeriodicTask) -> None:
    tick.enabled = False
    tick.save()
    other = PeriodicTask.objects.create(name="somebody else's", task=tick.task, crontab=tick.crontab)

    migration.add(apps, None)
    tick.refresh_from_db()
    assert not tick.enabled

    migration.remove(apps, None)
    assert list(PeriodicTask.objects.filter(task=tick.task)) == [other]
