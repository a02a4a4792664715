"""The health pages for load balancers and monitoring: the liveness of this process, and the freshness of the runs."""

from datetime import timedelta

from django.conf import settings
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from accounts import health
from accounts.absence import answered_without_database
from accounts.gate import trial_not_required
from accounts.ledger import database_now
from accounts.tokens import brings_token


@trial_not_required
@require_safe
@answered_without_database
def process(request: HttpRequest) -> HttpResponse:
    """Check that this process reaches the database."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return answer("The database answers.", healthy=True)


@trial_not_required
@require_safe
@answered_without_database
def expiry(request: HttpRequest) -> HttpResponse:
    """Check that trials are being expired. Only staff and requests with ``METRICS_TOKEN`` see the problems."""
    found = health.check(now=database_now(), max_age=timedelta(hours=settings.TRIAL_RUN_MAX_AGE_HOURS))
    if brings_token(request) or getattr(request.user, "is_staff", False):
        return answer(*found.lines, healthy=not found.problems)
    if found.problems:
        return answer("Trial expiry has a problem. ./manage.py check_expiry and the admin say which.", healthy=False)
    return answer(found.headline, healthy=True)


def answer(*sentences: str, healthy: bool) -> HttpResponse:
    """The sentences as text, with status 200 or 503."""
    return HttpResponse(
        "".join(f"{sentence}\n" for sentence in sentences),
        status=200 if healthy else 503,
        content_type="text/plain; charset=utf-8",
        headers={"Cache-Control": "no-store"},
    )
