"""``./manage.py expire_trials``: the command for ``accounts.services.expire_trials``."""

from contextlib import nullcontext
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from accounts import decisions, ledger, ping, services
from accounts.management import options as types
from accounts.management.base import BAD_INPUT, TrialCommand
from accounts.models import ExpiryRun
from accounts.words import moment, number


class Command(TrialCommand):
    help = (
        "Move every account whose trial has ended, plus TRIAL_GRACE_DAYS of grace, from trialing to trial expired. "
        "Accounts in any other status are never changed. Needs no broker, and may run concurrently with Celery. "
        "Exit codes: 0 done, 1 failed (the next run expires the rest), 2 bad input, 3 refused: too many are due."
    )
    work = "run"
    lasting = "What it expired stays expired; the next run takes the rest."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="Only print how many accounts would expire.")
        parser.add_argument(
            "--as-of",
            type=types.moment,
            metavar="ISO8601",
            help="Apply the rule as of this moment, such as 2026-03-01T00:00:00Z, to all trials, also those that an "
            "earlier run was done with; in the future only with --dry-run.",
        )
        self.add_batch_size(parser, verb="expired")
        self.add_jobs(parser, what="Transactions")
        parser.add_argument(
            "--max-accounts",
            type=types.whole_number(),
            metavar="N",
            help="Change nothing if more than N are due (default: the setting TRIAL_EXPIRY_MAX).",
        )
        parser.add_argument(
            "--if-stale",
            type=types.hours,
            metavar="HOURS",
            help="Do nothing if a run succeeded within the last HOURS or is at work: for a cron line as the fallback "
            "for Celery.",
        )

    def execute(self, *args: Any, **options: Any) -> str | None:
        """Run the command and, unless it is a dry run, tell the monitor of ``TRIAL_PING_URL``."""
        with nullcontext() if options.get("dry_run") else ping.around_command():
            return super().execute(*args, **options)

    def handle(
        self,
        *args: Any,
        dry_run: bool = False,
        as_of: datetime | None = None,
        batch_size: int | None = None,
        throttle: float = 0,
        jobs: int = 1,
        max_accounts: int | None = None,
        if_stale: float | None = None,
        **options: Any,
    ) -> None:
        clock = ledger.database_now()
        now = as_of or timezone.now()
        if as_of and as_of > clock and not dry_run:
            message = f"--as-of {now.isoformat()} lies in the future. Add --dry-run to see who would expire by then."
            raise CommandError(message, returncode=BAD_INPUT)
        if if_stale and (run := ExpiryRun.objects.succeeded_since(clock - timedelta(hours=if_stale), now=clock)):
            self.say(f"Nothing to do: a run by {run.path} succeeded at {moment(run.finished)}.")
            return
        if if_stale and (run := ledger.living_run()):
            self.say(f"Nothing to do: run {run.pk} by {run.path} is at work since {moment(run.started)}.")
            return
        self.say("Search for old trial accounts...")
        if dry_run:
            self.say_what_would_happen(now, clock, limit=services.fuse_limit(max_accounts))
            return
        try:
            with self.progress() as after_slice:
                run = services.expire_trials(
                    path=ExpiryRun.Path.COMMAND,
                    now=now,
                    batch_size=batch_size,
                    max_accounts=max_accounts,
                    throttle=throttle,
                    look_at_all=as_of is not None,
                    run_slices=partial(services.run_here, after_slice=after_slice, jobs=jobs),
                )
        except services.NothingToDo as reason:  # no failure: cron would mail it every hour
            self.say(str(reason))
            return
        if run.status == ExpiryRun.Status.UNDONE:
            raise CommandError(f"Run {run.pk} was undone by {run.undone_by} while it was running.")
        self.say(f"Expired {run.expired_count} trial(s)")
        took = f"{run.slice_count} slice(s), the longest {run.longest_slice.total_seconds():.3f} s"
        self.say(f"Run {run.pk}: {run.due_count} due as of {moment(run.as_of, seconds=True)}, {took}", verbosity=2)

    def say_what_would_happen(self, now: datetime, clock: datetime, *, limit: int | None) -> None:
        due = services.due_to_tell(now, limit)
        many = f"more than {number(services.COUNTED)}" if due > services.COUNTED else due
        self.say(f"Would expire {many} trial(s)")
        if limit is not None and due > limit:
            if decisions.allowance(now=clock, due=due):
                self.say(f"More than {limit} may not expire in one run, but an operator allowed it once.")
            else:
                self.say(f"Would be refused: at most {limit} may expire in one run.")
        if pause := decisions.paused(now=clock):
            self.say(f"Would change nothing now. {decisions.in_words(pause)}")
