"""System checks: a wrong trial setting stops every command, worker and beat before it can expire anybody."""

from collections.abc import Sequence
from math import inf
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register

LOWEST = {"TRIAL_DAYS": 1, "TRIAL_GRACE_DAYS": 0, "TRIAL_LEDGER_DAYS": 1}


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
