"""System checks: a wrong trial setting stops every command, worker and beat before it can expire anybody."""

import re
from collections.abc import Sequence
from email.utils import parseaddr
from itertools import pairwise
from math import inf
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register

LOWEST = {"TRIAL_DAYS": 1, "TRIAL_GRACE_DAYS": 0, "TRIAL_LEDGER_DAYS": 1, "TRIAL_NOTICE_WINDOW_DAYS": 1}


def _is_whole_number(value: object, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


@register("accounts")
def trial_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Days are whole and not negative, the fuse is unset or at least one account, an age is some time."""
    errors: list[CheckMessage] = [
        Error(
            f"{name} is {getattr(settings, name)!r}; it must be a whole number of days, {lowest} or more.",
            hint=f"Set {name} in the environment, or leave it out for the default.",
            id="accounts.E001",
        )
        for name, lowest in LOWEST.items()
        if not _is_whole_number(getattr(settings, name), lowest)
    ]
    limit = settings.TRIAL_EXPIRY_MAX
    if limit is not None and not _is_whole_number(limit, 1):
        errors.append(
            Error(
                f"TRIAL_EXPIRY_MAX is {limit!r}; it must be a whole number of accounts, 1 or more, or not set.",
                hint="It is the most accounts one run may expire. Leave it out to have no limit.",
                id="accounts.E002",
            )
        )
    hours = settings.TRIAL_RUN_MAX_AGE_HOURS
    if not isinstance(hours, int | float) or not 0 < hours < inf:
        errors.append(
            Error(
                f"TRIAL_RUN_MAX_AGE_HOURS is {hours!r}; it must be a number of hours above 0.",
                hint="It is how old the last success may be before check_expiry and /health/expiry/ raise the alarm.",
                id="accounts.E003",
            )
        )
    return errors


@register("accounts")
def notice_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Reminders come one after the other, the rate is unset or some mails, and in production mails go somewhere."""
    errors: list[CheckMessage] = []
    days = settings.TRIAL_REMINDER_DAYS
    if not all(_is_whole_number(day, 1) for day in days) or any(day <= following for day, following in pairwise(days)):
        errors.append(
            Error(
                f"TRIAL_REMINDER_DAYS is {days!r}; it must be whole numbers of days, 1 or more, from high to low, "
                "each once.",
                hint="For a week and a day before the trial ends, set it to 7,1; leave it empty for no reminders.",
                id="accounts.E004",
            )
        )
    rate = settings.TRIAL_NOTICE_RATE
    if rate is not None and not _is_whole_number(rate, 1):
        errors.append(
            Error(
                f"TRIAL_NOTICE_RATE is {rate!r}; it must be a whole number of mails a minute, 1 or more, or not set.",
                hint="It is the most that one process sends. Leave it out to have no limit.",
                id="accounts.E005",
            )
        )
    unsubscribe = settings.TRIAL_NOTICE_UNSUBSCRIBE
    if unsubscribe and not re.fullmatch(r"(mailto:|https?://)[^\s<>,]+", unsubscribe):
        errors.append(
            Error(
                f"TRIAL_NOTICE_UNSUBSCRIBE is {unsubscribe!r}; it must be a link or mailto:, or not set.",
                hint="Such as https://www.example.com/unsubscribe or mailto:unsubscribe@example.com.",
                id="accounts.E006",
            )
        )
    if settings.TRIAL_NOTICES and not settings.DEBUG:
        errors += _where_mails_go()
    return errors


def _where_mails_go() -> list[CheckMessage]:
    wrong = []
    sender = parseaddr(settings.DEFAULT_FROM_EMAIL)[1]
    if not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", sender):
        wrong.append(
            ("DEFAULT_FROM_EMAIL", "it must be an address that customers may see, such as Trials <t@example.com>")
        )
    if not re.match(r"https?://(?!localhost\b|127\.)[^\s/]", settings.SITE_URL):
        wrong.append(("SITE_URL", "it must be where customers reach the site, such as https://www.example.com"))
    if settings.EMAIL_BACKEND == "django.core.mail.backends.console.EmailBackend":
        wrong.append(("EMAIL_BACKEND", "mails would be printed, and recorded as sent; set EMAIL_URL to a mail server"))
    return [
        Error(
            f"{name} is {getattr(settings, name)!r} while TRIAL_NOTICES is on; {why}.",
            hint="Set it in the environment, or switch TRIAL_NOTICES off.",
            id="accounts.E007",
        )
        for name, why in wrong
    ]
