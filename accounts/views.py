"""The customer's page about the trial. A project adds it to its URLs at ``TRIAL_URL``."""

from django.conf import settings
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render, resolve_url
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from accounts import customer
from accounts.access import account_of


@require_safe
@never_cache
@login_required
def trial(request: HttpRequest) -> HttpResponse:
    """How much time is left, what happens then, and how to go on; open to a customer whose trial is over."""
    account = account_of(request.user)
    context = {
        "trial": customer.trial(account, timezone.now()) if account else None,
        "next": where_to(request),
    }
    return render(request, "accounts/customer/trial.html", context)


def where_to(request: HttpRequest) -> str:
    """The page that the gate closed, or the project's first page; never one of another site."""
    url = request.GET.get(REDIRECT_FIELD_NAME, "")
    safe = url_has_allowed_host_and_scheme(url, allowed_hosts={request.get_host()}, require_https=request.is_secure())
    return url if safe else resolve_url(settings.LOGIN_REDIRECT_URL)
