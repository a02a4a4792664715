"""``--jobs``: several slices or mails at a time, in threads with connections of their own, on a real PostgreSQL."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import partial
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from pytest_django import Settings

from accounts import ledger, notices, services
from accounts.delivery import Delivery, deliver_notices
from accounts.models import Account, ExpiryRun, Notice
from accounts.threads import Results, side_by_side
from sandbox.mail_server import Mailbox
from sandbox.servers import wait_for
from tests.factories import make_accounts
from tests.locks import trigger_on_update
from tests.runs import DAY, assert_ledger_is_true, expire

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]


@pytest.fixture(autouse=True)
def every_connection_of_a_thread_is_closed(transactional_db: None) -> Iterator[None]:
    """Checks it after each test, also after an error. The server notices a closed connection a little later."""

    def number() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            return int(cursor.fetchone()[0])

    opened: list[Any] = []  # keeps them from the garbage collector, which would close them

    def keep(connection: BaseDatabaseWrapper, **_: Any) -> None:
        opened.append(connection.connection)

    before = number()
    connection_created.connect(keep)
    yield
    connection_created.disconnect(keep)
    wait_for("the connections of the threads to be closed", lambda: number() <= before, seconds=5)


# --- Slices ---


def test_slices_run_three_at_a_time_and_every_account_expires_once(
    now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_accounts(18, ended=10 * DAY, now=now)
    count_expired, three = ledger.count_expired, threading.Barrier(3)

    def wait_for_two_others(*arguments: Any) -> bool:
        three.wait(10)
        return count_expired(*arguments)

    monkeypatch.setattr(ledger, "count_expired", wait_for_two_others)
    told: list[tuple[int, int, threading.Thread]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total, threading.current_thread()))

    run = expire(now, batch_size=3, run_slices=partial(services.run_here, jobs=3, after_slice=tell))

    assert (run.status, run.due_count, run.expired_count, run.jobs) == (ExpiryRun.Status.SUCCEEDED, 18, 18, 3)
    assert told == [(done, 18, threading.current_thread()) for done in range(3, 19, 3)]
    assert Account.objects.filter(status=Account.TRIAL_EXPIRED, expiry_run=run).count() == 18
    assert services.undo_run(run=run, now=now, by="ann", batch_size=3, jobs=3) == 18
    assert_ledger_is_true()


def test_a_single_slice_is_given_no_thread(now: datetime) -> None:
    make_accounts(2, ended=10 * DAY, now=now)
    asked: list[str] = []

    def look(execute: Callable[..., Any], sql: str, *more: Any) -> Any:
        asked.append(sql)
        return execute(sql, *more)

    with connection.execute_wrapper(look):  # only of this thread's connection
        run = expire(now, run_slices=partial(services.run_here, jobs=3))

    assert any(sql.startswith('UPDATE "accounts_account"') for sql in asked)
    assert (run.expired_count, run.jobs) == (2, 1)


def test_each_thread_sees_the_context_of_the_caller_such_as_its_language() -> None:
    language = ContextVar("language", default="en")
    language.set("de")

    def work(items: Iterator[int]) -> Results[tuple[int, str]]:
        for item in items:
            yield item, language.get()

    assert sorted(side_by_side(work, range(3), jobs=2)) == [(0, "de"), (1, "de"), (2, "de")]


def refuse_a_slice(account: Account) -> AbstractContextManager[None]:
    return trigger_on_update(account, "RAISE EXCEPTION 'not this one';")


def cut_a_connection(account: Account) -> AbstractContextManager[None]:
    return trigger_on_update(account, "PERFORM pg_terminate_backend(pg_backend_pid(), 10000);")


@contextmanager
def let_nobody_connect(account: Account) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(connection.settings_dict, "HOST", "/nowhere")
        yield


Cause = Callable[[Account], AbstractContextManager[None]]
failures = pytest.mark.parametrize(
    ("cause", "error", "changed"),
    [
        (refuse_a_slice, "not this one", {10}),
        (cut_a_connection, "terminating connection", set(range(0, 11, 2))),  # the slices in hand finish, no others
        (let_nobody_connect, "/nowhere", {0}),
    ],
)


@failures
def test_what_fails_a_run_with_one_job_fails_it_with_three(
    now: datetime, cause: Cause, error: str, changed: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "accounts")
    make_accounts(12, ended=10 * DAY, now=now)

    with cause(Account.objects.order_by("pk")[2]), pytest.raises(CommandError) as failure:
        call_command("expire_trials", batch_size=2, jobs=3, stdout=StringIO())

    run, message = ExpiryRun.objects.get(), str(failure.value)
    assert (run.status, run.jobs, failure.value.returncode) == (ExpiryRun.Status.FAILED, 3, 1)
    assert error in run.error
    assert run.expired_count in changed
    assert message.startswith("The run failed: ")
    assert error in message
    assert "\n" not in message
    # One of each thread; without a connection no slice was cut.
    failed = sum("slice_failed" in record.getMessage() for record in caplog.records)
    assert (0 if cause == let_nobody_connect else 1) <= failed <= 3
    assert message.endswith("smaller --jobs: it needs 4.") is (cause == let_nobody_connect)
    assert expire(now).expired_count == 12 - run.expired_count
    assert_ledger_is_true()


@failures
def test_what_fails_an_undo_with_three_jobs_leaves_the_rest_for_the_next(
    now: datetime, cause: Cause, error: str, changed: set[int]
) -> None:
    make_accounts(12, ended=10 * DAY, now=now)
    run = expire(now)

    with cause(Account.objects.order_by("pk")[2]), pytest.raises(DatabaseError, match=error):
        services.undo_run(run=run, now=now, by="ann", batch_size=2, jobs=3)

    run.refresh_from_db()
    assert run.undone_count in changed
    rest = 12 - run.undone_count
    assert services.undo_run(run=run, now=now, by="ann", jobs=3) == rest
    assert_ledger_is_true()


def test_whoever_stops_a_run_waits_for_the_slices_in_hand(now: datetime) -> None:
    make_accounts(200, ended=10 * DAY, now=now)

    others = threading.enumerate()  # of this process: servers of other tests

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        expire(now, batch_size=2, run_slices=partial(services.run_here, jobs=3, after_slice=stop))

    run = ExpiryRun.objects.get()
    assert run.status == ExpiryRun.Status.INTERRUPTED
    assert 2 <= run.expired_count < 200
    assert set(threading.enumerate()) <= set(others)
    assert_ledger_is_true()


# --- Mails ---


def queue_reminders(count: int, now: datetime) -> None:
    make_accounts(count, ended=-DAY, now=now)
    notices.queue_notices(now=now)


def test_threads_send_every_mail_once_over_a_connection_each(now: datetime, mailbox: Mailbox) -> None:
    queue_reminders(50, now)

    assert deliver_notices(now=now, limit=40, jobs=8) == Delivery(sent=40)
    assert deliver_notices(now=now, jobs=8) == Delivery(sent=10, finished=True)

    assert len(set(mailbox.recipients)) == len(mailbox.recipients) == 50
    assert mailbox.connections <= 16
    assert set(Notice.objects.values_list("status", "attempts", "claimed")) == {(Notice.Status.SENT, 1, None)}


def test_threads_say_once_that_the_server_is_away(now: datetime, mailbox: Mailbox, settings: Settings) -> None:
    queue_reminders(6, now)
    before = list(Notice.objects.order_by("pk").values())
    settings.EMAIL_PORT = 1

    delivered = deliver_notices(now=now, jobs=3)

    assert delivered.trouble.count("The mail server cannot be used: ConnectionRefusedError") == 1
    assert delivered == Delivery(trouble=delivered.trouble)
    assert list(Notice.objects.order_by("pk").values()) == before


def test_threads_stop_together_when_three_mails_in_a_row_are_deferred(now: datetime, mailbox: Mailbox) -> None:
    queue_reminders(30, now)
    mailbox.on_rcpt = lambda address: "451 4.7.0 try later"

    delivered = deliver_notices(now=now, jobs=3)

    assert delivered.trouble == "The mail server deferred 3 mails in a row; see their notices for why."
    assert delivered.deferred == Notice.objects.exclude(last_error="").count() < 10
    assert not delivered.finished


def test_an_error_of_one_thread_is_raised_when_the_others_have_sent_theirs(now: datetime, mailbox: Mailbox) -> None:
    queue_reminders(20, now)
    poison = Notice.objects.order_by("pk")[5]

    with (
        trigger_on_update(poison, "RAISE EXCEPTION 'not this one';"),
        pytest.raises(DatabaseError, match="not this one"),
    ):
        deliver_notices(now=now, jobs=3)

    assert len(mailbox.received) == Notice.objects.filter(status=Notice.Status.SENT).count() < 20
    assert not Notice.objects.exclude(claimed=None)
    rest = 20 - len(mailbox.received)
    assert deliver_notices(now=now, jobs=3) == Delivery(sent=rest, finished=True)
