"""An undo in the admin, in a real browser: with a worker of Celery, without one, and without scripts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect
from pytest_django.live_server_helper import LiveServer

from accounts import services
from accounts.admin import run_now, schedule
from accounts.admin.schedule import Processes
from accounts.models import Account, AccountEvent, ExpiryRun
from accounts.slices import FIRST
from sandbox.servers import wait_for
from tests.browser.looks import OVERFLOWS
from tests.conftest import Process
from tests.factories import make_accounts
from tests.faults.conftest import gate_before
from tests.runs import DAY

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.faults]


def expire(count: int) -> ExpiryRun:
    make_accounts(count, ended=20 * DAY, now=timezone.now())
    return services.expire_trials(path=ExpiryRun.Path.COMMAND, now=timezone.now())


def undo(page: Page, run: ExpiryRun) -> None:
    page.goto(f"/admin/accounts/expiryrun/{run.pk}/undo/")
    page.get_by_role("button", name="Undo this run").click()


def undone() -> int:
    return AccountEvent.objects.filter(kind=AccountEvent.Kind.UNDONE).count()


@pytest.fixture
def without_scripts(browser: Browser, live_server: LiveServer, admin_client: Client) -> Iterator[Page]:
    """A page of the superuser in a browser that runs no scripts."""
    session = admin_client.cookies[settings.SESSION_COOKIE_NAME].value
    with browser.new_context(base_url=live_server.url, java_script_enabled=False) as context:
        context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": live_server.url}])
        yield context.new_page()


@pytest.mark.usefixtures("a_slice_takes_all_the_time")
def test_without_a_worker_an_undo_goes_on_by_itself_to_the_end(overview: Page) -> None:
    steps: list[str] = []
    overview.on("request", lambda request: steps.append(request.url) if request.method == "POST" else None)

    undo(overview, expire(7))

    done = overview.get_by_text("Undone: 7 accounts back on trial, extended by 14 days.")
    expect(done).to_be_visible(timeout=20_000)
    assert len(steps) == 4
    assert Account.objects.filter(status=Account.TRIALING).count() == undone() == 7


@pytest.mark.usefixtures("a_slice_takes_all_the_time")
def test_without_scripts_a_button_takes_the_undo_from_step_to_step(without_scripts: Page, tmp_path: Path) -> None:
    page = without_scripts
    undo(page, expire(7))

    for done in (2, 4, 6):
        expect(page.get_by_role("status")).to_contain_text(f"{done} of 7 accounts back on trial so far.")
        page.screenshot(path=tmp_path / f"step-{done}.png")
        page.get_by_role("button", name="Go on").click()

    expect(page.get_by_text("Undone: 7 accounts back on trial, extended by 14 days.")).to_be_visible()


@pytest.fixture
def worker(celery: Process, own_broker: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker of Celery that answers."""
    monkeypatch.setattr(schedule, "processes", schedule._ping)
    with celery("worker", "--pool=solo"):
        wait_for("the worker", run_now.worker_answers)
        # On a busy machine it may take longer than a page waits.
        monkeypatch.setattr(schedule, "processes", lambda: Processes(broker=True, workers=1))
        monkeypatch.setattr(schedule, "SHORT", {})
        yield


@pytest.mark.usefixtures("worker")
def test_while_a_worker_undoes_the_page_of_the_run_says_how_far_it_is(overview: Page, tmp_path: Path) -> None:
    run = expire(FIRST + 3)  # in two slices
    with gate_before(Account.objects.latest("pk")) as gate:
        undo(overview, run)
        expect(overview.get_by_text("A worker was told to undo this run.")).to_be_visible(timeout=20_000)
        gate.wait_until_held()
        overview.get_by_role("button", name="Look again").click()
        expect(overview.get_by_role("status")).to_contain_text("500 of 503 accounts back on trial so far.")
        overview.screenshot(path=tmp_path / "worker.png")
        assert not overview.evaluate(OVERFLOWS)

        gate.open()
        wait_for("the undo to end", lambda: undone() == 503)
        expect(overview.get_by_role("status")).not_to_be_attached(timeout=20_000)  # the page looks again by itself

    run.refresh_from_db()
    assert (run.status, run.undone_count, run.undone_by) == ("undone", 503, "admin user admin")
