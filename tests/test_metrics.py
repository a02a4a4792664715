"""/metrics: access, values, and cost."""

from datetime import datetime, timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from pytest_django import DjangoAssertNumQueries, Settings

from accounts import services
from accounts.metrics import TrialExpiry
from accounts.models import Account, Decision, ExpiryRun, Notice
from accounts.services import TooManyDue
from tests.factories import NoticeFactory, make_accounts
from tests.runs import DAY, expire

pytestmark = pytest.mark.django_db

TOKEN = "0123456789abcdef"


def metrics(now: datetime) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(TrialExpiry(now))
    return registry


# --- Access ---


def test_there_is_no_such_page_until_a_token_is_set(client: Client, settings: Settings) -> None:
    assert settings.METRICS_TOKEN == ""

    assert client.get("/metrics").status_code == 404
    assert client.get("/metrics", headers={"authorization": "Bearer "}).status_code == 404


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}é"])
def test_whoever_does_not_bring_the_token_is_told_to_and_learns_nothing(
    client: Client, settings: Settings, header: str
) -> None:
    settings.METRICS_TOKEN = TOKEN

    answer = client.get("/metrics", headers={"authorization": header})

    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert b"trial_" not in answer.content


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("*/*", "text/plain"), ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text")],
)
def test_whoever_brings_it_gets_what_prometheus_can_read(
    client: Client, settings: Settings, accept: str, content_type: str
) -> None:
    settings.METRICS_TOKEN = TOKEN
    expire(timezone.now())

    answer = client.get("/metrics", headers={"authorization": f"Bearer {TOKEN}", "accept": accept})

    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith(content_type)
    names = {family.name for family in text_string_to_metric_families(answer.content.decode())}
    assert {"trial_expiry_runs", "trial_expiry_due_accounts"} <= names
    assert all(name.startswith("trial_expiry_") for name in names)


# --- Values ---


def test_runs_by_path_and_status_and_when_each_was_last(now: datetime) -> None:
    make_accounts(2, ended=10 * DAY, now=now)
    with pytest.raises(TooManyDue):
        expire(now, max_accounts=1)
    expire(now)
    last = expire(now)

    told = metrics(now)

    command = {"path": "command"}
    assert told.get_sample_value("trial_expiry_runs", {**command, "status": "succeeded"}) == 2
    assert told.get_sample_value("trial_expiry_runs", {**command, "status": "refused"}) == 1
    assert told.get_sample_value("trial_expiry_runs", {**command, "status": "failed"}) is None
    when = told.get_sample_value("trial_expiry_last_run_timestamp_seconds", {**command, "status": "succeeded"})
    assert when == pytest.approx(last.started.timestamp())


def test_accounts_expired_and_undone_by_path(now: datetime) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    services.undo_run(run=expire(now), now=now, by="me")
    expire(now, path=ExpiryRun.Path.CELERY)

    told = metrics(now)

    assert {
        (path, what): told.get_sample_value(f"trial_expiry_accounts_{what}_total", {"path": path})
        for path in ExpiryRun.Path
        for what in ("expired", "undone")
    } == {("command", "expired"): 3, ("command", "undone"): 3, ("celery", "expired"): 3, ("celery", "undone"): 0}


def test_the_backlog_and_how_old_it_is(now: datetime) -> None:
    make_accounts(2, ended=DAY + timedelta(hours=3), now=now)
    make_accounts(1, ended=DAY + timedelta(hours=5), now=now)
    make_accounts(1, ended=timedelta(hours=5), now=now)

    told = metrics(now)

    assert told.get_sample_value("trial_expiry_due_accounts") == 3
    assert told.get_sample_value("trial_expiry_oldest_due_seconds") == 5 * 3600


def test_an_empty_project_has_the_counters_and_no_backlog(now: datetime) -> None:
    told = metrics(now)

    assert told.get_sample_value("trial_expiry_accounts_expired_total", {"path": "celery"}) == 0
    assert told.get_sample_value("trial_expiry_due_accounts") == 0
    assert told.get_sample_value("trial_expiry_oldest_due_seconds") == 0


# --- Cost ---


def test_it_takes_four_queries(now: datetime, django_assert_num_queries: DjangoAssertNumQueries) -> None:
    make_accounts(3, ended=10 * DAY, now=now)
    expire(now)

    with django_assert_num_queries(4):
        list(metrics(now).collect())


@pytest.mark.postgres
def test_no_query_reads_the_whole_table_of_accounts(now: datetime) -> None:
    make_accounts(3000, status=Account.ACTIVE, ended=30 * DAY, now=now)
    make_accounts(50, ended=10 * DAY, now=now)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE accounts_account")
        with CaptureQueriesContext(connection) as queries:
            list(metrics(now).collect())
        plans = []
        for query in queries:
            cursor.execute(f"EXPLAIN {query['sql']}")
            plans += [line for (line,) in cursor.fetchall()]

    assert any("accounts_account_due" in line for line in plans)
    assert not any("Seq Scan on accounts_account" in line for line in plans)


def test_notices_are_told_by_status_where_they_are_on(now: datetime, settings: Settings) -> None:
    NoticeFactory.create_batch(2, next_attempt=now)
    NoticeFactory.create(status=Notice.Status.GIVEN_UP, next_attempt=now)
    assert metrics(now).get_sample_value("trial_expiry_notices", {"status": "pending"}) is None

    settings.TRIAL_NOTICES = True

    told = {
        status: metrics(now).get_sample_value("trial_expiry_notices", {"status": status})
        for status in Notice.Status.values
    }
    assert told == {"pending": 2, "sent": 0, "skipped": 0, "given_up": 1}
    Notice.objects.update(queued=now - timedelta(hours=2))
    assert metrics(now).get_sample_value("trial_expiry_oldest_notice_seconds") == 7200


def test_a_pause_and_its_end(now: datetime) -> None:
    assert metrics(now).get_sample_value("trial_expiry_paused") == 0
    assert metrics(now).get_sample_value("trial_expiry_paused_until_timestamp_seconds") == 0

    Decision.objects.create(kind="pause", by="anna", reason="a look", until=now + DAY)

    assert metrics(now).get_sample_value("trial_expiry_paused") == 1
    assert metrics(now).get_sample_value("trial_expiry_paused_until_timestamp_seconds") == (now + DAY).timestamp()
    assert metrics(now + DAY).get_sample_value("trial_expiry_paused") == 0
