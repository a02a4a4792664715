"""The story of one account, for its page: the verdict in a sentence or two, and the timeline of what is recorded."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from accounts import access, delivery
from accounts.log import one_line
from accounts.models import Account, AccountEvent, ExpiryRun, Notice, grace_cutoff
from accounts.words import moment, plural, time_left

MAILS = 100
"""The most mails that a timeline shows, the latest ones."""

NameOfRun = Callable[[ExpiryRun], str]
"""How a run is written: as text, or as a link."""


def plain(run: ExpiryRun) -> str:
    """The name of a run, without a link."""
    return f"run {run.pk}"


def linked(run: ExpiryRun) -> str:
    """The name of a run, with a link to its page."""
    return format_html('<a href="{}">run {}</a>', reverse("admin:accounts_expiryrun_change", args=[run.pk]), run.pk)


def actor(event: AccountEvent) -> str:
    """Who asked for the change."""
    return event.by or "a service call"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One change of an account: an event or, without one, its expiry by the run."""

    at: datetime
    run: ExpiryRun | None
    """The run that expired the account; of an event, the one that had expired it before."""
    event: AccountEvent | None = None


def steps(account: Account) -> list[Step]:
    """Every change of the account, oldest first. An expiry is derived from what points to its run."""
    found: list[Step] = []
    run_id: int | None = None

    def add(at: datetime, run: ExpiryRun | None, event: AccountEvent | None = None) -> None:
        # Events are in the order of their keys. Their moments may differ from it a little: each waited for a lock.
        found.append(Step(at=max(at, found[-1].at) if found else at, run=run, event=event))

    for event in account.events.select_related("run").order_by("pk"):
        if event.run and event.run_id != run_id:
            add(event.run.started, event.run)
        add(event.at, event.run, event)
        on_trial = event.kind in {AccountEvent.Kind.EXTENDED, AccountEvent.Kind.UNDONE}
        run_id = None if on_trial else event.run_id
    if account.expiry_run and account.expiry_run_id != run_id:
        add(account.expiry_run.started, account.expiry_run)
    return found


def verdict(account: Account, changes: list[Step], *, now: datetime, name: NameOfRun = plain) -> str:
    """What the account is at ``now``, and why, in a sentence or two. ``changes`` are its ``steps``."""
    last = changes[-1] if changes else None
    event = last.event if last else None
    match account.status:
        case Account.TRIALING:
            return _trialing(account, now) + _back_on_trial(changes, name)
        case Account.TRIAL_EXPIRED:
            return _expired(account, name)
        case Account.ACTIVE if event and event.kind == AccountEvent.Kind.ACTIVATED:
            after = format_html(", after {} had expired it", name(last.run)) if last and last.run else ""
            return format_html("Active since {}: activated by {}{}.", moment(event.at), actor(event), after)
        case Account.CANCELED if event and event.kind == AccountEvent.Kind.CANCELED:
            return format_html("Cancelled on {} by {}; was {}.", moment(event.at), actor(event), _before(event))
        case Account.EXEMPT | Account.BETA | Account.PAST_DUE:
            return f"{account.get_status_display()}: no run expires this account."
    return f"{account.get_status_display()}. When and by whom is not recorded."


def _trialing(account: Account, now: datetime) -> SafeString:
    ends = account.trial_ends_at
    ended = f"the trial ended on {moment(ends)}"
    if now <= ends:
        return format_html("On trial: the trial ends on {}, {}.", moment(ends), time_left(now, ends))
    if access.status_at(account, now) == Account.TRIALING:
        return format_html("In grace: {}. A run after {} expires it.", ended, moment(ends + (now - grace_cutoff(now))))
    if why := access.why_on_hold(now):
        return format_html("Due, but on hold: {}, and {}.", ended, why)
    return format_html("Due: {}. The next run expires it.", ended)


