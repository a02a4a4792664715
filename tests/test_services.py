"""The services: rule, slices, fuse, ledger and signal of a run, and the changes of one account."""

import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from django.db import IntegrityError, OperationalError, connection
from django.db.models import F, Sum
from django.db.models.functions import Now
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings

from accounts import health, ledger, services
from accounts.models import LATEST_END, Account, ExpiryRun
from accounts.services import AlreadyRunning, TooManyDue, WrongClock
from accounts.slices import FIRST, LONGEST_PAUSE, Slice, within
from accounts.words import moment
from tests.factories import AccountFactory, make_accounts
from tests.locks import trigger_on_update
from tests.runs import DAY, expire

pytestmark = pytest.mark.django_db

LONG_AGO = timedelta(days=90)


@pytest.fixture
def received() -> Iterator[list[ExpiryRun]]:
    """The runs that ``trials_expired`` was sent for."""
    runs: list[ExpiryRun] = []

    def receive(run: ExpiryRun, **_: object) -> None:
        runs.append(run)

    ledger.trials_expired.connect(receive)
    yield runs
    ledger.trials_expired.disconnect(receive)


# --- What a run does ---


def test_a_due_account_is_expired_and_says_when_and_by_which_run(now: datetime) -> None:
    account = AccountFactory.create(created=now - LONG_AGO)

    run = expire(now)

    account.refresh_from_db()
    assert account.status == Account.TRIAL_EXPIRED
    assert account.trial_expired_at == now
    assert account.expiry_run == run


@pytest.mark.parametrize("status", [status for status in Account.Status if status != Account.TRIALING])
def test_an_account_in_another_status_is_never_touched(now: datetime, status: Account.Status) -> None:
    account = AccountFactory.create(created=now - LONG_AGO, status=status)
    before = Account.objects.values().get(pk=account.pk)

    expire(now)

    assert Account.objects.values().get(pk=account.pk) == before


def test_an_extended_account_is_left_until_its_own_trial_end(now: datetime) -> None:
    account = AccountFactory.create(created=now - LONG_AGO, trial_ends_at=now + DAY)

    expire(now)
    account.refresh_from_db()
    assert account.status == Account.TRIALING

    expire(now + 3 * DAY)
    account.refresh_from_db()
    assert account.status == Account.TRIAL_EXPIRED


def test_the_ledger_says_what_happened(now: datetime) -> None:
    make_accounts(7, ended=10 * DAY, now=now)

    run = expire(now, batch_size=3, task_id="some-id")

    assert run.status == ExpiryRun.Status.SUCCEEDED
    assert (run.path, run.as_of, run.task_id, run.error) == (ExpiryRun.Path.COMMAND, now, "some-id", "")
    assert (run.due_count, run.expired_count, run.slice_count) == (7, 7, 3)
    assert run.longest_slice > timedelta(0)
    assert run.finished is not None
    assert run.started <= run.heartbeat <= run.finished
    assert run.host


def test_a_second_run_is_a_no_op_and_recorded(now: datetime) -> None:
    make_accounts(5, ended=10 * DAY, now=now)
    expire(now)
    before = list(Account.objects.order_by("pk").values())

    again = expire(now)

    assert (again.status, again.due_count, again.expired_count) == (ExpiryRun.Status.SUCCEEDED, 0, 0)
    assert list(Account.objects.order_by("pk").values()) == before


