"""The contenders: each way to do the work, as its users run it."""

import json
import re
from collections.abc import Mapping

from django.conf import settings
from redis import Redis

from accounts.models import Notice
from comparison.management.commands.expire_otherwise import PART
from comparison.runners import CronRun, Program, Standing, python
from project.celery import app
from sandbox import servers
from sandbox.mail_server import Mailbox

HOUR = 3600
SECONDS_PER_MAIL = 0.05  # how long the mail server takes for each, as one on the internet does
RAW_UPDATE = """
    UPDATE accounts_account SET status = 'trial_expired', trial_expired_at = now(), expiry_run_id = 0
    WHERE status = 'trialing' AND trial_ends_at < now() - interval '{grace} days'
"""


class RawUpdate(CronRun):
    name, title = "raw-sql", "raw UPDATE"
    how = "psql runs one UPDATE that writes the same columns of the same rows: the limit."
    path = "limit"

    def run(self) -> None:
        self.arguments = [servers.psql(), "--no-psqlrc", self.site.database, "--command", r"\timing on"]
        self.arguments += ["--command", RAW_UPDATE.format(grace=settings.TRIAL_GRACE_DAYS)]
        super().run()

    def read_work(self, output: str) -> Mapping[str, float]:
        return {"seconds": float(re.findall(r"^Time: ([\d.]+) ms", output, re.MULTILINE)[-1]) / 1000}


class OneUpdate(CronRun):
    """What a first version does."""

    name, title = "one-update", "one update()"
    how = "A management command with one queryset.update(), of the same columns, in a process of its own."
    arguments = python("manage.py", "expire_otherwise", "one-update")

    def read_work(self, output: str) -> Mapping[str, float]:
        work: dict[str, float] = json.loads(output)
        return work


class SaveLoop(OneUpdate):
    """What most packages do."""

    name, title = "row-by-row", "save() loop"
    how = (
        f"A management command that saves one account after the other; measured once, on {PART:,} of them at most, "
        "and without customers, because its save() would take back what they paid for meanwhile."
    )
    arguments = python("manage.py", "expire_otherwise", "row-by-row")
    part = PART
    rounds = 1


class ExpireTrials(CronRun):
    name, title = "command", "command"
    how = "./manage.py expire_trials, in a process of its own, with one connection."
    arguments = python("manage.py", "expire_trials")


class ExpireTrialsJobs(ExpireTrials):
    """Several connections at once, each in a thread."""

    how = "./manage.py expire_trials --jobs {jobs}, in a process of its own: threads, each with its own connection."

    def __init__(self, jobs: int) -> None:
        self.name, self.title = f"command-jobs-{jobs}", f"command, {jobs} jobs"
        self.how = self.how.format(jobs=jobs)
        self.arguments = python("manage.py", "expire_trials", f"--jobs={jobs}")


HANDED_OVER = "A message to a standing worker, from sending it to the closed run: "


class Celery(Standing):
    """Worker, beat and broker as docker-compose.yml and the Procfile have them."""

    path = "celery"
    task = "accounts.expire_trials"
    pool = "prefork"
    how = HANDED_OVER + "{concurrency} processes, and beat beside them for the schedule."

    def __init__(self, concurrency: int) -> None:
        super().__init__()
        self.concurrency = concurrency
        self.name, self.title = self.called()
        self.how = self.how.format(concurrency=concurrency)

    def called(self) -> tuple[str, str]:
        """Name and title."""
        return f"celery-{self.concurrency}", f"Celery, {self.concurrency} processes"

    def worker(self, *options: str) -> Program:
        """The worker; a pool of threads has no children."""
        arguments = ["-m", "celery", "-A", "project", "worker", "--loglevel=INFO", f"--pool={self.pool}", *options]
        arguments += [f"--concurrency={self.concurrency}", f"--hostname={self.name}@%h"]
        return Program(arguments, " ready.", self.concurrency if self.pool == "prefork" else 0)

    def programs(self, every: int | None) -> Mapping[str, Program]:
        beat = Program(("-m", "celery", "-A", "project", "beat", "--loglevel=INFO", "--pidfile="), "beat: Starting")
        return {"worker": self.worker(), **({"scheduler": beat} if every else {})}

    def trigger(self) -> None:
        """Send the task as beat does."""
        with app.connection_for_write(self.site.broker) as to_the_broker:
            app.send_task(self.task, connection=to_the_broker, ignore_result=True)

    def write_schedule(self, every: int) -> None:
        """Into beat's table, which has the hourly entry already.

        An interval counts from the tick before, not from moments of the clock. So where each tick's lateness matters,
        the table gets the moments one by one, as entries for once.
        """
        if every == HOUR:
            return
        table, values = ("clocked", MOMENTS) if every == 1 else ("interval", INTERVAL)
        self.site.ask("UPDATE django_celery_beat_periodictask SET enabled = false")
        self.site.ask(f"INSERT INTO django_celery_beat_{table}schedule {values}", every)
        self.site.ask(ENTRIES.format(table=table), self.task, every == 1)


