"""Accounts: where each one stands, and what support may do about it."""

from collections.abc import Callable, Iterable
from datetime import timedelta

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from accounts import services
from accounts.admin import overview
from accounts.admin.lists import EMAIL_FIELD, EMAIL_HELP, MINUTES, NOTHING, ReadOnlyAdmin, customer
from accounts.models import Account, ExpiryRun


class TrialFilter(admin.SimpleListFilter):
    """What the rule says of the accounts."""

    title = "trial"
    parameter_name = "trial"

    def lookups(self, request: HttpRequest, model_admin: object) -> Iterable[tuple[str, str]]:
        """The choices, in the order an account goes through them."""
        return (
            ("ending", "ends within 7 days"),
            ("grace", "in grace"),
            ("due", "due"),
            ("expired", "expired in the last 7 days"),
        )

    def queryset(self, request: HttpRequest, queryset: QuerySet[Account]) -> QuerySet[Account]:
        """The accounts of the choice, as of now."""
        now = timezone.now()
        match self.value():
            case "ending":
                return queryset & overview.ending(start=now, end=now + overview.SOON)
            case "grace":
                return queryset & overview.in_grace(now)
            case "due":
                return queryset & Account.objects.due(now)
            case "expired":  # through their runs, for which there is an index
                runs = ExpiryRun.objects.filter(as_of__gt=now - overview.SOON)
                return queryset.filter(status=Account.TRIAL_EXPIRED, expiry_run__in=runs)
        return queryset


class AccountActionForm(ActionForm):
    """The actions, and the one number that one of them needs."""

    days = forms.IntegerField(
        label="Days to extend:",
        initial=14,
        min_value=1,
        max_value=services.LONGEST_EXTENSION,
    )


Verb = Callable[[int], bool]
"""A service for the account of that key; False when it refused."""


@admin.register(Account)
class AccountAdmin(ReadOnlyAdmin):
    """Where each account stands, which run expired it, and the actions of support."""

    list_display = ("customer", "status", "days_left", "ends", "run")
    list_display_links = ("customer",)
    list_filter = ("status", TrialFilter)
    list_select_related = ("user", "expiry_run")
    search_fields = (f"user__{EMAIL_FIELD}__iexact",)
    search_help_text = EMAIL_HELP
    fields = ("user", "status", "created", "trial_ends_at", "days_left", "trial_expired_at", "expiry_run")
    readonly_fields = ("days_left",)
    action_form = AccountActionForm
    actions = ("extend", "activate", "cancel")

    ACTION_LIMIT = 1000
    """Accounts that an action takes. More would last longer than a request may."""

    @admin.display(description="customer")
    def customer(self, account: Account) -> str:
        """Whose account it is."""
        return customer(account.user)

    @admin.display(description="days left")
    def days_left(self, account: Account) -> str:
        """Whole days until the trial ends; below 0 when it has ended and no run has expired it yet."""
        if account.status != Account.TRIALING:
            return NOTHING
        return str((account.trial_ends_at - timezone.now()) // timedelta(days=1))

    @admin.display(description="trial ends at")
    def ends(self, account: Account) -> str:
        """The moment in UTC, short enough for a list."""
        return f"{account.trial_ends_at:{MINUTES}}"

    @admin.display(description="expired by")
    def run(self, account: Account) -> str:
        """The run that expired the account."""
        run = account.expiry_run
        if not run:
            return NOTHING
        url = reverse("admin:accounts_expiryrun_change", args=[run.pk])
        return format_html('<a href="{}">run {}</a>', url, run.pk)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whoever may change accounts may use these actions."""
        return request.user.has_perm("accounts.change_account")

    @admin.action(description="Extend trial", permissions=["operate"])
    def extend(self, request: HttpRequest, accounts: QuerySet[Account]) -> None:
        """Let trials end later; an expired account is back on trial."""
        days, now = int(request.POST["days"]), timezone.now()
        self._apply(
            request,
            accounts,
            f"extended by {days} days",
            lambda pk: services.extend_trial(account_id=pk, days=days, now=now),
        )

    @admin.action(description="Activate", permissions=["operate"])
    def activate(self, request: HttpRequest, accounts: QuerySet[Account]) -> None:
        """Make trialing and expired accounts active."""
        self._apply(request, accounts, "activated", lambda pk: services.activate(account_id=pk))

    @admin.action(description="Cancel", permissions=["operate"])
    def cancel(self, request: HttpRequest, accounts: QuerySet[Account]) -> None:
        """Cancel accounts."""
        self._apply(request, accounts, "canceled", lambda pk: services.cancel(account_id=pk))

    def _apply(self, request: HttpRequest, accounts: QuerySet[Account], done: str, verb: Verb) -> None:
        chosen = list(accounts[: self.ACTION_LIMIT + 1])
        if len(chosen) > self.ACTION_LIMIT:
            self.message_user(
                request,
                f"More than {self.ACTION_LIMIT:,} accounts are selected. Nothing was changed: select fewer.",
                messages.ERROR,
            )
            return
        changed = 0
        for account in chosen:
            if verb(account.pk):
                changed += 1
                self.log_change(request, account, f"{done.capitalize()}; was {account.get_status_display().lower()}.")
        if changed:
            self.message_user(request, f"{changed} of {len(chosen)} accounts {done}.", messages.SUCCESS)
        if refused := len(chosen) - changed:
            self.message_user(
                request, f"{refused} left as they were: their status does not allow it.", messages.WARNING
            )