def test_finding_nothing_takes_a_handful_of_queries(
    now: datetime, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_max_num_queries(11):
        expire(now)


def test_a_slice_touches_only_its_own_accounts(now: datetime) -> None:
    make_accounts(6, ended=10 * DAY, now=now)
    accounts = list(Account.objects.order_by("pk"))

    def only_the_middle_one(run: ExpiryRun) -> None:
        _, middle, _ = services.slices_of(run)
        assert services.expire_slice(run=run, keys=middle) == 2

    run = expire(now, batch_size=2, run_slices=only_the_middle_one)

    assert list(run.accounts.order_by("pk")) == accounts[2:4]


def test_an_account_created_after_the_plan_hides_none_that_was_planned(now: datetime) -> None:
    def with_a_newcomer(run: ExpiryRun) -> None:
        AccountFactory.create(created=now)
        services.run_here(run)

    make_accounts(3, ended=10 * DAY, now=now)

    assert expire(now, run_slices=with_a_newcomer).expired_count == 3


def test_memory_does_not_grow_with_the_number_of_accounts(now: datetime) -> None:
    def peak() -> int:
        tracemalloc.start()
        expire(now, batch_size=1000)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    make_accounts(100, ended=10 * DAY, now=now)
    peak()  # the first run ever also fills caches
    make_accounts(100, ended=10 * DAY, now=now)
    few = peak()
    make_accounts(10_000, ended=10 * DAY, now=now)
    many = peak()

    assert many - few < 50_000  # bytes: five for each account would already be more


def test_a_slice_learns_its_size_from_the_one_before(now: datetime) -> None:
    make_accounts(3000, ended=10 * DAY, now=now)
    sizes: list[int] = []

    def look(run: ExpiryRun) -> None:
        for keys in services.slices_of(run):
            services.expire_slice(run=run, keys=keys)
            sizes.append(keys.rows)

    run = expire(now, run_slices=look)

    assert (sizes[0], sum(sizes), run.expired_count) == (FIRST, 3000, 3000)
    assert len(set(sizes)) > 1
    assert run.slice_size != FIRST


@pytest.mark.postgres
def test_no_slice_reads_the_table_however_far_the_walk_has_come(now: datetime) -> None:
    make_accounts(4000, ended=10 * DAY, now=now)
    Account.objects.update(trial_ends_at=Now() - F("pk") * timedelta(minutes=1) - 10 * DAY)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE accounts_account")
    run = ledger.new_run(path=ExpiryRun.Path.COMMAND, now=timezone.now())
    change = services.expiry_by(run)

    slices = list(change.walk(size=lambda: 100))
    plans = [within(change.rows, change.order, after=keys.after, upto=keys.upto).explain() for keys in slices]

    assert len(plans) == 40
    assert [plan for plan in plans if "accounts_account_trials" not in plan] == []


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_slow_slice_is_followed_by_a_smaller_one(now: datetime) -> None:
    make_accounts(700, ended=10 * DAY, now=now)
    first = Account.objects.order_by("pk")[0]

    with trigger_on_update(first, "PERFORM pg_sleep(0.5);"):
        run = expire(now)

    assert run.longest_slice > timedelta(seconds=0.5)
    assert run.slice_count >= 3  # 500, at most 100, and the rest
    assert run.expired_count == 700


def test_more_than_a_million_are_counted_as_they_expire(now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "COUNTED", 3)
    make_accounts(7, ended=10 * DAY, now=now)
    counted: list[int] = []
    told: list[tuple[int, int]] = []

    def look(run: ExpiryRun) -> None:
        counted.append(run.due_count)
        services.run_here(run, after_slice=lambda done, total: told.append((done, total)))

    run = expire(now, batch_size=2, run_slices=look)

    assert (counted, run.due_count, run.expired_count) == ([4], 7, 7)
    assert [done for done, _ in told] == [2, 4, 6, 7]
    assert all(total >= done for done, total in told)


def test_what_is_left_of_a_large_backlog_is_estimated_by_the_ends_of_the_trials(
    now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "COUNTED", 3)
    for days in range(1, 11):
        make_accounts(2, ended=(1 + days) * DAY, now=now)
    told: list[int] = []

    expire(
        now,
        batch_size=2,
        run_slices=partial(services.run_here, after_slice=lambda done, total: told.append(total)),
    )

    assert told[1:] == [pytest.approx(20, abs=20), *(pytest.approx(20, abs=10) for _ in range(8))]


def test_the_fuse_counts_exactly_above_a_million(now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "COUNTED", 3)
    make_accounts(7, ended=10 * DAY, now=now)

    with pytest.raises(TooManyDue, match="7 accounts are due and at most 6"):
        expire(now, max_accounts=6)

    assert expire(now, max_accounts=7).expired_count == 7


def test_a_throttled_run_and_undo_pause_after_each_slice(now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    make_accounts(4, ended=10 * DAY, now=now)

    run = expire(now, batch_size=2, throttle=2)
    services.undo_run(run=run, now=now, by="ann", batch_size=2, throttle=100)

    assert len(pauses) == 4
    assert all(0 < pause < LONGEST_PAUSE for pause in pauses[:2])
    assert all(0.01 < pause <= LONGEST_PAUSE for pause in pauses[2:])


# --- The fuse ---


def test_the_fuse_refuses_changes_nothing_and_says_how_to_go_on(now: datetime) -> None:
    make_accounts(3, ended=10 * DAY, now=now)

    with pytest.raises(TooManyDue) as refusal:
        expire(now, max_accounts=2)

    assert str(refusal.value) == (
        "Refused: 3 accounts are due and at most 2 may expire in one run. Nothing was changed. "
        "If the number is right, allow it once with ./manage.py expire_trials --max-accounts 3, "
        "or raise TRIAL_EXPIRY_MAX; if not, look at TRIAL_DAYS, TRIAL_GRACE_DAYS, the trial ends of these accounts "
        "and the clock."
    )
    run = ExpiryRun.objects.get()
    assert (run.status, run.due_count, run.expired_count) == (ExpiryRun.Status.REFUSED, 3, 0)
    assert run.error == str(refusal.value)
    assert not Account.objects.filter(status=Account.TRIAL_EXPIRED).exists()


def test_the_fuse_lets_exactly_its_limit_pass(now: datetime) -> None:
    make_accounts(3, ended=10 * DAY, now=now)

    assert expire(now, max_accounts=3).expired_count == 3


def test_the_setting_is_the_fuse_and_an_argument_overrides_it(now: datetime, settings: Settings) -> None:
    settings.TRIAL_EXPIRY_MAX = 2
    make_accounts(3, ended=10 * DAY, now=now)

    with pytest.raises(TooManyDue):
        expire(now)

    assert expire(now, max_accounts=3).expired_count == 3


# --- The clock and the calendar ---


@pytest.mark.postgres
@pytest.mark.parametrize("ahead", [timedelta(days=30), timedelta(days=-30), timedelta(minutes=6)], ids=str)
def test_a_wrong_clock_is_refused_names_both_and_changes_nothing(
    now: datetime, ahead: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    here = datetime.now(UTC) + ahead
    monkeypatch.setattr(timezone, "now", lambda: here)

    with pytest.raises(WrongClock) as refusal:
        expire(now)

    run = ExpiryRun.objects.get()
    assert run.error == str(refusal.value)
    assert re.fullmatch(
        rf"Refused: the clock of this machine says {moment(here, seconds=True)} and that of the database "
        r"\d+ \w+ 20\d\d, [:\d]{8} UTC\. Nothing was changed\. Set the clock that is wrong, and run it again\.",
        run.error,
    )
    assert (run.status, run.expired_count) == (ExpiryRun.Status.REFUSED, 0)
    assert not Account.objects.filter(status=Account.TRIAL_EXPIRED).exists()


@pytest.mark.parametrize("ahead", [timedelta(minutes=4), timedelta(minutes=-4)], ids=str)
def test_clocks_may_differ_by_a_few_minutes(now: datetime, ahead: timedelta, monkeypatch: pytest.MonkeyPatch) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    here = datetime.now(UTC) + ahead
    monkeypatch.setattr(timezone, "now", lambda: here)

    assert expire(now).expired_count == 3


def test_a_run_of_the_future_is_no_fresh_success(now: datetime) -> None:
    expire(now + 30 * DAY)

    assert ExpiryRun.objects.succeeded_since(now - DAY, now=now) is None

    fresh = expire(now)
    assert ExpiryRun.objects.succeeded_since(now - DAY, now=now) == fresh


def test_a_slice_obeys_the_grace_that_the_run_recorded(now: datetime, settings: Settings) -> None:
    make_accounts(2, ended=timedelta(days=10), now=now)
    make_accounts(2, ended=timedelta(hours=12), now=now)

    def on_a_worker_without_grace(run: ExpiryRun) -> None:
        settings.TRIAL_GRACE_DAYS = 0
        run = ExpiryRun.objects.get(pk=run.pk)
        everybody = Slice(None, (LATEST_END, 0))
        assert services.expire_slice(run=run, keys=everybody) == 2

    run = expire(now, max_accounts=2, run_slices=on_a_worker_without_grace)

    assert (run.cutoff, run.expired_count) == (now - DAY, 2)


ENDS_ON_NO_CALENDAR = ["-infinity", "infinity", "0044-03-15 BC", "10000-01-01"]


@pytest.mark.postgres
@pytest.mark.parametrize("end", ENDS_ON_NO_CALENDAR)
def test_the_database_refuses_a_trial_end_of_no_calendar(now: datetime, end: str) -> None:
    account = AccountFactory.create()

    with pytest.raises(IntegrityError, match="accounts_account_trial_end_on_calendar"), connection.cursor() as cursor:
        cursor.execute("UPDATE accounts_account SET trial_ends_at = %s WHERE id = %s", [end, account.pk])


@pytest.mark.postgres
@pytest.mark.parametrize("end", ENDS_ON_NO_CALENDAR)
def test_a_row_that_has_one_nevertheless_is_skipped_and_reported(now: datetime, end: str) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    broken = Account.objects.order_by("pk")[1]
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")  # or the table could not be altered in this transaction
        cursor.execute("ALTER TABLE accounts_account DROP CONSTRAINT accounts_account_trial_end_on_calendar")
        cursor.execute("UPDATE accounts_account SET trial_ends_at = %s WHERE id = %s", [end, broken.pk])

    run = expire(now, batch_size=1)

    assert (run.due_count, run.expired_count) == (2, 2)
    (problem,) = health.check(now=now, max_age=DAY).problems
    assert problem.text == (
        f"1 account, such as {broken.pk}, has a trial end outside the years 1 to 9999. No run expires them: give "
        "them another trial end."
    )


def test_a_trial_can_end_on_the_last_day_and_is_extended_no_further(now: datetime) -> None:
    account = AccountFactory.create(trial_ends_at=datetime(9999, 12, 31, tzinfo=UTC))

    assert not services.extend_trial(account_id=account.pk, days=1, now=now)


def test_a_long_error_is_cut_and_stored_without_control_characters(now: datetime) -> None:
    run = ExpiryRun.objects.create(path=ExpiryRun.Path.COMMAND, as_of=now)

    ledger.fail_run(run_id=run.pk, error=RuntimeError("a\x00b\x1b[31m\n" + "x" * 10_000_000))

    run.refresh_from_db()
    assert (run.status, len(run.error)) == (ExpiryRun.Status.FAILED, 2000)
    assert run.error.startswith("RuntimeError: a b [31m xxx")


# --- Slices that fail, repeat or run elsewhere ---


def test_a_slice_that_runs_twice_and_late_counts_nothing_twice(now: datetime) -> None:
    def twice_and_late(run: ExpiryRun) -> None:
        slices = list(services.slices_of(run))
        for keys in [*slices, *reversed(slices)]:
            services.expire_slice(run=run, keys=keys)
        ledger.finish_run(run_id=run.pk)

    make_accounts(6, ended=10 * DAY, now=now)

    assert expire(now, batch_size=2, run_slices=twice_and_late).expired_count == 6


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda account: services.activate(account_id=account.pk), Account.ACTIVE),
        (lambda account: services.extend_trial(account_id=account.pk, days=30, now=account.created), Account.TRIALING),
        (lambda account: services.cancel(account_id=account.pk), Account.CANCELED),
    ],
    ids=["pays", "is extended", "is cancelled"],
)
def test_an_account_that_changes_before_its_slice_is_not_expired(
    now: datetime, change: Callable[[Account], bool], status: Account.Status
) -> None:
    first = AccountFactory.create(created=now - timedelta(days=62))
    last = AccountFactory.create(created=now - timedelta(days=62))

    def with_a_change_between(run: ExpiryRun) -> None:
        one, two = services.slices_of(run)
        services.expire_slice(run=run, keys=one)
        assert change(last)
        services.expire_slice(run=run, keys=two)
        ledger.finish_run(run_id=run.pk)

    run = expire(now, batch_size=1, run_slices=with_a_change_between)

    first.refresh_from_db()
    last.refresh_from_db()
    assert (first.status, last.status) == (Account.TRIAL_EXPIRED, status)
    assert (run.due_count, run.expired_count, last.expiry_run) == (2, 1, None)


