"""Undoing a run: the service, the command, and an example with the fuse."""

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection
from django.utils import timezone
from pytest_django import Settings

from accounts import health, ledger, services, tasks
from accounts.models import LATEST_END, Account, AccountEvent, ExpiryRun
from accounts.services import TooManyDue, UndoPreview
from accounts.slices import Slice
from sandbox.servers import wait_for
from tests.factories import AccountFactory, NoticeFactory, make_accounts
from tests.locks import Sql, meanwhile, trigger_on_update, wait_until_blocked
from tests.runs import DAY, assert_ledger_is_true, expire

pytestmark = pytest.mark.django_db

ALL = Slice(None, (LATEST_END, 0))


def undo(run: ExpiryRun, now: datetime, **options: Any) -> int:
    return services.undo_run(run=run, now=now, **{"by": "ann", **options})


def rows() -> list[Any]:
    """Every column of every account."""
    return list(Account.objects.order_by("pk").values())


# --- The service ---


def test_an_undo_repairs_every_column_of_every_account(now: datetime) -> None:
    make_accounts(5, ended=10 * DAY, now=now)
    make_accounts(2, status=Account.ACTIVE, ended=10 * DAY, now=now)
    before = rows()
    run = expire(now, batch_size=2)
    assert rows() != before

    assert undo(run, now, batch_size=2) == 5

    assert rows() == before
    assert_ledger_is_true()


def test_the_ledger_says_who_undid_it_when_and_how_many(now: datetime) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    run = expire(now)
    before = timezone.now()

    undo(run, now, by="ann")

    run.refresh_from_db()
    assert (run.status, run.expired_count, run.undone_count) == (ExpiryRun.Status.UNDONE, 3, 3)
    assert run.undone_by == "ann"
    assert run.undone_at is not None
    assert abs(run.undone_at - before) < timedelta(minutes=1)


def test_an_account_of_another_run_stays_expired(now: datetime) -> None:
    make_accounts(1, ended=10 * DAY, now=now)
    earlier = expire(now - DAY)
    make_accounts(1, ended=10 * DAY, now=now)

    assert undo(expire(now), now) == 1

    assert list(Account.objects.filter(status=Account.TRIAL_EXPIRED)) == list(earlier.accounts.all())


@pytest.mark.parametrize(
    "change",
    [
        lambda account, now: services.activate(account_id=account.pk),
        lambda account, now: services.cancel(account_id=account.pk),
        lambda account, now: services.extend_trial(account_id=account.pk, days=30, now=now),
    ],
    ids=["paid", "was cancelled", "was extended"],
)
def test_an_account_that_has_moved_on_since_stays_as_it_is(
    now: datetime, change: Callable[[Account, datetime], bool]
) -> None:
    account = AccountFactory.create(created=now - 90 * DAY)
    run = expire(now)
    assert change(account, now)
    before = rows()

    assert undo(run, now, extend_days=5) == 0

    assert rows() == before


def test_an_extension_counts_from_the_trial_s_end_or_from_now(now: datetime) -> None:
    make_accounts(1, ended=10 * DAY, now=now)
    make_accounts(1, ended=2 * DAY, now=now)
    run = expire(now)

    undo(run, now - 5 * DAY, extend_days=7)

    ends = list(Account.objects.order_by("pk").values_list("status", "trial_ends_at"))
    assert ends == [(Account.TRIALING, now + 2 * DAY), (Account.TRIALING, now + 5 * DAY)]


def test_after_an_undo_only_an_extension_keeps_the_next_run_away(now: datetime) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    undo(expire(now), now)

    again = expire(now)
    assert again.expired_count == 3

    undo(again, now, extend_days=1)
    assert expire(now).expired_count == 0
    assert_ledger_is_true()


def test_a_second_undo_finds_nothing_and_leaves_on_record_who_was_first(now: datetime) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    run = expire(now)
    undo(run, now, by="ann")
    first = ExpiryRun.objects.values().get()

    assert undo(run, now, by="bob", extend_days=5) == 0

    assert ExpiryRun.objects.values().get() == first


def test_an_undo_stopped_half_way_is_taken_up_again(now: datetime) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    make_accounts(5, ended=10 * DAY, now=now)
    before = rows()
    run = expire(now)

    with pytest.raises(KeyboardInterrupt):
        undo(run, now, batch_size=2, after_slice=stop)
    run.refresh_from_db()
    assert (run.status, run.undone_count) == (ExpiryRun.Status.UNDONE, 2)
    assert_ledger_is_true()

    assert undo(run, now, batch_size=2) == 3
    assert rows() == before


