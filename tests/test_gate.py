"""The gate: whose trial is over is led to the customer's page, whatever the last run recorded."""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings as django_settings
from django.contrib import admin
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView
from django.core.handlers.asgi import ASGIHandler
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views import View
from pytest_django import DjangoAssertNumQueries, Settings

from accounts import services
from accounts.gate import trial_not_required
from accounts.models import Account
from accounts.views import trial
from project import health, pages
from tests.factories import AccountFactory, UserFactory
from tests.runs import DAY, expire

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


def product(request: HttpRequest) -> HttpResponse:
    return HttpResponse("in")


@trial_not_required
def open_product(request: HttpRequest) -> HttpResponse:
    return HttpResponse("in")


async def product_in_async(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    return HttpResponse(f"in as {user.get_username()}")


def loads_the_account(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.account.status)  # type: ignore[union-attr]


class Product(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("in")

    post = get


@method_decorator(trial_not_required, name="dispatch")
class Open(Product):
    pass


urlpatterns = [
    path("product/", product),
    path("async/", product_in_async),
    path("class/", Product.as_view()),
    path("account/", loads_the_account),
    path("open/", open_product),
    path("open/class/", Open.as_view()),
    path("billing/plans/", product),
    path("billings/", product),
    path("login/", LoginView.as_view(), name="login"),
    path("trial/", trial),
    path("health/", health.process),
    path("private/", login_required(product)),
    path("admin/", admin.site.urls),
    path("app/", pages.app, name="app"),
]


@pytest.fixture
def account() -> Account:
    """An account that only the clock has ended: no run has come since."""
    account: Account = AccountFactory.create(trial_ends_at=timezone.now() - 2 * DAY)
    return account


@pytest.fixture
def customer(account: Account) -> Client:
    """The browser of its customer."""
    client = Client(headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    client.force_login(account.user)
    return client


@pytest.mark.parametrize("page", ["/product/", "/class/", "/async/", "/account/", "/billings/", "/private/"])
def test_a_page_leads_to_the_trial_and_back(customer: Client, page: str) -> None:
    response = customer.get(f"{page}?q=a b&x=/")

    assert response.status_code == 302
    where = urlsplit(response["Location"])
    assert where.path == "/trial/"
    assert parse_qs(where.query) == {"next": [f"{page}?q=a%20b&x=/"]}
    assert "no-store" in response["Cache-Control"]
    assert {"Accept", "Cookie"} <= set(response["Vary"].split(", "))


def test_a_form_that_is_posted_leads_to_the_trial_without_a_way_back(customer: Client) -> None:
    assert customer.post("/class/")["Location"] == "/trial/"


@pytest.mark.parametrize(
    "page", ["/open/", "/open/class/", "/billing/plans/", "/login/", "/trial/", "/health/", "/admin/login/"]
)
def test_what_a_customer_needs_to_come_back_stays_open(customer: Client, settings: Settings, page: str) -> None:
    settings.BILLING_URL = "/billing/?plan=small"

    assert customer.get(page).status_code == 200
    assert customer.get("/billings/").status_code == 302


def test_the_admin_asks_for_a_login_of_its_own(customer: Client) -> None:
    assert customer.get("/admin/")["Location"] == "/admin/login/?next=/admin/"


@pytest.mark.parametrize(
    "accept", ["application/json", "application/problem+json", "application/json, text/html;q=0.5"]
)
def test_a_request_that_prefers_json_gets_a_problem_document(
    customer: Client, account: Account, accept: str, caplog: pytest.LogCaptureFixture
) -> None:
    response = customer.post("/class/", headers={"accept": accept})

    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert (response.status_code, response["Content-Type"]) == (402, "application/problem+json")
    assert json.loads(response.content) == {
        "type": "http://testserver/trial/",
        "title": "The trial has ended",
        "status": 402,
        "detail": f"The trial ended on {account.trial_ends_at:%-d %B %Y, %H:%M} UTC. To go on, choose a plan.",
        "trial_ended": account.trial_ends_at.isoformat(),
    }


def test_a_cancelled_account_gets_a_problem_of_its_own(customer: Client, account: Account) -> None:
    services.cancel(account_id=account.pk)

    assert customer.get("/product/", headers={"accept": "application/json"}).json() == {
        "type": "http://testserver/trial/",
        "title": "The account is cancelled",
        "status": 402,
        "detail": "The account is cancelled.",
    }


def test_the_gate_opens_with_the_payment_and_with_an_undo_that_extends(customer: Client, account: Account) -> None:
    assert customer.get("/product/").status_code == 302
    run = expire(timezone.now())
    assert customer.get("/product/").status_code == 302
    services.undo_run(run=run, now=timezone.now(), by="ann", extend_days=7)
    assert customer.get("/product/").status_code == 200
    Account.objects.update(trial_ends_at=timezone.now() - 2 * DAY)
    assert customer.get("/product/").status_code == 302
    services.activate(account_id=account.pk)
    assert customer.get("/product/").status_code == 200


def test_a_refused_run_leaves_the_gate_open(customer: Client, settings: Settings) -> None:
    AccountFactory.create(trial_ends_at=timezone.now() - 2 * DAY)
    with pytest.raises(services.TooManyDue):
        expire(timezone.now(), max_accounts=1)

    assert customer.get("/product/").status_code == 200


def test_staff_anonymous_users_and_users_without_an_account_pass(account: Account) -> None:
    operator = UserFactory.create(is_staff=True)
    AccountFactory.create(user=operator, trial_ends_at=timezone.now() - 9 * DAY)
    for user in (operator, UserFactory.create(), None):
        client = Client()
        if user:
            client.force_login(user)
        assert client.get("/product/").status_code == 200
    assert Client().get("/private/")["Location"] == "/login/?next=/private/"


def test_switched_off_the_gate_lets_everybody_in(customer: Client, settings: Settings) -> None:
    settings.TRIAL_GATE = False

    assert customer.get("/product/").status_code == 200


def test_the_gate_costs_a_query_at_most_and_none_where_the_view_needs_the_account(
    settings: Settings, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    client = Client()
    client.force_login(AccountFactory.create().user)
    for page, queries in (("/product/", 3), ("/account/", 3), ("/open/", 0)):  # session and user are two
        with django_assert_num_queries(queries):
            client.get(page)
    settings.TRIAL_GATE = False
    for page, queries in (("/product/", 0), ("/account/", 3)):
        without = Client()
        without.cookies = client.cookies
        with django_assert_num_queries(queries):
            without.get(page)


# --- ASGI ---


def test_the_gate_works_in_djangos_async_client(account: Account) -> None:
    @async_to_sync  # runs what is not async in this thread, with its transaction
    async def ask(page: str, **headers: str) -> Any:
        client = AsyncClient()
        await client.aforce_login(account.user)
        return await client.get(page, headers=headers)

    pages_ = ("/async/", "/product/", "/class/")
    assert [ask(page)["Location"] for page in pages_] == [f"/trial/?next={page}" for page in pages_]
    assert ask("/async/", accept="application/json").status_code == 402
    services.activate(account_id=account.pk)
    assert ask("/async/").status_code == 200


@pytest.mark.django_db(transaction=True)
def test_the_gate_works_in_an_asgi_server(account: Account, customer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    # The server runs what is not async in a thread of its own, whose connection would outlive the test.
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 0)

    async def ask(cookie: str) -> tuple[int, dict[bytes, bytes]]:
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": "/async/",
            "query_string": b"",
            "headers": [(b"host", b"testserver"), (b"accept", b"text/html"), (b"cookie", cookie.encode())],
        }
        unread: list[dict[str, Any]] = [{"type": "http.request", "body": b""}]
        sent: list[Mapping[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return unread.pop() if unread else await asyncio.Future()  # the client waits for the answer

        async def send(message: Mapping[str, Any]) -> None:
            sent.append(message)

        await ASGIHandler()(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])

    name = django_settings.SESSION_COOKIE_NAME
    cookie = f"{name}={customer.cookies[name].value}"
    status, headers = asyncio.run(ask(cookie))
    assert (status, headers[b"Location"]) == (302, b"/trial/?next=/async/")
    services.activate(account_id=account.pk)
    assert asyncio.run(ask(cookie))[0] == 200
