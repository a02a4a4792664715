"""The customer's pages: sign in, what the trial's page says in each state, and where its links lead."""

import hmac
import json
import re
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template import Context, Template
from django.test import Client, RequestFactory
from django.urls import path
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from pytest_django import Settings

from accounts import services
from accounts.models import Account
from accounts.words import moment
from project import urls
from tests.factories import AccountFactory, UserFactory
from tests.runs import DAY, expire
from users.models import User

pytestmark = pytest.mark.django_db


@pytest.fixture
def account() -> Account:
    account: Account = AccountFactory.create(trial_ends_at=timezone.now() + timedelta(days=3, minutes=5))
    account.user.set_password("right")
    account.user.save()
    return account


@pytest.fixture
def customer(account: Account, client: Client) -> Client:
    client.force_login(account.user)
    return client


def page(client: Client, url: str = "/trial/") -> str:
    response = client.get(url)
    assert response.status_code == 200
    return " ".join(response.content.decode().split())


def test_a_customer_signs_in_lands_in_the_product_and_signs_out(account: Account, client: Client) -> None:
    assert client.get("/", follow=True).redirect_chain == [("/login/?next=/", 302)]
    signed_in = client.post(
        "/login/", {"username": account.user.username, "password": "right", "next": "/"}, follow=True
    )
    assert [url for url, _ in signed_in.redirect_chain] == ["/", "/app/"]
    assert "Your trial ends <strong>in 3 days</strong>" in signed_in.content.decode()

    assert client.post("/logout/").headers["Location"] == "/login/"
    assert client.get("/app/").headers["Location"] == "/login/?next=/app/"


def test_the_first_page_leads_staff_to_the_admin(admin_client: Client) -> None:
    assert admin_client.get("/").headers["Location"] == "/admin/"


def test_a_customer_whose_trial_is_over_can_sign_out(customer: Client, account: Account) -> None:
    services.cancel(account_id=account.pk)

    assert customer.post("/logout/").headers["Location"] == "/login/"


def test_while_the_trial_runs_the_page_says_how_long_and_what_then(customer: Client, account: Account) -> None:
    assert "no-store" in customer.get("/trial/").headers["Cache-Control"]
    said = page(customer)

    assert "<h1>Your trial ends in 3 days</h1>" in said
    assert moment(account.trial_ends_at) in said
    assert "nothing is charged. Your data is kept" in said


def test_in_grace_the_page_says_until_when(customer: Client, account: Account) -> None:
    ended = timezone.now() - timedelta(hours=2)
    Account.objects.update(trial_ends_at=ended)

    said = page(customer)
    assert "<h1>Your trial has ended</h1>" in said
    assert "You can still use Trial expiry, until <time" in said
    assert moment(ended + DAY) in said
    assert "Your trial ended on" in page(customer, "/app/")


@pytest.mark.parametrize("recorded", [False, True])
def test_after_the_end_the_page_says_the_same_before_and_after_the_run(customer: Client, recorded: bool) -> None:
    ended = timezone.now() - 2 * DAY
    Account.objects.update(trial_ends_at=ended)
    if recorded:
        assert expire(timezone.now()).expired_count == 1

    said = page(customer)
    assert "<h1>Your trial has ended</h1>" in said
    assert f"{moment(ended)}</time>. Nothing was charged, and your data is kept." in said
    assert "How to come back" in said
    assert "Continue to" not in said


@pytest.mark.parametrize(
    ("status", "heading"),
    [
        (Account.ACTIVE, "Your account is active"),
        (Account.EXEMPT, "Your account is active"),
        (Account.BETA, "Your account is active"),
        (Account.PAST_DUE, "A payment is missing"),
        (Account.CANCELED, "Your account is cancelled"),
    ],
)
def test_off_trial_the_page_says_how_the_account_stands(customer: Client, status: Account.Status, heading: str) -> None:
    Account.objects.update(status=status)

    assert f"<h1>{heading}</h1>" in page(customer)


def test_on_hold_the_page_promises_no_moment(customer: Client) -> None:
    AccountFactory.create(trial_ends_at=timezone.now() - 2 * DAY)
    Account.objects.update(trial_ends_at=timezone.now() - 2 * DAY)
    with pytest.raises(services.TooManyDue):
        expire(timezone.now(), max_accounts=1)

    assert "You can still use Trial expiry.</p>" in page(customer)


