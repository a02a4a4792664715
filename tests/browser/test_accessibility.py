"""Every page of ours at three widths, light and dark: axe finds no violation, and nothing overflows."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.utils import timezone
from playwright.sync_api import Browser, Page
from pytest_django.live_server_helper import LiveServer

from accounts import decisions, services
from accounts.delivery import compose
from accounts.models import Account, ExpiryRun, Notice
from tests.browser.looks import OVERFLOWS, WIDTHS, views, violations
from tests.factories import AccountFactory, NoticeFactory, make_accounts
from tests.runs import DAY

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.faults]

PAGES = (
    "/admin/",
    "/admin/accounts/account/",
    "/admin/accounts/account/?expiry_run={run}",
    "/admin/accounts/account/?returned_from={undone}",
    "/admin/accounts/account/?q=nobody@example.com",
    "/admin/accounts/account/{account}/change/",
    "/admin/accounts/expiryrun/",
    "/admin/accounts/expiryrun/?happened=something",
    "/admin/accounts/expiryrun/{run}/change/",
    "/admin/accounts/expiryrun/{failed}/change/",
    "/admin/accounts/expiryrun/{run}/undo/",
    "/admin/accounts/expiryrun/{failed}/undo/",
    "/admin/accounts/notice/",
    "/admin/accounts/notice/?account={account}",
    "/admin/accounts/notice/{notice}/change/",
    "/admin/accounts/decision/",
    "/admin/accounts/decision/run/",
    "/admin/accounts/decision/pause/",
    "/admin/accounts/decision/resume/",
    "/admin/accounts/decision/allow/{refused}/",
    "/admin/what-to-do/",
    "/admin/users/user/",
    "/trial/",
    "/app/",
    "/login/",
)
"""A page is a row. The keys in braces are those of ``rows``; a new one is added there."""

ERROR = "OperationalError: connection to server at 10.0.3.17, port 5432 failed: FATAL: terminating connection " * 3


@pytest.fixture
def page(browser: Browser, live_server: LiveServer) -> Iterator[Page]:
    """A page without the content security policy, which forbids the styles that axe sets for a moment."""
    with browser.new_context(base_url=live_server.url, bypass_csp=True) as context:
        yield context.new_page()


@pytest.fixture
def rows() -> dict[str, object]:
    """The keys of rows in every state that a page shows."""
    now = timezone.now()
    for days in range(10):
        make_accounts(days, ended=-days * DAY, now=now)
    make_accounts(2, ended=20 * DAY, now=now)
    undone = services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)
    services.undo_run(run=undone, now=now, by="operator", extend_days=14)
    make_accounts(3, ended=20 * DAY, now=now)
    for status in Account.Status:
        AccountFactory.create(status=status)
    failed = ExpiryRun.objects.create(
        path="celery", status="failed", as_of=now, finished=now, due_count=51234, error=ERROR
    )
    ExpiryRun.objects.create(path="celery", as_of=now, due_count=4000, expired_count=2000)
    for ending in ("succeeded", "refused", "interrupted", "undone"):
        ExpiryRun.objects.create(path="command", status=ending, as_of=now, finished=now)
    run = services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)
    refused = ExpiryRun.objects.create(path="celery", status="refused", as_of=now, finished=now, due_count=51234)
    decisions.run_now(by="anna", reason="A payment was late. " * 20)
    account = run.accounts.latest("pk")
    for days, state in enumerate(Notice.Status, 1):
        sent = now if state == Notice.Status.SENT else None
        notice = NoticeFactory.create(account=account, days_before=days, status=state, sent=sent, next_attempt=now)
    Notice.objects.filter(pk=notice.pk).update(last_error=ERROR)
    shown = {"run": run, "failed": failed, "refused": refused, "undone": undone, "account": account, "notice": notice}
    return {name: row.pk for name, row in shown.items()}


def test_no_page_of_ours_violates_a_rule_of_axe_or_overflows(
    rows: dict[str, object], overview: Page, tmp_path: Path
) -> None:
    found: list[tuple[str, ...]] = []
    for path in PAGES:
        for view in views(overview, path.format(**rows)):
            found += [(path, view, *violation) for violation in violations(overview)]
            if overview.evaluate(OVERFLOWS):
                found.append((path, view, "overflows"))
            # To look at: pytest --basetemp=DIRECTORY keeps them.
            overview.screenshot(path=tmp_path / f"{re.sub(r'[^a-z]+', '-', path).strip('-')}-{view}.png")

    assert found == []


@pytest.mark.parametrize("action", ["extend", "activate", "cancel"])
def test_the_page_that_asks_before_an_action_violates_no_rule_of_axe(
    rows: dict[str, object], overview: Page, action: str
) -> None:
    overview.goto("/admin/accounts/account/")
    overview.locator("#action-toggle").check()
    overview.get_by_label("Action:").select_option(action)
    overview.locator(".actions button[name=index]").click()
    overview.get_by_role("button", name=f"Yes, {action}").wait_for()  # the click does not wait for the page

    assert wrong_at_some_width(overview) == []


@pytest.mark.usefixtures("a_slice_takes_all_the_time")
def test_the_pages_of_an_undo_under_way_violate_no_rule_of_axe(rows: dict[str, object], overview: Page) -> None:
    overview.route("**/again.js", lambda route: route.abort())  # the pages stay as they are
    overview.goto(f"/admin/accounts/expiryrun/{rows['run']}/undo/")
    overview.get_by_role("button", name="Undo this run").click()
    overview.get_by_role("button", name="Go on").wait_for()
    found = wrong_at_some_width(overview)

    overview.goto(f"/admin/accounts/expiryrun/{rows['run']}/change/")
    overview.get_by_role("button", name="Look again").wait_for()

    assert found + wrong_at_some_width(overview) == []


def wrong_at_some_width(page: Page) -> list[tuple[str, ...]]:
    """The violations of the page as it is, and whether it overflows."""
    found: list[tuple[str, ...]] = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        found += violations(page)
        if page.evaluate(OVERFLOWS):
            found.append((str(width), "overflows"))
    return found


def test_no_mail_of_ours_violates_a_rule_of_axe(page: Page, tmp_path: Path) -> None:
    found: list[tuple[str, ...]] = []
    for kind, days in (("ending_soon", 7), ("ended", 0)):
        notice = NoticeFactory.create(kind=kind, days_before=days, next_attempt=timezone.now())
        html, _mime_type = compose(notice, now=timezone.now()).alternatives[0]
        mail = tmp_path / f"{kind}.html"
        mail.write_text(str(html))
        for view in views(page, mail.as_uri()):
            found += [(kind, view, *violation) for violation in violations(page)]
            page.screenshot(path=tmp_path / f"{kind}-{view}.png")

    assert found == []
