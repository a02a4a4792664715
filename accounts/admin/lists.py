"""Base classes of the admin's lists: fast with millions of rows, and read-only where the services write the rows."""

from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property

if TYPE_CHECKING:
    AnyModelAdmin = admin.ModelAdmin[Any]
    AnyPaginator = Paginator[Any]
else:
    AnyModelAdmin = admin.ModelAdmin
    AnyPaginator = Paginator

MINUTES = "%Y-%m-%d %H:%M"
NOTHING = "-"
EMAIL_FIELD = get_user_model().get_email_field_name()
EMAIL_HELP = "The whole e-mail address, in upper or lower case."


def customer(user: AbstractBaseUser) -> str:
    """The e-mail address of the user, or the user name where there is none."""
    return getattr(user, EMAIL_FIELD, "") or user.get_username()


class CappedPaginator(AnyPaginator):
    """Counts and shows only the first 10,000 rows. A search or a filter finds the others."""

    LIMIT = 10_000

    @cached_property
    def count(self) -> int:
        """The number of rows, ``LIMIT`` at most."""
        rows: QuerySet[Any] = self.object_list  # type: ignore[assignment]
        return rows.order_by()[: self.LIMIT].count()

    @property
    def is_capped(self) -> bool:
        """Whether there may be more rows than were counted."""
        return self.count == self.LIMIT


class LargeTableAdmin(AnyModelAdmin):
    """A list that stays fast with millions of rows: no query counts or sorts all of them."""

    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # each facet would count all rows
    ordering = ("-pk",)
    sortable_by = ()

    class Media:
        css: ClassVar = {"all": ["accounts/admin.css"]}


class ReadOnlyAdmin(LargeTableAdmin):
    """Shows rows, without forms to add, change or delete them."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Always False: the application creates the rows."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Always False: the services change the rows, because they check the rule."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Always False: the rows are the record of what happened. ``accounts.erasure`` deletes those of a user."""
        return False
