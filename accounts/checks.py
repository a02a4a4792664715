"""System checks: a wrong setting stops every command, worker and beat before it can expire an account."""

import ipaddress
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from email.utils import parseaddr
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register, run_checks
from django.core.exceptions import ImproperlyConfigured

# Ten years. More days are a typing error; dates overflow with far more.
MOST_DAYS = 3650
MOST_HOURS = 365 * 24
UNSET = object()


class Rule(NamedTuple):
    """The rule of a setting: ``holds`` tests its value, ``must_be`` describes a valid one."""

    id: str
    setting: str
    holds: Callable[[Any], bool]
    must_be: str
    quoted: bool = True  # False for a secret


def whole(value: object, lowest: int, highest: int) -> bool:
    """Whether ``value`` is a whole number within these bounds; a boolean is not."""
    return type(value) is int and lowest <= value <= highest


def reminders(value: object) -> bool:
    """Whether ``value`` is a list of whole days, from high to low, each once."""
    return (
        isinstance(value, list | tuple)
        and all(whole(day, 1, MOST_DAYS) for day in value)
        and all(day > following for day, following in pairwise(value))
    )


def public_site(value: object) -> bool:
    """Whether ``value`` is a URL that customers can reach from the internet."""
    try:
        url = urlsplit(str(value))
        host = url.hostname or ""
    except ValueError:
        return False
    try:
        reachable = ipaddress.ip_address(host).is_global
    except ValueError:
        reachable = "." in host and not host.endswith((".localhost", ".local", ".internal"))
    return url.scheme in {"http", "https"} and reachable


def text(pattern: str) -> Callable[[Any], bool]:
    """A test that a setting is a string that this pattern matches completely."""
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def days(id: str, setting: str, lowest: int) -> Rule:  # noqa: A002 (as Django calls it)
    """The rule of a setting in days."""
    return Rule(
        id,
        setting,
        partial(whole, lowest=lowest, highest=MOST_DAYS),
        f"a whole number of days, {lowest} to {MOST_DAYS}",
    )