# --- Concurrently with the run itself ---


def test_undoing_a_run_under_way_stops_it(now: datetime) -> None:
    def undo_after_one(run: ExpiryRun) -> None:
        one, *others = services.slices_of(run)
        services.expire_slice(run=run, keys=one)
        assert undo(run, now) == 2
        assert [services.expire_slice(run=run, keys=keys) for keys in others] == [0, 0]
        assert list(services.slices_of(run)) == []
        services.run_here(run)

    make_accounts(6, ended=10 * DAY, now=now)
    before = rows()

    run = expire(now, batch_size=2, run_slices=undo_after_one)

    assert (run.status, run.expired_count, run.undone_count) == (ExpiryRun.Status.UNDONE, 2, 2)
    assert run.finished is not None
    assert rows() == before


@pytest.mark.parametrize("status", ["undone", "refused", "succeeded"])
def test_a_late_slice_of_a_run_that_is_to_change_nothing_changes_nothing(now: datetime, status: str) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    before = rows()
    run = ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, status=status, as_of=now, finished=now)

    assert services.expire_slice(run=run, keys=ALL) == 0

    assert rows() == before
    run.refresh_from_db()
    assert run.expired_count == 0


def test_a_late_slice_of_a_run_that_was_deleted_changes_nothing(now: datetime) -> None:
    make_accounts(1, ended=10 * DAY, now=now)
    before = rows()
    gone = ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, as_of=now)
    ExpiryRun.objects.all().delete()

    assert services.expire_slice(run=gone, keys=ALL) == 0

    assert rows() == before


def test_an_undone_run_is_neither_finished_nor_failed_any_more(now: datetime) -> None:
    run = ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, as_of=now)
    undo(run, now)

    assert not ledger.finish_run(run_id=run.pk)
    ledger.fail_run(run_id=run.pk, error=RuntimeError("late"))

    run.refresh_from_db()
    assert (run.status, run.error) == (ExpiryRun.Status.UNDONE, "")


def test_a_refused_run_stays_refused(now: datetime) -> None:
    make_accounts(2, ended=10 * DAY, now=now)
    with pytest.raises(TooManyDue):
        expire(now, max_accounts=1)

    assert undo(ExpiryRun.objects.get(), now) == 0

    assert ExpiryRun.objects.get().status == ExpiryRun.Status.REFUSED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"now": datetime(2026, 3, 1)}, "now must have a time zone"),  # noqa: DTZ001 (that is the point)
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"extend_days": 0}, "days must be at least 1, got 0"),
        ({"extend_days": 3651}, "days must be at most 3650, got 3651"),
        ({"by": "x" * 256}, "by must be at most 255 characters, got 256"),
    ],
    ids=["naive now", "batch size", "no days", "too many days", "long name"],
)
def test_a_senseless_argument_is_refused_before_anything_happens(
    now: datetime, arguments: dict[str, Any], message: str
) -> None:
    run = expire(now)

    with pytest.raises(ValueError, match=message):
        undo(run, **{"now": now, **arguments})

    run.refresh_from_db()
    assert run.status == ExpiryRun.Status.SUCCEEDED


