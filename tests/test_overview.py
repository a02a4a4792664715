"""The overview: its figures, its cost, and that the page is shown whatever is wrong with Celery and the broker."""

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.cache import cache
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.html import escape
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask
from pytest_django import DjangoAssertNumQueries, Settings

from accounts import decisions, health, ledger, services
from accounts.admin import charts, overview, paths, schedule, ticks
from accounts.models import Account, Decision, ExpiryRun
from accounts.services import TooManyDue
from project.celery import app
from sandbox import servers
from tests.conftest import Process
from tests.factories import AccountFactory, NoticeFactory, UserFactory, fill_tables, make_accounts
from tests.plans import of_large_tables, rows_read, tables_scanned
from users.models import User

pytestmark = pytest.mark.django_db

COMMAND, CELERY = ExpiryRun.Path.COMMAND, ExpiryRun.Path.CELERY
DAY, HOUR, MINUTE, SECOND = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
TICK = timedelta(microseconds=1)


@pytest.fixture(autouse=True)
def _no_broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No cached answer of a ping, and no process that answers."""
    cache.clear()
    monkeypatch.setattr(app.conf, "broker_write_url", "redis://127.0.0.1:1/0")
    yield
    cache.clear()


def add_run(now: datetime, *, path: ExpiryRun.Path = COMMAND, took: timedelta = SECOND, **fields: Any) -> ExpiryRun:
    """Store a run in the ledger that started at ``now``."""
    fields = {"status": ExpiryRun.Status.SUCCEEDED, "finished": now + took, **fields}
    return ExpiryRun.objects.create(path=path, as_of=now, started=now, **fields)


# --- Trials ---


def test_every_trial_is_due_or_in_grace_or_ending_soon_or_later(
    now: datetime,
) -> None:
    for ends in (-DAY - TICK, -DAY, -TICK, timedelta(0), 7 * DAY - TICK, 7 * DAY):
        AccountFactory.create(trial_ends_at=now + ends)
    AccountFactory.create(status=Account.ACTIVE, trial_ends_at=now)
    add_run(now - 40 * DAY, expired_count=9, undone_count=2)
    add_run(now - 50 * DAY, path=CELERY, expired_count=5)

    assert overview.trials(now=now) == overview.Trials(trialing=6, due=1, in_grace=2, ending_soon=2, expired=12)


# --- Schedule ---


def test_the_next_tick_is_the_next_full_hour(entry: PeriodicTask, now: datetime) -> None:
    found = schedule.schedule(now=now + 20 * MINUTE)

    assert found
    assert (found.next_tick, found.late) == (now + HOUR, False)


@pytest.mark.parametrize("ticked", [None, 2 * DAY])
def test_a_tick_at_a_local_hour_is_told_in_utc(entry: PeriodicTask, now: datetime, ticked: timedelta | None) -> None:
    entry.crontab = CrontabSchedule.objects.create(minute="30", hour="3", timezone="Asia/Tokyo")
    entry.last_run_at = ticked and now - ticked
    entry.save()
    found = schedule.schedule(now=now)

    assert found
    assert found.next_tick == datetime(2026, 3, 1, 18, 30, tzinfo=UTC)


def test_an_interval_ticks_from_when_it_ticked_last(entry: PeriodicTask, now: datetime) -> None:
    entry.crontab, entry.interval = None, IntervalSchedule.objects.create(every=10, period=IntervalSchedule.MINUTES)
    entry.last_run_at = now - 4 * MINUTE
    entry.save()
    found = schedule.schedule(now=now)

    assert found
    assert (found.next_tick, found.late) == (now + 6 * MINUTE, False)


@pytest.mark.parametrize(("minutes", "late"), [(1, False), (4, False), (6, True), (90, True)])
def test_beat_is_late_when_a_tick_is_missing_for_five_minutes(
    entry: PeriodicTask, now: datetime, minutes: int, late: bool
) -> None:
    PeriodicTask.objects.filter(pk=entry.pk).update(last_run_at=now - HOUR)
    found = schedule.schedule(now=now + minutes * MINUTE)

    assert found
    assert found.late is late


def test_a_disabled_entry_has_no_next_tick_and_no_process_is_pinged(entry: PeriodicTask, now: datetime) -> None:
    PeriodicTask.objects.update(enabled=False)
    figures = overview.collect(now=now)

    assert figures.schedule
    assert (figures.schedule.next_tick, figures.processes) == (None, None)


def test_a_schedule_without_an_entry_is_none(now: datetime) -> None:
    PeriodicTask.objects.all().delete()

    assert overview.collect(now=now).schedule is None


# --- Processes ---


def test_without_a_broker_the_page_comes_and_says_so(entry: PeriodicTask, admin_client: Client) -> None:
    page = admin_client.get("/admin/").content.decode()

    assert "The broker does not answer" in page


def test_a_broker_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, ThreadPoolExecutor(initializer=app.set_current) as thread:
        monkeypatch.setattr(app.conf, "broker_write_url", f"redis://127.0.0.1:{mute.getsockname()[1]}/0")

        assert thread.submit(schedule.processes).result(timeout=10) == schedule.Processes(broker=False)
        mute.settimeout(0)
        mute.accept()[0].close()  # it did try


@pytest.mark.faults
@pytest.mark.django_db(transaction=True)
def test_a_living_beat_and_worker_are_counted(celery: Process, own_broker: str, entry: PeriodicTask) -> None:
    def answers() -> schedule.Processes | None:
        cache.clear()
        found = schedule.processes()
        return found if found.beats and found.workers else None

    with celery("worker", "--pool=solo"), celery("beat"):
        found = servers.wait_for("an answer of both", answers)

    assert found == schedule.Processes(broker=True, beats=1, workers=1)


def test_processes_are_pinged_once_for_many_views(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule.processes()
    monkeypatch.setattr(schedule, "_ping", pytest.fail)

    schedule.processes()


# --- Paths ---


def test_the_paths_are_summed_up_side_by_side(now: datetime) -> None:
    add_run(now - 31 * DAY, expired_count=1_000_000)
    add_run(now - 3 * DAY, expired_count=500, took=2 * SECOND)
    add_run(now - 2 * DAY, status=ExpiryRun.Status.REFUSED, took=timedelta(0))
    add_run(now - DAY, expired_count=100, took=4 * SECOND)
    add_run(now - 3 * HOUR, status=ExpiryRun.Status.FAILED, took=HOUR)
    add_run(now - 2 * HOUR, status=ExpiryRun.Status.INTERRUPTED)
    last = add_run(now - HOUR, status=ExpiryRun.Status.RUNNING, finished=None)
    celery = add_run(now - 40 * DAY, path=CELERY)

    by_command, by_celery = overview.collect(now=now).paths

    assert by_command == paths.PathFigures(
        path=COMMAND,
        last=last,
        runs=6,
        failed=2,
        refused=1,
        expired=600,
        median_duration=2 * SECOND,
        worst_duration=HOUR,
        accounts_per_second=100,
        median_lateness=None,
        worst_lateness=None,
    )
    assert (by_celery.last, by_celery.runs, by_celery.accounts_per_second) == (celery, 0, None)


def test_lateness_is_from_due_to_the_run_and_for_each_path_its_own(now: datetime) -> None:
    for late, path in ((5 * MINUTE, COMMAND), (10 * MINUTE, COMMAND), (6 * HOUR, COMMAND), (20 * MINUTE, CELERY)):
        AccountFactory.create(trial_ends_at=now - DAY - late)
        services.expire_trials(path=path, now=now)

    by_command, by_celery = overview.collect(now=now + HOUR).paths

    assert (by_command.median_lateness, by_command.worst_lateness) == (10 * MINUTE, 6 * HOUR)
    assert (by_celery.median_lateness, by_celery.worst_lateness) == (20 * MINUTE, 20 * MINUTE)


def test_lateness_is_taken_from_a_bounded_sample_of_those_expired_last(
    now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "SAMPLE", 2)
    make_accounts(3, ended=5 * DAY, now=now)
    services.expire_trials(path=COMMAND, now=now)
    make_accounts(3, ended=DAY, now=now)
    run = services.expire_trials(path=COMMAND, now=now + HOUR)

    assert overview.collect(now=now + 2 * HOUR).paths[0].worst_lateness == HOUR
    assert paths.lateness([run]) == [HOUR, HOUR]


# --- Charts ---


def test_expirations_are_drawn_by_day_and_path_less_what_was_undone(now: datetime) -> None:
    add_run(now, expired_count=3)
    add_run(now - DAY, expired_count=10, undone_count=6, status=ExpiryRun.Status.UNDONE)
    add_run(now - DAY, path=CELERY, expired_count=4)
    chart = overview.collect(now=now).expired

    assert (len(chart.bars), chart.bars[0].day, chart.bars[-1].day) == (31, date(2026, 1, 30), date(2026, 3, 1))
    assert (chart.series, chart.bars[-1].counts, chart.bars[-2].counts) == (["command", "celery"], [3, 0], [4, 4])
    assert (chart.total, chart.highest, chart.top, chart.middle) == (11, 8, 8, 4)
    assert sum(path.expired for path in overview.collect(now=now).paths) == chart.total, "chart and table agree"


def test_trials_are_drawn_on_the_day_they_end(now: datetime) -> None:
    for ends in (
        -TICK,
        timedelta(0),
        DAY,
        DAY + HOUR,
        timedelta(days=30, hours=12) - TICK,
        timedelta(days=30, hours=12),
    ):
        AccountFactory.create(trial_ends_at=now + ends)
    chart = overview.collect(now=now).ending

    assert {bar.day: bar.count for bar in chart.bars if bar.count} == {
        date(2026, 3, 1): 1,
        date(2026, 3, 2): 2,
        date(2026, 3, 31): 1,
    }


def test_bars_are_stacked_from_the_bottom_and_the_smallest_can_be_seen() -> None:
    day = date(2026, 3, 1)
    chart = charts.stacked_bars([day, day + DAY], {"a": {day: 750, day + DAY: 1}, "b": {day: 250}})

    drawn = [[(segment.series, segment.y, segment.height) for segment in bar.segments] for bar in chart.bars]
    assert drawn == [[("a", 250, 750), ("b", 0, 250)], [("a", 990, 10)]]


@pytest.mark.parametrize(
    ("highest", "top"),
    [(0, 2), (2, 2), (3, 4), (5, 6), (9, 10), (11, 20), (41, 60), (750, 800), (999, 1000), (1001, 2000)],
)
def test_the_axis_ends_at_a_round_number(highest: int, top: int) -> None:
    assert charts.round_number(highest) == top


def test_a_chart_of_nothing_is_empty(now: datetime) -> None:
    assert overview.collect(now=now).expired.total == 0


# --- The fuse, and other problems ---


def refuse(now: datetime) -> None:
    with pytest.raises(TooManyDue):
        services.expire_trials(path=CELERY, now=now, max_accounts=1)


def test_a_refused_run_is_shown_with_its_words_until_a_run_succeeds(admin_client: Client) -> None:
    now = timezone.now() - MINUTE
    AccountFactory.create_batch(2, trial_ends_at=now - 2 * DAY)
    services.expire_trials(path=CELERY, now=now - 10 * DAY)
    refuse(now)
    refuse(now)

    page = admin_client.get("/admin/").content.decode()
    run = ExpiryRun.objects.latest("pk")
    assert page.count('<li class="error">') == 1, "one bar for one situation"
    assert '<li class="warning">' not in page
    assert f"{escape(run.error)} Accounts whose trial is over still have access." in page
    for link in (f"/admin/accounts/expiryrun/{run.pk}/change/", "/admin/what-to-do/#fuse"):
        assert f'href="{link}"' in page
    assert f'href="/admin/accounts/decision/allow/{run.pk}/"' in page

    services.expire_trials(path=COMMAND, now=now + SECOND, max_accounts=2)
    page = admin_client.get("/admin/").content.decode()
    assert '<li class="error">' not in page
    assert "Trials are being expired." in page


def test_a_pause_says_in_its_own_bar_that_accounts_still_have_access(admin_client: Client) -> None:
    decisions.pause(until=timezone.now() + DAY, by="anna", reason="a look")

    page = admin_client.get("/admin/").content.decode()

    assert page.count('<li class="warning">') == 1
    assert "by anna: a look. Accounts whose trial is over still have access." in page


def test_that_the_fuse_will_refuse_is_said_before_it_does(admin_client: Client, settings: Settings) -> None:
    settings.TRIAL_EXPIRY_MAX = 1000
    services.expire_trials(path=CELERY, now=timezone.now())
    make_accounts(1001, ended=25 * HOUR, now=timezone.now())

    page = admin_client.get("/admin/").content.decode()

    assert page.count('<li class="warning">') == 1
    assert "still have access, because more than 1,000 accounts are due, and a run would be refused." in page
    for link in ("/admin/what-to-do/#on-hold", "/admin/accounts/account/?trial=due"):
        assert f'href="{link}"' in page


def test_a_fresh_installation_is_told_what_to_do_first(admin_client: Client) -> None:
    MigrationRecorder(connection).migration_qs.filter(app="accounts").update(applied=timezone.now())
    page = admin_client.get("/admin/").content.decode()

    assert "First steps" in page
    assert '<li class="error">' not in page

    services.expire_trials(path=COMMAND, now=timezone.now())
    assert "First steps" not in admin_client.get("/admin/").content.decode()


def test_mails_are_tiles_where_they_are_on(admin_client: Client, settings: Settings) -> None:
    oldest, _ = (NoticeFactory.create(next_attempt=timezone.now(), queued=timezone.now() - ago) for ago in (DAY, HOUR))
    NoticeFactory.create(status="given_up", next_attempt=timezone.now())
    assert overview.collect(now=timezone.now()).mails is None

    settings.TRIAL_NOTICES = True

    mails = overview.collect(now=timezone.now()).mails
    assert mails
    assert (mails.waiting, mails.given_up) == (2, 1)
    page = admin_client.get("/admin/").content.decode()
    assert f'<a href="/admin/accounts/notice/{oldest.pk}/change/">Oldest waits for</a>' in page
    assert 'href="/admin/accounts/notice/?status__exact=given_up">Mails given up</a>' in page


def test_a_bar_opens_its_accounts(admin_client: Client) -> None:
    now = timezone.now()
    make_accounts(3, ended=2 * DAY, now=now)
    run = services.expire_trials(path=COMMAND, now=now)
    services.undo_run(run=run, now=now, by="me", extend_days=3)
    make_accounts(2, ended=2 * DAY, now=now)
    services.expire_trials(path=COMMAND, now=now)
    long_ago = now.replace(hour=0, minute=0) - 30 * DAY
    make_accounts(4, ended=32 * DAY, now=now)
    services.expire_trials(path=COMMAND, now=long_ago)
    figures = overview.collect(now=now)
    bars = [bar for chart in (figures.expired, figures.ending) for bar in chart.bars if bar.count]

    assert [bar.count for bar in bars] == [4, 2, 3]
    for bar in bars:
        page = admin_client.get(bar.url)
        assert page.context["cl"].result_count == bar.count


# --- The strip ---


def test_the_strip_has_the_worst_run_of_each_hour_gaps_and_pauses(now: datetime) -> None:
    add_run(now - 48 * HOUR)
    first = add_run(now - 47 * HOUR)
    failed = add_run(now - 2 * HOUR, status=ExpiryRun.Status.FAILED)
    add_run(now - 2 * HOUR + MINUTE, expired_count=3)
    for begun, kind, until in [(5, "pause", now - 2 * HOUR), (4, "resume", None)]:
        Decision.objects.create(kind=kind, at=now - begun * HOUR + MINUTE, by="anna", reason="a look", until=until)

    strip = ticks.last_ticks(now=now + 20 * MINUTE)

    assert [tick.hour for tick in (strip[0], strip[-1])] == [now - 47 * HOUR, now]
    assert [tick.kind for tick in strip] == (
        ["succeeded", *["missing"] * 41, "paused", "paused", "missing", "failed", "missing", "open"]
    )
    assert (strip[0].run, strip[45].run, strip[45].runs, strip[45].expired) == (first, failed, 2, 3)
    assert strip[45].url == f"/admin/accounts/expiryrun/{failed.pk}/change/"


# --- Permissions and cost ---


@pytest.mark.parametrize("permissions", [(), ("view_account",), ("view_expiryrun",)])
def test_whoever_may_not_look_at_accounts_and_runs_sees_no_figures(client: Client, permissions: tuple[str]) -> None:
    user: User = UserFactory.create(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    page = client.get("/admin/")

    assert page.status_code == 200
    assert "Trials now" not in page.content.decode()


def test_whoever_may_look_at_accounts_and_runs_sees_them(client: Client) -> None:
    user: User = UserFactory.create(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_account", "view_expiryrun"]))
    client.force_login(user)

    assert "Trials now" in client.get("/admin/").content.decode()


def test_the_overview_asks_as_many_queries_for_many_runs_as_for_few(
    now: datetime, entry: PeriodicTask, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    make_accounts(50, ended=2 * DAY, now=now)
    for hours in range(20):
        add_run(now - hours * HOUR, path=CELERY if hours % 2 else COMMAND, expired_count=1)

    with django_assert_max_num_queries(27):
        overview.collect(now=now)


@pytest.mark.postgres
def test_the_overview_reads_a_bounded_part_of_large_tables(
    now: datetime, entry: PeriodicTask, settings: Settings, admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.TRIAL_NOTICES = True
    for module in (overview, health):  # of 10,000, half of this table, PostgreSQL may read all
        monkeypatch.setattr(module, "MANY", 1000)
    make_accounts(50, ended=2 * DAY, now=now)
    services.expire_trials(path=COMMAND, now=now)
    fill_tables(24_000)
    with connection.cursor() as cursor:
        # Half of them end on the tenth day, so that its bar and the count of all trials stop.
        cursor.execute(
            "UPDATE accounts_account SET status = 'trialing', trial_ends_at = %s + id %% 3600 * interval '1 second'"
            " WHERE status = 'active' AND id %% 2 = 0",
            [now + 9 * DAY],
        )
        cursor.execute(
            "INSERT INTO accounts_notice (account_id, kind, trial_ends_at, days_before, status, sent, next_attempt)"
            " SELECT id, 'ended', now(), 0, 'sent', now(), now() FROM accounts_account"
        )
        cursor.execute("ANALYZE")
    with CaptureQueriesContext(connection) as asked:
        figures = overview.collect(now=now)
    queries = of_large_tables(asked)

    assert figures.trials.trialing == 1000
    assert (figures.ending.highest, figures.ending.is_capped) == (overview.MANY_A_DAY, True)
    assert len(queries) >= 8
    assert [sql for sql in queries if tables_scanned(sql)] == []
    assert max(rows_read(sql) for sql in queries) <= 1000 + 4 * 50  # four counts may pass those that expired


@pytest.mark.postgres
def test_the_overview_does_not_read_what_expired_accounts_left_in_the_index(
    now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "MANY_EXPIRED", 0)
    make_accounts(500, ended=2 * DAY, now=now)
    services.expire_trials(path=COMMAND, now=now)  # in the transaction of the test, so no entry can be removed
    make_accounts(5, ended=-5 * DAY, now=now)
    with CaptureQueriesContext(connection) as asked:
        overview.trials(now=now + MINUTE)
    [counted] = of_large_tables(asked)
    assert rows_read(counted) < 100

    monkeypatch.setattr(ledger, "MANY_EXPIRED", 10_000)
    with CaptureQueriesContext(connection) as asked:
        overview.trials(now=now + MINUTE)
    [counted] = of_large_tables(asked)
    assert rows_read(counted) >= 500, "the test can see such entries"


def test_a_count_that_stopped_is_written_with_a_plus(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.TRIAL_NOTICES = True
    NoticeFactory.create_batch(3, next_attempt=timezone.now())
    monkeypatch.setattr(overview, "MANY", 2)
    monkeypatch.setattr(overview, "MANY_A_DAY", 2)
    AccountFactory.create_batch(3, trial_ends_at=timezone.now() + 3 * DAY)
    page = admin_client.get("/admin/").content.decode()

    assert "At least 2 in all; 2+ on the busiest day." in re.sub(r"\s+", " ", page)
    assert re.findall(r">(?:On trial|Waiting)</a></dt><dd>(.*?)</dd>", page) == ["2+", "2+"]
