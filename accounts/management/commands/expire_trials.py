"""``./manage.py expire_trials``: the command's face of ``accounts.services.expire_trials``."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from math import inf
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from accounts import ledger, services
from accounts.management.base import (
    BAD_INPUT,
    INTERRUPTED,
    REFUSED,
    TrialCommand,
    at_least_one,
    explained,
    read_as_of,
    refuse_unapplied_migrations,
)
from accounts.models import Account, ExpiryRun
from accounts.services import RunRefused
from accounts.slices import Slice


class Command(TrialCommand):
    help = (
        "Move every account whose trial has ended, plus TRIAL_GRACE_DAYS of grace, from trialing to trial expired. "
        "Accounts in any other status are never touched. Needs no broker and may run at any time, also beside Celery. "
        "Exit codes: 0 done, 1 failed (the next run takes what is left), 2 bad input, 3 refused: too many are due."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="Only say how many accounts would expire.")
        parser.add_argument(
            "--as-of",
            metavar="ISO8601",
            help="Apply the rule to this moment instead of now, such as 2026-03-01T00:00:00Z. "
            "With --dry-run it may lie in the future.",
        )
        self.add_batch_size(parser, verb="expired")
        parser.add_argument(
            "--max-accounts",
            type=int,
            metavar="N",
            help="Change nothing if more than N are due (default: the setting TRIAL_EXPIRY_MAX).",
        )
        parser.add_argument(
            "--if-stale",
            type=float,
            metavar="HOURS",
            help="Do nothing if a run succeeded within the last HOURS: for a cron line that stands in for Celery.",
        )

    def handle(
        self,
        *args: Any,
        dry_run: bool = False,
        as_of: str | datetime | None = None,
        batch_size: int = services.BATCH_SIZE,
        max_accounts: int | None = None,
        if_stale: float | None = None,
        verbosity: int = 1,
        **options: Any,
    ) -> None:
        clock = timezone.now()
        now = read_as_of(as_of, clock=clock, dry_run=dry_run)
        at_least_one(batch_size=batch_size, max_accounts=max_accounts)
        if if_stale is not None and not 0 < if_stale < inf:
            raise CommandError(f"--if-stale must be a number of hours above 0, not {if_stale:g}.", returncode=BAD_INPUT)
        self.verbosity = verbosity

        with explained(failed="The run failed", then="What it expired stays expired; the next run takes the rest."):
            refuse_unapplied_migrations()
            if if_stale is not None and (run := fresh_run(timedelta(hours=if_stale))):
                self.say(f"Nothing to do: a run by {run.path} succeeded at {run.finished:%Y-%m-%d %H:%M} UTC.")
                return
            self.say("Search for old trial accounts...")
            if dry_run:
                self.say_what_would_happen(now, limit=services.fuse_limit(max_accounts))
                return
            self.expire(now, batch_size=batch_size, max_accounts=max_accounts)

    def say_what_would_happen(self, now: datetime, *, limit: int | None) -> None:
        due = Account.objects.due(now).count()
        self.say(f"Would expire {due} trial(s)")
        if limit is not None and due > limit:
            self.say(f"Would be refused: at most {limit} may expire in one run.")

    def expire(self, now: datetime, *, batch_size: int, max_accounts: int | None) -> None:
        try:
            run = services.expire_trials(
                path=ExpiryRun.Path.COMMAND,
                now=now,
                batch_size=batch_size,
                max_accounts=max_accounts,
                run_slices=self.run_slices,
            )
        except RunRefused as refusal:
            raise CommandError(str(refusal), returncode=REFUSED) from None
        except KeyboardInterrupt:
            raise CommandError(
                "Stopped by a signal. What was expired so far stays expired; run it again to go on.",
                returncode=INTERRUPTED,
            ) from None
        if run.status == ExpiryRun.Status.UNDONE:
            raise CommandError(f"Run {run.pk} was undone by {run.undone_by} while it was under way.")
        self.say(f"Expired {run.expired_count} trial(s)")
        self.say(
            f"Run {run.pk}: {run.due_count} due as of {run.as_of:%Y-%m-%d %H:%M:%S} UTC, {run.slice_count} slice(s), "
            f"the longest {run.longest_slice.total_seconds():.3f} s",
            verbosity=2,
        )

    def run_slices(self, run: ExpiryRun, slices: Sequence[Slice]) -> None:
        with self.progress() as after_slice:
            services.run_in_turn(run, slices, after_slice=after_slice)


def fresh_run(age: timedelta) -> ExpiryRun | None:
    """A run that succeeded within that time, by the database's clock."""
    now = ledger.database_now()
    return ExpiryRun.objects.succeeded_since(now - age, now=now)