PATH = r"/[^/\s<>\"'\\?#][^\s<>\"'\\]*"  # not // and not /, which is every page
ONE_LINE = text(r"[^\x00-\x1f\x7f]*")  # a newline would start another mail header
RULES = [
    days("E001", "TRIAL_DAYS", 1),
    days("E001", "TRIAL_GRACE_DAYS", 0),
    days("E001", "TRIAL_LEDGER_DAYS", 1),
    days("E001", "TRIAL_NOTICE_WINDOW_DAYS", 1),
    Rule(
        "E002",
        "TRIAL_EXPIRY_MAX",
        lambda value: value is None or whole(value, 1, 10**9),
        "a whole number of accounts, 1 to 1000000000, or not set, which is no limit",
    ),
    Rule(
        "E003",
        "TRIAL_RUN_MAX_AGE_HOURS",
        lambda value: type(value) in {int, float} and 0 < value <= MOST_HOURS,
        f"a number of hours above 0 and up to {MOST_HOURS}",
    ),
    Rule(
        "E004",
        "TRIAL_REMINDER_DAYS",
        reminders,
        f"whole numbers of days, 1 to {MOST_DAYS}, from high to low, each once, such as 7,1, or empty",
    ),
    Rule(
        "E005",
        "TRIAL_NOTICE_RATE",
        lambda value: value is None or whole(value, 1, 10**6),
        "a whole number of mails a minute, 1 to 1000000, or not set, which is no limit",
    ),
    Rule(
        "E011",
        "TRIAL_NOTICES_SINCE",
        lambda value: value is None or (isinstance(value, datetime) and value.tzinfo is not None),
        "a date and time with its time zone, or not set, which is no limit",
    ),
    Rule(
        "E006",
        "TRIAL_NOTICE_UNSUBSCRIBE",
        text(r"|(mailto:|https?://)[^\s<>,\x00-\x20\x7f-\U0010ffff]+"),
        "a link such as https://www.example.com/unsubscribe, or mailto:unsubscribe@example.com, or not set",
    ),
    Rule("E008", "DEFAULT_FROM_EMAIL", ONE_LINE, "one line, without control characters"),
    Rule("E008", "SITE_NAME", ONE_LINE, "one line, without control characters"),
    Rule(
        "E012",
        "TRIAL_PING_URL",
        text(r"|https?://[^\s<>\x00-\x20\x7f-\U0010ffff/]+[^\s<>\x00-\x20\x7f-\U0010ffff]*"),
        "a URL that begins with https:// or http://, or not set, which sends no ping",
        quoted=False,
    ),
    Rule("E009", "TRIAL_NOTICES", lambda value: type(value) is bool, "True or False"),
    Rule("E009", "TRIAL_GATE", lambda value: type(value) is bool, "True or False"),
    Rule("E012", "TRIAL_URL", text(PATH), "the path of the customer's page, such as /trial/"),
    Rule(
        "E012",
        "BILLING_URL",
        text(rf"|https?://[^\s<>\"'\\\x00-\x20]+|{PATH}"),
        "a link such as https://www.example.com/plans, a path such as /billing/, or not set",
    ),
    Rule(
        "E013",
        "SUPPORT_EMAIL",
        text(r"|[^@\s<>,;?&]+@[^@\s<>,;?&]+"),
        "an address such as help@example.com, or not set",
    ),
]
IN_PRODUCTION = [
    Rule(
        "E010",
        "METRICS_TOKEN",
        text(r"|[!-~]{32,}"),
        "32 characters or more, without blanks, or not set, which switches the metrics off",
        quoted=False,
    ),
]
# With these backends a mail would be recorded as sent, and no customer would receive it.
GOES_NOWHERE = {f"django.core.mail.backends.{name}.EmailBackend" for name in ("console", "dummy", "locmem")}
WITH_NOTICES_ON = [
    Rule(
        "E007",
        "DEFAULT_FROM_EMAIL",
        lambda value: re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", parseaddr(str(value))[1]) is not None,
        "an address that customers may see, such as Trials <trials@example.com>",
    ),
    Rule("E007", "SITE_URL", public_site, "where customers reach the site, such as https://www.example.com"),
    Rule(
        "E007",
        "EMAIL_TIMEOUT",
        lambda value: type(value) in {int, float} and 0 < value <= 600,
        "a number of seconds above 0 and up to 600: without it a silent mail server blocks a process forever",
    ),
    Rule(
        "E007",
        "EMAIL_BACKEND",
        lambda value: value not in GOES_NOWHERE,
        "one that sends; mails would be recorded as sent and reach nobody. Set EMAIL_URL to a mail server",
    ),
]


@register("accounts")
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check every setting that ``accounts`` reads; production has more rules than development."""
    errors = _broken(RULES)
    if not settings.DEBUG:
        errors += _broken(IN_PRODUCTION, " in production")
        if getattr(settings, "TRIAL_NOTICES", False):
            errors += _broken(WITH_NOTICES_ON, " while TRIAL_NOTICES is on")
    return errors


def require_valid_settings() -> None:
    """Run the system checks in a process for which Django runs none: a worker, beat, a web server.

    Raises:
        ImproperlyConfigured: a system check of ``accounts`` found errors; the message is one line with all of them.
    """
    errors = run_checks(tags=["accounts"])
    if messages := [error.msg for error in errors if error.is_serious() and not error.is_silenced()]:
        raise ImproperlyConfigured(" ".join(messages))


def _broken(rules: Sequence[Rule], when: str = "") -> list[CheckMessage]:
    errors: list[CheckMessage] = []
    for rule in rules:
        value = getattr(settings, rule.setting, UNSET)
        if value is UNSET or not rule.holds(value):
            shown = "missing" if value is UNSET else f"{value!r:.200}" if rule.quoted else "not safe"
            errors.append(
                Error(
                    f"{rule.setting} is {shown}{when}; it must be {rule.must_be}.",
                    hint="`from accounts.defaults import *`, first in the settings, gives each its default.",
                    id=f"accounts.{rule.id}",
                )
            )
    return errors
