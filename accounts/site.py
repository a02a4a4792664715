"""The admin site: Django's own, which begins with the overview."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils import timezone

from accounts import overview


class OperatorSite(admin.AdminSite):
    """Shows the overview, above the list of apps, to whoever may look at accounts and at runs."""

    site_header = site_title = "Trial expiry"
    index_title = "Overview"
    index_template = "admin/overview.html"

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """The first page."""
        context = dict(extra_context or {})
        if request.user.has_perms(["accounts.view_account", "accounts.view_expiryrun"]):
            context["overview"] = overview.look(now=timezone.now())
        return super().index(request, context)
