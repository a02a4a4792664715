"""The health of trial expiry: the age of the last successful run, accounts that are due for too long, and the mails."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.core.cache import cache
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Count, Min, Q

from accounts import decisions, ledger
from accounts.models import Account, ExpiryRun, Notice
from accounts.words import moment, number, plural

UNSUCCESSFUL = [ExpiryRun.Status.FAILED, ExpiryRun.Status.REFUSED, ExpiryRun.Status.INTERRUPTED]

EXPIRING = "Trials are being expired."

MANY = 10_000
"""So many due accounts are counted; more are told as that."""

NONE_BELOW = "accounts.health.none_below_the_mark"

MANY_MAILS = 10
"""So many mails that failed are a problem of the mail server or the sender; fewer are wrong addresses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What is wrong, or only to be known: one sentence or more, for one situation."""

    text: str
    row: str
    """The row of ``accounts.runbook`` that says what to do."""
    about: ExpiryRun | Account | None = None
    """What to look at first, where it is one row."""
    is_problem: bool = True
    """Whether monitoring raises an alarm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What ``check`` found."""

    findings: list[Finding]

    @property
    def problems(self) -> list[Finding]:
        """The findings that raise an alarm; empty when all is well."""
        return [finding for finding in self.findings if finding.is_problem]

    @property
    def notes(self) -> list[Finding]:
        """The findings that raise none."""
        return [finding for finding in self.findings if not finding.is_problem]

    @property
    def headline(self) -> str:
        """How expiry stands when nothing is wrong, without particulars."""
        rows = {finding.row for finding in self.findings}
        if "paused" in rows:
            return "Trial expiry is paused."
        return "Trial expiry is new." if "new" in rows else EXPIRING

    @property
    def is_well(self) -> bool:
        """Whether trials are being expired, and nothing is wrong."""
        return self.headline == EXPIRING and not self.problems

    @property
    def lines(self) -> list[str]:
        """Every problem on a line of its own, or when a run last succeeded; then the notes."""
        told = [f"Trials are being expired: {last_success()}."] if self.is_well else []
        return [finding.text for finding in self.problems] + told + [finding.text for finding in self.notes]


def check(*, now: datetime, max_age: timedelta) -> Health:
    """Check whether trials are being expired and mails sent: the effect, whichever path runs.

    Args:
        now: the moment to check at, by the database's clock.
        max_age: how long ago the last successful run may be, how long a due account may stay trialing, and how long a
            mail may wait. A few times the interval of the schedule, so that one failure raises no alert.
    """
    pause = decisions.paused(now=now)
    if pause:
        findings = [Finding(text=f"{decisions.in_words(pause)}{_due(now)}", row="paused", is_problem=False)]
    else:
        findings = _runs(now, max_age)
    if broken := Account.objects.off_calendar().values_list("pk", flat=True)[:1000]:
        some = f"{plural(len(broken), 'account')}, such as {broken[0]},"
        text = (
            f"{some} {'has' if len(broken) == 1 else 'have'} a trial end outside the years 1 to 9999. No run expires "
            "them: give them another trial end."
        )
        findings.append(Finding(text=text, row="off-calendar"))
    return Health(findings=findings + (_mails(now, max_age) if settings.TRIAL_NOTICES else []))


def _runs(now: datetime, max_age: timedelta) -> list[Finding]:
    since = now - max_age
    last = ExpiryRun.objects.last_success()
    fresh = ExpiryRun.objects.succeeded_since(since, now=now)
    bad = ExpiryRun.objects.filter(status__in=UNSUCCESSFUL, pk__gt=last.pk if last else 0).exclude(error="")
    latest = bad.order_by("-pk").first()
    oldest = _oldest_due(since, now=now)
    never = last is None and not ExpiryRun.objects.exists()
    # After an installation, and after a pause, the schedule has this long to run once.
    is_new = never and not oldest and installed() > since
    was_paused = (oldest or not fresh) and any(decisions.pauses(now=now, since=since))

    texts, row = [], "new" if never else "stale"
    if not (fresh or is_new or was_paused):
        texts.append(f"No run has succeeded within {_hours(max_age)}; {_in_words(last)}.{_due(now)}")
    if latest and (texts or latest.status == ExpiryRun.Status.REFUSED):
        row = str(latest.status)
        if latest.status == ExpiryRun.Status.REFUSED:  # reported at once, because the next tick will be refused too
            row = "fuse" if latest.due_count else "clock"
        texts.append(f"The latest {latest.status} run, {latest.pk} by {latest.path}, says: {latest.error}")
    if texts:
        return [Finding(text=" ".join(texts), row=row, about=latest)]
    if oldest and not was_paused:
        text = (
            f"Account {oldest.pk}, whose trial ended at {moment(oldest.trial_ends_at)}, should have expired long ago."
        )
        return [Finding(text=f"{text}{_due(now)}", row="overdue", about=oldest)]
    return [Finding(text="No run has been started yet.", row="new", is_problem=False)] if is_new else []


def _oldest_due(since: datetime, *, now: datetime) -> Account | None:
    """The account that was due first at ``since`` and still is; below the low-water mark once an hour in a process.

    There the ledger says that none is left, and a million dead entries may lie in the index.
    """
    due = Account.objects.due(since).order_by("trial_ends_at")
    mark = ledger.low_water_mark(now=now)
    if mark and not cache.get(NONE_BELOW):
        if below := due.filter(trial_ends_at__lt=mark).first():
            return below
        cache.set(NONE_BELOW, True, 3600)
    return due.above(mark).first()


def _mails(now: datetime, max_age: timedelta) -> list[Finding]:
    findings = []
    late = (
        Notice.objects.pending()
        .filter(queued__lt=now - max_age)
        .aggregate(count=Count("pk"), oldest=Min("queued"), untried=Count("pk", filter=Q(last_error="")))
    )
    # One that the mail server answered waits for its next attempt, as a wrong address does for a day.
    if late["untried"] or late["count"] >= MANY_MAILS:
        text = (
            f"{plural(late['count'], 'mail has', 'mails have')} waited for more than {_hours(max_age)}, the first "
            f"since {moment(late['oldest'])}."
        )
        findings.append(Finding(text=text, row="mails-waiting"))
    days = settings.TRIAL_NOTICE_WINDOW_DAYS
    lately = Notice.objects.filter(status=Notice.Status.GIVEN_UP, next_attempt__gt=now - timedelta(days=days))
    if count := lately.count():
        text = f"{plural(count, 'mail was', 'mails were')} given up in the last {plural(days, 'day')}."
        findings.append(Finding(text=text, row="mails-given-up", is_problem=count >= MANY_MAILS))
    return findings


def installed() -> datetime:
    """When the first migration of this app was applied."""
    applied = MigrationRecorder(connection).migration_qs.filter(app=ExpiryRun._meta.app_label)
    return applied.aggregate(first=Min("applied"))["first"] or datetime.min.replace(tzinfo=UTC)


def last_success() -> str:
    """When a run last succeeded, in words."""
    return _in_words(ExpiryRun.objects.last_success())


def _in_words(run: ExpiryRun | None) -> str:
    return f"the last one, by {run.path}, was as of {moment(run.as_of)}" if run else "none ever has"


def _due(now: datetime) -> str:
    due = Account.objects.due(now).above(ledger.low_water_mark(now=now)).count_to(MANY + 1)
    if due > MANY:
        return f" More than {number(MANY)} accounts are due."
    return f" {plural(due, 'account is', 'accounts are')} due." if due else ""


def _hours(age: timedelta) -> str:
    hours = f"{age / timedelta(hours=1):g}"
    return f"{hours} hour" if hours == "1" else f"{hours} hours"