def test_a_user_without_an_account_is_told_so(client: Client) -> None:
    client.force_login(UserFactory.create())

    assert "<h1>You have no trial</h1>" in page(client)


def test_the_button_leads_to_the_billing_page_or_says_whom_to_ask(customer: Client, settings: Settings) -> None:
    settings.DEFAULT_FROM_EMAIL = "Trials <trials@example.com>"
    assert '<a class="button" href="mailto:trials@example.com">' in page(customer)

    settings.SUPPORT_EMAIL = "help@example.com"
    assert '<a class="button" href="mailto:help@example.com">' in page(customer)

    settings.BILLING_URL = "https://pay.example.com/?a=1&b=2"
    assert '<a class="button" href="https://pay.example.com/?a=1&amp;b=2">Choose a plan</a>' in page(customer)


@pytest.mark.parametrize(
    ("url", "leads_to"),
    [
        ("/app/?page=2", "/app/?page=2"),
        ("", "/"),
        ("//evil.example/", "/"),
        ("https://evil.example/", "/"),
        ("https:evil.example", "/"),
        ("/\\evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("http://testserver@evil.example/", "/"),
        ("\t//evil.example", "/"),
    ],
)
def test_no_link_leads_to_another_site(account: Account, client: Client, url: str, leads_to: str) -> None:
    signed_in = client.post("/login/", {"username": account.user.username, "password": "right", "next": url})
    assert signed_in.headers["Location"] == leads_to

    response = client.get("/trial/", {"next": url})
    assert f'href="{leads_to}">Continue to Trial expiry</a>' in response.content.decode()


def banner(user: User | None) -> str:
    request = RequestFactory().get("/")
    if user:
        request.user = user
    return Template("{% load trial %}{% trial_banner %}").render(Context({"request": request})).strip()


def test_the_banner_is_for_customers_on_trial_only(account: Account) -> None:
    assert '<a href="/trial/">Your trial</a>' in banner(account.user)
    for status in (Account.ACTIVE, Account.TRIAL_EXPIRED, Account.CANCELED):
        assert banner(AccountFactory.create(status=status).user) == ""
    assert banner(UserFactory.create()) == banner(None) == ""


SECRET = b"shared with the billing system"


def signature(body: bytes) -> str:
    return hmac.new(SECRET, body, "sha256").hexdigest()


def verified(request: HttpRequest) -> Any:
    """What the library of a billing system does."""
    if not hmac.compare_digest(request.headers["Signature"], signature(request.body)):
        raise PermissionDenied
    return json.loads(request.body)


def test_the_webhook_handler_of_the_docs_lets_the_customer_back_in(
    customer: Client, account: Account, settings: Settings
) -> None:
    docs = (django_settings.BASE_DIR / "docs" / "adopt.md").read_text()
    (code,) = re.findall(r"```python\n# subscriptions/webhooks.py\n(.*?)```", docs, re.DOTALL)
    names: dict[str, Any] = {
        "__name__": "webhooks",
        "csrf_exempt": csrf_exempt,
        "require_POST": require_POST,
        "HttpResponse": HttpResponse,
    }
    names |= {"services": services, "verified": verified}
    exec(code, names)  # noqa: S102 (the documentation's own)
    settings.ROOT_URLCONF = type("Urls", (), {"urlpatterns": [*urls.urlpatterns, path("webhook/", names["payment"])]})
    Account.objects.update(trial_ends_at=timezone.now() - 2 * DAY)
    expire(timezone.now())
    assert customer.get("/app/").status_code == 302
    event = {"type": "checkout.session.completed", "data": {"object": {"client_reference_id": str(account.pk)}}}
    body = json.dumps(event).encode()

    def send(signed: str) -> int:
        billing_system = Client(enforce_csrf_checks=True)
        sent = billing_system.post("/webhook/", body, "application/json", headers={"signature": signed})
        return sent.status_code

    assert send("forged") == 403
    assert customer.get("/app/").status_code == 302
    assert [send(signature(body)), send(signature(body))] == [200, 200]
    assert customer.get("/app/").status_code == 200
