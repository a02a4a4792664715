"""The rows that pruning deletes, and those that it keeps."""

from datetime import datetime, timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from django.db import DatabaseError
from django.utils import timezone
from pytest_django import Settings

from accounts import ledger, notices
from accounts.ledger import prune_ledger
from accounts.models import ExpiryRun, Notice
from accounts.notices import prune_notices
from tests.factories import AccountFactory, NoticeFactory, make_accounts
from tests.runs import DAY, expire

pytestmark = pytest.mark.django_db

MINUTE = timedelta(minutes=1)


def run_of(age: timedelta, *, expired_count: int = 0, **fields: Any) -> ExpiryRun:
    """A run that began ``ago`` before now."""
    began = timezone.now() - age
    fields = {"path": "command", "status": "succeeded", "as_of": began, "finished": began, **fields}
    return ExpiryRun.objects.create(expired_count=expired_count, started=began, **fields)


@pytest.mark.parametrize(
    ("age", "kept"), [(365 * DAY - MINUTE, True), (365 * DAY + MINUTE, False)], ids=["just before", "just after"]
)
def test_a_run_that_expired_nobody_is_pruned_after_a_year(age: timedelta, kept: bool) -> None:
    run = run_of(age)
    run_of(DAY)

    assert prune_ledger() == (not kept)

    assert ExpiryRun.objects.filter(pk=run.pk).exists() is kept


def test_the_age_is_a_setting(settings: Settings) -> None:
    settings.TRIAL_LEDGER_DAYS = 30
    run_of(31 * DAY)
    recent = [run_of(29 * DAY), run_of(DAY)]

    prune_ledger()

    assert list(ExpiryRun.objects.order_by("pk")) == recent


@pytest.mark.parametrize("status", ["failed", "refused", "interrupted", "undone"])
def test_a_run_that_did_not_succeed_is_pruned_as_well(status: str) -> None:
    run_of(400 * DAY, status=status)

    assert prune_ledger() == 1


def test_a_run_that_expired_somebody_stays(now: datetime) -> None:
    pointed_to = run_of(400 * DAY, expired_count=1)
    AccountFactory.create(status="trial_expired", expiry_run=pointed_to, trial_expired_at=now)
    undone = run_of(400 * DAY, expired_count=1, undone_count=1, status="undone")
    run_of(DAY)

    assert prune_ledger() == 0

    assert {pointed_to, undone} < set(ExpiryRun.objects.all())


def test_the_latest_success_of_each_path_stays() -> None:
    run_of(500 * DAY)
    run_of(500 * DAY, path="celery")
    latest = {run_of(400 * DAY), run_of(400 * DAY, path="celery")}
    run_of(390 * DAY, status="failed")

    assert prune_ledger() == 3

    assert set(ExpiryRun.objects.all()) == latest


def test_every_run_that_succeeds_prunes(now: datetime) -> None:
    old = run_of(400 * DAY)
    make_accounts(1, ended=10 * DAY, now=now)

    expire(now)

    assert not ExpiryRun.objects.filter(pk=old.pk).exists()


def test_a_ledger_that_cannot_be_pruned_does_not_fail_the_run(
    now: datetime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger, "prune_ledger", Mock(side_effect=DatabaseError("no")))

    assert expire(now).status == ExpiryRun.Status.SUCCEEDED

    assert "ledger_not_pruned error=DatabaseError" in caplog.text


def notice_of(age: timedelta, **fields: Any) -> Notice:
    """A mail that was sent ``ago`` before now, about a trial that ended then."""
    then = timezone.now() - age
    notice: Notice = NoticeFactory.create(
        **{"status": "sent", "sent": then, "queued": then, "trial_ends_at": then, "next_attempt": then, **fields}
    )
    return notice


@pytest.mark.parametrize(
    ("age", "kept"), [(365 * DAY - MINUTE, True), (365 * DAY + MINUTE, False)], ids=["just before", "just after"]
)
def test_a_notice_that_was_sent_is_pruned_after_a_year(age: timedelta, kept: bool) -> None:
    notice_of(age)

    assert prune_notices() == (not kept)


@pytest.mark.parametrize("status", ["skipped", "given_up"])
def test_a_notice_that_was_never_sent_is_pruned_as_well(status: str) -> None:
    notice_of(400 * DAY, status=status, sent=None)

    assert prune_notices() == 1


def test_a_notice_that_waits_or_could_be_owed_again_is_not_pruned() -> None:
    notice_of(400 * DAY, status="pending", sent=None)
    notice_of(400 * DAY, trial_ends_at=timezone.now() + DAY)
    notice_of(400 * DAY, queued=timezone.now() - DAY)

    assert prune_notices() == 0


def test_queueing_mails_prunes_old_notices(now: datetime) -> None:
    old = notice_of(400 * DAY)

    notices.queue_notices(now=now)

    assert not Notice.objects.filter(pk=old.pk).exists()


def test_old_notices_are_pruned_a_few_at_a_time_from_the_oldest_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "PRUNED_AT_ONCE", 2)
    kept = [notice_of(400 * DAY) for _ in range(5)][2:]

    assert prune_notices() == 2

    assert list(Notice.objects.order_by("pk")) == kept


@pytest.mark.parametrize(("ledger_days", "window_days"), [(5, 10), (10, 5)])
def test_a_notice_is_kept_for_the_longer_of_ledger_and_window(
    settings: Settings, ledger_days: int, window_days: int
) -> None:
    settings.TRIAL_LEDGER_DAYS, settings.TRIAL_NOTICE_WINDOW_DAYS = ledger_days, window_days
    notice_of(11 * DAY)
    kept = notice_of(9 * DAY)

    prune_notices()

    assert Notice.objects.get() == kept
