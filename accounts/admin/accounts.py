"""The admin's pages of accounts: their status, and the actions of support."""

from collections.abc import Callable, Iterable

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
from accounts.admin.lists import EMAIL_FIELD, EMAIL_HELP, LinkedFilter, ReadOnlyAdmin, customer, in_utc, status
from accounts.models import Account, ExpiryRun
from accounts.words import NOTHING, time_left


class TrialFilter(admin.SimpleListFilter):
    """Filters accounts by what the trial rule says of them."""

    title = "trial"
    parameter_name = "trial"

    def lookups(self, request: HttpRequest, model_admin: object) -> Iterable[tuple[str, str]]:
        """The choices, in the order in which an account reaches them."""
        return (
            ("ending", "Ends within 7 days"),
            ("grace", "In grace"),
            ("due", "Due"),
            ("expired", "Expired in the last 7 days"),
        )

    def queryset(self, request: HttpRequest, queryset: QuerySet[Account]) -> QuerySet[Account]:
        """The accounts that match the choice now."""
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


class RunFilter(LinkedFilter):
    """The accounts that still point to a run."""

    title = "run"
    parameter_name = "expiry_run"
    choice = "Expired by run {}"


class AccountActionForm(ActionForm):
    """The form of the actions, with the number of days that "Extend trial" needs."""

    days = forms.IntegerField(
        label="Days to extend:",
        initial=14,
        min_value=1,
        max_value=services.LONGEST_EXTENSION,
    )


Verb = Callable[[int], bool]
"""A service that changes the account with this key. It returns False when the account's status does not allow it."""


@admin.register(Account)
class AccountAdmin(ReadOnlyAdmin):
    """Shows the status of each account and the run that expired it, and offers the actions of support."""

    list_display = ("customer", "state", "time_left", "ends", "run")
    list_display_links = ("customer",)
    list_filter = ("status", TrialFilter, RunFilter)
    list_select_related = ("user", "expiry_run")
    search_fields = (f"user__{EMAIL_FIELD}__iexact",)
    search_help_text = EMAIL_HELP
    fields = ("user", "status", "created", "trial_ends_at", "time_left", "trial_expired_at", "expiry_run")
    readonly_fields = ("time_left",)
    action_form = AccountActionForm
    actions = ("extend", "activate", "cancel")

    ACTION_LIMIT = 1000
    """The most accounts that an action changes. More would take longer than a request may."""

    ends = in_utc("trial_ends_at", "trial ends")

    @admin.display(description="status")
    def state(self, account: Account) -> str:
        """The status, marked."""
        return status(account)

    @admin.display(description="customer")
    def customer(self, account: Account) -> str:
        """The owner of the account."""
        return customer(account.user)

    @admin.display(description="time left")
    def time_left(self, account: Account) -> str:
        """The time until the trial ends, or since it ended when no run has expired the account yet."""
        return time_left(timezone.now(), account.trial_ends_at) if account.status == Account.TRIALING else NOTHING

    @admin.display(description="expired by")
    def run(self, account: Account) -> str:
        """The run that expired the account."""
        run = account.expiry_run
        if not run:
            return NOTHING
        url = reverse("admin:accounts_expiryrun_change", args=[run.pk])
        return format_html('<a href="{}">run {}</a>', url, run.pk)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Users with the permission to change accounts may use these actions."""
        return request.user.has_perm("accounts.change_account")

    @admin.action(description="Extend trial", permissions=["operate"])
    def extend(self, request: HttpRequest, accounts: QuerySet[Account]) -> None:
        """Extend trials; an expired account is put back on trial."""
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
        self._apply(request, accounts, "cancelled", lambda pk: services.cancel(account_id=pk))

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
