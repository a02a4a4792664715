"""The admin's pages of users: Django's own, with a list for large tables; deleting a user erases the person."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.admin.lists import SEARCH_HELP, LargeTableAdmin, search_fields
from accounts.erasure import erase
from users.models import User

if TYPE_CHECKING:
    AnyUserAdmin = UserAdmin[User]
else:
    AnyUserAdmin = UserAdmin


@admin.register(User)
class LargeUserAdmin(LargeTableAdmin, AnyUserAdmin):
    """Django's own, with a search by the beginning of an e-mail address or a name, which indexes serve."""

    search_fields = search_fields()
    search_help_text = SEARCH_HELP

    def get_deleted_objects(
        self, objs: QuerySet[User] | Sequence[User], request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[str]]:
        """List what is deleted with the user. The permission to delete users covers all of it."""
        objects, counts, _, protected = super().get_deleted_objects(objs, request)
        return objects, counts, set(), protected

    def delete_model(self, request: HttpRequest, obj: User) -> None:
        """Erase the user with ``accounts.erasure``."""
        erase(user=obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        """Erase each selected user."""
        for user in queryset:
            erase(user=user)
