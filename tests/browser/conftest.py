"""A real browser on a live server."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from playwright.sync_api import Browser, Page
from pytest_django.live_server_helper import LiveServer

from accounts import services
from accounts.admin import run_now


@pytest.fixture
def page(browser: Browser, live_server: LiveServer) -> Iterator[Page]:
    """A page in a new session, with the width of a desktop.

    A script error or a violation of the content security policy fails the test.
    """
    errors: list[str] = []
    with browser.new_context(base_url=live_server.url, viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(error.message))
        page.on("console", lambda line: errors.append(line.text) if "Content Security Policy" in line.text else None)
        yield page
    assert errors == []


@pytest.fixture
def overview(page: Page, live_server: LiveServer, admin_client: Client) -> Page:
    """The admin's index page, with the superuser logged in."""
    session = admin_client.cookies[settings.SESSION_COOKIE_NAME].value
    page.context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": live_server.url}])
    page.goto("/admin/")
    return page


@pytest.fixture
def a_slice_takes_all_the_time(monkeypatch: pytest.MonkeyPatch, no_worker: None) -> None:
    """No worker answers, and the time of a request is over after one slice."""

    def one_slice(**options: Any) -> int:
        turns = iter([False])
        return undo_run(**{**options, "batch_size": 2, "stop": lambda: next(turns, True)})

    undo_run = services.undo_run
    monkeypatch.setattr(services, "undo_run", one_slice)
    monkeypatch.setattr(run_now, "SECONDS", -1)
