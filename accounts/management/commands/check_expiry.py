"""``./manage.py check_expiry``: the freshness check, for cron and monitoring."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser

from accounts import health, ledger
from accounts.management import options as types
from accounts.management.base import TrialCommand


class Command(TrialCommand):
    help = (
        "Tell whether trials are being expired, by whichever path: a run succeeded lately, and no account is long "
        "overdue. Exit codes: 0 all is well, 1 it is not (and why), 2 bad input. /health/expiry/ answers the same."
    )
    work = "check"
    lasting = "It changed nothing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--max-age",
            type=types.hours,
            default=getattr(settings, "TRIAL_RUN_MAX_AGE_HOURS", None),  # where it is missing, the checks say so
            metavar="HOURS",
            help="How old the last success, and how overdue an account, may be (default: %(default)s).",
        )

    def handle(self, *args: Any, max_age: float, **options: Any) -> None:
        found = health.problems(now=ledger.database_now(), max_age=timedelta(hours=max_age))
        if found:
            raise CommandError(" ".join(found))
        self.stdout.write(f"Trials are being expired: {health.last_success()}.")
