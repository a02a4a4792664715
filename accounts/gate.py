"""The gate: closes a project's pages to customers whose trial is over, as Django's ``LoginRequiredMiddleware`` does.

It asks ``access.may_use``, so it needs no run to have recorded the end of the trial.
"""

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import MiddlewareNotUsed
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.utils import timezone
from django.utils.cache import add_never_cache_headers, patch_vary_headers
from django.utils.deprecation import MiddlewareMixin
from django.utils.log import log_response

from accounts.access import account_of, may_use
from accounts.models import Account
from accounts.words import moment

View = TypeVar("View", bound=Callable[..., Any])


def trial_not_required(view: View) -> View:
    """Keep a view open when the trial is over. On a class: ``@method_decorator(trial_not_required, name="dispatch")``.

    The views that Django marks ``login_not_required``, such as that of the login, are open too.
    """
    view.trial_required = False  # type: ignore[attr-defined]
    return view


class TrialGateMiddleware(MiddlewareMixin):
    """Leads customers whose trial is over to ``TRIAL_URL``; a request that prefers JSON gets status 402.

    Goes after ``AuthenticationMiddleware``; works under WSGI and ASGI. Staff, users without an account and anonymous
    users pass: for the last, whether a page needs a login is for the page to say. ``TRIAL_URL``, ``BILLING_URL`` and
    the admin are open. It loads ``request.user.account``, which a view then need not load again.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        """Switch the gate off unless ``TRIAL_GATE`` is on."""
        if not settings.TRIAL_GATE:
            raise MiddlewareNotUsed
        super().__init__(get_response)
        urls = (urlsplit(url) for url in (settings.TRIAL_URL, settings.BILLING_URL))
        self.open = [url.path.rstrip("/") + "/" for url in urls if url.path and not url.netloc]

    def process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> HttpResponse | None:
        """Answer in place of the view when the customer's trial is over."""
        user = request.user
        if self.is_open(request, view) or not user.is_authenticated or getattr(user, "is_staff", False):
            return None
        account = account_of(user)
        if account is None or may_use(account, timezone.now()):
            return None
        response = closed(request, account)
        add_never_cache_headers(response)
        patch_vary_headers(response, ["Accept"])
        return response

    def is_open(self, request: HttpRequest, view: Callable[..., Any]) -> bool:
        """Whether the view is open to everybody."""
        required = getattr(view, "trial_required", True) and getattr(view, "login_required", True)
        path = request.path.rstrip("/") + "/"
        in_admin = request.resolver_match is not None and "admin" in request.resolver_match.app_names
        return not required or in_admin or path.startswith(tuple(self.open))


def closed(request: HttpRequest, account: Account) -> HttpResponse:
    """Answer a customer whose trial is over: lead to ``TRIAL_URL``, or say why in a problem document (RFC 9457)."""
    if request.get_preferred_type(["text/html", "application/problem+json", "application/json"]) == "text/html":
        if request.method in {"GET", "HEAD"}:
            return redirect_to_login(request.get_full_path(), settings.TRIAL_URL)
        return HttpResponseRedirect(settings.TRIAL_URL)
    problem = {"type": request.build_absolute_uri(settings.TRIAL_URL), "status": 402}
    if account.status == Account.CANCELED:
        problem |= {"title": "The account is cancelled", "detail": "The account is cancelled."}
    else:
        problem |= {
            "title": "The trial has ended",
            "detail": f"The trial ended on {moment(account.trial_ends_at)}. To go on, choose a plan.",
            "trial_ended": account.trial_ends_at.isoformat(),
        }
    response = JsonResponse(problem, status=402, content_type="application/problem+json")
    # Otherwise Django logs a warning at each request of a client that keeps asking. The access log has the request.
    log_response("Payment required: %s", request.path, response=response, request=request, level="debug")
    return response
