"""The overview in a real browser, on an empty, an ordinary, a broken and a paused database."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect
from pytest_django import Settings
from pytest_django.live_server_helper import LiveServer

from accounts import decisions, services
from accounts.models import Account, Decision, ExpiryRun, Notice
from tests.browser.looks import OVERFLOWS, views, violations
from tests.factories import NoticeFactory, make_accounts
from tests.runs import DAY

pytestmark = [pytest.mark.faults, pytest.mark.django_db(transaction=True)]

HOUR = timedelta(hours=1)


def empty(now: datetime) -> None:
    """A fresh installation."""
    MigrationRecorder(connection).migration_qs.filter(app="accounts").update(applied=now)


def ordinary(now: datetime) -> None:
    """A month of hourly runs of both paths, with a pause, an undone run and a mail that was given up."""
    for days in range(30):
        make_accounts(3 + days % 7, ended=DAY - days * DAY + HOUR, now=now)
    for hours in range(49, -1, -1):
        path = ExpiryRun.Path.CELERY if hours % 3 else ExpiryRun.Path.COMMAND
        status, error = ("failed", "OperationalError: the connection was lost") if hours == 20 else ("succeeded", "")
        if hours not in {30, 31, 9, 10}:
            at = now - hours * HOUR
            ExpiryRun.objects.create(
                path=path, status=status, error=error, as_of=at, started=at, finished=at + HOUR / 900
            )
    for days in range(29, 0, -1):
        at = now - days * DAY
        make_accounts(7 * days % 12, ended=days * DAY + DAY + HOUR, now=now)
        run = services.expire_trials(path=ExpiryRun.Path.CELERY if days % 2 else ExpiryRun.Path.COMMAND, now=at)
        ExpiryRun.objects.filter(pk=run.pk).update(started=at, finished=at + HOUR / 900)
    services.undo_run(run=ExpiryRun.objects.filter(expired_count__gt=5).latest("pk"), now=now, by="anna", extend_days=9)
    Decision.objects.create(kind="pause", at=now - 11 * HOUR, until=now - 8 * HOUR, by="anna", reason="an import")
    mails(now, waiting=3, given_up=1)
    services.expire_trials(path=ExpiryRun.Path.CELERY, now=now)


def broken(now: datetime) -> None:
    """The fuse refused, mails wait and were given up."""
    make_accounts(57, ended=9 * DAY, now=now)
    at = now - 30 * HOUR
    ExpiryRun.objects.create(path="command", status="succeeded", as_of=at, started=at, finished=at)
    for hours in range(7, -1, -1):
        with pytest.raises(services.TooManyDue):
            services.expire_trials(path=ExpiryRun.Path.CELERY, now=now, max_accounts=20)
        ExpiryRun.objects.filter(pk=ExpiryRun.objects.latest("pk").pk).update(started=now - hours * HOUR)
    mails(now, waiting=95, given_up=57, ago=20 * HOUR)


def paused(now: datetime) -> None:
    """An operator has paused the runs, and allowed a refused one."""
    broken(now)
    decisions.allow(run=ExpiryRun.objects.latest("pk"), by="anna", reason="the import of May")
    decisions.pause(until=now + DAY, by="anna", reason="the import of May is being checked")


def mails(now: datetime, *, waiting: int, given_up: int, ago: timedelta = HOUR) -> None:
    accounts = Account.objects.all()[: waiting + given_up] or [None]
    for number in range(waiting + given_up):
        status = Notice.Status.PENDING if number < waiting else Notice.Status.GIVEN_UP
        NoticeFactory.create(
            account=accounts[number % len(accounts)],
            days_before=number + 1,
            status=status,
            queued=now - ago,
            next_attempt=now,
        )


@pytest.fixture
def free_page(admin_client: Client, browser: Browser, live_server: LiveServer) -> Iterator[Page]:
    """A page without the content security policy, which forbids the styles that axe sets for a moment."""
    with browser.new_context(base_url=live_server.url, bypass_csp=True) as context:
        page = context.new_page()
        log_in(page, admin_client, live_server)
        yield page


@pytest.mark.parametrize("state", [empty, ordinary, broken, paused], ids=lambda state: state.__name__)
def test_the_overview_fits_every_width_light_and_dark(
    settings: Settings, free_page: Page, tmp_path: Path, state: Callable[[datetime], None]
) -> None:
    settings.TRIAL_NOTICES = True
    state(timezone.now())
    paths = {"overview": "/admin/"}
    if decisions.paused(now=timezone.now()):
        paths |= {"resume": "/admin/accounts/decision/resume/", "run": "/admin/accounts/decision/run/"}

    found: list[tuple[str, ...]] = []
    for name, path in paths.items():
        for view in views(free_page, path):
            found += [(name, view, *violation) for violation in violations(free_page)]
            if free_page.evaluate(OVERFLOWS):
                found.append((name, view, "overflows"))
            # To look at: pytest --basetemp=DIRECTORY keeps them.
            free_page.screenshot(path=tmp_path / f"{name}-{view}.png", full_page=True)

    assert found == []


def log_in(page: Page, client: Client, live_server: LiveServer) -> None:
    """Log the browser in as the client's user."""
    name = django_settings.SESSION_COOKIE_NAME
    page.context.add_cookies([{"name": name, "value": client.cookies[name].value, "url": live_server.url}])


