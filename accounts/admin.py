"""The admin: users can be edited, accounts and the ledger looked at. Accounts change through the services only."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.http import HttpRequest

from accounts.models import Account, ExpiryRun, User

if TYPE_CHECKING:
    AnyModelAdmin = admin.ModelAdmin[Any]
else:
    AnyModelAdmin = admin.ModelAdmin

admin.site.site_header = admin.site.site_title = "Trial expiry"
admin.site.register(User, UserAdmin)


class LookOnlyAdmin(AnyModelAdmin):
    """Shows rows, and changes none. Pages stay fast on large tables: nothing counts a whole one."""

    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Rows come from the application."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Rows are changed by the services, which know the rule."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """What happened stays on record."""
        return False


@admin.register(Account)
class AccountAdmin(LookOnlyAdmin):
    """Where each account stands, and which run expired it."""

    list_display = ("user", "status", "created", "trial_ends_at", "trial_expired_at", "expiry_run")
    list_filter = ("status",)
    list_select_related = ("user", "expiry_run")
    search_fields = ("user__email", "user__username")
    ordering = ("-pk",)


@admin.register(ExpiryRun)
class ExpiryRunAdmin(LookOnlyAdmin):
    """The ledger: every run of either path."""

    list_display = (
        "id",
        "path",
        "status",
        "as_of",
        "due_count",
        "expired_count",
        "slice_count",
        "longest_slice",
        "host",
    )
    list_filter = ("path", "status")
    ordering = ("-pk",)
