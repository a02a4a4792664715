"""Users in the admin: Django's own pages on a list for large tables, and deleting a user erases the person."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.admin.lists import LargeTableAdmin
from accounts.erasure import erase
from users.models import User

if TYPE_CHECKING:
    AnyUserAdmin = UserAdmin[User]
else:
    AnyUserAdmin = UserAdmin


@admin.register(User)
class LargeUserAdmin(LargeTableAdmin, AnyUserAdmin):
    """Django's own, but found by the whole e-mail address or user name, which indexes serve."""

    search_fields = ("email__iexact", "username__exact")
    search_help_text = "The whole e-mail address, in upper or lower case, or the exact user name."

    def get_deleted_objects(
        self, objs: QuerySet[User] | Sequence[User], request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[str]]:
        """What goes with the user. Whoever may delete a user may delete it, although nobody may delete it by itself."""
        objects, counts, _, protected = super().get_deleted_objects(objs, request)
        return objects, counts, set(), protected

    def delete_model(self, request: HttpRequest, obj: User) -> None:
        """Erase the person, not only the row."""
        erase(user=obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        """Erase each of them."""
        for user in queryset:
            erase(user=user)
