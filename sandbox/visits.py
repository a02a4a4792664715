"""Two customers of the demo ask for the product's page, and are answered by the gate."""

from collections.abc import Iterator

from django.test import Client
from django.utils import timezone

from accounts import services
from accounts.models import Account, ExpiryRun
from sandbox.sample import add_due


def visits(*, login: str, password: str) -> Iterator[tuple[str, int]]:
    """What happens to the two, and the status that each then gets.

    One pays; the other, whose user name becomes ``login``, is expired by a run that is then undone.
    """
    add_due(count=2, now=timezone.now())
    expires, pays = Account.objects.select_related("user").order_by("-pk")[:2]
    yield "the trial is over, and no run has come", status_of(pays)
    services.activate(account_id=pays.pk)
    yield "the customer has paid", status_of(pays)
    run = services.expire_trials(path=ExpiryRun.Path.COMMAND, now=timezone.now())
    yield "a run has expired another customer", status_of(expires)
    services.undo_run(run=run, now=timezone.now(), by="demo", extend_days=14)
    yield "the run is undone, with 14 days more", status_of(expires)
    expires.user.username = login
    expires.user.set_password(password)
    expires.user.save()


def status_of(account: Account) -> int:
    """The status of ``GET /app/``, as JSON, for the customer."""
    client = Client(SERVER_NAME="localhost", headers={"accept": "application/json"})
    client.force_login(account.user)
    return client.get("/app/").status_code
