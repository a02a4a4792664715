"""The admin's pages of notices: the delivery status of each mail to a customer."""

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from accounts import notices
from accounts.admin.lists import EMAIL_FIELD, EMAIL_HELP, MINUTES, NOTHING, ReadOnlyAdmin
from accounts.admin.lists import customer as customer_name
from accounts.log import one_line
from accounts.models import Notice


@admin.register(Notice)
class NoticeAdmin(ReadOnlyAdmin):
    """Shows the delivery status of each mail, and retries those that failed."""

    list_display = ("id", "customer", "kind", "days_before", "ends", "status", "attempts", "short_error", "when")
    list_filter = ("status", "kind")
    list_select_related = ("account__user",)
    search_fields = (f"account__user__{EMAIL_FIELD}__iexact",)
    search_help_text = EMAIL_HELP
    actions = ("retry",)

    @admin.display(description="customer")
    def customer(self, notice: Notice) -> str:
        """The recipient."""
        return customer_name(notice.account.user)

    @admin.display(description="trial ends at")
    def ends(self, notice: Notice) -> str:
        """The end of the trial that the mail announces, in UTC."""
        return f"{notice.trial_ends_at:{MINUTES}}"

    @admin.display(description="sent, or next attempt")
    def when(self, notice: Notice) -> str:
        """When the mail was sent or, while it is pending, when it is tried next."""
        moment = notice.sent or (notice.next_attempt if notice.status == Notice.Status.PENDING else None)
        return f"{moment:{MINUTES}}" if moment else NOTHING

    @admin.display(description="error")
    def short_error(self, notice: Notice) -> str:
        """The beginning of the error. The page of the notice shows all of it."""
        return one_line(notice.last_error, most=60)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Users with the permission to change notices may retry them."""
        return request.user.has_perm("accounts.change_notice")

    @admin.action(description="Try again now", permissions=["operate"])
    def retry(self, request: HttpRequest, chosen: QuerySet[Notice]) -> None:
        """Make failed mails due for the next delivery, however often they failed."""
        now = timezone.now()
        retried = 0
        for notice in chosen:
            if notices.retry(notice_id=notice.pk, now=now):
                retried += 1
                self.log_change(request, notice, "Queued for another attempt.")
        if retried:
            self.message_user(request, f"{retried} to be sent by the next delivery.", messages.SUCCESS)
        if refused := len(chosen) - retried:
            self.message_user(
                request, f"{refused} left as they were: sent already, or no longer true.", messages.WARNING
            )
