"""``METRICS_TOKEN``: the bearer token with which monitoring reads metrics and problems. Guessing it is throttled."""

from django.conf import settings
from django.core.cache import cache
from django.http import HttpRequest
from django.utils.crypto import constant_time_compare

ATTEMPTS, PERIOD = 10, 60
"""After this many wrong tokens from one address, none from it is accepted until this many seconds after the first.

Counted in Django's default cache; with its default backend each process counts separately.
"""


def brings_token(request: HttpRequest) -> bool:
    """Whether the request has the right token. A wrong one is counted for the address that sent it."""
    header = request.headers.get("Authorization", "")
    if not settings.METRICS_TOKEN or not header or is_throttled(request):
        return False
    if constant_time_compare(header, f"Bearer {settings.METRICS_TOKEN}"):
        return True
    if not cache.add(_key(request), 1, PERIOD):
        cache.incr(_key(request))
    return False


def is_throttled(request: HttpRequest) -> bool:
    """Whether this address sent too many wrong tokens recently."""
    return int(cache.get(_key(request), 0)) >= ATTEMPTS


def _key(request: HttpRequest) -> str:
    return f"accounts.wrong_tokens.{request.META.get('REMOTE_ADDR', '')}"
