"""The page of an account: the verdict in a sentence, for every status, and the timeline of what is recorded."""

from collections.abc import Callable
from datetime import datetime, timedelta
from html import unescape
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings

from accounts import access, services
from accounts.admin import story
from accounts.models import Account, AccountEvent, ExpiryRun, Notice
from tests.factories import AccountFactory, NoticeFactory
from tests.runs import DAY, expire

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


def at(event: datetime, *, of: AccountEvent | ExpiryRun) -> None:
    """Set when it happened: the database's clock cannot be passed."""
    field = "at" if isinstance(of, AccountEvent) else "started"
    type(of)._default_manager.filter(pk=of.pk).update(**{field: event})


def verdict(account: Account, now: datetime) -> str:
    account = Account.objects.get(pk=account.pk)
    return unescape(story.verdict(account, story.steps(account), now=now))


def timeline(account: Account, now: datetime) -> list[str]:
    account = Account.objects.get(pk=account.pk)
    return [unescape(entry.text) for entry in story.timeline(account, story.steps(account), mails=True, now=now)]


# --- The verdict. Now is 1 March 2026, 12:00 UTC. ---


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (-3 * DAY, "On trial: the trial ends on 4 March 2026, 12:00 UTC, in 3 days."),
        (0 * DAY, "On trial: the trial ends on 1 March 2026, 12:00 UTC, in less than a minute."),
        (
            HOUR,
            "In grace: the trial ended on 1 March 2026, 11:00 UTC. A run after 2 March 2026, 11:00 UTC expires it.",
        ),
        (1 * DAY, "In grace: the trial ended on 28 February 2026, 12:00 UTC. A run after 1 March 2026, 12:00 UTC"),
        (25 * HOUR, "Due: the trial ended on 28 February 2026, 11:00 UTC. The next run expires it."),
    ],
)
def test_the_verdict_of_a_trial_depends_on_its_end(now: datetime, ended: timedelta, said: str) -> None:
    assert verdict(AccountFactory.create(trial_ends_at=now - ended), now).startswith(said)


def test_a_due_account_that_no_run_may_expire_is_on_hold(now: datetime, settings: Settings) -> None:
    settings.TRIAL_EXPIRY_MAX = 0
    account = AccountFactory.create(trial_ends_at=now - 3 * DAY)

    assert access.why_on_hold(now)
    assert verdict(account, now) == (
        f"Due, but on hold: the trial ended on 26 February 2026, 12:00 UTC, and {access.why_on_hold(now)}."
    )


Change = Callable[[Account, ExpiryRun, datetime], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda account, run, now: None,
            "Expired on 1 March 2026, 12:05 UTC by run {run}: the trial ended on 19 February 2026, 12:00 UTC, "
            "and the grace of 1 day was over.",
        ),
        (
            lambda account, run, now: services.activate(account_id=account.pk),
            "Active since 1 March 2026, 13:00 UTC: activated by a service call, after run {run} had expired it.",
        ),
        (
            lambda account, run, now: services.cancel(account_id=account.pk, by="admin user anna"),
            "Cancelled on 1 March 2026, 13:00 UTC by admin user anna; was trial expired.",
        ),
        (
            lambda account, run, now: services.extend_trial(account_id=account.pk, days=7, now=now, by="<bob>"),
            "On trial: the trial ends on 8 March 2026, 12:00 UTC, in 7 days. "
            "Back on trial since <bob> extended it on 1 March 2026, 13:00 UTC.",
        ),
        (
            lambda account, run, now: services.undo_run(run=run, now=now, by="anna", extend_days=14),
            "On trial: the trial ends on 15 March 2026, 12:00 UTC, in 14 days. "
            "Back on trial since run {run} was undone by anna on 1 March 2026, 13:00 UTC.",
        ),
        (
            lambda account, run, now: services.undo_run(run=run, now=now, by="anna"),
            "Due: the trial ended on 19 February 2026, 12:00 UTC. The next run expires it. "
            "Back on trial since run {run} was undone by anna on 1 March 2026, 13:00 UTC.",
        ),
    ],
    ids=["expired", "paid", "cancelled", "extended", "undone and extended", "undone"],
)
def test_the_verdict_after_a_run_says_who_did_what_and_when(now: datetime, change: Change, said: str) -> None:
    account = AccountFactory.create(trial_ends_at=now - 10 * DAY)
    run = expire(now)
    at(now + timedelta(minutes=5), of=run)
    change(account, run, now)
    for event in AccountEvent.objects.all():
        at(now + HOUR, of=event)

    assert verdict(account, now) == said.format(run=run.pk)


