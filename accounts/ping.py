"""The dead-man's switch: tell an outside monitor when a run starts and how it ends, so that silence raises an alarm.

``settings.TRIAL_PING_URL`` is a URL of healthchecks.io or of a service that works like it, which gets ``/start`` and
then ``/0``, ``/1`` or ``/fail``; or one of Sentry's cron monitors, ending in ``?status=``. A ping never fails a run.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import CommandError

from accounts.log import Fields

logger = logging.getLogger(__name__)

SECONDS = 5
"""The longest that a ping delays a run, name resolution included."""

NAME = "ping"
"""The name of the thread that sends a ping."""

NO_ANSWER = "no answer within {} s"


def started() -> None:
    """Tell that a run starts."""
    _ping("start", "in_progress")


def succeeded() -> None:
    """Tell that it succeeded."""
    _ping("", "ok")


def failed() -> None:
    """Tell that it failed or was refused."""
    _ping("fail", "error")


@contextmanager
def around_command() -> Iterator[None]:
    """Tell that the command starts and, at the end, its exit code."""
    started()
    code = 1
    try:
        yield
        code = 0
    except CommandError as error:
        code = error.returncode
        raise
    finally:
        _ping(str(code), "error" if code else "ok")


def url_for(url: str, event: str, status: str) -> str:
    """The URL of a ping: ``event`` in the manner of healthchecks.io, ``status`` in Sentry's."""
    if url.endswith("status="):
        return url + status
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{event}".rstrip("/")).geturl()


def _ping(event: str, status: str) -> None:
    url = getattr(settings, "TRIAL_PING_URL", "")  # a command that lacks the setting ends at the system checks
    if not url:
        return
    answers: list[str] = []
    # In a thread, because no timeout of a socket bounds name resolution, nor an answer that comes byte by byte.
    request = threading.Thread(target=lambda: answers.append(_get(url_for(url, event, status))), name=NAME, daemon=True)
    request.start()
    request.join(SECONDS)
    error = answers[0] if answers else NO_ANSWER.format(SECONDS)
    if error:
        logger.warning(Fields("ping_failed", status=status, service=urlsplit(url).hostname, error=error))


def _get(url: str) -> str:
    """Request the URL; returns what went wrong, without the URL, which is a secret."""
    from urllib.error import HTTPError, URLError  # imported here, because a command without a monitor starts faster
    from urllib.request import urlopen

    try:
        urlopen(url, timeout=SECONDS).close()  # noqa: S310 (a system check allows http and https only)
    except TimeoutError:
        return NO_ANSWER.format(SECONDS)
    except HTTPError as error:
        return f"HTTP {error.code}"
    except URLError as error:
        return str(error.reason)
    except Exception as error:
        return type(error).__name__
    return ""
