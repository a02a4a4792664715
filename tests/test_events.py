"""The events of accounts: what each service records, and that they are exactly what happened."""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.db import DatabaseError, models
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from accounts import events, services
from accounts.models import Account, AccountEvent, ExpiryRun
from sandbox.servers import wait_for
from tests.factories import AccountFactory, make_accounts
from tests.locks import Sql, meanwhile, trigger_on_update, wait_until_blocked
from tests.runs import DAY, assert_ledger_is_true, expire

pytestmark = pytest.mark.django_db


def recorded() -> list[Any]:
    """Account, kind, actor, status before, run, and the days by which the end moved, of each event."""
    return [
        (event.account_id, event.kind, event.by, event.status_before, event.run_id, moved(event))
        for event in AccountEvent.objects.order_by("pk")
    ]


def moved(event: AccountEvent) -> float | None:
    return (event.ends_after - event.ends_before) / DAY if event.ends_after and event.ends_before else None


def test_each_change_of_an_account_is_one_event_with_what_was_before(now: datetime) -> None:
    pk = AccountFactory.create(trial_ends_at=now - 10 * DAY).pk
    run = expire(now)

    services.extend_trial(account_id=pk, days=5, now=now, by="admin user anna")
    services.extend_trial(account_id=pk, days=5, now=now)
    services.activate(account_id=pk, by="webhook of the payment service")
    services.cancel(account_id=pk)

    assert recorded() == [
        (pk, "extended", "admin user anna", "trial_expired", run.pk, 15),
        (pk, "extended", "", "trialing", None, 5),
        (pk, "activated", "webhook of the payment service", "trialing", None, None),
        (pk, "canceled", "", "active", None, None),
    ]
    assert abs(AccountEvent.objects.latest("pk").at - timezone.now()) < timedelta(minutes=1)


def test_a_payment_after_the_expiry_records_the_run_as_well(now: datetime) -> None:
    pk = AccountFactory.create(trial_ends_at=now - 10 * DAY).pk
    run = expire(now)

    services.activate(account_id=pk)

    assert recorded() == [(pk, "activated", "", "trial_expired", run.pk, None)]


def test_what_a_service_refuses_is_no_event(now: datetime) -> None:
    exempt = AccountFactory.create(status=Account.EXEMPT).pk
    late = AccountFactory.create(trial_ends_at=datetime.fromisoformat("9999-12-30T00:00:00Z")).pk

    assert not services.activate(account_id=exempt)
    assert not services.cancel(account_id=exempt)
    assert not services.extend_trial(account_id=late, days=5, now=now)
    assert not services.cancel(account_id=12345)

    assert recorded() == []


@pytest.mark.parametrize(
    "change",
    [services.activate, services.cancel, partial(services.extend_trial, days=1, now=timezone.now())],
    ids=["activate", "cancel", "extend"],
)
def test_an_actor_that_is_too_long_is_refused_before_anything_happens(change: Callable[..., bool]) -> None:
    account = AccountFactory.create()

    with pytest.raises(ValueError, match="by must be at most 255 characters, got 256"):
        change(account_id=account.pk, by="x" * 256)

    account.refresh_from_db()
    assert (account.status, recorded()) == ("trialing", [])