def test_an_account_that_an_undo_left_out_says_so(now: datetime) -> None:
    account = AccountFactory.create(trial_ends_at=now - 10 * DAY)
    ExpiryRun.objects.filter(pk=expire(now).pk).update(status=ExpiryRun.Status.UNDONE)

    assert verdict(account, now).endswith(
        "That run was undone since, but this account was locked then, and left out: undo the run again."
    )


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (Account.EXEMPT, "Exempt: no run expires this account."),
        (Account.BETA, "Beta: no run expires this account."),
        (Account.PAST_DUE, "Past due: no run expires this account."),
        (Account.ACTIVE, "Active. When and by whom is not recorded."),
        (Account.CANCELED, "Cancelled. When and by whom is not recorded."),
        (Account.TRIAL_EXPIRED, "Expired. Which run did it is not recorded."),
    ],
)
def test_a_status_that_no_service_gave_says_what_is_known(now: datetime, status: Account.Status, said: str) -> None:
    assert verdict(AccountFactory.create(status=status), now) == said


# --- The timeline ---


def test_the_timeline_tells_everything_the_latest_first(now: datetime) -> None:
    account = AccountFactory.create(created=now - 70 * DAY, trial_ends_at=now - 10 * DAY)
    first = expire(now)
    services.undo_run(run=first, now=now, by="anna", extend_days=1)
    second = expire(now + 3 * DAY)
    services.extend_trial(account_id=account.pk, days=1, now=now + 3 * DAY, by="admin user bob")
    third = expire(now + 9 * DAY)
    services.activate(account_id=account.pk)
    services.cancel(account_id=account.pk)

    assert timeline(account, now) == [
        "Cancelled by a service call; was active.",
        "Activated by a service call; was trial expired.",
        f"Expired by run {third.pk}.",
        "Extended by admin user bob; was trial expired. "
        "The end of the trial moved from 2 March 2026, 12:00 UTC to 5 March 2026, 12:00 UTC.",
        f"Expired by run {second.pk}.",
        f"Back on trial: anna undid run {first.pk}. "
        "The end of the trial moved from 19 February 2026, 12:00 UTC to 2 March 2026, 12:00 UTC.",
        f"Expired by run {first.pk}.",
        "Account created.",
    ]


def test_events_stay_in_their_order_when_a_clock_or_a_lock_disagrees(now: datetime) -> None:
    account = AccountFactory.create(trial_ends_at=now - 10 * DAY)
    run = expire(now)
    services.undo_run(run=run, now=now, by="anna")
    at(timezone.now() - HOUR, of=AccountEvent.objects.get())

    assert timeline(account, now)[:2] == [f"Back on trial: anna undid run {run.pk}.", f"Expired by run {run.pk}."]


def test_each_mail_says_what_became_of_it_and_how_it_reads(now: datetime) -> None:
    account = AccountFactory.create(created=now - 60 * DAY, trial_ends_at=now, user__first_name="Anna")
    states: dict[int, dict[str, Any]] = {
        7: {"status": Notice.Status.SENT, "sent": now - 7 * DAY},
        5: {"status": Notice.Status.SKIPPED},
        3: {"status": Notice.Status.GIVEN_UP, "attempts": 5, "last_error": "550 no\nsuch user"},
        1: {"last_error": "451 later"},
    }
    for days, fields in states.items():
        NoticeFactory.create(account=account, days_before=days, next_attempt=now + HOUR, **fields)

    mails = story.timeline(account, [], mails=True, now=now)[:-1]

    told = {entry.mail.notice.days_before: entry.text for entry in mails if entry.mail}
    assert told == {
        7: "Mail “Reminder, 7 days before”: sent.",
        5: "Mail “Reminder, 5 days before”: not sent, because it was no longer true.",
        3: "Mail “Reminder, 3 days before”: given up after 5 attempts: 550 no such user",
        1: "Mail “Reminder, 1 day before”: waiting, next attempt on 1 March 2026, 13:00 UTC. "
        "The last attempt failed: 451 later",
    }
    (sent,) = (entry.mail for entry in mails if entry.mail and entry.mail.notice.sent)
    assert sent.subject == f"Your {settings.SITE_NAME} trial ends in 7 days"  # as of when it was sent
    assert "Hello Anna," in sent.text


def test_a_mail_that_cannot_be_composed_says_why(now: datetime) -> None:
    notice = NoticeFactory.create(account__user__email="", next_attempt=now)

    assert story.preview(notice, now=now).error == "ValueError: The user has no e-mail address."


def test_a_long_story_takes_no_more_queries_than_a_short_one(
    now: datetime, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    account = AccountFactory.create(trial_ends_at=now - 10 * DAY)
    for days in range(5):
        services.undo_run(run=expire(now + days * DAY), now=now, by="anna")
        NoticeFactory.create(account=account, days_before=days + 1, next_attempt=now)
    account = Account.objects.select_related("user", "expiry_run").get()

    with django_assert_max_num_queries(5):
        changes = story.steps(account)
        story.verdict(account, changes, now=now + 9 * DAY)
        assert len(story.timeline(account, changes, mails=True, now=now)) == 16
