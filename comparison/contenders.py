"""The contenders: each way to do the work, as its users run it."""

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from django.conf import settings
from django.utils import timezone
from redis import Redis

from accounts.models import Account, Notice
from comparison.management.commands.expire_otherwise import PART
from comparison.runners import CronRun, Runner, Worker
from sandbox import servers
from sandbox.mail_server import Mailbox

SECONDS_PER_MAIL = 0.05  # how long the mail server takes for each, as one on the internet does
RAW_UPDATE = """
    UPDATE accounts_account SET status = 'trial_expired', trial_expired_at = now(), expiry_run_id = 0
    WHERE status = 'trialing' AND trial_ends_at < now() - interval '{grace} days'
"""


class RawUpdate(CronRun):
    name, title = "raw-sql", "One raw UPDATE"
    how = "psql runs one UPDATE that writes the same columns of the same rows: the limit."
    path = "limit"

    def __init__(self) -> None:
        self.arguments = [servers.psql(), "--no-psqlrc", os.environ["DATABASE_URL"], "--command", r"\timing on"]
        self.arguments += ["--command", RAW_UPDATE.format(grace=settings.TRIAL_GRACE_DAYS)]

    def read_work(self, output: str) -> Mapping[str, float]:
        return {"seconds": float(re.findall(r"^Time: ([\d.]+) ms", output, re.MULTILINE)[-1]) / 1000}


class OneUpdate(CronRun):
    """What a first version does."""

    name, title = "one-update", "One update() of all"
    how = "A management command with one queryset.update(), of the same columns, in a process of its own."
    arguments = (sys.executable, "manage.py", "expire_otherwise", "one-update")

    def read_work(self, output: str) -> Mapping[str, float]:
        work: dict[str, float] = json.loads(output)
        return work


class SaveLoop(OneUpdate):
    """What most packages do."""

    name, title = "row-by-row", "A loop of save()"
    how = (
        f"A management command that saves one account after the other; measured once, on {PART:,} of them at most, "
        "and without customers, because its save() would take back what they paid for meanwhile."
    )
    arguments = (sys.executable, "manage.py", "expire_otherwise", "row-by-row")
    part = PART
    rounds = 1


class ExpireTrials(CronRun):
    name, title = "command", "expire_trials"
    how = "This project's command, in a process of its own. After a kill the next cron run takes what is left."
    arguments = (sys.executable, "manage.py", "expire_trials")


class Celery(Worker):
    prefix = "celery"
    how_with = (
        "A message to a standing worker with {processes}, from sending it to the closed run. After a kill the worker "
        "is started again and goes on with the queued slices; those it held come with the next tick, or with the "
        f"visibility timeout of {settings.CELERY_VISIBILITY_TIMEOUT} s if that is earlier."
    )


def mail_environment(mailbox: Mailbox) -> dict[str, str]:
    """What a process needs to send mails to that server."""
    return {
        "TRIAL_NOTICES": "1",
        "EMAIL_URL": mailbox.url,
        "DEFAULT_FROM_EMAIL": "trials@example.com",
        "SITE_URL": "https://www.example.com",
    }


class SendNotices(CronRun):
    name, title = "mail-command", "send_trial_notices"
    how = "This project's command, in a process of its own, one mail after the other over one connection."
    arguments = (sys.executable, "manage.py", "send_trial_notices")

    def __init__(self, mailbox: Mailbox) -> None:
        self.environment = mail_environment(mailbox)


class MailWorker(Worker):
    prefix = "mail-celery"
    how_with = (
        "With mails: a message to a standing worker with {processes}, from sending it to the last mail on record."
    )

    def __init__(self, concurrency: int, *, mailbox: Mailbox, mails: int, broker: str, logs: Path) -> None:
        super().__init__(concurrency, broker=broker, logs=logs)
        self.environment, self.mails = mail_environment(mailbox), mails

    def run(self) -> None:
        """From the message to the end of the last task: every mail is on record as sent, and nothing is queued."""
        self.send("accounts.send_trial_notices")
        with Redis.from_url(self.broker) as broker:

            def all_sent() -> bool:
                sent = Notice.objects.filter(status=Notice.Status.SENT).count()
                # A task that is left would take mails of whoever is measured next.
                queued = (broker.llen(settings.CELERY_TASK_DEFAULT_QUEUE), broker.hlen("unacked"))
                return sent == self.mails and queued == (0, 0)

            longest = 60 + 4 * self.mails * SECONDS_PER_MAIL
            self.wait_for("the mails to be sent", all_sent, seconds=longest, pause=0.02)


class PythonStart(CronRun):
    name = title = "python"
    how = "Python starts, and does nothing."
    path = "limit"
    arguments = (sys.executable, "-c", "")


class DjangoSetup(CronRun):
    """What every management command begins with."""

    how = "Python starts, and Django with the project's settings."
    name, title, path = "django-setup", "django.setup()", "limit"
    arguments = (sys.executable, "-c", "import django; django.setup()")


class DueQuery(Runner):
    """The question that every run begins with."""

    how = "“Is anything due?”, asked on an open connection when nothing is."
    name, title, path = "due-query", "The query", "limit"
    rounds = 20  # it takes so little

    def run(self) -> None:
        Account.objects.any_due(timezone.now())
