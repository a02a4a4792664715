"""The admin's pages in a real browser."""

from datetime import timedelta

import pytest
from axes.models import AccessAttempt
from django.contrib.admin import site
from django.utils import timezone
from playwright.sync_api import Page, expect

from accounts import services
from accounts.models import Account, ExpiryRun
from tests.factories import NoticeFactory, make_accounts
from tests.runs import DAY
from users.models import User

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.faults]


@pytest.fixture
def run() -> ExpiryRun:
    now = timezone.now()
    for days in range(10):
        make_accounts(days, ended=-days * DAY - timedelta(hours=1), now=now)
    make_accounts(3, ended=20 * DAY, now=now)
    return services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)


def fits(page: Page) -> bool:
    """Whether the page does not overflow to the right."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def colours(page: Page) -> list[str]:
    """The colours of the page's background and of a bar in a chart."""
    bar = page.locator("rect.trials").first
    return [
        page.evaluate("getComputedStyle(document.body).backgroundColor"),
        bar.evaluate("bar => getComputedStyle(bar).fill"),
    ]


def test_whoever_logs_in_sees_the_overview_first(page: Page, admin_user: User, run: ExpiryRun) -> None:
    page.goto("/")
    page.get_by_label("Username").fill(admin_user.username)
    page.get_by_label("Password").fill("password")
    page.get_by_role("button", name="Log in").click()

    expect(page.get_by_role("heading", name="Trials now")).to_be_visible()
    expect(page.get_by_text("Trials are being expired.")).to_be_visible()


def test_the_overview_is_light_and_dark_and_fits_a_phone(run: ExpiryRun, overview: Page) -> None:
    overview.emulate_media(color_scheme="light")
    light = colours(overview)
    overview.emulate_media(color_scheme="dark")
    dark = colours(overview)

    assert light[0] == "rgb(255, 255, 255)"
    assert len({*light, *dark}) == 4
    assert fits(overview)
    overview.set_viewport_size({"width": 375, "height": 800})
    expect(overview.get_by_role("list", name="Expired in the last 30 days")).to_be_visible()
    assert fits(overview)


def test_a_chart_can_be_read_as_a_table_with_the_keyboard(run: ExpiryRun, overview: Page) -> None:
    today = overview.get_by_role("row", name=f"{timezone.now():%-d %B %Y} 3 0")
    expect(today).to_be_hidden()

    overview.get_by_text("As a table").first.press("Enter")

    expect(today).to_be_visible()


def test_an_operator_undoes_a_run_after_reading_what_that_means(run: ExpiryRun, overview: Page) -> None:
    overview.set_viewport_size({"width": 375, "height": 800})
    overview.get_by_role("link", name="succeeded", exact=True).click()
    overview.get_by_role("link", name="Undo…").click()
    expect(overview.get_by_text("3 accounts that this run expired")).to_be_visible()
    expect(overview.get_by_text("The rule then expires 3 of them again at the next tick")).to_be_visible()
    expect(overview.get_by_label("Extend the trials")).to_be_checked()
    assert fits(overview)
    overview.get_by_role("link", name="No, take me back").click()
    assert run.accounts.count() == 3

    overview.get_by_role("link", name="Undo…").click()
    overview.get_by_label("Days:").fill("7")
    overview.get_by_role("button", name="Undo this run").click()

    expect(overview.get_by_text("Undone: 3 accounts back on trial, extended by 7 days.").first).to_be_visible()
    expect(overview.get_by_role("link", name="Undo…")).to_have_count(0)
    assert not Account.objects.due(timezone.now()).exists()


def test_no_page_violates_the_content_security_policy(run: ExpiryRun, overview: Page) -> None:
    account = run.accounts.latest("pk")
    NoticeFactory.create(account=account, next_attempt=timezone.now())
    AccessAttempt.objects.create(username="guess", ip_address="192.0.2.1", failures_since_start=1)
    pages = [f"/admin/accounts/expiryrun/{run.pk}/undo/", f"/admin/users/user/{account.user_id}/delete/"]
    pages += ["/admin/password_change/", "/admin/users/user/add/", "/admin/django_celery_beat/periodictask/add/"]
    for model in site._registry:
        changelist = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        row = model._default_manager.first()
        pages += [changelist] + ([f"{changelist}{row.pk}/change/"] if row else [])

    # The browser logs a violation to the console, which the fixture reads.
    assert {page for page in pages if (answer := overview.goto(page)) and answer.status != 200} == set()
