"""/metrics: access, values, and cost."""

import json
import re
from datetime import datetime, timedelta

import pytest
import yaml
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_celery_beat.models import PeriodicTask
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from pytest_django import DjangoAssertNumQueries, Settings

from accounts import access, decisions, ledger, services
from accounts.metrics import TrialExpiry
from accounts.models import Decision, ExpiryRun, Notice
from accounts.services import TooManyDue
from tests.factories import NoticeFactory, fill_tables, make_accounts
from tests.plans import of_large_tables, rows_read, tables_scanned
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


# --- For alerts ---


def sample(told: CollectorRegistry, name: str, **labels: str) -> float | None:
    return told.get_sample_value(f"trial_expiry_{name}", labels)


def test_each_problem_has_the_row_that_says_what_to_do(now: datetime) -> None:
    make_accounts(2, ended=10 * DAY, now=now)
    expire(now - DAY / 24, max_accounts=2)
    assert sample(metrics(now), "problem", row="fuse") is None

    make_accounts(2, ended=2 * DAY, now=now)
    with pytest.raises(TooManyDue):
        expire(now, max_accounts=1)

    assert sample(metrics(now), "problem", row="fuse") == 1
    assert sample(metrics(now), "problem", row="stale") is None
    assert sample(metrics(now + DAY), "problem", row="fuse") == 1


def test_failures_in_a_row_are_counted_from_the_latest_success_of_a_path(now: datetime) -> None:
    def add(path: str, status: str, *, hours: int) -> None:
        at = now - hours * DAY / 24
        ExpiryRun.objects.create(path=path, status=status, as_of=at, started=at, finished=at)

    add("celery", "failed", hours=80)
    add("celery", "interrupted", hours=9)
    add("command", "failed", hours=9)
    add("command", "succeeded", hours=8)
    add("celery", "failed", hours=7)
    add("celery", "refused", hours=6)
    told = metrics(now)

    assert sample(told, "failures_in_a_row", path="celery") == 2
    assert sample(told, "failures_in_a_row", path="command") == 0


def ticked(now: datetime, *, ago: timedelta) -> None:
    PeriodicTask.objects.filter(task="accounts.expire_trials").update(last_run_at=now - ago)


@pytest.mark.usefixtures("entry")
def test_a_beat_that_misses_a_tick_is_told(now: datetime) -> None:
    assert sample(metrics(now), "beat_overdue") == 0
    assert sample(metrics(now), "beat_last_tick_timestamp_seconds") is None

    ticked(now, ago=DAY / 24)
    later = metrics(now + timedelta(minutes=6))

    assert sample(later, "beat_overdue") == 1
    assert sample(later, "beat_last_tick_timestamp_seconds") == (now - DAY / 24).timestamp()


@pytest.mark.usefixtures("entry")
def test_a_tick_of_which_no_run_came_is_told(now: datetime) -> None:
    ticked(now, ago=timedelta(0))
    expire(now)
    ExpiryRun.objects.create(path="celery", status="succeeded", as_of=now, finished=now - DAY / 24)
    assert sample(metrics(now), "tick_without_run") == 1, "neither the run before nor one by command answers it"

    ExpiryRun.objects.create(path="celery", as_of=now - DAY, heartbeat=now - timedelta(minutes=1))
    assert sample(metrics(now), "tick_without_run") == 0, "a long run goes on"

    ticked(now, ago=-DAY / 24)
    assert sample(metrics(now), "tick_without_run") == 1
    Decision.objects.create(kind="pause", at=now, by="anna", reason="a look", until=now + DAY)
    assert sample(metrics(now + DAY / 24), "tick_without_run") == 0, "paused"


def test_a_disabled_entry_is_told_nothing_of(now: datetime, entry: PeriodicTask) -> None:
    PeriodicTask.objects.filter(pk=entry.pk).update(enabled=False, last_run_at=now - DAY)

    assert sample(metrics(now), "beat_overdue") is None
    assert sample(metrics(now), "tick_without_run") is None


# --- Cost ---


def test_it_asks_as_many_queries_for_many_runs_as_for_few(
    now: datetime, settings: Settings, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    settings.TRIAL_NOTICES = True
    make_accounts(3, ended=10 * DAY, now=now)
    for _ in range(20):
        expire(now)

    with django_assert_max_num_queries(22):
        list(metrics(now).collect())


@pytest.mark.postgres
def test_no_query_reads_a_whole_large_table(now: datetime, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.TRIAL_NOTICES = True
    monkeypatch.setattr("accounts.metrics.MANY", 1000)  # of 10,000, half of this table, PostgreSQL reads all
    monkeypatch.setattr("accounts.health.MANY", 1000)
    fill_tables(24_000)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE accounts_account SET status = 'trialing', trial_ends_at = %s - id * interval '1 second'"
            " WHERE id %% 2 = 0",
            [now - 9 * DAY],
        )
        cursor.execute(
            "INSERT INTO accounts_notice (account_id, kind, trial_ends_at, days_before, status, sent, next_attempt)"
            " SELECT id, 'ended', now(), 0, 'sent', now(), now() FROM accounts_account"
        )
        cursor.execute("ANALYZE")
    with CaptureQueriesContext(connection) as asked:
        list(metrics(now).collect())
    queries = of_large_tables(asked)

    assert metrics(now).get_sample_value("trial_expiry_due_accounts") == 1000
    assert metrics(now).get_sample_value("trial_expiry_notices", {"status": "sent"}) == 1000
    assert len(queries) >= 4
    assert [sql for sql in queries if tables_scanned(sql)] == []


@pytest.mark.postgres
def test_what_expired_accounts_left_in_the_index_is_not_read(now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MANY_EXPIRED", 0)
    make_accounts(500, ended=2 * DAY, now=now)
    expire(now)  # in the transaction of the test, so no entry can be removed
    with CaptureQueriesContext(connection) as asked:
        list(TrialExpiry(now + timedelta(minutes=1)).backlog())
    queries = of_large_tables(asked)

    assert len(queries) == 2
    assert max(rows_read(sql) for sql in queries) < 100


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


def test_whether_accounts_whose_trial_is_over_still_have_access(now: datetime) -> None:
    assert metrics(now).get_sample_value("trial_expiry_access_on_hold") == 0

    decisions.pause(until=timezone.now() + DAY, by="anna", reason="a look")
    access._is_on_hold.cache_clear()

    assert metrics(now).get_sample_value("trial_expiry_access_on_hold") == 1


# --- What is made of them ---


@pytest.mark.usefixtures("entry")
def test_docs_alerts_and_dashboard_name_metrics_that_exist(now: datetime, settings: Settings) -> None:
    settings.TRIAL_NOTICES = True
    ticked(now, ago=timedelta(0))
    exist = {family.name + ("_total" if family.type == "counter" else "") for family in TrialExpiry(now).collect()}
    [group] = yaml.safe_load((settings.BASE_DIR / "deploy/prometheus/trials.rules.yml").read_text())["groups"]
    panels = json.loads((settings.BASE_DIR / "deploy/grafana/trials.json").read_text())["panels"]
    asked = [rule["expr"] for rule in group["rules"]]
    asked += [target["expr"] for panel in panels for target in panel["targets"]]

    told = re.findall(r"^\| `(trial_expiry_\w+)`", (settings.BASE_DIR / "docs/operations.md").read_text(), re.MULTILINE)

    assert set(re.findall(r"trial_expiry_\w+", " ".join(asked))) <= exist
    assert set(told) == exist
