"""Erase a person: the user with the account, its notices and events, and the name in the ledger and the admin's log."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.apps import apps
from django.contrib.auth.base_user import AbstractBaseUser
from django.db import transaction
from django.db.models import QuerySet

from accounts.events import admin_user, command_user
from accounts.models import Account, AccountEvent, Decision, ExpiryRun, Notice

if TYPE_CHECKING:
    from django.contrib.admin.models import LogEntry

ERASED = "(erased)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Traces:
    """What the database stores about a person."""

    accounts: QuerySet[Account]
    notices: QuerySet[Notice]
    decisions: QuerySet[Decision]
    """Decisions about runs: the history stores the user name."""
    undone: QuerySet[ExpiryRun]
    """Runs that the person undid, in the admin or by the command."""
    events: QuerySet[AccountEvent]
    """Changes of other accounts that the person asked for. Reads all events, because no index has the name."""
    log: "QuerySet[LogEntry] | None"
    """The admin's log entries about the person; None when the admin is not installed."""


def traces(*, user: AbstractBaseUser) -> Traces:
    """Find what the database stores about the person, except the user's own row and other rows that point to it."""
    name = user.get_username()
    actors = [name, admin_user(user), command_user(name)]
    return Traces(
        accounts=Account.objects.filter(user=user.pk),
        notices=Notice.objects.filter(account__user=user.pk),
        decisions=Decision.objects.filter(by=name),
        undone=ExpiryRun.objects.filter(undone_by__in=actors),
        events=AccountEvent.objects.filter(by__in=actors).exclude(account__user=user.pk),
        log=_log_entries(user) if apps.is_installed("django.contrib.admin") else None,
    )


def _log_entries(user: AbstractBaseUser) -> "QuerySet[LogEntry]":
    from django.contrib.admin.models import LogEntry
    from django.contrib.contenttypes.models import ContentType

    return LogEntry.objects.filter(content_type=ContentType.objects.get_for_model(user), object_id=str(user.pk))


def erase(*, user: AbstractBaseUser) -> None:
    """Delete the user, the account, its notices and events; the name elsewhere becomes "(erased)".

    That is in the events of other accounts, in the ledger and in the admin's log.

    The counts of runs stay: the ledger counts a deleted account like one that was extended since. Log entries about
    what the user did in the admin are deleted with the user.
    """
    with transaction.atomic():
        found = traces(user=user)
        # Until the end nobody adds an event or a notice to the account, which would fail the commit by its foreign key.
        list(found.accounts.select_for_update().values_list("pk"))
        found.decisions.update(by=ERASED)
        found.undone.update(undone_by=ERASED)
        found.events.update(by=ERASED)
        if found.log is not None:
            found.log.update(object_repr=ERASED, change_message="")
        user.delete()
