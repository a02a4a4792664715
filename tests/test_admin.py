"""The admin: what an operator and a support person can look at, and that nothing is changed past the services."""

from datetime import datetime, timedelta

import pytest
from django.db.models import Model
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from accounts import services
from accounts.models import Account, ExpiryRun, User
from tests.factories import AccountFactory

pytestmark = pytest.mark.django_db

MODELS: dict[str, type[Model]] = {"account": Account, "expiryrun": ExpiryRun, "user": User}


@pytest.fixture
def run(now: datetime) -> ExpiryRun:
    AccountFactory.create_batch(3, created=now - timedelta(days=90))
    return services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)


def test_the_front_page_is_the_admin(admin_client: Client) -> None:
    assert admin_client.get("/", follow=True).status_code == 200


@pytest.mark.parametrize("model", MODELS)
def test_every_list_and_row_can_be_looked_at(admin_client: Client, run: ExpiryRun, model: str) -> None:
    row = MODELS[model]._default_manager.latest("pk")

    assert admin_client.get(f"/admin/accounts/{model}/").status_code == 200
    assert admin_client.get(f"/admin/accounts/{model}/{row.pk}/change/").status_code == 200


def test_support_finds_an_account_by_e_mail_and_sees_which_run_expired_it(admin_client: Client, run: ExpiryRun) -> None:
    account = AccountFactory.create(status=Account.ACTIVE)
    expired = Account.objects.filter(expiry_run=run).first()
    assert expired

    page = admin_client.get("/admin/accounts/account/", {"q": expired.user.email}).content.decode()

    assert str(run) in page
    assert account.user.username not in page


@pytest.mark.parametrize("model", ["account", "expiryrun"])
def test_nobody_adds_changes_or_deletes_rows_by_hand(admin_client: Client, run: ExpiryRun, model: str) -> None:
    pk = MODELS[model]._default_manager.latest("pk").pk

    for page in ("add/", f"{pk}/delete/"):
        assert admin_client.get(f"/admin/accounts/{model}/{page}").status_code == 403
    assert admin_client.post(f"/admin/accounts/{model}/{pk}/change/", {"status": "active"}).status_code == 403


def test_the_list_of_accounts_asks_as_many_queries_for_many_as_for_few(
    admin_client: Client, run: ExpiryRun, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    AccountFactory.create_batch(50)

    with django_assert_max_num_queries(6):
        admin_client.get("/admin/accounts/account/")
