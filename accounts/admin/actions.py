"""The admin's actions on accounts: a page that says how many and what, and asks, then the services, one by one."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme

from accounts import services
from accounts.admin import run_now
from accounts.admin.lists import ReadOnlyAdmin, customer
from accounts.events import admin_user
from accounts.models import Account, AccountEvent
from accounts.words import number, plural

EXTENSION = 14
"""Days by which trials are extended, unless another number is entered."""


def days_field(*, required: bool = True) -> forms.IntegerField:
    """The field for the days of an extension."""
    return forms.IntegerField(
        label="Days",
        help_text="Counted from the end of the trial or from now, whichever is later.",
        required=required,
        initial=EXTENSION,
        min_value=1,
        max_value=services.LONGEST_EXTENSION,
    )


class ExtendForm(forms.Form):
    """The number of days that an extension needs."""

    days = days_field()


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One action: its words, its form, and the service that it calls for each account."""

    name: str
    kind: AccountEvent.Kind
    verb: str
    """What is done to accounts: extend."""
    done: str
    """What was done to them: extended."""
    meaning: str
    """What follows, in a sentence or two, for the page that asks."""
    form: type[forms.Form]
    service: Callable[..., bool]
    """Returns False when the account's status does not allow it."""


EXTEND = Action(
    name="extend",
    kind=AccountEvent.Kind.EXTENDED,
    verb="extend",
    done="extended",
    meaning="Accounts that have expired are put back on trial.",
    form=ExtendForm,
    service=lambda **arguments: services.extend_trial(now=timezone.now(), **arguments),
)
ACTIVATE = Action(
    name="activate",
    kind=AccountEvent.Kind.ACTIVATED,
    verb="activate",
    done="activated",
    meaning="As after a payment: no run expires an active account.",
    form=forms.Form,
    service=services.activate,
)
CANCEL = Action(
    name="cancel",
    kind=AccountEvent.Kind.CANCELED,
    verb="cancel",
    done="cancelled",
    meaning="No action brings a cancelled account back.",
    form=forms.Form,
    service=services.cancel,
)


class ActionsAdmin(ReadOnlyAdmin):
    """Adds the actions of support to the pages of accounts, with a page that asks first."""

    actions = ("extend", "activate", "cancel")

    ACTION_LIMIT = 500
    """The most accounts that an action changes. The page that asks sends back each key, of which Django takes 1,000."""

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Users with the permission to change accounts may use these actions."""
        return request.user.has_perm("accounts.change_account")

    @admin.action(description="Extend trials…", permissions=["operate"])
    def extend(self, request: HttpRequest, accounts: QuerySet[Account]) -> HttpResponse:
        """Extend trials; an expired account is put back on trial."""
        return self._act(request, accounts, EXTEND)

    @admin.action(description="Activate…", permissions=["operate"])
    def activate(self, request: HttpRequest, accounts: QuerySet[Account]) -> HttpResponse:
        """Make trialing and expired accounts active."""
        return self._act(request, accounts, ACTIVATE)

    @admin.action(description="Cancel…", permissions=["operate"])
    def cancel(self, request: HttpRequest, accounts: QuerySet[Account]) -> HttpResponse:
        """Cancel accounts."""
        return self._act(request, accounts, CANCEL)

    def _act(self, request: HttpRequest, accounts: QuerySet[Account], action: Action) -> HttpResponse:
        """Ask; when the answer is in the request and its form is valid, change the accounts and go back."""
        chosen = list(accounts[: self.ACTION_LIMIT + 1])
        back = self._back(request)
        if len(chosen) > self.ACTION_LIMIT:
            most = number(self.ACTION_LIMIT)
            self.message_user(
                request, f"More than {most} accounts are selected. Nothing was changed: select fewer.", messages.ERROR
            )
            return HttpResponseRedirect(back)
        form = action.form(request.POST if "confirmed" in request.POST else None)
        if form.is_valid():
            self._change(request, chosen, action, form.cleaned_data)
            return HttpResponseRedirect(back)
        return self._ask(request, chosen, action, form, back)

    def _ask(
        self, request: HttpRequest, chosen: list[Account], action: Action, form: forms.Form, back: str
    ) -> HttpResponse:
        changed: list[tuple[str, Account]] = []
        unchanged: list[tuple[str, Account]] = []
        for account in chosen:
            rows = changed if account.status in services.ALLOWED[action.kind] else unchanged
            rows.append((customer(account.user), account))
        context = {
            **self.admin_site.each_context(request),
            "title": f"{action.verb.capitalize()} {plural(len(changed), 'account')}",
            "opts": self.opts,
            "action": action,
            "form": form,
            "chosen": chosen,
            "changed": changed,
            "unchanged": unchanged,
            "back": back,
            "checkbox": ACTION_CHECKBOX_NAME,
            "media": self.media,
        }
        return TemplateResponse(request, "admin/accounts/account/action.html", context)

    def _change(self, request: HttpRequest, chosen: list[Account], action: Action, arguments: dict[str, Any]) -> None:
        by, end = admin_user(request.user), time.monotonic() + run_now.SECONDS
        tried = changed = 0
        for account in chosen:
            if tried and time.monotonic() > end:  # others hold locks on accounts, or the database is slow
                break
            changed += action.service(account_id=account.pk, by=by, **arguments)
            tried += 1
        more = f" by {plural(arguments['days'], 'day')}" if "days" in arguments else ""
        if changed:
            self.message_user(request, f"{_were(changed)} {action.done}{more}.", messages.SUCCESS)
        if late := len(chosen) - tried:
            self.message_user(
                request,
                f"{_were(late)} not {action.done}: the time for one request was over. Repeat it for them.",
                messages.WARNING,
            )
        if left := tried - changed:
            whose = "its" if left == 1 else "their"
            self.message_user(
                request, f"{_were(left)} not {action.done}: {whose} status does not allow it.", messages.WARNING
            )

    def _back(self, request: HttpRequest) -> str:
        """The page to go back to: the one that the form names, else the list as it was filtered."""
        named = request.POST.get("next", "")
        safe = url_has_allowed_host_and_scheme(named, {request.get_host()}, require_https=request.is_secure())
        return named if safe else request.get_full_path()


def _were(count: int) -> str:
    return plural(count, "account was", "accounts were")
