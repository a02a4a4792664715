"""``./manage.py send_trial_notices``: the command for ``accounts.notices`` and ``accounts.delivery``."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from accounts import delivery, notices
from accounts.management import options as types
from accounts.management.base import BAD_INPUT, TrialCommand, stop_signals_deferred
from accounts.models import Notice


class Command(TrialCommand):
    help = (
        "Send the mails that are owed: the reminders of TRIAL_REMINDER_DAYS before a trial ends, and a notice "
        "when a run has expired it. Does nothing unless TRIAL_NOTICES is on. Needs no broker, and may run concurrently "
        "with Celery. Exit codes: 0 done, 1 failed or no mail server (the next run sends the rest), "
        "2 bad input, 3 refused: too many mails are owed."
    )
    work = "run"
    lasting = "What was sent is on record; the next run sends the rest."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--dry-run", action="store_true", help="Only print how many mails are owed, even with TRIAL_NOTICES off."
        )
        parser.add_argument(
            "--as-of",
            type=types.moment,
            metavar="ISO8601",
            help="With --dry-run: count the mails owed as of this moment, past or future, such as "
            "2026-03-01T00:00:00Z, from the accounts as they are now.",
        )
        parser.add_argument(
            "--limit",
            type=types.whole_number(),
            metavar="N",
            help="Attempt at most N mails in this run; the others stay queued for the next.",
        )
        self.add_jobs(parser, what="Mails", over="connections of its own to the mail server and the database")
        parser.add_argument(
            "--max-notices",
            type=types.whole_number(),
            metavar="N",
            help="The fuse: queue and send nothing if more than N mails are owed (default: no limit).",
        )

    def handle(
        self,
        *args: Any,
        dry_run: bool = False,
        as_of: datetime | None = None,
        limit: int | None = None,
        jobs: int = 1,
        max_notices: int | None = None,
        **options: Any,
    ) -> None:
        if as_of and not dry_run:
            raise CommandError("--as-of needs --dry-run: a mail speaks of today.", returncode=BAD_INPUT)
        now = as_of or timezone.now()
        if not settings.TRIAL_NOTICES:
            self.say("TRIAL_NOTICES is off: no mail is sent.")
        if dry_run:
            self.say_what_would_happen(now, max_notices=max_notices)
        elif settings.TRIAL_NOTICES:
            self.queue_and_deliver(now, limit=limit, jobs=jobs, max_notices=max_notices)

    def check_migrations(self) -> None:
        if settings.TRIAL_NOTICES:  # otherwise the command writes nothing
            super().check_migrations()

    def say_what_would_happen(self, now: datetime, *, max_notices: int | None) -> None:
        owed = notices.count_owed(now=now)
        pending = Notice.objects.pending().count()
        self.say(f"Would queue {owed.total} notice(s): {owed}\n{pending} wait from before")
        if max_notices is not None and owed.total + pending > max_notices:
            self.say(f"Would be refused: at most {max_notices} may be owed.")

    def queue_and_deliver(self, now: datetime, *, limit: int | None, jobs: int, max_notices: int | None) -> None:
        queued = notices.queue_notices(now=now, max_notices=max_notices)
        self.say(f"Queued {queued.total} notice(s): {queued}")
        with stop_signals_deferred() as stop:
            outcome = delivery.deliver_notices(now=now, limit=limit, stop=stop.is_set, jobs=jobs)
        waiting = Notice.objects.pending().count()
        self.say(f"Delivered: {outcome}; {waiting} wait")
        if outcome.trouble:
            raise CommandError(f"{outcome.trouble} {waiting} mail(s) wait for the next run; none is lost.")
        if stop.is_set():
            raise KeyboardInterrupt