MOMENTS = (
    "(clocked_time) SELECT date_trunc('second', now()) + interval '1 s' * (3 + n * %s) FROM generate_series(1, 60) n"
)
INTERVAL = "(every, period) VALUES (%s, 'seconds')"
ENTRIES = """
    INSERT INTO django_celery_beat_periodictask (name, task, one_off, {table}_id,
        args, kwargs, headers, description, enabled, total_run_count, date_changed)
    SELECT 'tick ' || id, %s, %s, id, '[]', '{{}}', '{{}}', '', true, 0, now() FROM django_celery_beat_{table}schedule
"""


class CeleryThreads(Celery):
    pool = "threads"
    same_scheduler = True
    how = HANDED_OVER + "one process with {concurrency} threads, and beat beside it for the schedule."

    def called(self) -> tuple[str, str]:
        return f"celery-threads-{self.concurrency}", f"Celery, {self.concurrency} threads"


class CeleryBeatInside(CeleryThreads):
    how = HANDED_OVER + "one worker with {concurrency} threads that runs beat, too (-B), for a single host."

    def called(self) -> tuple[str, str]:
        return "celery-beat-inside", "Celery threads, -B"

    def programs(self, every: int | None) -> Mapping[str, Program]:
        inside = self.worker("--beat") if every else self.worker()
        return {"worker": inside._replace(children=1 if every else 0)}


def mail_environment(mailbox: Mailbox) -> dict[str, str]:
    """What a process needs to send mails to that server."""
    return {
        "TRIAL_NOTICES": "1",
        "EMAIL_URL": mailbox.url,
        "DEFAULT_FROM_EMAIL": "trials@example.com",
        "SITE_URL": "https://www.example.com",
    }


class SendNotices(CronRun):
    how = "./manage.py send_trial_notices, in a process of its own: {jobs} at a time, each on its own connections."

    def __init__(self, jobs: int, *, mailbox: Mailbox) -> None:
        self.name, self.title = (
            ("mail-command", "command") if jobs == 1 else (f"mail-jobs-{jobs}", f"command, {jobs} jobs")
        )
        self.how = self.how.format(jobs="one mail" if jobs == 1 else f"{jobs} mails")
        self.arguments = python("manage.py", "send_trial_notices", *([f"--jobs={jobs}"] if jobs > 1 else []))
        self.environment = mail_environment(mailbox)
        self.rounds = 1 if jobs == 1 else None  # most of its time is the mail server's


class CeleryMails(Celery):
    """From the message to the end of the last task: every mail is on record as sent, and nothing is queued."""

    task = "accounts.send_trial_notices"
    how = "Mails: a message to a standing worker with {concurrency} processes, to the last mail on record."

    def __init__(self, concurrency: int, *, mailbox: Mailbox, mails: int) -> None:
        super().__init__(concurrency)
        self.name = f"mail-{self.name}"
        self.environment, self.mails = mail_environment(mailbox), mails

    def warm_up(self) -> None:
        """Nothing: its task is not a run."""

    def run(self) -> None:
        self.trigger()
        with Redis.from_url(self.site.broker) as broker:

            def all_sent() -> bool:
                sent = Notice.objects.filter(status=Notice.Status.SENT).count()
                # A task that is left would take mails of whoever is measured next.
                queued = (broker.llen(settings.CELERY_TASK_DEFAULT_QUEUE), broker.hlen("unacked"))
                return sent == self.mails and queued == (0, 0)

            longest = 60 + 4 * self.mails * SECONDS_PER_MAIL
            self.wait_for("the mails to be sent", all_sent, seconds=longest, pause=0.02)


class CeleryThreadsMails(CeleryMails, CeleryThreads):
    how = "Mails: a message to a standing worker of one process with {concurrency} threads, to the last mail on record."
