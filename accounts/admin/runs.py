"""The admin's pages of runs, the ledger of both paths."""

from collections.abc import Iterable
from typing import Any

from django.apps import apps
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html

from accounts import decisions
from accounts.admin.lists import in_utc, status
from accounts.admin.undo import UndoAdmin, being_undone
from accounts.models import Account, ExpiryRun
from accounts.words import NOTHING, duration, number


class HappenedFilter(admin.SimpleListFilter):
    """Leaves out the runs that found nothing to do, which are most of them."""

    title = "what happened"
    parameter_name = "happened"

    def lookups(self, request: HttpRequest, model_admin: object) -> Iterable[tuple[str, str]]:
        """The one choice beside "All"."""
        return [("something", "Expired somebody or went wrong")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[ExpiryRun]) -> QuerySet[ExpiryRun]:
        """The runs that expired an account, and those that did not succeed."""
        if self.value() != "something":
            return queryset
        return queryset.exclude(expired_count=0, status__in=[ExpiryRun.Status.SUCCEEDED, ExpiryRun.Status.RUNNING])


@admin.register(ExpiryRun)
class ExpiryRunAdmin(UndoAdmin):
    """Shows every run of either path."""

    list_display = ("run", "path", "at", "state", "outcome", "duration")
    list_filter = (HappenedFilter, "status", "path")
    readonly_fields = (
        *("as_of_moment", "cutoff_at", "looked_from", "started_at", "finished_at", "undone_moment"),
        *("due", "expired_accounts", "undone", "rate", "duration", "longest"),
    )
    change_form_template = "admin/accounts/expiryrun/change_form.html"

    at = in_utc("as_of")
    as_of_moment = in_utc("as_of", seconds=True)
    cutoff_at = in_utc("cutoff", seconds=True)
    looked_from = in_utc("floor", seconds=True)
    started_at = in_utc("started", seconds=True)
    finished_at = in_utc("finished", seconds=True)
    undone_moment = in_utc("undone_at", seconds=True)

    def get_fieldsets(self, request: HttpRequest, run: ExpiryRun | None = None) -> Any:
        """The fields by what they tell; those of an undo once there was one."""
        undo = ("Undo", {"fields": ("undone", "undone_moment", "undone_by")})
        return [
            (None, {"fields": ("status", "path", "error")}),
            (
                "Accounts",
                {"fields": ("as_of_moment", "cutoff_at", "looked_from", "due", "expired_accounts", "skipped")},
            ),
            *([undo] if run and run.undone_at else []),
            (
                "Performance",
                {
                    "fields": (
                        *("started_at", "finished_at", "duration", "rate"),
                        *("slice_count", "slice_size", "throttle", "jobs", "longest"),
                    )
                },
            ),
            ("Where it ran", {"fields": ("host", "task_id")}),
        ]

    @admin.display(description="run")
    def run(self, run: ExpiryRun) -> str:
        """The number of the run, without thousands separated, as commands take it."""
        return str(run.pk)

    @admin.display(description="status")
    def state(self, run: ExpiryRun) -> str:
        """The status, and the beginning of the error. The page of the run shows all of it."""
        return status(run, run.error)

    @admin.display(description="accounts")
    def outcome(self, run: ExpiryRun) -> str:
        """How many were expired; of how many, where that differs; and how many are back on trial."""
        if not run.due_count and not run.expired_count:
            return "none due" if run.status == ExpiryRun.Status.SUCCEEDED else "none expired"
        of_due = f" of {number(run.due_count)}" if run.due_count != run.expired_count else ""
        undone = format_html(", {} undone", self.undone(run)) if run.undone_count else ""
        return format_html("{}{} expired{}", self.expired_accounts(run), of_due, undone)

    @admin.display
    def duration(self, run: ExpiryRun) -> str:
        """From start to end, by the database's clock."""
        return duration(run.finished - run.started if run.finished else None)

    @admin.display
    def due(self, run: ExpiryRun) -> str:
        """Accounts that were due when the run began; more than a million are counted as they expire."""
        return number(run.due_count)

    @admin.display(description="expired")
    def expired_accounts(self, run: ExpiryRun) -> str:
        """The number of accounts, with a link to those that still point to the run: those that no undo put back."""
        if run.expired_count == run.undone_count:
            return number(run.expired_count)
        url = reverse("admin:accounts_account_changelist", query={"expiry_run": run.pk})
        return format_html('<a href="{}">{}</a>', url, number(run.expired_count))

    @admin.display
    def undone(self, run: ExpiryRun) -> str:
        """Accounts that an undo put back on trial, with a link to them."""
        url = reverse("admin:accounts_account_changelist", query={"returned_from": run.pk})
        return format_html('<a href="{}">{}</a>', url, number(run.undone_count)) if run.undone_count else "0"

    @admin.display(description="accounts/s")
    def rate(self, run: ExpiryRun) -> str:
        """Accounts expired per second."""
        if not run.expired_count or not run.finished or run.finished == run.started:
            return NOTHING
        return number(run.expired_count / (run.finished - run.started).total_seconds())

    @admin.display(description="longest slice")
    def longest(self, run: ExpiryRun) -> str:
        """The longest time that any account was locked."""
        return duration(run.longest_slice or None)

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        """Add links to the undo and to the schedule that started the run."""
        run = context["original"]
        something_to_undo = run.status == ExpiryRun.Status.RUNNING or Account.objects.still_expired_by(run).exists()
        context["undo"] = something_to_undo and self.has_undo_permission(request)
        context["being_undone"] = being_undone(run)
        context["allow"] = request.user.has_perm("accounts.allow_expiry") and decisions.can_be_allowed(run)
        if run.path == ExpiryRun.Path.CELERY and apps.is_installed("django_celery_beat"):
            from accounts.admin import schedule

            context["entry"] = schedule.entry()
        return super().render_change_form(request, context, *args, **kwargs)