def _back_on_trial(changes: list[Step], name: NameOfRun) -> SafeString:
    """Since when and why an account that had expired is on trial again; empty when it had not expired."""
    for step in reversed(changes):
        if step.event and step.event.status_before == Account.TRIAL_EXPIRED:
            if step.event.kind == AccountEvent.Kind.UNDONE and step.run:
                why = format_html("{} was undone by {}", name(step.run), actor(step.event))
            else:
                why = format_html("{} extended it", actor(step.event))
            return format_html(" Back on trial since {} on {}.", why, moment(step.event.at))
    return SafeString()


def _expired(account: Account, name: NameOfRun) -> str:
    run = account.expiry_run
    if not run:
        return "Expired. Which run did it is not recorded."
    days = (run.as_of - run.cutoff) // timedelta(days=1)
    grace = f"the grace of {plural(days, 'day')} was over" if days else "there was no grace"
    said = format_html(
        "Expired on {} by {}: the trial ended on {}, and {}.",
        moment(run.started),
        name(run),
        moment(account.trial_ends_at),
        grace,
    )
    if run.status == ExpiryRun.Status.UNDONE:
        return format_html(
            "{} That run was undone since, but this account was locked then, and left out: undo the run again.", said
        )
    return said


def _before(event: AccountEvent) -> str:
    return event.get_status_before_display().lower()


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """An entry of the timeline. ``text`` may have links."""

    at: datetime
    text: str
    mail: "Preview | None" = None


def timeline(
    account: Account, changes: list[Step], *, mails: bool, now: datetime, name: NameOfRun = plain
) -> list[Entry]:
    """All that is recorded about the account, newest first. ``changes`` are its ``steps``."""
    entries = [Entry(at=account.created, text="Account created.")]
    entries += [Entry(at=step.at, text=_told(step, name)) for step in changes]
    entries += _mails(account, now) if mails else []
    return sorted(entries, key=lambda entry: entry.at)[::-1]


def _told(step: Step, name: NameOfRun) -> str:
    event, run = step.event, step.run
    if event is None:
        return format_html("Expired by {}.", name(run) if run else "a run")
    moved = ""
    if event.ends_before and event.ends_after:
        moved = f" The end of the trial moved from {moment(event.ends_before)} to {moment(event.ends_after)}."
    if event.kind == AccountEvent.Kind.UNDONE:
        return format_html("Back on trial: {} undid {}.{}", actor(event), name(run) if run else "a run", moved)
    return format_html("{} by {}; was {}.{}", event.get_kind_display(), actor(event), _before(event), moved)


# --- Mails ---


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """A mail as it was sent or would be sent, by the templates of today."""

    notice: Notice
    subject: str = ""
    text: str = ""
    error: str = ""
    """Why the mail cannot be composed; empty when it can."""


def name_of_mail(notice: Notice) -> str:
    """What the mail says."""
    return f"Reminder, {plural(notice.days_before, 'day')} before" if notice.days_before else "Trial ended"


def preview(notice: Notice, *, now: datetime) -> Preview:
    """Compose the mail: as of when it was sent, or as of ``now`` while it waits."""
    waits = notice.status == Notice.Status.PENDING
    try:
        message = delivery.compose(notice, now=notice.sent or (now if waits else notice.queued))
    except Exception as error:  # templates may raise any exception
        return Preview(notice=notice, error=one_line(f"{type(error).__name__}: {error}", most=500))
    return Preview(notice=notice, subject=str(message.subject), text=str(message.body))


def _mails(account: Account, now: datetime) -> Iterator[Entry]:
    for notice in account.notices.order_by("-pk")[:MAILS]:
        mail = preview(notice, now=now)
        yield Entry(at=notice.sent or notice.queued, text=_outcome(notice), mail=mail)


def _outcome(notice: Notice) -> str:
    what = f"Mail “{name_of_mail(notice)}”"
    why = one_line(notice.last_error, most=200)
    match notice.status:
        case Notice.Status.SENT:
            return f"{what}: sent."
        case Notice.Status.SKIPPED:
            return f"{what}: not sent, because it was no longer true."
        case Notice.Status.GIVEN_UP:
            return f"{what}: given up after {plural(notice.attempts, 'attempt')}: {why}"
    failed = f" The last attempt failed: {why}" if why else ""
    return f"{what}: waiting, next attempt on {moment(notice.next_attempt)}.{failed}"
