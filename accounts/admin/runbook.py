"""What each message of ``accounts.health`` means and what to do: a page of the admin, a table in docs/operations.md.

A test compares the two.
"""

import re
from typing import NamedTuple

from django.contrib.admin import site
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe


class Row(NamedTuple):
    """One message. ``id`` is the anchor on the page, and ``Finding.row``."""

    id: str
    says: str
    meaning: str
    action: str


ROWS = [
    Row(
        "new",
        "`No run has been started yet`, or `No run has succeeded ...; none ever has`",
        "The installation is new, or nothing starts a run. It is an alarm when an account has been due for "
        "longer than `TRIAL_RUN_MAX_AGE_HOURS`, or when the first migration was applied longer ago than that.",
        "See how many accounts a run would expire: `./manage.py expire_trials --dry-run`. If that is right: "
        "*Run now* in the admin, or `./manage.py expire_trials`. Then let cron or Celery do it every hour: "
        'README, "Scheduling the command" and "Running Celery".',
    ),
    Row(
        "stale",
        "`No run has succeeded within 3 hours`",
        "No process starts a run, or every run fails. If a run failed or was refused, its error follows.",
        "At once: *Run now* in the admin, or `./manage.py expire_trials`, which needs no broker. Then find "
        "the cause: is the cron line there, are beat and worker alive, do their logs have an error?",
    ),
    Row(
        "fuse",
        "`The latest refused run ... says: Refused: N accounts are due and at most M may expire`",
        "The fuse. Nothing was changed, and no account expires until a run succeeds, so the alarm is immediate.",
        "Is N plausible? Then *Allow once* in the admin, or `./manage.py expire_trials --max-accounts N`. If "
        "not: *Pause* the runs, and look at the trial ends of these accounts, `TRIAL_DAYS`, "
        "`TRIAL_GRACE_DAYS` and the clock.",
    ),
    Row(
        "clock",
        "`The latest refused run ... says: Refused: the clock of this machine says ...`",
        "The clock of the machine that ran and the database's differ by more than five minutes. Nothing was "
        "changed: a clock that is ahead expires accounts early.",
        "Set the wrong clock (`timedatectl`, `chronyc tracking`), then `./manage.py expire_trials`.",
    ),
    Row(
        "on-hold",
        "`Accounts whose trial is over still have access, because ...`",
        "The next run will be refused, by the fuse or for the clock of the web process, so nobody is locked out "
        "meanwhile. Only the overview says so: it is no alarm before a run was refused.",
        "More than `TRIAL_EXPIRY_MAX` are due: if that is right, raise it, or *Allow once* after the refusal. If not: "
        "*Pause* the runs, and look at what the fuse's row names. The clocks differ: set the wrong one.",
    ),
    Row(
        "failed",
        "`The latest failed run ... says: ...`",
        "A slice failed after its retries. The other slices were expired.",
        "The text is the error of the database. The next tick retries.",
    ),
    Row(
        "interrupted",
        "`The latest interrupted run ... says: Died, or lost its last message`",
        "A process was killed, or the queue was lost, during the run.",
        "Nothing; the next run expires the rest. A frequent cause is the memory limit of the container.",
    ),
    Row(
        "overdue",
        "`Account N ... should have expired long ago`",
        "Runs succeed, but an account stays trialing: another transaction has held a lock on it for hours.",
        "In PostgreSQL: `SELECT pid, state, xact_start, query FROM pg_stat_activity ORDER BY xact_start`, and "
        "terminate the oldest one that is `idle in transaction`.",
    ),
    Row(
        "off-calendar",
        "`N account(s), such as A, have a trial end outside the years 1 to 9999`",
        "These rows were written without the constraint that forbids such a value, for example `infinity`. No "
        "run expires these accounts; all others are expired.",
        "Set another trial end: `UPDATE accounts_account SET trial_ends_at = ... WHERE id = A`.",
    ),
    Row(
        "paused",
        "`Paused until ... by ...`",
        "An operator has paused the runs, and this is no alarm. Accounts stay on trial and keep their access; mails "
        "are sent. When the pause has ended, the schedule has `TRIAL_RUN_MAX_AGE_HOURS` for a run that succeeds.",
        "Nothing, or *Resume* in the admin. The history of decisions says who paused and why.",
    ),
    Row(
        "mails-waiting",
        "`N mails have waited for more than 3 hours`",
        "Nothing sends mails, or the mail server does not accept them. Mails that it refused one by one count "
        "from ten on: a wrong address waits for a day.",
        "`./manage.py send_trial_notices` sends them, or shows the error of the mail server. Then find the "
        "cause: is its cron line there, is its periodic task enabled?",
    ),
    Row(
        "mails-given-up",
        "`N mails were given up in the last 7 days`",
        "The mail server refused each of them five times within a day. It is an alarm from ten on; fewer are "
        "a note, because they are usually wrong addresses.",
        "The notice's last error has the reason. Correct the address or the sender, then *Try again now* in "
        "the admin's list of notices.",
    ),
    Row(
        "beat",
        "`A tick is overdue`",
        "Beat has not sent the periodic task that expires trials when it was due.",
        "Is the entry enabled (in the admin, Periodic tasks: Expire trials)? Does beat log `Sending due "
        'task`? Does the worker log `Task accounts.expire_trials[...] received`? The first "no" shows the '
        "cause. Never run more than one beat.",
    ),
    Row(
        "too-many",
        "Too many accounts expired",
        "A wrong setting, or wrong trial ends.",
        "*Pause* the runs, then *Undo* on the page of the run, or `./manage.py undo_expiry RUN`.",
    ),
    Row(
        "database",
        "`The database ... does not answer`",
        "The database is down or unreachable.",
        "Start it again; the next tick succeeds. Nothing was lost.",
    ),
    Row(
        "not-started",
        "A process ends at once with `Not started: ...`",
        "A setting is missing, wrong or, in production, insecure; the line names it.",
        'Correct it in the environment or in `.env`. README, "Settings", has the bounds.',
    ),
    Row(
        "unhealthy",
        "The container of beat or worker is unhealthy",
        "Its heartbeat (`docker compose exec worker cat /tmp/heartbeat`) says `waits for the broker`: the broker is "
        "down, full or refuses the password. It says `lost the last tick`: the broker did not take it. It is old: the "
        "process hangs.",
        "Start the broker, or restart the process. Never run more than one beat.",
    ),
    Row(
        "ahead",
        "`The database is ahead of this code`",
        "After a downgrade: the database has migrations of the newer release.",
        "Nothing, for one release back. Further back, undo these migrations with the newer release, or restore a "
        "backup.",
    ),
]


def as_html(text: str) -> SafeString:
    """The text with its code, in backticks, and its names of buttons, in asterisks, marked up."""
    return mark_safe(re.sub(r"\*(.+?)\*", r"<b>\1</b>", re.sub(r"`(.+?)`", r"<code>\1</code>", escape(text))))  # noqa: S308


def page(request: HttpRequest) -> TemplateResponse:
    """The page."""
    rows = [(row.id, *(as_html(text) for text in row[1:])) for row in ROWS]
    context = {**site.each_context(request), "title": "What to do", "rows": rows}
    return TemplateResponse(request, "admin/runbook.html", context)
