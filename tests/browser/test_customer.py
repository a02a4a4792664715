"""A customer's way through the trial, in a real browser."""

import re
from datetime import timedelta

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect
from pytest_django import Settings
from pytest_django.live_server_helper import LiveServer

from accounts import services
from accounts.models import Account
from tests.browser.test_pages import fits
from tests.factories import AccountFactory
from tests.runs import DAY
from tests.trials import HOUR

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.faults]


@pytest.fixture
def account() -> Account:
    account: Account = AccountFactory.create(trial_ends_at=timezone.now() + timedelta(days=3, minutes=5))
    account.user.set_password("right")
    account.user.save()
    return account


def sign_in(page: Page, account: Account) -> None:
    page.get_by_label("Username").fill(account.user.username)
    page.get_by_label("Password").fill("right")
    page.get_by_role("button", name="Log in").click()


def test_a_customer_is_locked_out_at_the_end_and_back_in_after_paying(page: Page, account: Account) -> None:
    page.goto("/app/?page=2")
    sign_in(page, account)
    expect(page.get_by_role("complementary", name="Your trial")).to_contain_text("ends in 3 days")
    page.get_by_role("link", name="Your trial").click()
    expect(page.get_by_role("heading", name="Your trial ends in 3 days")).to_be_visible()

    Account.objects.update(trial_ends_at=timezone.now() - 2 * DAY)  # no run comes
    page.goto("/app/?page=2")
    expect(page.get_by_role("heading", name="Your trial has ended")).to_be_visible()
    expect(page.get_by_role("link", name="Ask for a plan")).to_be_visible()

    services.activate(account_id=account.pk)  # as a webhook handler does
    page.reload()
    expect(page.get_by_role("heading", name="Your account is active")).to_be_visible()
    page.get_by_role("link", name="Continue to Trial expiry").click()
    expect(page.get_by_role("heading", name="Welcome")).to_be_visible()
    assert page.url.endswith("/app/?page=2")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()


def test_the_pages_are_accessible_light_and_dark_and_fit_a_phone(
    browser: Browser, live_server: LiveServer, account: Account, settings: Settings
) -> None:
    settings.BILLING_URL = "/billing/"
    found, colours = [], set()
    # Without the content security policy, which forbids the styles that axe sets for a moment.
    with browser.new_context(base_url=live_server.url, bypass_csp=True) as context:
        page = context.new_page()

        def look(path: str) -> None:
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.goto(path)
                colours.add((scheme, page.evaluate("getComputedStyle(document.body).backgroundColor")))
                for width in (1280, 320):
                    page.set_viewport_size({"width": width, "height": 800})
                    violations = [rule["id"] for rule in Axe().run(page).response["violations"]]
                    if violations or not fits(page):
                        found.append((path, scheme, width, violations))

        page.goto("/login/")
        page.get_by_label("Username").fill("nobody")
        page.get_by_label("Password").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_be_visible()
        look("/login/")
        sign_in(page, account)
        look("/app/")
        now = timezone.now()
        for end in (now + 3 * DAY, now - HOUR, now - 2 * DAY):
            Account.objects.update(trial_ends_at=end)
            look("/trial/")
        for status in (Account.ACTIVE, Account.PAST_DUE, Account.CANCELED):
            Account.objects.update(status=status)
            look("/trial/")
    assert found == []
    assert len(colours) == 2


def test_the_keyboard_reaches_the_content_first(page: Page, account: Account) -> None:
    page.goto("/login/?next=/trial/")
    sign_in(page, account)
    expect(page).to_have_url(re.compile("/trial/$"))
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Ask for a plan")).to_be_focused()
