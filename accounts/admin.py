"""The admin: users can be edited; accounts and the ledger are looked at, and change through the services only."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.contrib.auth.admin import UserAdmin
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db import DatabaseError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.text import Truncator
from django_celery_beat.models import PeriodicTask

from accounts import notices, overview, services, tasks
from accounts.models import Account, ExpiryRun, Notice
from accounts.templatetags.durations import duration
from users.models import User

if TYPE_CHECKING:
    AnyModelAdmin = admin.ModelAdmin[Any]
    AnyUserAdmin = UserAdmin[User]
    AnyPaginator = Paginator[Any]
else:
    AnyModelAdmin = admin.ModelAdmin
    AnyUserAdmin = UserAdmin
    AnyPaginator = Paginator


MINUTES = "%Y-%m-%d %H:%M"
NOTHING = "-"


class CappedPaginator(AnyPaginator):
    """Counts, and pages through, the first 10,000 rows only: beyond them a search or a filter is the way."""

    MOST = 10_000

    @cached_property
    def count(self) -> int:
        """The number of rows, ``MOST`` at most."""
        rows: QuerySet[Any] = self.object_list  # type: ignore[assignment]
        return rows.order_by()[: self.MOST].count()

    @property
    def is_capped(self) -> bool:
        """Whether there may be more rows than are counted."""
        return self.count == self.MOST


class LargeTableAdmin(AnyModelAdmin):
    """A list that stays fast with millions of rows: nothing counts or sorts all of them."""

    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # each would be a count
    ordering = ("-pk",)
    sortable_by = ()

    class Media:
        css: ClassVar = {"all": ["accounts/admin.css"]}


class LookOnlyAdmin(LargeTableAdmin):
    """Shows rows, and has no form to change them."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Rows come from the application."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Rows are changed by the services, which know the rule."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """What happened stays on record."""
        return False


@admin.register(User)
class LargeUserAdmin(LargeTableAdmin, AnyUserAdmin):
    """Django's own, but found by the whole e-mail address or user name, which indexes serve."""

    search_fields = ("email__iexact", "username__exact")
    search_help_text = "The whole e-mail address, in upper or lower case, or the exact user name."


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
            case "expired":  # by way of their runs, for which there is an index
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
        widget=forms.NumberInput(attrs={"style": "width: 5em"}),
    )


Verb = Callable[[int], bool]
"""A service for the account of that key; False when it refused."""


