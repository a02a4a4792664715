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
        "Check that trials are being expired, by whichever path: a run succeeded recently, no account is long overdue, "
        "and mails are sent where they are on. Exit codes: 0 healthy, 1 unhealthy (a line for each problem), 2 bad "
        "input. /health/expiry/ is the same check."
    )
    work = "check"
    lasting = "It changed nothing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--max-age",
            type=types.hours,
            default=getattr(settings, "TRIAL_RUN_MAX_AGE_HOURS", None),  # the system checks report it when missing
            metavar="HOURS",
            help="The allowed age of the last success, and the allowed delay of an account (default: %(default)s).",
        )

    def handle(self, *args: Any, max_age: float, **options: Any) -> None:
        found = health.check(now=ledger.database_now(), max_age=timedelta(hours=max_age))
        told = "\n".join(found.lines)
        if found.problems:
            raise CommandError(told)
        self.stdout.write(told)