def test_a_bar_and_a_tick_say_their_numbers_on_focus_and_lead_on(
    admin_client: Client, page: Page, live_server: LiveServer
) -> None:
    ordinary(timezone.now())
    log_in(page, admin_client, live_server)
    page.goto("/admin/")

    bar = page.get_by_role("list", name="Expired in the last 30 days").get_by_role("link").first
    count = (bar.text_content() or "").partition(": ")[2].split()[0]
    value = bar.locator(".value")
    assert value.evaluate("node => node.getBoundingClientRect().width") <= 1
    bar.focus()
    assert value.evaluate("node => node.getBoundingClientRect().width") > 50
    page.keyboard.press("Enter")
    expect(page.get_by_text(f"{count} accounts", exact=True)).to_be_visible()

    page.goto("/admin/")
    failed = page.get_by_role("list", name="The last 48 hours").get_by_role("link", name="failed")
    failed.click()
    expect(page.get_by_text("OperationalError: the connection was lost")).to_be_visible()


def test_a_touch_shows_the_number_and_the_number_leads_on(
    admin_client: Client, browser: Browser, live_server: LiveServer
) -> None:
    ordinary(timezone.now())
    phone = {"width": 390, "height": 800}
    with browser.new_context(base_url=live_server.url, viewport=phone, has_touch=True, is_mobile=True) as context:  # type: ignore[arg-type]
        page = context.new_page()
        log_in(page, admin_client, live_server)
        page.goto("/admin/")
        bars = page.get_by_role("list", name="Trials ending in the coming 30 days")
        bars.get_by_role("listitem").nth(9).tap()
        assert page.url.endswith("/admin/"), "the first touch leads nowhere"
        bars.get_by_role("listitem").nth(9).locator(".value").tap()
        expect(page.get_by_role("heading", name="Select account to view")).to_be_visible()


def test_an_operator_pauses_and_resumes_with_reasons(admin_client: Client, page: Page, live_server: LiveServer) -> None:
    ordinary(timezone.now())
    log_in(page, admin_client, live_server)
    page.goto("/admin/")
    page.get_by_role("link", name="Pause…").click()
    page.get_by_label("Reason").fill("the import of May")
    page.get_by_role("button", name="Pause trial expiry").click()
    expect(page.get_by_text("by admin: the import of May").first).to_be_visible()

    page.get_by_role("link", name="Resume…").click()
    page.get_by_label("Reason").fill("checked")
    page.get_by_role("button", name="Resume trial expiry").click()
    expect(page.get_by_text("Trials are being expired.")).to_be_visible()

    page.get_by_role("link", name="Run now…").click()
    expect(page.get_by_text("No worker of Celery answers")).to_be_visible()
    page.get_by_label("Reason").fill("to see")
    page.get_by_role("button", name="Run now").click()
    expect(page.get_by_text("expired 0 of 0 due accounts.")).to_be_visible()