def test_a_payment_is_two_statements(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    account = AccountFactory.create()

    with django_assert_num_queries(2):
        services.activate(account_id=account.pk)


def test_a_run_writes_no_event_and_an_undo_one_for_each_account(now: datetime) -> None:
    make_accounts(5, ended=10 * DAY, now=now)
    run = expire(now)
    paid, *others = Account.objects.order_by("pk").values_list("pk", flat=True)
    services.activate(account_id=paid)
    AccountEvent.objects.all().delete()

    services.undo_run(run=run, now=now, by="ann", extend_days=7, batch_size=2)

    assert recorded() == [(pk, "undone", "ann", "trial_expired", run.pk, 17) for pk in others]


def test_an_undo_without_an_extension_moves_no_end(now: datetime) -> None:
    make_accounts(1, ended=10 * DAY, now=now)

    services.undo_run(run=expire(now), now=now, by="ann")

    assert [days for *_, days in recorded()] == [None]


def test_events_go_with_their_account_and_protect_the_run_they_name(now: datetime) -> None:
    account = AccountFactory.create(trial_ends_at=now - 10 * DAY)
    run = expire(now)
    services.extend_trial(account_id=account.pk, days=5, now=now)

    with pytest.raises(models.ProtectedError):
        run.delete()

    Account.objects.all().delete()
    assert not AccountEvent.objects.exists()


# --- Concurrently with others: real connections ---

concurrent = pytest.mark.django_db(transaction=True)


@pytest.mark.postgres
@concurrent
def test_a_change_that_fails_leaves_no_event(now: datetime) -> None:
    account = AccountFactory.create(trial_ends_at=now - 10 * DAY)
    run = expire(now)

    with trigger_on_update(account, "RAISE EXCEPTION 'not this one';"):
        for change in (
            partial(services.activate, account_id=account.pk),
            partial(services.undo_run, run=run, now=now, by="ann"),
        ):
            with pytest.raises(DatabaseError, match="not this one"):
                change()

    assert recorded() == []


@pytest.mark.postgres
@concurrent
def test_an_account_that_an_undo_leaves_out_gets_no_event(now: datetime, other: Sql) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    run = expire(now)
    first, held, last = Account.objects.order_by("pk").values_list("pk", flat=True)
    other.execute("SELECT FROM accounts_account WHERE id = %s FOR UPDATE", [held])

    assert services.undo_run(run=run, now=now, by="ann") == 2
    assert [pk for pk, *_ in recorded()] == [first, last]

    other.rollback()
    assert services.undo_run(run=run, now=now, by="bob") == 1
    assert recorded()[2:] == [(held, "undone", "bob", "trial_expired", run.pk, None)]


@pytest.mark.postgres
@concurrent
def test_an_account_set_free_between_lock_and_update_is_left_out(
    now: datetime, other: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    run = expire(now)
    held = Account.objects.order_by("pk")[1].pk
    other.execute("SELECT FROM accounts_account WHERE id = %s FOR UPDATE", [held])

    def record_and_set_free(*arguments: Any, **options: Any) -> int:
        count = record(*arguments, **options)
        other.rollback()
        return count

    record: Callable[..., int] = events.record
    monkeypatch.setattr(events, "record", record_and_set_free)

    assert services.undo_run(run=run, now=now, by="ann") == len(recorded()) == 2
    assert Account.objects.get(status=Account.TRIAL_EXPIRED).pk == held


@pytest.mark.postgres
@concurrent
def test_a_payment_that_waits_for_an_undo_records_what_the_undo_left(
    now: datetime, other: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accounts.slices.LOCK_TIMEOUT", "20s")
    pk = AccountFactory.create(trial_ends_at=now - 10 * DAY).pk
    run = expire(now)

    def lock_the_ledger(*arguments: Any, **options: Any) -> int:
        # The undo has marked the run. It will wait for this row after its UPDATE of the account.
        other.execute("SELECT FROM accounts_expiryrun FOR UPDATE")
        return record(*arguments, **options)

    record: Callable[..., int] = events.record
    with monkeypatch.context() as patch:
        patch.setattr(events, "record", lock_the_ledger)
        with meanwhile(lambda: services.undo_run(run=run, now=now, by="ann")) as undone:
            wait_until_blocked('UPDATE "accounts_expiryrun"')
            patch.undo()
            with meanwhile(lambda: services.activate(account_id=pk)) as paid:
                wait_until_blocked("INSERT INTO accounts_accountevent")
                other.commit()

    assert (undone, paid) == ([1], [True])
    assert recorded() == [
        (pk, "undone", "ann", "trial_expired", run.pk, None),
        (pk, "activated", "", "trialing", None, None),
    ]


@pytest.mark.postgres
@concurrent
def test_payments_extensions_and_undos_at_once_leave_true_events(now: datetime) -> None:
    make_accounts(300, ended=10 * DAY, now=now)
    keys = list(Account.objects.order_by("pk").values_list("pk", flat=True))
    run = ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, as_of=now, due_count=300, batch_size=7)
    done: dict[str, list[int]] = {"activated": [], "extended": [], "canceled": []}

    def change_some() -> None:
        changes: list[tuple[str, Callable[..., bool]]] = [
            ("activated", services.activate),
            ("extended", partial(services.extend_trial, days=3, now=now)),
            ("canceled", services.cancel),
        ]
        for number, pk in enumerate(keys[::3]):
            kind, change = changes[number % 3]
            if change(account_id=pk):
                done[kind].append(pk)

    def undo_once_it_began() -> int:
        wait_for("the run to expire somebody", ExpiryRun.objects.filter(expired_count__gt=0).exists)
        return services.undo_run(run=run, now=now, by="ann", batch_size=11)

    with (
        meanwhile(partial(services.run_here, run)),
        meanwhile(undo_once_it_began) as undone,
        meanwhile(change_some),
    ):
        pass
    undone.append(services.undo_run(run=run, now=now, by="bob"))

    run.refresh_from_db()
    kinds = {kind: [pk for pk, found, *_ in recorded() if found == kind] for kind in (*done, "undone")}
    assert {kind: sorted(kinds[kind]) for kind in done} == done
    assert len(kinds["undone"]) == len(set(kinds["undone"])) == sum(undone) == run.undone_count
    extended = AccountEvent.objects.filter(kind="extended", run=run).count()
    assert_ledger_is_true(extended=extended)