def test_a_payment_after_the_slice_wins_and_the_account_keeps_its_run(now: datetime) -> None:
    account = AccountFactory.create(created=now - LONG_AGO)
    run = expire(now)

    assert services.activate(account_id=account.pk)

    account.refresh_from_db()
    assert (account.status, account.expiry_run) == (Account.ACTIVE, run)
    run.refresh_from_db()
    assert run.expired_count == 1


def test_a_run_that_fails_is_recorded_with_its_error_and_keeps_what_it_did(now: datetime) -> None:
    def fail_after_one(run: ExpiryRun) -> None:
        services.expire_slice(run=run, keys=next(services.slices_of(run)))
        raise RuntimeError("the lights went out")

    make_accounts(4, ended=10 * DAY, now=now)

    with pytest.raises(RuntimeError, match="the lights went out"):
        expire(now, batch_size=2, run_slices=fail_after_one)

    run = ExpiryRun.objects.get()
    assert (run.status, run.error, run.expired_count) == (
        ExpiryRun.Status.FAILED,
        "RuntimeError: the lights went out",
        2,
    )
    assert run.finished is not None
    assert expire(now).expired_count == 2


@pytest.mark.django_db(transaction=True)
def test_a_failure_that_cannot_be_recorded_is_logged_and_still_raised(
    now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_and_take_the_database_along(run: ExpiryRun) -> None:
        gone.enter_context(connection.execute_wrapper(the_database_is_gone))
        raise RuntimeError("the lights went out")

    def the_database_is_gone(*_: object) -> None:
        raise OperationalError("server closed the connection: customer@example.com")

    make_accounts(1, ended=10 * DAY, now=now)

    with ExitStack() as gone, pytest.raises(RuntimeError, match="the lights went out"):
        expire(now, run_slices=fail_and_take_the_database_along)

    run = ExpiryRun.objects.get()
    assert run.status == ExpiryRun.Status.RUNNING  # until a later run marks it interrupted
    assert f"failure_not_recorded run={run.pk} error=OperationalError" in caplog.text
    assert "customer@example.com" not in caplog.text


def test_a_run_stopped_by_hand_is_recorded_as_interrupted(now: datetime) -> None:
    def interrupt(run: ExpiryRun) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        expire(now, run_slices=interrupt)

    assert ExpiryRun.objects.get().status == ExpiryRun.Status.INTERRUPTED


def left_to_others(run: ExpiryRun) -> None:
    """A ``run_slices`` that runs no slice."""


def test_a_silent_run_is_marked_interrupted_and_its_accounts_are_taken(now: datetime) -> None:
    make_accounts(2, ended=10 * DAY, now=now)
    dead = expire(now, run_slices=left_to_others)
    ExpiryRun.objects.update(heartbeat=dead.heartbeat - ledger.SILENT_FOR)

    assert expire(now).expired_count == 2

    dead.refresh_from_db()
    assert dead.status == ExpiryRun.Status.INTERRUPTED
    assert dead.finished == dead.heartbeat
    assert dead.error


def test_a_run_of_the_same_path_that_is_alive_is_left_to_its_work(now: datetime) -> None:
    make_accounts(2, ended=10 * DAY, now=now)
    running = expire(now, run_slices=left_to_others)

    with pytest.raises(AlreadyRunning) as reason:
        expire(now)

    assert str(reason.value).startswith(f"Run {running.pk} by command is at work since ")
    assert expire(now, path=ExpiryRun.Path.CELERY).expired_count == 2  # the other path is for when this one is stuck
    running.refresh_from_db()
    assert running.status == ExpiryRun.Status.RUNNING


def test_a_run_without_a_slice_for_a_while_is_not_waited_for(now: datetime) -> None:
    make_accounts(2, ended=10 * DAY, now=now)
    killed = expire(now, run_slices=left_to_others)
    ExpiryRun.objects.update(heartbeat=killed.heartbeat - ledger.ALIVE_FOR)

    assert expire(now).expired_count == 2

    killed.refresh_from_db()
    assert killed.status == ExpiryRun.Status.RUNNING  # it may still be alive


def test_every_slice_is_a_sign_of_life(now: datetime) -> None:
    def one_slice_after_a_long_wait(run: ExpiryRun) -> None:
        ExpiryRun.objects.update(heartbeat=run.started - ledger.SILENT_FOR)
        services.expire_slice(run=run, keys=next(services.slices_of(run)))

    make_accounts(2, ended=10 * DAY, now=now)
    running = expire(now, batch_size=1, run_slices=one_slice_after_a_long_wait)

    assert ledger.living_run() == running


def test_a_run_taken_for_dead_that_finishes_after_all_has_succeeded(now: datetime) -> None:
    slow = expire(now, run_slices=left_to_others)
    ExpiryRun.objects.update(heartbeat=slow.heartbeat - ledger.SILENT_FOR)
    expire(now)

    assert ledger.finish_run(run_id=slow.pk)

    slow.refresh_from_db()
    assert (slow.status, slow.error) == (ExpiryRun.Status.SUCCEEDED, "")


# --- The signal ---


def test_the_signal_is_sent_once_with_the_finished_run(now: datetime, received: list[ExpiryRun]) -> None:
    make_accounts(2, ended=10 * DAY, now=now)

    run = expire(now)
    assert not ledger.finish_run(run_id=run.pk)  # its message delivered twice

    assert received == [run]
    assert (received[0].status, received[0].expired_count) == (ExpiryRun.Status.SUCCEEDED, 2)


def test_a_receiver_that_raises_does_not_fail_the_run(now: datetime, caplog: pytest.LogCaptureFixture) -> None:
    def raise_error(**_: object) -> None:
        raise RuntimeError("mail server away")

    ledger.trials_expired.connect(raise_error)
    try:
        run = expire(now)
    finally:
        ledger.trials_expired.disconnect(raise_error)

    assert run.status == ExpiryRun.Status.SUCCEEDED
    assert "mail server away" in caplog.text


def test_a_refused_run_sends_no_signal(now: datetime, received: list[ExpiryRun]) -> None:
    make_accounts(2, ended=10 * DAY, now=now)

    with pytest.raises(TooManyDue):
        expire(now, max_accounts=1)

    assert received == []


# --- Arguments ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"now": datetime(2026, 3, 1)}, "now must have a time zone"),  # noqa: DTZ001 (that is the point)
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_accounts": 0}, "max_accounts must be at least 1, got 0"),
        ({"throttle": -0.1}, "throttle must be a number from 0 to 100, got -0.1"),
        ({"throttle": 100.1}, "throttle must be a number from 0 to 100, got 100.1"),
    ],
    ids=["naive now", "batch size", "limit", "throttle", "too much of it"],
)
def test_a_senseless_argument_is_refused_before_anything_happens(
    now: datetime, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        services.expire_trials(path=ExpiryRun.Path.COMMAND, **{"now": now, **arguments})  # type: ignore[arg-type]

    assert not ExpiryRun.objects.exists()


def test_a_run_with_no_thread_at_all_is_refused(now: datetime) -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        expire(now, run_slices=partial(services.run_here, jobs=0))


# --- The services for one account ---

CAN_START_FROM = {
    services.activate: {Account.TRIALING, Account.TRIAL_EXPIRED},
    services.cancel: {Account.TRIALING, Account.TRIAL_EXPIRED, Account.ACTIVE, Account.PAST_DUE},
}
ENDS_AS = {services.activate: Account.ACTIVE, services.cancel: Account.CANCELED}


@pytest.mark.parametrize("status", Account.Status)
@pytest.mark.parametrize("verb", CAN_START_FROM, ids=lambda verb: verb.__name__)
def test_a_verb_changes_the_statuses_it_is_meant_for_and_says_so(
    verb: Callable[..., bool], status: Account.Status
) -> None:
    account = AccountFactory.create(status=status)

    changed = verb(account_id=account.pk)

    account.refresh_from_db()
    assert changed is (status in CAN_START_FROM[verb])
    assert account.status == (ENDS_AS[verb] if changed else status)


@pytest.mark.parametrize("status", Account.Status)
def test_extending_concerns_trials_only(now: datetime, status: Account.Status) -> None:
    account = AccountFactory.create(status=status, created=now)

    extended = services.extend_trial(account_id=account.pk, days=7, now=now)

    account.refresh_from_db()
    assert extended is (status in {Account.TRIALING, Account.TRIAL_EXPIRED})
    assert account.trial_ends_at == now + timedelta(days=67 if extended else 60)


def test_extending_an_expired_account_brings_it_back_to_its_trial_from_today(now: datetime) -> None:
    account = AccountFactory.create(created=now - LONG_AGO)
    run = expire(now)

    assert services.extend_trial(account_id=account.pk, days=14, now=now)

    account.refresh_from_db()
    assert (account.status, account.trial_ends_at) == (Account.TRIALING, now + timedelta(days=14))
    assert (account.trial_expired_at, account.expiry_run) == (None, None)
    run.refresh_from_db()
    assert run.expired_count == 1  # it did happen


@pytest.mark.parametrize("days", [0, -1])
def test_an_extension_is_at_least_a_day(now: datetime, days: int) -> None:
    with pytest.raises(ValueError, match=f"days must be at least 1, got {days}"):
        services.extend_trial(account_id=AccountFactory.create().pk, days=days, now=now)


def test_an_unknown_account_is_not_changed(now: datetime) -> None:
    assert not services.activate(account_id=1)
    assert not services.cancel(account_id=1)
    assert not services.extend_trial(account_id=1, days=1, now=now)


def test_the_sum_of_the_ledger_is_the_number_of_accounts_that_runs_expired(now: datetime) -> None:
    for day in range(5):
        make_accounts(3, ended=timedelta(days=2 - day), now=now)
        expire(now + day * DAY, batch_size=2)

    total = ExpiryRun.objects.aggregate(Sum("expired_count"))["expired_count__sum"]
    assert total == Account.objects.filter(expiry_run__isnull=False).count() == 15


@pytest.mark.parametrize(("limit", "count"), [(None, 4), (3, 6), (5, 6), (6, 6), (9, 6)])
def test_only_the_fuse_makes_a_run_count_more_accounts_than_it_needs(
    now: datetime, monkeypatch: pytest.MonkeyPatch, limit: int | None, count: int
) -> None:
    monkeypatch.setattr(services, "COUNTED", 3)
    make_accounts(6, ended=10 * DAY, now=now)

    assert services.count_due(ledger.new_run(path=ExpiryRun.Path.COMMAND, now=now), limit) == count


def test_the_longest_extension_is_as_long_as_it_says(now: datetime) -> None:
    account = AccountFactory.create(created=now)

    assert services.extend_trial(account_id=account.pk, days=services.LONGEST_EXTENSION, now=now)

    ends = account.trial_ends_at + services.LONGEST_EXTENSION * DAY
    account.refresh_from_db()
    assert account.trial_ends_at == ends
