"""``./manage.py expire_otherwise``: what compare_paths measures this project against."""

import json
import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from accounts.models import Account

PART = 250  # accounts that the loop of ``save()`` is measured on


class Command(BaseCommand):
    help = "Expire due trials as others do, for compare_paths to measure. Works on its scratch database only."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("how", choices=("one-update", "row-by-row"))

    def handle(self, *args: Any, how: str, **options: Any) -> None:
        if settings.SETTINGS_MODULE != "comparison.settings":  # which refuse every other database
            raise CommandError(
                "This works on the scratch database of compare_paths only. Did you mean ./manage.py expire_trials?"
            )
        now = timezone.now()
        wall, cpu = time.monotonic(), time.process_time()
        # A first version writes the status alone. The other columns are there for a fair comparison.
        if how == "one-update":
            Account.objects.due(now).update(status=Account.TRIAL_EXPIRED, trial_expired_at=now, expiry_run_id=0)
        else:
            for account in Account.objects.due(now)[:PART]:
                account.status = Account.TRIAL_EXPIRED
                account.trial_expired_at = now
                account.expiry_run_id = 0
                account.save()
        # Without the start of Python and Django: what grows with the accounts.
        self.stdout.write(json.dumps({"seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu}))
