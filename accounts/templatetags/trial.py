"""What a project's own pages say of the trial: ``{% trial_banner %}``; and ``{% site %}``, its names and addresses."""

from typing import Any

from django import template
from django.template.context import Context
from django.utils import timezone

from accounts import customer
from accounts.access import account_of

register = template.Library()
register.simple_tag(customer.site, name="site")


@register.inclusion_tag("accounts/customer/banner.html", takes_context=True)
def trial_banner(context: Context) -> dict[str, Any]:
    """Say how much time is left, to customers on trial only. Needs the context processor ``request``."""
    account = account_of(getattr(context.get("request"), "user", None))
    return {"trial": customer.trial(account, timezone.now()) if account else None, "site": customer.site()}
