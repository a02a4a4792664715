"""The admin's pages of runs: the ledger of both paths, and the undo of a run."""

from datetime import datetime
from typing import Any

from django import forms
from django.apps import apps
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html

from accounts import services
from accounts.admin.lists import MINUTES, NOTHING, ReadOnlyAdmin
from accounts.log import one_line
from accounts.models import Account, ExpiryRun
from accounts.words import duration


class UndoForm(forms.Form):
    """The options of an undo."""

    extend_days = forms.IntegerField(
        label="Also extend by days",
        required=False,
        min_value=1,
        max_value=services.LONGEST_EXTENSION,
        help_text="Counted from the end of the trial or from now, whichever is later. Empty: trials end when they did.",
    )


@admin.register(ExpiryRun)
class ExpiryRunAdmin(ReadOnlyAdmin):
    """Shows every run of either path, and undoes one."""

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
        *("path", "status", "as_of", "cutoff", "started", "finished", "duration", "due_count", "expired_accounts"),
        *("rate", "slice_count", "longest", "error", "undone_count", "undone_at", "undone_by", "host", "task_id"),
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
        """The number of accounts, with a link to those that still point to the run."""
        url = reverse("admin:accounts_account_changelist", query={"expiry_run": run.pk})
        return format_html('<a href="{}">{}</a>', url, f"{run.expired_count:,}") if run.expired_count else "0"

    @admin.display(description="accounts/s")
    def rate(self, run: ExpiryRun) -> str:
        """Accounts expired per second."""
        if not run.expired_count or not run.finished or run.finished == run.started:
            return NOTHING
        return f"{run.expired_count / (run.finished - run.started).total_seconds():,.0f}"

    @admin.display(description="longest slice")
    def longest(self, run: ExpiryRun) -> str:
        """The longest time that any account was locked."""
        return duration(run.longest_slice) if run.longest_slice else NOTHING

    @admin.display(description="error")
    def short_error(self, run: ExpiryRun) -> str:
        """The beginning of the error. The page of the run shows all of it."""
        return one_line(run.error, most=60)

    def has_undo_permission(self, request: HttpRequest) -> bool:
        """A separate permission, because one click changes many accounts."""
        return request.user.has_perm("accounts.undo_expiryrun")

    def get_urls(self) -> list[URLPattern]:
        """The default pages, and the page that confirms an undo."""
        undo = path("<int:pk>/undo/", self.admin_site.admin_view(self.undo), name="accounts_expiryrun_undo")
        return [undo, *super().get_urls()]

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        """Add links to the undo and to the schedule that started the run."""
        run = context["original"]
        something_to_undo = run.status == ExpiryRun.Status.RUNNING or run.expired_count > run.undone_count
        context["undo"] = something_to_undo and self.has_undo_permission(request)
        if run.path == ExpiryRun.Path.CELERY and apps.is_installed("django_celery_beat"):
            from accounts.admin import schedule

            context["entry"] = schedule.entry()
        return super().render_change_form(request, context, *args, **kwargs)

    def undo(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Show what undoing the run would do; undo it on POST."""
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
            reason = one_line(str(error), most=500)
            self.log_change(request, run, f"Undo began, and failed: {reason}")
            self.message_user(
                request,
                f"The undo failed: {reason}. The accounts that were put back are counted. Undo again for the rest.",
                messages.ERROR,
            )
            return page
        done = f"Undone: {undone:,} accounts are back on trial" + (f", extended by {days} days." if days else ".")
        self.log_change(request, run, done)
        self.message_user(request, done, messages.SUCCESS)
        if left := Account.objects.still_expired_by(run).count():
            self.message_user(
                request, f"{left:,} were locked by another transaction. Undo again for the rest.", messages.WARNING
            )
        return page
