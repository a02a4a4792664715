"""The admin site: Django's own, with the overview as its index, and status 400 for invalid values in a request."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from django.contrib import admin
from django.core.exceptions import BadRequest
from django.db import DataError
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import path

from accounts.ledger import database_now

View = TypeVar("View", bound=Callable[..., HttpResponseBase])


class OperatorSite(admin.AdminSite):
    """Shows the overview, above the list of apps, to users with the permission to view accounts and runs."""

    site_header = site_title = "Trial expiry"
    index_title = "Overview"
    index_template = "admin/overview.html"

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """The index page."""
        from accounts.admin import overview  # imported late, because accounts.admin registers with this site

        context = dict(extra_context or {})
        if request.user.has_perms(["accounts.view_account", "accounts.view_expiryrun"]):
            context["overview"] = overview.collect(now=database_now())
        return super().index(request, context)

    def get_urls(self) -> list[Any]:
        """The admin's pages, and the page that says what to do."""
        from accounts.admin import runbook

        return [path("what-to-do/", self.admin_view(runbook.page), name="what_to_do"), *super().get_urls()]

    def admin_view(self, view: View, cacheable: bool = False) -> View:
        """Guard the lists of every model, including those of other apps."""
        return super().admin_view(refuse_junk(view) if view.__name__ == "changelist_view" else view, cacheable)


def refuse_junk(view: View) -> View:
    """Answer 400 when a value in the request is invalid for its column.

    Django does so for most lookups, but not for those that fail in the database, such as the year 99999, nor for the
    keys that an action selects.
    """

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return view(request, *args, **kwargs)
        except (ValueError, OverflowError, DataError) as error:
            raise BadRequest("The list cannot be filtered by, or the action applied to, these values.") from error

    return cast("View", guarded)
