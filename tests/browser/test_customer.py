"""A customer's way through the trial, in a real browser."""

from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect
from pytest_django import Settings

from accounts import services
from accounts.models import Account
from tests.browser.test_pages import fits
from tests.factories import AccountFactory
from tests.runs import DAY

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


def test_the_pages_are_light_and_dark_and_fit_a_phone(page: Page, account: Account, settings: Settings) -> None:
    settings.BILLING_URL = "/billing/"
    page.goto("/login/")
    seen = []
    for step in ("/login/", "/app/", "/trial/"):
        if step == "/app/":
            sign_in(page, account)
        page.goto(step)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for width in (1280, 320):
                page.set_viewport_size({"width": width, "height": 800})
                assert fits(page), f"{step} at {width}"
            seen.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert seen == [seen[0], seen[1]] * 3
    assert seen[0] != seen[1]


def test_the_keyboard_reaches_the_content_first(page: Page, account: Account) -> None:
    page.goto("/login/?next=/trial/")
    sign_in(page, account)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Ask for a plan")).to_be_focused()
