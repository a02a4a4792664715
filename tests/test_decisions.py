"""What operators decide: both paths obey a pause, an allowance is used once, run now is bounded; with permission."""

import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from io import StringIO
from threading import Barrier

import pytest
from django.contrib.auth.models import Permission
from django.contrib.messages import get_messages
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.html import strip_tags
from pytest_django import Settings

from accounts import decisions, erasure, health, services, tasks
from accounts.admin import run_now, runbook, schedule
from accounts.decisions import NotPossible
from accounts.models import Account, Decision, ExpiryRun
from accounts.services import RunPaused, TooManyDue
from accounts.words import moment
from sandbox.servers import wait_for
from tests.conftest import Process
from tests.factories import UserFactory, make_accounts
from tests.runs import DAY, expire
from users.models import User

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_worker")]

HOUR = timedelta(hours=1)
PAGES = "/admin/accounts/decision/"


def pause(hours: float = 24) -> Decision:
    """Pause the runs from now on; negative: as if a pause of two hours had ended then."""
    now = timezone.now()
    if hours > 0:
        return decisions.pause(until=now + hours * HOUR, by="anna", reason="a wrong import.")
    return Decision.objects.create(
        kind="pause", at=now + (hours - 2) * HOUR, until=now + hours * HOUR, by="anna", reason="a wrong import"
    )


def expire_by_command(*arguments: str) -> str:
    output = StringIO()
    call_command("expire_trials", *arguments, stdout=output)
    return output.getvalue()


# --- Pause ---


def test_both_paths_obey_a_pause_and_fail_not(caplog: pytest.LogCaptureFixture) -> None:
    make_accounts(2, ended=10 * DAY, now=timezone.now())
    until = moment(pause().until)
    sentence = f"Paused until {until} by anna: a wrong import."

    with caplog.at_level(logging.INFO, logger="accounts"):
        said = expire_by_command()
        tasks.expire_trials()
    assert said.splitlines() == [
        "Search for old trial accounts...",
        f"{sentence} Nothing was changed. Resume in the admin, or wait: a pause ends by itself.",
    ]
    assert [record.levelname for record in caplog.records if "expiry_paused" in record.getMessage()] == ["INFO"] * 2
    assert "anna" not in caplog.text
    assert expire_by_command("--dry-run").splitlines()[1:] == [
        "Would expire 2 trial(s)",
        f"Would change nothing now. {sentence}",
    ]
    assert expire_by_command("--verbosity=0") == ""
    assert not ExpiryRun.objects.exists(), "no row of the ledger for each tick"
    assert Account.objects.filter(status=Account.TRIALING).count() == 2

    decisions.resume(by="bert", reason="corrected")
    assert "Expired 2 trial(s)" in expire_by_command()


def test_a_pause_ends_by_itself_and_by_the_next_decision() -> None:
    now = timezone.now()
    first = pause(2)
    assert decisions.paused(now=now + 1.9 * HOUR) == first
    assert decisions.paused(now=first.until or now) is None

    second = pause(1)
    assert decisions.paused(now=now) == second
    assert decisions.paused(now=now + 1.5 * HOUR) is None

    decisions.resume(by="anna", reason="done")
    assert decisions.paused(now=now) is None
    with pytest.raises(NotPossible, match="Runs are not paused"):
        decisions.resume(by="anna", reason="again")
    for hours in (-1, 24 * 30 + 1):
        with pytest.raises(NotPossible, match="within 30 days"):
            decisions.pause(until=timezone.now() + hours * HOUR, by="anna", reason="a look")


@pytest.mark.parametrize("due", [0, 1])
@pytest.mark.parametrize(
    ("hours", "rows"),
    [(1, ["paused"]), (-2.9, []), (-3.1, ["stale"])],
    ids=["paused", "ended lately", "ended long ago"],
)
def test_a_pause_is_said_and_no_alarm_and_leaves_time_after_it(hours: float, rows: list[str], due: int) -> None:
    now = timezone.now()
    expire(now - 9 * HOUR)
    make_accounts(due, ended=DAY + 4 * HOUR, now=now)
    pause(hours)

    found = health.check(now=now, max_age=3 * HOUR)

    assert [finding.row for finding in found.findings] == rows
    assert [finding.row for finding in found.problems] == [row for row in rows if row == "stale"]
    if rows == ["paused"]:
        assert found.headline == "Trial expiry is paused."
        assert found.lines[0].endswith("by anna: a wrong import." + due * " 1 account is due.")


