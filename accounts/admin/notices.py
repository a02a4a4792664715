"""The admin's pages of notices: the delivery status of each mail to a customer."""

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from accounts import notices
from accounts.admin.lists import SEARCH_HELP, LinkedFilter, ReadOnlyAdmin, in_utc, search_fields, status
from accounts.admin.lists import customer as customer_name
from accounts.admin.story import name_of_mail, preview
from accounts.models import Notice
from accounts.words import moment, plural


class AccountFilter(LinkedFilter):
    """The mails to one account."""

    title = "account"
    parameter_name = "account"
    choice = "Account {}"


@admin.register(Notice)
class NoticeAdmin(ReadOnlyAdmin):
    """Shows the delivery status of each mail, and retries those that failed."""

    list_display = ("mail", "customer", "ends", "state")
    list_filter = ("status", "kind", AccountFilter)
    list_select_related = ("account__user",)
    search_fields = search_fields("account__user__")
    search_help_text = SEARCH_HELP
    actions = ("retry",)
    fields = (
        *("mail", "customer", "ends", "status", "attempts", "last_error"),
        *("queued_at", "claimed_at", "sent_at", "next", "preview"),
    )
    readonly_fields = ("mail", "customer", "ends", "queued_at", "claimed_at", "sent_at", "next", "preview")

    ends = in_utc("trial_ends_at", "trial ends")
    queued_at = in_utc("queued", seconds=True)
    claimed_at = in_utc("claimed", "being sent since", seconds=True)
    sent_at = in_utc("sent", seconds=True)

    @admin.display(description="mail")
    def mail(self, notice: Notice) -> str:
        """What the mail says."""
        return name_of_mail(notice)

    @admin.display(description="text")
    def preview(self, notice: Notice) -> str:
        """The mail as it was sent or would be sent."""
        context = {"mail": preview(notice, now=timezone.now()), "with_subject": True}
        return render_to_string("admin/accounts/notice/preview.html", context)

    @admin.display(description="customer")
    def customer(self, notice: Notice) -> str:
        """The recipient, with a link to the account."""
        account = reverse("admin:accounts_account_change", args=[notice.account_id])
        return format_html('<a href="{}">{}</a>', account, customer_name(notice.account.user))

    @admin.display(description="status")
    def state(self, notice: Notice) -> str:
        """What became of the mail and when, and the beginning of the error. The page of the notice shows all of it."""
        if notice.sent:
            when = moment(notice.sent)
        else:
            when = f"next attempt {moment(notice.next_attempt)}" if notice.status == Notice.Status.PENDING else ""
        return status(notice, when, notice.last_error)

    @admin.display(description="next attempt")
    def next(self, notice: Notice) -> str:
        """When the mail is tried next, while it is pending."""
        return moment(notice.next_attempt if notice.status == Notice.Status.PENDING else None, seconds=True)

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
            self.message_user(request, f"{plural(retried, 'mail')} to be sent by the next delivery.", messages.SUCCESS)
        if refused := len(chosen) - retried:
            self.message_user(
                request,
                f"{plural(refused, 'mail')} left as before: sent already, or no longer true.",
                messages.WARNING,
            )
