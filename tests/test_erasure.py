"""Erasing a person, in the admin and by ``./manage.py erase_user``: what is deleted, and what stays correct."""

from collections.abc import Callable
from datetime import datetime, timedelta
from io import StringIO

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import Permission
from django.core.management import CommandError, call_command
from django.test import Client

from accounts import services
from accounts.events import admin_user, command_user
from accounts.models import Account, AccountEvent, ExpiryRun, Notice
from tests.factories import AccountFactory, NoticeFactory, UserFactory
from users.models import User

pytestmark = pytest.mark.django_db

USERS = "/admin/users/user/"


@pytest.fixture
def person(now: datetime) -> User:
    """A customer whose trial a run expired, who got a mail, and whose name support changed."""
    account = AccountFactory.create(
        user__username="alice", user__email="alice@example.com", created=now - timedelta(days=90)
    )
    NoticeFactory.create(account=account, next_attempt=now)
    AccountFactory.create(created=now - timedelta(days=90))
    services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)
    support = UserFactory.create(username="support")
    LogEntry.objects.log_actions(
        support.pk, [account.user], CHANGE, change_message="Renamed alice.", single_object=True
    )
    user: User = account.user
    return user


def erase(*arguments: str) -> str:
    output = StringIO()
    call_command("erase_user", *arguments, stdout=output)
    return output.getvalue()


def answer(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setattr("builtins.input", lambda _: words)


def is_gone(user: User) -> bool:
    """Whether no row of the project and no entry of the admin's log names the person, and the others did not change."""
    written = str(list(LogEntry.objects.values_list("object_repr", "change_message")))
    return (
        not User.objects.filter(pk=user.pk).exists()
        and not Notice.objects.exists()
        and Account.objects.count() == 1
        and "alice" not in written
    )


def sums_are_true() -> bool:
    """``expired_count`` = accounts that point to the run + undone + the one that was deleted since."""
    run = ExpiryRun.objects.get()
    return run.expired_count == 2 == run.accounts.count() + run.undone_count + 1


def test_the_command_says_what_goes_and_erases_it_once_confirmed(person: User, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "y")
    said = erase("Alice@Example.com")

    assert (
        f"User {person.pk} (alice): account {person.account.pk}, trial expired; 1 notice(s); named in 1 entries" in said
    )
    assert is_gone(person)
    assert sums_are_true()


@pytest.mark.parametrize("words", ["", "n", "no", "yes please"])
def test_without_a_clear_yes_nothing_is_erased(person: User, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    answer(monkeypatch, words)
    with pytest.raises(CommandError, match=r"^Nothing was erased\. Answer y, or add --yes\.$") as error:
        erase("alice@example.com")

    assert error.value.returncode == 1
    assert not is_gone(person)


def test_with_no_terminal_to_ask_on_nothing_is_erased(person: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", StringIO(""))
    with pytest.raises(CommandError, match=r"^Nothing was erased\."):
        erase("alice@example.com")

    assert not is_gone(person)


def test_yes_erases_every_user_with_the_address_unasked(person: User, monkeypatch: pytest.MonkeyPatch) -> None:
    UserFactory.create(username="alice2", email="ALICE@example.com")
    monkeypatch.setattr("builtins.input", pytest.fail)
    erase("alice@example.com", "--yes")

    assert is_gone(person)
    assert not User.objects.filter(username="alice2").exists()


@pytest.mark.parametrize("email", ["nobody@example.com", "", "alice"])
def test_an_unknown_address_is_bad_input(person: User, email: str) -> None:
    UserFactory.create(username="nameless", email="")
    with pytest.raises(CommandError, match=rf"^No user has the e-mail address '{email}'\.$") as error:
        erase(email, "--yes")

    assert error.value.returncode == 2
    assert User.objects.count() == 4


@pytest.fixture
def deleter() -> Client:
    """A user with the permission to view and delete users, and no other."""
    user: User = UserFactory.create(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_user", "delete_user"]))
    client = Client()
    client.force_login(user)
    return client


def test_whoever_may_delete_users_erases_one_in_the_admin(person: User, deleter: Client) -> None:
    page = deleter.get(f"{USERS}{person.pk}/delete/").content.decode()
    assert "Are you sure you want to delete the user" in page
    assert f"account {person.account.pk}, trial expired" in " ".join(page.split())

    deleter.post(f"{USERS}{person.pk}/delete/", {"post": "yes"})

    assert is_gone(person)
    assert sums_are_true()


def test_the_action_of_the_list_erases_as_well(person: User, deleter: Client) -> None:
    deleter.post(USERS, {"action": "delete_selected", "_selected_action": [person.pk], "index": 0, "post": "yes"})

    assert is_gone(person)


@pytest.mark.parametrize(
    "by",
    [User.get_username, admin_user, lambda user: command_user(user.username)],
    ids=["as it was", "admin", "command"],
)
def test_an_operator_s_name_leaves_the_ledger_and_the_events_too(now: datetime, by: Callable[[User], str]) -> None:
    operator = UserFactory.create(username="olga", email="olga@example.com")
    own = AccountFactory.create(user=operator)
    undone, extended, other = AccountFactory.create_batch(3, created=now - timedelta(days=90))
    services.extend_trial(account_id=extended.pk, days=90, now=now, by=admin_user(operator))
    services.cancel(account_id=other.pk, by="admin user olga-maria")
    services.extend_trial(account_id=own.pk, days=9, now=now)
    run = services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)
    services.undo_run(run=run, now=now, by=by(operator))

    assert "and in 2 event(s) of other accounts." in erase("olga@example.com", "--yes")

    run.refresh_from_db()
    assert (run.status, run.undone_by) == ("undone", "(erased)")
    assert set(AccountEvent.objects.values_list("account", "by")) == {
        (undone.pk, "(erased)"),
        (extended.pk, "(erased)"),
        (other.pk, "admin user olga-maria"),
    }
