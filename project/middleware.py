"""The address of the client behind a proxy."""

from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address

from django.http import HttpRequest, HttpResponse

GetResponse = Callable[[HttpRequest], HttpResponse]


def client_address(get_response: GetResponse) -> GetResponse:
    """Set the client's address from the last entry of X-Forwarded-For, which the proxy appended.

    Installed only with ``DJANGO_BEHIND_PROXY=1``: without a proxy, the client could forge the header. A request without
    the header, such as a probe, keeps the address of its connection.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        hop = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
        with suppress(ValueError):
            request.META["REMOTE_ADDR"] = str(ip_address(hop))
        return get_response(request)

    return middleware