def test_a_run_in_progress_goes_on_when_the_runs_are_paused(now: datetime) -> None:
    make_accounts(2, ended=10 * DAY, now=now)

    def pause_first(run: ExpiryRun) -> None:
        pause()
        services.run_here(run)

    assert expire(now, run_slices=pause_first).expired_count == 2
    with pytest.raises(RunPaused):
        expire(now)


# --- Allow once ---


def refused(count: int) -> ExpiryRun:
    """A run that the fuse refused, of so many new accounts that are due."""
    now = timezone.now()
    make_accounts(count, ended=10 * DAY, now=now)
    with pytest.raises(TooManyDue):
        expire(now, max_accounts=1)
    return ExpiryRun.objects.latest("pk")


def test_an_allowance_is_used_by_one_run_that_is_recorded(settings: Settings) -> None:
    settings.TRIAL_EXPIRY_MAX = 1
    allowed = decisions.allow(run=refused(3), by="anna", reason="the import of May")
    with pytest.raises(NotPossible, match="may expire that many already"):
        decisions.allow(run=ExpiryRun.objects.latest("pk"), by="anna", reason="twice")
    make_accounts(1, ended=10 * DAY, now=timezone.now())
    with pytest.raises(TooManyDue):
        expire(timezone.now())  # four are due, and three are allowed
    Account.objects.latest("pk").delete()
    assert "an operator allowed it once" in expire_by_command("--dry-run")

    run = expire(timezone.now())

    allowed.refresh_from_db()
    assert (run.expired_count, allowed.run, allowed.max_accounts) == (3, run, 3)
    make_accounts(2, ended=10 * DAY, now=timezone.now())
    with pytest.raises(TooManyDue):
        expire(timezone.now())


def test_an_allowance_is_kept_by_runs_that_need_none_and_lapses_after_a_day() -> None:
    allowed = decisions.allow(run=refused(3), by="anna", reason="the import of May")
    assert decisions.allowance(now=timezone.now() + 23 * HOUR) == allowed
    assert decisions.allowance(now=timezone.now() + 25 * HOUR) is None

    assert expire(timezone.now(), max_accounts=3).expired_count == 3

    allowed.refresh_from_db()
    assert allowed.run is None


def test_only_what_the_fuse_refused_and_nothing_settled_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = refused(2)
    expire(timezone.now(), max_accounts=2)
    with pytest.raises(NotPossible):
        decisions.allow(run=run, by="anna", reason="late")

    clock = ExpiryRun.objects.create(
        path="command", as_of=timezone.now(), status="refused", finished=timezone.now(), error="Refused: the clock"
    )
    with pytest.raises(NotPossible):
        decisions.allow(run=clock, by="anna", reason="not the fuse")
    assert not Decision.objects.exists()


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_of_two_runs_at_once_one_uses_the_allowance() -> None:
    decisions.allow(run=refused(2), by="anna", reason="both paths tick at the full hour")
    start = Barrier(2)

    def use() -> bool:
        run = ExpiryRun(path="command", as_of=timezone.now(), due_count=2)
        found = decisions.allowance(now=timezone.now())
        start.wait(10)
        try:
            assert found
            return decisions.use_allowance(run)
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        assert sorted(future.result() for future in [pool.submit(use), pool.submit(use)]) == [False, True]


# --- Run now ---


def test_run_now_stops_in_time_and_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    make_accounts(1001, ended=10 * DAY, now=timezone.now())
    monkeypatch.setattr(run_now, "SECONDS", -1)
    monkeypatch.setattr(services, "expire_trials", partial(services.expire_trials, batch_size=1000))

    said = run_now.start(by="anna", reason="a payment")

    run = ExpiryRun.objects.get()
    assert said == (
        f"Run {run.pk} expired 1,000 of 1,001 due accounts. Run now again for the rest, or leave it to the next tick."
    )
    assert run.status == "interrupted"
    assert run.error == "Stopped after -1 seconds in the admin, 1,000 of 1,001 accounts done."
    assert Decision.objects.get().run == run