# --- Concurrently with others: real connections ---


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_slice_that_the_undo_overtakes_is_rolled_back(
    now: datetime, other: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accounts.slices.LOCK_TIMEOUT", "20s")
    make_accounts(1, ended=10 * DAY, now=now)
    before = rows()
    run = expire(now, run_slices=lambda run: None)
    (part,) = services.slices_of(run)
    # As undo_run marks it, not yet committed: the slice, its account already updated, waits for this row.
    other.execute("UPDATE accounts_expiryrun SET status = 'undone', finished = now()")

    with meanwhile(lambda: services.expire_slice(run=run, keys=part)) as expired:
        wait_until_blocked('UPDATE "accounts_expiryrun"')
        other.commit()

    assert expired == [0]
    assert rows() == before


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_payment_under_way_when_the_undo_comes_wins(
    now: datetime, other: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accounts.slices.LOCK_TIMEOUT", "20s")
    make_accounts(2, ended=10 * DAY, now=now)
    run = expire(now)
    payer = Account.objects.order_by("pk")[0]
    other.execute("UPDATE accounts_account SET status = 'active' WHERE id = %s", [payer.pk])

    with meanwhile(lambda: undo(run, now)) as undone:
        wait_until_blocked("INSERT INTO accounts_accountevent")
        other.commit()

    assert undone == [1]
    assert list(Account.objects.order_by("pk").values_list("status", flat=True)) == [Account.ACTIVE, Account.TRIALING]
    assert_ledger_is_true()


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("accounts", [1, 3])
def test_a_locked_account_is_left_out_and_the_next_undo_takes_it(now: datetime, other: Sql, accounts: int) -> None:
    make_accounts(accounts, ended=10 * DAY, now=now)
    run = expire(now)
    held = Account.objects.order_by("pk")[accounts - 1]
    other.execute("SELECT FROM accounts_account WHERE id = %s FOR UPDATE", [held.pk])

    with pytest.raises(CommandError) as left:
        call_command("undo_expiry", str(run.pk), stdout=StringIO(), stderr=StringIO())

    assert str(left.value) == "1 account(s) were locked by somebody else and are still expired. Run it again."
    other.rollback()
    assert undo(run, now) == 1
    assert_ledger_is_true()


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_slice_that_cannot_be_undone_does_not_keep_the_others_from_it(now: datetime) -> None:
    make_accounts(6, ended=10 * DAY, now=now)
    run = expire(now)
    poison = Account.objects.order_by("pk")[1]

    with (
        trigger_on_update(poison, "RAISE EXCEPTION 'not this one';"),
        pytest.raises(DatabaseError, match="not this one"),
    ):
        undo(run, now, batch_size=2)

    assert Account.objects.filter(status=Account.TRIALING).count() == 4
    assert_ledger_is_true()
    assert undo(run, now) == 2


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_undos_payments_and_the_run_itself_at_once_leave_a_true_ledger(now: datetime) -> None:
    make_accounts(400, ended=10 * DAY, now=now)
    payers = list(Account.objects.order_by("pk").values_list("pk", flat=True)[::10])
    run = ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, as_of=now, due_count=400, batch_size=7)

    def undo_once_it_began() -> int:
        wait_for("the run to expire somebody", ExpiryRun.objects.filter(expired_count__gt=0).exists)
        return undo(run, now, batch_size=11)

    with (
        meanwhile(partial(services.run_here, run)),
        meanwhile(undo_once_it_began) as a,
        meanwhile(undo_once_it_began) as b,
    ):
        paid = [services.activate(account_id=account) for account in payers]

    assert all(paid)
    run.refresh_from_db()
    assert run.status == ExpiryRun.Status.UNDONE
    assert run.undone_count == a[0] + b[0] > 0
    assert dict.fromkeys(Account.objects.values_list("status", flat=True)).keys() == {
        Account.TRIALING,
        Account.ACTIVE,
    }
    assert_ledger_is_true()


# --- The preview ---


def test_the_preview_says_what_would_happen_and_changes_nothing(now: datetime) -> None:
    make_accounts(5, ended=10 * DAY, now=now)
    run = expire(now)
    paid, cancelled, extended, recent, last = Account.objects.order_by("pk")
    services.activate(account_id=paid.pk)
    services.cancel(account_id=cancelled.pk)
    services.extend_trial(account_id=extended.pk, days=1, now=now)
    for account in (paid, last):
        NoticeFactory.create(account=account, kind="ended", days_before=0, status="sent", sent=now, next_attempt=now)
    Account.objects.filter(pk=recent.pk).update(trial_ends_at=now)  # corrected by hand
    before = rows()

    preview = services.preview_undo(run=run, now=now)

    whole = {"would_return": 2, "due_again": 1, "moved_on": 2, "extended": 1, "mailed": 1, "mailed_among": 2}
    assert preview == UndoPreview(**whole, looked_at=4, is_all=True)
    assert preview.left_alone == 3
    assert rows() == before
    run.refresh_from_db()
    assert run.status == ExpiryRun.Status.SUCCEEDED
    assert_ledger_is_true(extended=1)


@pytest.mark.parametrize(
    ("look_at", "looked_at", "is_all", "mailed_among"), [(None, 300, True, 300), (200, 200, False, 2)]
)
def test_of_a_large_run_the_preview_looks_at_so_many_accounts(
    now: datetime, look_at: int | None, looked_at: int, is_all: bool, mailed_among: int
) -> None:
    make_accounts(300, ended=10 * DAY, now=now)
    run = expire(now)
    for account in Account.objects.order_by("pk")[1:4]:
        NoticeFactory.create(account=account, kind="ended", days_before=0, status="sent", sent=now, next_attempt=now)

    preview = services.preview_undo(run=run, now=now, look_at=look_at)

    assert preview == UndoPreview(
        would_return=looked_at,
        due_again=looked_at,
        moved_on=0,
        extended=0,
        mailed=3 if is_all else 1,
        mailed_among=mailed_among,
        looked_at=looked_at,
        is_all=is_all,
    )


# --- The task ---


class SlowClock:
    """Takes the place of the module ``time``: 40 seconds pass from one look at the clock to the next."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic(self) -> int:
        self.now += 40
        return self.now


def test_the_task_undoes_for_a_minute_and_asks_for_another(now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    again: list[dict[str, Any]] = []
    monkeypatch.setattr(tasks, "time", SlowClock())
    monkeypatch.setattr(tasks.undo_run, "apply_async", lambda **message: again.append(message["kwargs"]))
    monkeypatch.setattr(services, "undo_run", partial(services.undo_run, batch_size=2))
    make_accounts(4, ended=10 * DAY, now=now)
    run = expire(now)
    arguments = {"run_id": run.pk, "by": "ann", "now": now.isoformat(), "extend_days": 14}

    tasks.undo_run(**arguments)
    assert again == [arguments]
    assert run.accounts.count() == 2

    tasks.undo_run(**again.pop())
    assert again == []
    assert run.accounts.count() == 0


def test_the_task_delivered_twice_extends_once_and_counts_from_its_request(now: datetime) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    arguments = {"run_id": expire(now).pk, "by": "ann", "now": now.isoformat(), "extend_days": 14}

    for _ in range(2):
        tasks.undo_run(**arguments)

    assert set(Account.objects.values_list("status", "trial_ends_at")) == {(Account.TRIALING, now + 14 * DAY)}
    assert AccountEvent.objects.count() == 3
    assert ExpiryRun.objects.get().undone_count == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"run_id": 404}, "There is no run 404: it was deleted, or pruned. Nothing was changed."),
        ({"now": "today"}, "now must be a moment with a time zone, not 'today'. Nothing was changed."),
        ({"now": 7}, "now must be a moment with a time zone, not 7. Nothing was changed."),
        (
            {"now": "2026-03-01T12:00:00"},
            "now must be a moment with a time zone, not '2026-03-01T12:00:00'. Nothing was changed.",
        ),
        (
            {"extend_days": 0},
            "extend_days must be a whole number from 1 to 2147483647, not 0. Nothing was changed.",
        ),
    ],
)
def test_a_wrong_argument_fails_the_task_with_a_sentence(now: datetime, wrong: dict[str, Any], message: str) -> None:
    make_accounts(1, ended=10 * DAY, now=now)
    run = expire(now)

    result = tasks.undo_run.apply(kwargs={"run_id": run.pk, "by": "ann", "now": now.isoformat(), **wrong})

    assert (result.state, str(result.result)) == ("FAILURE", message)
    assert run.accounts.count() == 1


# --- The command ---


def command(run: object, *arguments: str, **options: Any) -> tuple[str, str]:
    """What the command prints to stdout and stderr."""
    output, errors = StringIO(), StringIO()
    call_command("undo_expiry", str(run), *arguments, stdout=output, stderr=errors, **options)
    return output.getvalue(), errors.getvalue()


def run_by_the_real_clock(count: int, *, ended: timedelta = 10 * DAY) -> ExpiryRun:
    make_accounts(count, ended=ended, now=timezone.now())
    return expire(timezone.now())


def test_the_command_says_what_it_does_and_warns_of_the_next_run() -> None:
    run = run_by_the_real_clock(3)

    output, warning = command(run.pk, "--by=ann")

    assert output == (
        f"Run {run.pk} by command, succeeded, expired 3 account(s): 3 to put back on trial, "
        "0 paid or cancelled and 0 extended since stay as they are.\n"
        "Put 3 account(s) back on trial\n"
    )
    assert warning == (
        "The rule will expire 3 of them again at the next run. To give them time, add --extend-days N; "
        "if their trial ends or the settings are what was wrong, correct those first.\n"
    )
    run.refresh_from_db()
    assert (run.status, run.undone_count, run.undone_by) == (ExpiryRun.Status.UNDONE, 3, "command user ann")


def test_an_extension_leaves_nothing_to_warn_of() -> None:
    _, warning = command(run_by_the_real_clock(3).pk, "--extend-days=7")

    assert warning == ""
    assert expire(timezone.now()).expired_count == 0


def test_a_dry_run_says_the_same_and_writes_nothing() -> None:
    run = run_by_the_real_clock(3)
    before = rows()

    output, warning = command(run.pk, "--dry-run")

    assert output.startswith(f"Run {run.pk} by command, succeeded, expired 3 account(s): 3 to put back on trial, ")
    assert len(output.splitlines()) == 1
    assert "--extend-days" in warning
    assert rows() == before
    run.refresh_from_db()
    assert run.status == ExpiryRun.Status.SUCCEEDED


def test_who_undid_it_is_by_default_the_user_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "deploy")

    run = run_by_the_real_clock(1)
    command(run.pk, verbosity=0)

    run.refresh_from_db()
    assert run.undone_by == "command user deploy"


def test_a_user_of_the_system_without_a_name_is_recorded_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 3)  # as in a container

    run = run_by_the_real_clock(1)
    command(run.pk, verbosity=0)

    run.refresh_from_db()
    assert run.undone_by == f"command user {2**31 - 3}"


def test_there_being_nothing_to_undo_is_said_and_no_error(now: datetime) -> None:
    run = run_by_the_real_clock(1)
    command(run.pk)

    assert command(run.pk) == (
        f"Nothing to undo: no account is still expired by run {run.pk} by command, undone.\n",
        "",
    )


def test_a_refused_run_has_nothing_to_undo(now: datetime) -> None:
    make_accounts(2, ended=10 * DAY, now=now)
    with pytest.raises(TooManyDue):
        expire(now, max_accounts=1)
    run = ExpiryRun.objects.get()

    output, _ = command(run.pk)

    assert output == f"Nothing to undo: no account is still expired by run {run.pk} by command, refused.\n"


def test_a_run_under_way_that_has_expired_nobody_yet_is_stopped(now: datetime) -> None:
    run = ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, as_of=now)

    output, _ = command(run.pk)

    assert output.endswith("Put 0 account(s) back on trial\n")
    run.refresh_from_db()
    assert run.status == ExpiryRun.Status.UNDONE


def test_a_run_undone_while_the_command_runs_it_ends_the_command_in_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def undo_it_meanwhile(run: ExpiryRun, **_: Any) -> None:
        undo(run, timezone.now(), by="ann")

    make_accounts(1, ended=10 * DAY, now=timezone.now())
    monkeypatch.setattr(services, "run_here", undo_it_meanwhile)

    with pytest.raises(CommandError, match=r"^Run \d+ was undone by ann while it was running\.$"):
        call_command("expire_trials", stdout=StringIO())


# --- An example with and without the fuse ---


def test_trial_days_mistyped_as_6_is_stopped_by_the_fuse_or_undone(now: datetime, settings: Settings) -> None:
    make_accounts(2, ended=2 * DAY, now=now)  # an ordinary hour
    settings.TRIAL_DAYS, settings.TRIAL_EXPIRY_MAX = 6, 3
    signed_up = [AccountFactory.create(created=now - 8 * DAY) for _ in range(4)]  # who were promised 60 days
    before = rows()

    # Celery's tick fails with the reason, monitoring alerts, and no account has expired.
    with pytest.raises(TooManyDue, match=r"^Refused: 6 accounts are due and at most 3 may expire .* --max-accounts 6"):
        tasks.expire_trials.apply(throw=True)
    assert rows() == before
    assert "Refused: 6 accounts are due" in health.check(now=now, max_age=timedelta(hours=3)).problems[0].text

    # Without the fuse the accounts expire.
    settings.TRIAL_EXPIRY_MAX = None
    run = expire(now)
    assert run.expired_count == 6

    # An undo restores them exactly. The cause is in the accounts: their trial ends must be corrected as well.
    assert services.preview_undo(run=run, now=now).due_again == 6
    assert undo(run, now) == 6
    assert rows() == before
    settings.TRIAL_DAYS = 60
    for account in signed_up:
        Account.objects.filter(pk=account.pk).update(trial_ends_at=account.created + 60 * DAY)

    assert expire(now).expired_count == 2
    assert_ledger_is_true()


@pytest.mark.postgres
def test_the_accounts_of_a_run_are_found_by_index(now: datetime) -> None:
    make_accounts(3000, status=Account.ACTIVE, ended=-DAY, now=now)
    make_accounts(20, ended=10 * DAY, now=now)
    run = expire(now)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE accounts_account")

    assert "accounts_account_of_run" in Account.objects.still_expired_by(run).explain()
