"""The page of an account, and the page that asks before an action, in a real browser."""

from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from accounts import services
from accounts.models import Account, ExpiryRun, Notice
from tests.browser.test_pages import fits
from tests.factories import AccountFactory, NoticeFactory
from tests.runs import DAY

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.faults]

EMAIL = "dolores-maria-francesca.hernandez@a-rather-long-company-name.example.com"


@pytest.fixture
def account() -> Account:
    """A customer with a story: reminded in vain, expired, mailed, undone, expired again."""
    now = timezone.now()
    account: Account = AccountFactory.create(user__email=EMAIL, created=now - 70 * DAY, trial_ends_at=now - 10 * DAY)
    refused = {"status": Notice.Status.GIVEN_UP, "attempts": 5, "last_error": f"550 5.1.1 <{EMAIL}>: unknown in table"}
    NoticeFactory.create(account=account, next_attempt=now, **refused)
    run = services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)
    NoticeFactory.create(
        account=account, kind="ended", days_before=0, status=Notice.Status.SENT, sent=now, next_attempt=now
    )
    services.undo_run(run=run, now=now, by="anna")
    services.expire_trials(path=ExpiryRun.Path.CELERY, now=now + timedelta(seconds=1))
    return account


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1440])
def test_support_answers_a_customer_on_one_page(account: Account, overview: Page, width: int, scheme: str) -> None:
    page = overview
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")

    page.get_by_label("Find a customer").fill("Dolores-Maria")
    page.get_by_label("Find a customer").press("Enter")
    page.get_by_role("link", name=EMAIL).click()
    expect(page.get_by_role("heading", level=1, name=EMAIL)).to_be_visible()
    expect(page.get_by_text("and the grace of 1 day was over.")).to_be_visible()
    for summary in page.locator(".timeline summary").all():
        summary.press("Enter")
    expect(page.get_by_text("Nothing was charged")).to_be_visible()
    assert fits(page)

    page.get_by_role("button", name="Cancel account…").click()
    expect(page.get_by_text("1 account will be cancelled.")).to_be_visible()
    assert fits(page)
    page.get_by_role("link", name="No, take me back").click()

    page.get_by_label("Days").fill("30")
    page.get_by_role("button", name="Extend").click()
    expect(page.get_by_text("1 account was extended by 30 days.")).to_be_visible()
    expect(page.get_by_text("Back on trial since admin user admin extended it")).to_be_visible()


def test_a_wrong_number_of_days_is_corrected_where_it_is_asked(account: Account, overview: Page) -> None:
    page = overview
    page.goto("/admin/accounts/account/")
    page.get_by_label("Select all objects on this page for an action").check()
    page.get_by_label("Action:").select_option("Extend trials…")
    page.locator(".actions button[name=index]").click()
    page.get_by_label("Days").fill("99999")
    page.get_by_role("button", name="Yes, extend 1 account").click()
    expect(page.get_by_text("Ensure this value is less than or equal to 3650.")).to_be_visible()

    page.get_by_label("Days").fill("14")
    page.get_by_role("button", name="Yes, extend 1 account").click()

    expect(page.get_by_text("1 account was extended by 14 days.")).to_be_visible()
    account.refresh_from_db()
    assert account.status == Account.TRIALING
