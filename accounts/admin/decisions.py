"""The admin's pages of decisions: run now, allow once, pause and resume, each confirmed and with a reason."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from accounts import decisions, ledger, services
from accounts.admin import run_now
from accounts.admin.lists import ReadOnlyAdmin, in_utc
from accounts.models import Decision, ExpiryRun
from accounts.words import NOTHING, moment, plural


class DecisionForm(forms.Form):
    """Why."""

    reason = forms.CharField(max_length=500, help_text="For the history, which names you too.")


class PauseForm(DecisionForm):
    """Until when, and why."""

    until = forms.DateTimeField(
        label="Until, in UTC",
        widget=forms.DateTimeInput({"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
        help_text=f"The pause ends by itself then, {decisions.LONGEST_PAUSE.days} days from now at the latest.",
    )
    field_order = ("until", "reason")

    def clean_until(self) -> datetime:
        """The moment; refuses one that is past or too far away."""
        until: datetime = self.cleaned_data["until"]
        now = ledger.database_now()
        if not decisions.may_last(until=until, now=now):
            raise forms.ValidationError(
                f"A pause ends between now, {moment(now)}, and {moment(now + decisions.LONGEST_PAUSE)}."
            )
        return until


Act = Callable[[dict[str, Any]], str]
"""Carries out a confirmed decision, from the cleaned form; returns a sentence about what happened."""


@admin.register(Decision)
class DecisionAdmin(ReadOnlyAdmin):
    """The history of decisions, and the pages that ask for one."""

    list_display = ("when", "kind", "by", "reason", "effect")
    list_display_links = None
    list_filter = ("kind",)
    list_select_related = ("run",)
    fields = ("when", "kind", "by", "reason", "effect")
    readonly_fields = ("when", "effect")
    when = in_utc("at", "when")

    @admin.display
    def effect(self, decision: Decision) -> str:
        """How many accounts were allowed, until when it holds by itself, and the run that was started or used it."""
        words = [f"Up to {plural(decision.max_accounts, 'account')}"] if decision.max_accounts else []
        words += [f"until {moment(decision.until)}"] if decision.until else []
        if not decision.run:
            return ", ".join(words) or NOTHING
        url = reverse("admin:accounts_expiryrun_change", args=[decision.run.pk])
        return format_html(
            '<a href="{}">Run {}</a>{}',
            url,
            decision.run.pk,
            "".join(f", {word[0].lower()}{word[1:]}" for word in words),
        )

    def get_urls(self) -> list[URLPattern]:
        """The default pages, and one for each decision."""

        def page(route: str, name: str, view: Callable[..., HttpResponse]) -> URLPattern:
            return path(route, self.admin_site.admin_view(view), name=f"accounts_decision_{name}")

        return [
            page("run/", "run", self.run_now),
            page("pause/", "pause", self.pause),
            page("resume/", "resume", self.resume),
            page("allow/<int:pk>/", "allow", self.allow),
            *super().get_urls(),
        ]

    def run_now(self, request: HttpRequest) -> HttpResponse:
        """Start a run."""
        now = ledger.database_now()
        limit = services.fuse_limit()
        due = services.due_to_tell(now, limit)
        return self._confirm(
            request,
            "run",
            lambda data: run_now.start(by=request.user.get_username(), reason=data["reason"]),
            title="Run now",
            due=_are_due(due),
            by_worker=run_now.worker_answers() if request.method == "GET" else None,
            seconds=run_now.SECONDS,
            limit=limit,
            refused=limit is not None and due > limit and not decisions.allowance(now=now, due=due),
            pause=decisions.paused(now=now),
        )

    def pause(self, request: HttpRequest) -> HttpResponse:
        """Pause the runs of both paths."""

        def act(data: dict[str, Any]) -> str:
            decision = decisions.pause(until=data["until"], by=request.user.get_username(), reason=data["reason"])
            return f"Paused until {moment(decision.until)}. No run starts before, by either path."

        tomorrow = (ledger.database_now() + timedelta(days=1)).astimezone(UTC)
        return self._confirm(
            request,
            "pause",
            act,
            PauseForm,
            title="Pause trial expiry",
            initial={"until": tomorrow.replace(minute=0, second=0, microsecond=0)},
            pause=decisions.paused(now=ledger.database_now()),
        )

    def resume(self, request: HttpRequest) -> HttpResponse:
        """End the pause."""

        def act(data: dict[str, Any]) -> str:
            decisions.resume(by=request.user.get_username(), reason=data["reason"])
            return "Resumed. The next tick expires what is due, or run now."

        now = ledger.database_now()
        return self._confirm(
            request,
            "resume",
            act,
            title="Resume trial expiry",
            pause=decisions.paused(now=now),
            due=_are_due(services.due_to_tell(now)),
        )

    def allow(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Allow one run to expire as many accounts as were due when the fuse refused this one."""
        run = get_object_or_404(ExpiryRun, pk=pk)

        def act(data: dict[str, Any]) -> str:
            decision = decisions.allow(run=run, by=request.user.get_username(), reason=data["reason"])
            most = plural(decision.max_accounts or 0, "account")
            return f"Allowed: one run, by either path, may expire up to {most} until {moment(decision.until)}."

        now = ledger.database_now()
        return self._confirm(
            request,
            "allow",
            act,
            title="Allow once",
            run=run,
            due=_are_due(services.due_to_tell(now)),
            possible=decisions.can_be_allowed(run),
            allowed=decisions.allowance(now=now, due=run.due_count),
        )

    def _confirm(
        self,
        request: HttpRequest,
        name: str,
        act: Act,
        form_class: type[DecisionForm] = DecisionForm,
        *,
        initial: dict[str, Any] | None = None,
        **context: Any,
    ) -> HttpResponse:
        permission = "pause" if name == "resume" else name
        if not request.user.has_perm(f"accounts.{permission}_expiry"):
            raise PermissionDenied
        form = form_class(request.POST if request.method == "POST" else None, initial=initial)
        if form.is_valid():
            try:
                self.message_user(request, act(form.cleaned_data), messages.SUCCESS)
            except decisions.NotPossible as why:
                self.message_user(request, str(why), messages.ERROR)
            return redirect("admin:index")
        return TemplateResponse(
            request,
            f"admin/accounts/decision/{name}.html",
            {**self.admin_site.each_context(request), "opts": self.opts, "form": form, **context},
        )


def _are_due(count: int) -> str:
    return plural(count, "account is", "accounts are", most=services.COUNTED)
