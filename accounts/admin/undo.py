"""The admin's page that undoes a run: what that would change, the choice of what becomes of the trials, the undo."""

from datetime import datetime
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone

from accounts import services
from accounts.admin.actions import days_field
from accounts.admin.lists import ReadOnlyAdmin
from accounts.log import one_line
from accounts.models import Account, ExpiryRun
from accounts.words import plural


class UndoForm(forms.Form):
    """The choice of what an undo does to the ends of the trials."""

    ends = forms.ChoiceField(
        label="Ends of the trials",
        choices=[("extend", "Extend the trials"), ("leave", "Leave the ends as they are")],
        widget=forms.RadioSelect,
        initial="extend",
    )
    days = days_field(required=False)

    def clean(self) -> dict[str, Any]:
        """Require the days where they count."""
        if self.cleaned_data.get("ends") == "extend" and self.cleaned_data.get("days", 0) is None:
            self.add_error("days", "Enter by how many days, or leave the ends as they are.")
        return self.cleaned_data

    @property
    def extend_days(self) -> int | None:
        """The days of the extension; None without one."""
        return self.cleaned_data["days"] if self.cleaned_data["ends"] == "extend" else None


class UndoAdmin(ReadOnlyAdmin):
    """Adds the page that undoes a run to the pages of runs."""

    def has_undo_permission(self, request: HttpRequest) -> bool:
        """A separate permission, because one click changes many accounts."""
        return request.user.has_perm("accounts.undo_expiryrun")

    def get_urls(self) -> list[URLPattern]:
        """The default pages, and the page that confirms an undo."""
        undo = path("<int:pk>/undo/", self.admin_site.admin_view(self.undo), name="accounts_expiryrun_undo")
        return [undo, *super().get_urls()]

    def undo(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Show what undoing the run would do; undo it on POST."""
        run = get_object_or_404(ExpiryRun, pk=pk)
        if not self.has_view_permission(request, run) or not self.has_undo_permission(request):
            raise PermissionDenied
        now = timezone.now()
        form = UndoForm(request.POST if request.method == "POST" else None)
        if form.is_valid():
            return self._undo(request, run, now, form.extend_days)
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
        extended = f", extended by {plural(days, 'day')}" if days else ""
        done = f"Undone: {plural(undone, 'account')} back on trial{extended}."
        self.log_change(request, run, done)
        self.message_user(request, done, messages.SUCCESS)
        if left := Account.objects.still_expired_by(run).count():
            self.message_user(
                request,
                f"{plural(left, 'account')} left out: locked by another transaction. Undo again for the rest.",
                messages.WARNING,
            )
        return page
