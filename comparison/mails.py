"""The scenario of mails: the same notices through a slow mail server, by the command and by ever more processes.

The server is a real one on the loopback interface that waits before it answers, as one on the internet does.
"""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from django.conf import settings
from redis import Redis

from accounts.models import Account, Notice
from comparison import results, scenarios
from comparison.contenders import Contender, CronRun, Failed, Worker, about_worker
from comparison.measure import Measuring, PeakMemory
from comparison.results import Sample, Scenario
from sandbox import servers
from sandbox.mail_server import Mailbox
from users.models import User

SECONDS_PER_MAIL = 0.05
PROCESSES = (1, 2, 4, 8)
BASELINE = "mail-command"


def environment(mailbox: Mailbox) -> dict[str, str]:
    """What a process needs to send mails to that server."""
    return {
        "TRIAL_NOTICES": "1",
        "EMAIL_URL": mailbox.url,
        "DEFAULT_FROM_EMAIL": "trials@example.com",
        "SITE_URL": "https://www.example.com",
    }


def fill(notices: int, *, now: datetime) -> Scenario:
    """Replace users and accounts by that many, each owed the reminder of a day before the end, and no other."""
    scenarios.fill_users(notices, now=now)
    Account.objects.bulk_create(
        Account(user_id=key, created=now - timedelta(days=settings.TRIAL_DAYS), trial_ends_at=now + timedelta(hours=12))
        for key in User.objects.values_list("pk", flat=True)
    )
    return Scenario(
        name=f"notices-{notices}",
        kind="notices",
        title=scenarios.TITLES["notices"].format(due=notices, accounts=notices),
        accounts=notices,
        due=notices,
        baseline=BASELINE,
        contenders=(),
    )


@dataclass(kw_only=True)
class MailWorker(Worker):
    """A Celery worker that stands ready, and the message to it that has the mails sent."""

    notices: int

    def run(self) -> None:
        """From the message to the end of the last task: every mail is on record as sent, and nothing is queued."""
        self.send("accounts.send_trial_notices")
        with Redis.from_url(self.broker) as broker:

            def all_sent() -> bool:
                if not self.standing[0].is_running():
                    raise Failed(f"The worker died; {self.log.read_text().strip().splitlines()[-1]}")
                sent = Notice.objects.filter(status=Notice.Status.SENT).count()
                # A lane that was left would take mails of whoever is measured next.
                queued = (broker.llen(settings.CELERY_TASK_DEFAULT_QUEUE), broker.hlen("unacked"))
                return sent == self.notices and queued == (0, 0)

            longest = 60 + 4 * self.notices * SECONDS_PER_MAIL
            try:
                servers.wait_for("the mails to be sent", all_sent, seconds=longest, pause=0.02)
            except TimeoutError as timeout:
                raise Failed(str(timeout)) from None


def command(mailbox: Mailbox) -> CronRun:
    """This project's command."""
    about = results.Contender(
        name=BASELINE,
        title="manage.py send_trial_notices",
        how="This project's command, in a process of its own, one mail after the other over one connection.",
        path="cron",
    )
    arguments = [sys.executable, "manage.py", "send_trial_notices"]
    return CronRun(about=about, arguments=arguments, environment=environment(mailbox))


def celery(concurrency: int, *, mailbox: Mailbox, notices: int, broker: str, logs: Path) -> MailWorker:
    """This project's task, on a worker with that many processes."""
    about = about_worker(
        f"mail-celery-{concurrency}",
        concurrency,
        how="With mails: a message to a standing worker with {processes}, from sending it to the last mail on record.",
    )
    return MailWorker(
        about=about,
        concurrency=concurrency,
        broker=broker,
        log=logs / f"{about.name}.log",
        environment=environment(mailbox),
        notices=notices,
    )


@dataclass(kw_only=True)
class MeasuringMails(Measuring):
    """Measures who sends the mails, and looks into the mailbox afterwards."""

    mailbox: Mailbox

    def sample(self, contender: Contender, scenario: Scenario, *, round_number: int) -> Sample:
        """One run of one contender, with its figures, or with what was wrong."""
        self.restore(scenario.name)
        self.mailbox.received.clear()
        base = Sample(scenario=scenario.name, contender=contender.about.name, round=round_number)
        try:
            with PeakMemory(contender) as memory:
                seconds, cpu, database_cpu = self.timed(contender)
        except Failed as failure:
            return replace(base, wrong=str(failure))
        if wrong := what_is_wrong(self.mailbox):
            return replace(base, wrong=wrong)
        return replace(
            base,
            measured_on=scenario.due,
            seconds=seconds,
            cpu_seconds=cpu,
            database_cpu_seconds=database_cpu if self.database else None,
            peak_memory_bytes=memory.bytes or None,
        )


def what_is_wrong(mailbox: Mailbox) -> str:
    """Compare what arrived with what was owed, one mail to every user; in words, empty when all is right."""
    arrived: Mapping[str, int] = Counter(mailbox.recipients)
    owed = set(User.objects.values_list("email", flat=True))
    if missing := owed - arrived.keys():
        return f"{len(missing)} mail(s) did not arrive."
    if strangers := arrived.keys() - owed:
        return f"{len(strangers)} mail(s) went to somebody who was owed none."
    if repeated := [address for address, times in arrived.items() if times > 1]:
        return f"{len(repeated)} mail(s) arrived more than once."
    unsent = Notice.objects.exclude(status=Notice.Status.SENT).count()
    if unsent or Notice.objects.count() != len(owed):
        return f"{Notice.objects.count()} notices are on record for {len(owed)} mails, {unsent} of them not as sent."
    return ""