@pytest.mark.faults
@pytest.mark.django_db(transaction=True)
def test_run_now_is_done_by_a_worker_where_one_lives(
    celery: Process, own_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "processes", schedule._ping)
    make_accounts(3, ended=10 * DAY, now=timezone.now())

    with celery("worker", "--pool=solo"):
        wait_for("the worker", run_now.worker_answers)
        said = run_now.start(by="anna", reason="a payment")
        run = wait_for("its run", lambda: ExpiryRun.objects.filter(status="succeeded").first())

    assert said == "A worker was told to run. Its run is in the ledger within seconds."
    assert (run.path, run.expired_count) == ("celery", 3)


# --- In the admin ---


def test_no_page_and_no_dry_run_counts_all_of_many_due(
    admin_client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = refused(5)
    monkeypatch.setattr(services, "COUNTED", 2)

    def said(page: str) -> str:
        return " ".join(strip_tags(admin_client.get(f"{PAGES}{page}/").content.decode()).split())

    with CaptureQueriesContext(connection) as asked:
        assert "More than 2 accounts are due now and will be expired." in said("run")
        assert "Now more than 2 accounts are." in said(f"allow/{run.pk}")
        assert "Would expire more than 2 trial(s)" in expire_by_command("--dry-run")
        pause()
        assert "More than 2 accounts are due now. The next tick" in said("resume")
    counts = [query["sql"] for query in asked if "COUNT" in query["sql"] and '"accounts_account"' in query["sql"]]
    assert [sql for sql in counts if "LIMIT 3" not in sql] == []


def test_a_fuse_for_more_than_is_counted_is_told_all_the_same(
    admin_client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.TRIAL_EXPIRY_MAX = 4
    monkeypatch.setattr(services, "COUNTED", 2)
    make_accounts(4, ended=10 * DAY, now=timezone.now())
    assert "The fuse will refuse" not in admin_client.get(f"{PAGES}run/").content.decode()

    make_accounts(1, ended=10 * DAY, now=timezone.now())
    assert "The fuse will refuse" in admin_client.get(f"{PAGES}run/").content.decode()
    assert "Would be refused: at most 4" in expire_by_command("--dry-run")


@pytest.fixture
def staff() -> Callable[..., Client]:
    """A client, logged in as anna, who may see the overview and has these permissions."""

    def log_in(*permissions: str) -> Client:
        user: User = UserFactory.create(username="anna", is_staff=True)
        names = ["view_account", "view_expiryrun", *permissions]
        user.user_permissions.set(Permission.objects.filter(codename__in=names))
        client = Client()
        client.force_login(user)
        return client

    return log_in


def decide(client: Client, page: str, **data: str) -> str:
    """Post a decision; returns the message about it."""
    answer = client.post(f"{PAGES}{page}/", {"reason": "the import of May", **data})
    assert answer.status_code == 302, answer.context["form"].errors
    return [str(message) for message in get_messages(answer.wsgi_request)][-1]


def test_each_button_needs_its_permission_and_a_reason(staff: Callable[..., Client]) -> None:
    run = refused(2)
    pages = {
        "run": "run_expiry",
        "pause": "pause_expiry",
        "resume": "pause_expiry",
        f"allow/{run.pk}": "allow_expiry",
    }
    client = staff()
    user = User.objects.get(username="anna")
    for page, permission in pages.items():
        user.user_permissions.set(Permission.objects.exclude(codename=permission))
        assert client.get(f"{PAGES}{page}/").status_code == client.post(f"{PAGES}{page}/").status_code == 403
        user.user_permissions.set(Permission.objects.filter(codename=permission))
        assert client.get(f"{PAGES}{page}/").status_code == 200
        assert client.post(f"{PAGES}{page}/", {"reason": " "}).context["form"].errors["reason"]
    assert not Decision.objects.exists()


def test_the_overview_offers_what_the_permissions_allow(staff: Callable[..., Client]) -> None:
    run = refused(2)
    buttons = [f"{PAGES}run/", f"{PAGES}pause/", f"{PAGES}allow/{run.pk}/"]

    client = staff()
    page = client.get("/admin/").content.decode()
    assert [button for button in buttons if f'href="{button}"' in page] == []

    user = User.objects.get(username="anna")
    user.user_permissions.set(Permission.objects.all())
    page = client.get("/admin/").content.decode()
    assert [button for button in buttons if f'href="{button}"' in page] == buttons
    assert f'href="{buttons[2]}"' in client.get(f"/admin/accounts/expiryrun/{run.pk}/change/").content.decode()


def test_an_operator_pauses_resumes_allows_and_runs_now(staff: Callable[..., Client], settings: Settings) -> None:
    settings.TRIAL_EXPIRY_MAX = 1
    client = staff("run_expiry", "pause_expiry", "allow_expiry", "view_decision")
    run = refused(2)

    assert "whom no run has expired, have access until the pause ends" in client.get(f"{PAGES}pause/").content.decode()
    tomorrow = timezone.now() + DAY
    assert decide(client, "pause", until=f"{tomorrow:%Y-%m-%dT%H:%M}") == (
        f"Paused until {moment(tomorrow)}. No run starts before, by either path."
    )
    page = client.get("/admin/").content.decode()
    assert "by anna: the import of May. 2 accounts are due." in page
    assert '<li class="error">' not in page
    assert decide(client, "run").endswith("Resume first. Nothing was changed.")
    assert decide(client, "resume") == "Resumed. The next tick expires what is due, or run now."

    because = decide(client, "run")
    assert because.startswith("Refused: 2 accounts are due and at most 1 may expire in one run.")
    allowed = decide(client, f"allow/{run.pk}")
    assert allowed.startswith("Allowed: one run, by either path, may expire up to 2 accounts until ")
    assert "Allowed once, by anna" in client.get("/admin/").content.decode()
    done = decide(client, "run")
    latest = ExpiryRun.objects.latest("pk")
    assert done == f"Run {latest.pk} expired 2 of 2 due accounts."

    history = client.get(PAGES).content.decode()
    for kind in ("Pause", "Resume", "Run now", "Allow once"):
        assert f'<td class="field-kind">{kind}</td>' in history
    assert f">Run {latest.pk}</a>, up to 2 accounts, until" in history
    assert (
        "Run now, by anna: the import of May"
        in client.get(f"/admin/accounts/expiryrun/{latest.pk}/change/").content.decode()
    )


@pytest.mark.parametrize("until", ["2020-01-01T00:00", "2999-01-01T00:00", "tomorrow", ""])
def test_a_pause_of_no_use_is_refused_in_its_field(admin_client: Client, until: str) -> None:
    page = admin_client.post(f"{PAGES}pause/", {"until": until, "reason": "a look"})

    assert page.context["form"].errors["until"]
    assert not Decision.objects.exists()


def test_erasing_an_operator_erases_the_name_in_the_history() -> None:
    pause()
    erasure.erase(user=UserFactory.create(username="anna"))

    assert [decision.by for decision in Decision.objects.all()] == ["(erased)"]


# --- What to do ---


def test_every_finding_has_a_row_that_says_what_to_do(admin_client: Client, settings: Settings) -> None:
    rows = {row.id for row in runbook.ROWS}
    source = (settings.BASE_DIR / "accounts" / "health.py").read_text()
    page = admin_client.get("/admin/what-to-do/").content.decode()

    assert {"failed", "interrupted", "beat"} <= rows
    assert all(f'<section id="{row}"' in page for row in rows)
    assert set(re.findall(r'row="([a-z-]+)"', source)) <= rows


def test_the_operations_page_has_the_same_rows(settings: Settings) -> None:
    page = (settings.BASE_DIR / "docs" / "operations.md").read_text()

    for row in runbook.ROWS:
        assert f"| {row.says} | {row.meaning} | {row.action} |" in page
