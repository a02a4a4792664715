"""``./manage.py undo_expiry``: the command's face of ``accounts.services.undo_run``."""

import getpass
import os
from datetime import datetime
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from accounts import services
from accounts.management.base import (
    BAD_INPUT,
    FAILED,
    INTERRUPTED,
    TrialCommand,
    at_least_one,
    explained,
    refuse_unapplied_migrations,
)
from accounts.models import Account, ExpiryRun
from accounts.services import LONGEST_EXTENSION, UndoPreview


class Command(TrialCommand):
    help = (
        "Put the accounts that a run expired, and that are still expired, back on trial. Whoever paid, was cancelled "
        "or extended since stays as it is. A run that is under way is stopped by it. May run at any time, and twice. "
        "Exit codes: 0 done, also when there was nothing to do, 1 failed, or some were locked (run it again), "
        "2 bad input."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("run", type=int, metavar="RUN", help="The number of the run, as the ledger shows it.")
        parser.add_argument("--dry-run", action="store_true", help="Only say what would happen.")
        parser.add_argument(
            "--extend-days",
            type=int,
            metavar="N",
            help="Let their trials end N days later, counted from their end or from now, whichever is later. "
            "Without it the rule soon expires those that are due again.",
        )
        self.add_batch_size(parser, verb="put back")
        parser.add_argument(
            "--by", metavar="NAME", help="Who undoes it, for the ledger (default: the user of the system)."
        )

    def handle(
        self,
        *args: Any,
        run: int,
        dry_run: bool = False,
        extend_days: int | None = None,
        batch_size: int = services.BATCH_SIZE,
        by: str | None = None,
        verbosity: int = 1,
        **options: Any,
    ) -> None:
        now = timezone.now()
        self.verbosity = verbosity
        at_least_one(batch_size=batch_size, extend_days=extend_days)
        if extend_days is not None and extend_days > LONGEST_EXTENSION:
            raise CommandError(
                f"--extend-days must be at most {LONGEST_EXTENSION}, not {extend_days}.", returncode=BAD_INPUT
            )
        with explained(failed="The undo failed", then="What it put back stays so; run it again to go on."):
            refuse_unapplied_migrations()
            try:
                found = ExpiryRun.objects.get(pk=run)
            except ExpiryRun.DoesNotExist:
                raise CommandError(
                    f"There is no run {run}. The ledger, Expiry runs in the admin, has the numbers.",
                    returncode=BAD_INPUT,
                ) from None
            preview = services.preview_undo(run=found, now=now)
            if not preview.would_return and found.status != ExpiryRun.Status.RUNNING:
                self.say(f"Nothing to undo: no account is still expired by {found}.")
                return
            self.say_what_would_happen(found, preview, extended=extend_days is not None)
            if not dry_run:
                self.undo(found, now, extend_days=extend_days, batch_size=batch_size, by=by or system_user())

    def say_what_would_happen(self, run: ExpiryRun, preview: UndoPreview, *, extended: bool) -> None:
        self.say(
            f"{str(run).capitalize()}, expired {run.expired_count} account(s): {preview.would_return} to put back on "
            f"trial, {preview.moved_on} paid or cancelled and {preview.extended} extended since stay as they are."
        )
        if preview.due_again and not extended:
            warning = (
                f"The rule will expire {preview.due_again} of them again at the next run. To give them time, add "
                f"--extend-days N; if their trial ends or the settings are what was wrong, correct those first."
            )
            self.stderr.write(self.style.WARNING(warning))

    def undo(self, run: ExpiryRun, now: datetime, *, extend_days: int | None, batch_size: int, by: str) -> None:
        try:
            with self.progress() as after_slice:
                undone = services.undo_run(
                    run=run, now=now, by=by, extend_days=extend_days, batch_size=batch_size, after_slice=after_slice
                )
        except KeyboardInterrupt:
            raise CommandError(
                "Stopped by a signal. What was put back stays so; run it again to go on.", returncode=INTERRUPTED
            ) from None
        self.say(f"Put {undone} account(s) back on trial")
        left = Account.objects.still_expired_by(run).count()
        if left:
            raise CommandError(
                f"{left} account(s) were locked by somebody else and are still expired. Run it again.",
                returncode=FAILED,
            )


def system_user() -> str:
    """The name of whoever runs this process, or its number where it has none, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"
