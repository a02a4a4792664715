"""The admin's pages of accounts: the list, and one page for each customer."""

from collections.abc import Iterable
from datetime import date
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone

from accounts import services
from accounts.admin import overview, story
from accounts.admin.actions import ActionsAdmin, ExtendForm
from accounts.admin.lists import SEARCH_HELP, DayFilter, LinkedFilter, customer, in_utc, search_fields, status
from accounts.models import Account, AccountEvent, ExpiryRun
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


class ExpiredOnFilter(DayFilter):
    """The accounts that still point to a run of a day."""

    title = "runs"
    parameter_name = "expired_on"
    choice = "Expired by the runs of {}"

    def filtered(self, queryset: QuerySet[Account], key: str) -> QuerySet[Account]:
        """By the runs of the day."""
        return queryset & overview.expired_on(date.fromisoformat(key))


class EndsOnFilter(DayFilter):
    """The accounts whose trial ends on a day to come, or in the rest of today."""

    title = "end"
    parameter_name = "ends_on"
    choice = "Trial ends on {}"

    def filtered(self, queryset: QuerySet[Account], key: str) -> QuerySet[Account]:
        """Those on trial, as the chart counts them."""
        return queryset & overview.ending_on(date.fromisoformat(key), now=timezone.now())


class ReturnedFilter(LinkedFilter):
    """The accounts that an undo of a run put back on trial, whatever became of them since."""

    title = "undo"
    parameter_name = "returned_from"
    choice = "Put back on trial by an undo of run {}"

    def filtered(self, queryset: QuerySet[Account], key: str) -> QuerySet[Account]:
        """By the events of the undo."""
        undone = AccountEvent.objects.filter(kind=AccountEvent.Kind.UNDONE, run=int(key))
        return queryset.filter(pk__in=undone.values("account"))


@admin.register(Account)
class AccountAdmin(ActionsAdmin):
    """Shows the status of each account and the run that expired it; on its page, all that is recorded of it."""

    list_display = ("customer", "state", "time_left", "ends", "run")
    list_display_links = ("customer",)
    list_filter = ("status", TrialFilter, RunFilter, ExpiredOnFilter, EndsOnFilter, ReturnedFilter)
    search_fields = search_fields("user__")
    search_help_text = SEARCH_HELP
    fields = ("user", "status", "created_at", "ends", "run")
    readonly_fields = ("created_at", "ends", "run")
    change_form_template = "admin/accounts/account/change_form.html"

    class Media:
        css: ClassVar = {"all": ["accounts/account.css"]}

    created_at = in_utc("created")
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
        return story.linked(account.expiry_run) if account.expiry_run else NOTHING

    def get_queryset(self, request: HttpRequest) -> QuerySet[Account]:
        """With the user, whom every page names, and the run."""
        return super().get_queryset(request).select_related("user", "expiry_run")

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        """The account's story, and buttons for the actions that its status allows."""
        account, now = context["original"], timezone.now()
        mails = request.user.has_perm("accounts.view_notice")
        name = story.linked if request.user.has_perm("accounts.view_expiryrun") else story.plain
        changes = story.steps(account)
        context |= {
            "title": customer(account.user),
            "subtitle": None,
            "verdict": story.verdict(account, changes, now=now, name=name),
            "timeline": story.timeline(account, changes, mails=mails, now=now, name=name),
            "mails": mails,
            "may_operate": self.has_operate_permission(request),
            "allowed": {kind.value for kind, statuses in services.ALLOWED.items() if account.status in statuses},
            "days": ExtendForm()["days"],
            "checkbox": ACTION_CHECKBOX_NAME,
        }
        return super().render_change_form(request, context, *args, **kwargs)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponseRedirect:
        """The timeline on the account's page is its history."""
        return HttpResponseRedirect(reverse("admin:accounts_account_change", args=[object_id]))
