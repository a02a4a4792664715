"""The admin's page that undoes a run: what that would change, the choice of what becomes of the trials, the undo.

A worker of Celery does it where one lives. Else the web process does it in steps, each a request of a few seconds, and
the page goes on by itself.
"""

import time
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError
from django.forms.widgets import HiddenInput
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone

from accounts import ledger, services
from accounts.admin import run_now
from accounts.admin.actions import days_field
from accounts.admin.lists import ReadOnlyAdmin
from accounts.events import admin_user
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
    done = forms.IntegerField(min_value=1, required=False, widget=HiddenInput)
    """How many accounts the steps before this one put back. Empty: this is the first step."""

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
            return self._undo(request, run, now, form)
        preview = services.preview_undo(run=run, now=now, look_at=services.COUNTED)
        return self._page(request, run, "undo", form=form, preview=preview)

    def _page(self, request: HttpRequest, run: ExpiryRun, name: str, **more: Any) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": "Undo a run",
            "subtitle": str(run),
            "opts": self.opts,
            "run": run,
            **more,
        }
        return TemplateResponse(request, f"admin/accounts/expiryrun/{name}.html", context)

    def _undo(self, request: HttpRequest, run: ExpiryRun, now: datetime, form: UndoForm) -> HttpResponse:
        """Hand the undo to a worker, or take one step of it; the last step leads to the page of the run."""
        page = HttpResponseRedirect(reverse("admin:accounts_expiryrun_change", args=[run.pk]))
        by, days, before = admin_user(request.user), form.extend_days, form.cleaned_data["done"] or 0
        if not before and _handed_to_worker(run, now=now, by=by, days=days):
            told = "A worker was told to undo this run."
            self.log_change(request, run, told)
            self.message_user(request, f"{told} This page shows how far it is.", messages.SUCCESS)
            return page
        end = time.monotonic() + run_now.SECONDS
        try:
            undone = services.undo_run(run=run, now=now, by=by, extend_days=days, stop=lambda: time.monotonic() > end)
        except DatabaseError as error:
            reason = one_line(str(error), most=500)
            self.log_change(request, run, f"Undo began, and failed: {reason}")
            self.message_user(
                request,
                f"The undo failed: {reason}. The accounts that were put back are counted. Undo again for the rest.",
                messages.ERROR,
            )
            return page
        left = Account.objects.still_expired_by(run)[: services.COUNTED].count()
        if left and undone and time.monotonic() > end:
            if not before:
                self.log_change(request, run, "Undo began, in steps.")
            return self._page(request, run, "undoing", data=form.cleaned_data, done=before + undone)
        extended = f", extended by {plural(days, 'day')}" if days else ""
        done = f"Undone: {plural(before + undone, 'account')} back on trial{extended}."
        self.log_change(request, run, done)
        self.message_user(request, done, messages.SUCCESS)
        if left:
            self.message_user(
                request,
                f"{plural(left, 'account')} left out: locked by another transaction. Undo again for the rest.",
                messages.WARNING,
            )
        return page


def _handed_to_worker(run: ExpiryRun, *, now: datetime, by: str, days: int | None) -> bool:
    if not run_now.worker_answers():
        return False
    from accounts import tasks
    from accounts.admin import schedule

    ledger.mark_undone(run, by=by)  # at once, so that it expires no more, and its page says so
    return schedule.send_to_worker(tasks.undo_run, run_id=run.pk, by=by, now=now.isoformat(), extend_days=days)


def being_undone(run: ExpiryRun) -> bool:
    """Whether an undo of the run, by a worker or another process, has put accounts back lately and is not done."""
    if run.status != ExpiryRun.Status.UNDONE or run.undone_at is None:
        return False
    lately = ledger.database_now() - ledger.ALIVE_FOR
    return max(run.undone_at, run.heartbeat) > lately and Account.objects.still_expired_by(run).exists()