@admin.register(Account)
class AccountAdmin(LookOnlyAdmin):
    """Where each account stands, which run expired it, and what support may do about it."""

    list_display = ("customer", "status", "days_left", "ends", "run")
    list_display_links = ("customer",)
    list_filter = ("status", TrialFilter)
    list_select_related = ("user", "expiry_run")
    search_fields = ("user__email__iexact",)
    search_help_text = "The whole e-mail address, in upper or lower case."
    fields = ("user", "status", "created", "trial_ends_at", "days_left", "trial_expired_at", "expiry_run")
    readonly_fields = ("days_left",)
    action_form = AccountActionForm
    actions = ("extend", "activate", "cancel")

    MOST_AT_ONCE = 1000
    """Accounts that an action takes; more would outlast the request."""

    @admin.display(description="customer")
    def customer(self, account: Account) -> str:
        """The e-mail address, or the user name of somebody who has none."""
        return account.user.email or account.user.username

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
        """Who may change accounts may do so by these actions."""
        return request.user.has_perm("accounts.change_account")

    @admin.action(description="Extend trial", permissions=["operate"])
    def extend(self, request: HttpRequest, accounts: QuerySet[Account]) -> None:
        """Let trials end later; an expired account is back on trial."""
        days, now = int(request.POST["days"]), timezone.now()
        self._each(
            request,
            accounts,
            f"extended by {days} days",
            lambda pk: services.extend_trial(account_id=pk, days=days, now=now),
        )

    @admin.action(description="Activate", permissions=["operate"])
    def activate(self, request: HttpRequest, accounts: QuerySet[Account]) -> None:
        """Make trialing and expired accounts active."""
        self._each(request, accounts, "activated", lambda pk: services.activate(account_id=pk))

    @admin.action(description="Cancel", permissions=["operate"])
    def cancel(self, request: HttpRequest, accounts: QuerySet[Account]) -> None:
        """Cancel accounts."""
        self._each(request, accounts, "canceled", lambda pk: services.cancel(account_id=pk))

    def _each(self, request: HttpRequest, accounts: QuerySet[Account], done: str, verb: Verb) -> None:
        chosen = list(accounts[: self.MOST_AT_ONCE + 1])
        if len(chosen) > self.MOST_AT_ONCE:
            self.message_user(
                request,
                f"More than {self.MOST_AT_ONCE:,} accounts are selected. Nothing was changed: select fewer.",
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


class UndoForm(forms.Form):
    """How to undo a run."""

    extend_days = forms.IntegerField(
        label="Also extend by days",
        required=False,
        min_value=1,
        max_value=services.LONGEST_EXTENSION,
        help_text="Counted from the end of the trial or from now, whichever is later. Empty: trials end when they did.",
    )


@admin.register(ExpiryRun)
class ExpiryRunAdmin(LookOnlyAdmin):
    """The ledger: every run of either path, and its undo."""

    list_display = (
        "id",
        "path",
        "status",
        "at",
        "duration",
        "due_count",
        "expired_accounts",
        "rate",
        "longest",
        "short_error",
    )
    list_filter = ("path", "status")
    fields = (
        *("path", "status", "as_of", "started", "finished", "duration", "due_count", "expired_accounts", "rate"),
        *("slice_count", "longest", "error", "undone_count", "undone_at", "undone_by", "host", "task_id"),
    )
    readonly_fields = ("duration", "expired_accounts", "rate", "longest")
    change_form_template = "admin/accounts/expiryrun/change_form.html"

    @admin.display(description="as of")
    def at(self, run: ExpiryRun) -> str:
        """The moment in UTC, short enough for a list."""
        return f"{run.as_of:{MINUTES}}"

    @admin.display
    def duration(self, run: ExpiryRun) -> str:
        """From start to end, by the database's clock."""
        return duration(run.finished - run.started) if run.finished else NOTHING

    @admin.display(description="expired")
    def expired_accounts(self, run: ExpiryRun) -> str:
        """How many, and a link to those that still point to the run."""
        url = reverse("admin:accounts_account_changelist", query={"expiry_run": run.pk})
        return format_html('<a href="{}">{}</a>', url, f"{run.expired_count:,}") if run.expired_count else "0"

    @admin.display(description="accounts/s")
    def rate(self, run: ExpiryRun) -> str:
        """Accounts expired in a second."""
        if not run.expired_count or not run.finished or run.finished == run.started:
            return NOTHING
        return f"{run.expired_count / (run.finished - run.started).total_seconds():,.0f}"

    @admin.display(description="longest slice")
    def longest(self, run: ExpiryRun) -> str:
        """The longest any account stayed locked."""
        return duration(run.longest_slice) if run.longest_slice else NOTHING

    @admin.display(description="error")
    def short_error(self, run: ExpiryRun) -> str:
        """The beginning of it; the run's own page has all."""
        return Truncator(run.error).chars(60)

    def has_undo_permission(self, request: HttpRequest) -> bool:
        """A permission of its own: one click changes very many accounts."""
        return request.user.has_perm("accounts.undo_expiryrun")

    def get_urls(self) -> list[URLPattern]:
        """The usual pages, and the one that asks before an undo."""
        undo = path("<int:pk>/undo/", self.admin_site.admin_view(self.undo), name="accounts_expiryrun_undo")
        return [undo, *super().get_urls()]

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        """A run's own page leads on to the undo, and to the schedule that started it."""
        run = context["original"]
        something_to_undo = run.status == ExpiryRun.Status.RUNNING or run.expired_count > run.undone_count
        context["undo"] = something_to_undo and self.has_undo_permission(request)
        if run.path == ExpiryRun.Path.CELERY:
            context["entry"] = PeriodicTask.objects.filter(task=tasks.expire_trials.name).first()
        return super().render_change_form(request, context, *args, **kwargs)

    def undo(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Say what undoing the run would do, and on POST do it."""
        run = get_object_or_404(ExpiryRun, pk=pk)
        if not self.has_view_permission(request, run) or not self.has_undo_permission(request):
            raise PermissionDenied
        now = timezone.now()
        form = UndoForm(request.POST if request.method == "POST" else None)
        if form.is_valid():
            return self._undo(request, run, now, form.cleaned_data["extend_days"])
        context = {
            **self.admin_site.each_context(request),
            "title": "Undo a run",
            "subtitle": str(run),
            "opts": self.opts,
            "run": run,
            "form": form,
            "preview": services.preview_undo(run=run, now=now),
        }
        return TemplateResponse(request, "admin/accounts/expiryrun/undo.html", context)

    def _undo(self, request: HttpRequest, run: ExpiryRun, now: datetime, days: int | None) -> HttpResponse:
        page = HttpResponseRedirect(reverse("admin:accounts_expiryrun_change", args=[run.pk]))
        try:
            undone = services.undo_run(run=run, now=now, by=request.user.get_username(), extend_days=days)
        except DatabaseError as error:
            self.log_change(request, run, f"Undo began, and failed: {error}")
            self.message_user(
                request,
                f"The undo failed: {error}. What was put back stays so, and is counted. Undo again for the rest.",
                messages.ERROR,
            )
            return page
        done = f"Undone: {undone:,} accounts are back on trial" + (f", extended by {days} days." if days else ".")
        self.log_change(request, run, done)
        self.message_user(request, done, messages.SUCCESS)
        if left := Account.objects.still_expired_by(run).count():
            self.message_user(
                request, f"{left:,} were locked by somebody else. Undo again for the rest.", messages.WARNING
            )
        return page


@admin.register(Notice)
class NoticeAdmin(LookOnlyAdmin):
    """The mails to customers: what became of each, and another try for those that failed."""

    list_display = ("id", "customer", "kind", "days_before", "ends", "status", "attempts", "short_error", "when")
    list_filter = ("status", "kind")
    list_select_related = ("account__user",)
    search_fields = ("account__user__email__iexact",)
    search_help_text = "The whole e-mail address, in upper or lower case."
    actions = ("retry",)

    @admin.display(description="customer")
    def customer(self, notice: Notice) -> str:
        """Whom it is for."""
        return notice.account.user.email or notice.account.user.username

    @admin.display(description="trial ends at")
    def ends(self, notice: Notice) -> str:
        """The end it speaks of, in UTC."""
        return f"{notice.trial_ends_at:{MINUTES}}"

    @admin.display(description="sent, or next attempt")
    def when(self, notice: Notice) -> str:
        """When it was sent or, while pending, will be tried."""
        moment = notice.sent or (notice.next_attempt if notice.status == Notice.Status.PENDING else None)
        return f"{moment:{MINUTES}}" if moment else NOTHING

    @admin.display(description="error")
    def short_error(self, notice: Notice) -> str:
        """The beginning of it; the notice's own page has all."""
        return Truncator(notice.last_error).chars(60)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Who may change notices may have them sent."""
        return request.user.has_perm("accounts.change_notice")

    @admin.action(description="Try again now", permissions=["operate"])
    def retry(self, request: HttpRequest, chosen: QuerySet[Notice]) -> None:
        """Have the next delivery take up mails that failed, however often they did."""
        now = timezone.now()
        retried = 0
        for notice in chosen:
            if notices.retry(notice_id=notice.pk, now=now):
                retried += 1
                self.log_change(request, notice, "To be tried again.")
        if retried:
            self.message_user(request, f"{retried} to be sent by the next delivery.", messages.SUCCESS)
        if refused := len(chosen) - retried:
            self.message_user(
                request, f"{refused} left as they were: sent already, or no longer true.", messages.WARNING
            )
