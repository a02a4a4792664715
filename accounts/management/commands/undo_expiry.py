"""``./manage.py undo_expiry``: the command for ``accounts.services.undo_run``."""

import getpass
import os
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from accounts import services
from accounts.events import command_user
from accounts.management import options as types
from accounts.management.base import BAD_INPUT, TrialCommand
from accounts.models import Account, ExpiryRun
from accounts.services import LONGEST_EXTENSION, UndoPreview


class Command(TrialCommand):
    help = (
        "Put the accounts that a run expired, and that are still expired, back on trial. Accounts that paid, were "
        "cancelled or were extended since do not change. Stops a run that is in progress. Safe to repeat. "
        "Exit codes: 0 done, also when there was nothing to undo, 1 failed, or some were locked (run it again), "
        "2 bad input."
    )
    work = "undo"
    lasting = "What it put back stays on trial; run it again for the rest."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "run", type=types.whole_number(), metavar="RUN", help="The number of the run, as the ledger shows it."
        )
        parser.add_argument("--dry-run", action="store_true", help="Only print what would change.")
        parser.add_argument(
            "--extend-days",
            type=types.whole_number(at_most=LONGEST_EXTENSION),
            metavar="N",
            help="Also extend their trials by N days, counted from their end or from now, whichever is later. "
            "Without it the next run expires again those that are due.",
        )
        self.add_batch_size(parser, verb="put back")
        self.add_jobs(parser, what="Transactions")
        parser.add_argument(
            "--by",
            type=types.name(at_most=200),
            default=system_user(),
            metavar="NAME",
            help="Who undoes the run, for the ledger (default: the system user).",
        )

    def handle(
        self,
        *args: Any,
        run: int,
        dry_run: bool,
        extend_days: int | None,
        batch_size: int | None,
        throttle: float,
        jobs: int,
        by: str,
        **options: Any,
    ) -> None:
        now = timezone.now()
        found = ExpiryRun.objects.filter(pk=run).first()
        if found is None:
            raise CommandError(
                f"There is no run {run}. The ledger, Expiry runs in the admin, has the numbers.", returncode=BAD_INPUT
            )
        preview = services.preview_undo(run=found, now=now)
        if not preview.would_return and found.status != ExpiryRun.Status.RUNNING:
            self.say(f"Nothing to undo: no account is still expired by {found}.")
            return
        self.say_what_would_happen(found, preview, extended=extend_days is not None)
        if dry_run:
            return
        with self.progress() as after_slice:
            undone = services.undo_run(
                run=found,
                now=now,
                by=command_user(by),
                extend_days=extend_days,
                batch_size=batch_size,
                throttle=throttle,
                after_slice=after_slice,
                jobs=jobs,
            )
        self.say(f"Put {undone} account(s) back on trial")
        if left := Account.objects.still_expired_by(found).count():
            raise CommandError(f"{left} account(s) were locked by somebody else and are still expired. Run it again.")

    def say_what_would_happen(self, run: ExpiryRun, preview: UndoPreview, *, extended: bool) -> None:
        self.say(
            f"{str(run).capitalize()}, expired {run.expired_count} account(s): {preview.would_return} to put back on "
            f"trial, {preview.moved_on} paid or cancelled and {preview.extended} extended since stay as they are."
        )
        if preview.mailed:
            self.say(f"{preview.mailed} of them were mailed already that their trial has ended. An undo mails nobody.")
        if preview.due_again and not extended:
            warning = (
                f"The rule will expire {preview.due_again} of them again at the next run. To give them time, add "
                f"--extend-days N; if their trial ends or the settings are what was wrong, correct those first."
            )
            self.stderr.write(self.style.WARNING(warning))


def system_user() -> str:
    """The name of the user that runs this process, or its number when it has no name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
