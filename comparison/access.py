"""Who is let in when no run comes or a clock is wrong, by two ways to decide it; and what the gate costs a request."""

import time
from datetime import datetime, timedelta
from statistics import median

from django.test import Client, override_settings

from accounts.access import may_use
from accounts.models import Account
from comparison.runners import Runner
from users.models import User

STORED, ON_READ = "stored status", "decided on read"
YEAR = timedelta(days=365)
BARE = {
    "SECURE_SSL_REDIRECT": False,
    "STATIC_ROOT": None,  # a deployment collects the static files and their manifest
    "STORAGES": {"staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}},
}
"""Settings of a request that is not behind a proxy."""
PAGES = {"page_seconds": "/app/", "bare_seconds": "/"}
"""By measure: a page whose view loads the account in any case, and one that does not."""


def in_after_their_end(*, now: datetime, fuse: int) -> dict[str, int]:
    """How many are in at ``now`` although their trial and grace are over, while every job is off."""
    over = Account.objects.due(now)
    with override_settings(TRIAL_EXPIRY_MAX=fuse):
        on_read = sum(may_use(account, now) for account in over.iterator())
    return {STORED: over.count(), ON_READ: on_read}


def locked_out(*, now: datetime, ahead: timedelta, fuse: int) -> dict[str, int]:
    """How many customers whose trial runs at ``now`` are locked out by a clock that is ``ahead``.

    By one ``update()`` with that clock, which is what most schedule; and on read, with ``TRIAL_EXPIRY_MAX`` set.
    """
    wrong = now + ahead
    due = Account.objects.due(now).values("pk")
    running = Account.objects.filter(status=Account.TRIALING).exclude(pk__in=due)
    with override_settings(TRIAL_EXPIRY_MAX=fuse):
        on_read = sum(not may_use(account, wrong) for account in running.iterator())
    return {STORED: Account.objects.due(wrong).exclude(pk__in=due).count(), ON_READ: on_read}


def seconds_of_a_request(user: User, *, page: str, requests: int) -> tuple[float, float]:
    """The median of requests of ``page`` by a customer on trial: with the gate, and without it.

    They take turns, so that what else the machine does slows both. ``/app/`` loads the account in any case, ``/`` does
    not. Writes a session for each.
    """
    seconds: dict[bool, list[float]] = {True: [], False: []}
    clients = {}
    with override_settings(**BARE):
        for gate in seconds:
            with override_settings(TRIAL_GATE=gate):  # a client builds its middleware at its first request
                clients[gate] = Client(SERVER_NAME="localhost")
                clients[gate].force_login(user)
                clients[gate].get(page)
        for _ in range(requests):
            for gate, client in clients.items():
                began = time.perf_counter()
                client.get(page)
                seconds[gate].append(time.perf_counter() - began)
    return median(seconds[True]), median(seconds[False])


def figures(*, now: datetime, fuse: int, requests: int) -> dict[str, dict[str, float]]:
    """By measure, of each decider: who is in and who is out, and what a request takes."""
    customer = User.objects.filter(account__status=Account.TRIALING, account__trial_ends_at__gt=now).earliest("pk")
    found: dict[str, dict[str, float]] = {
        "let_in": {**in_after_their_end(now=now, fuse=fuse)},
        "locked_out": {**locked_out(now=now, ahead=YEAR, fuse=fuse)},
    }
    for measure, page in PAGES.items():
        gate, without = seconds_of_a_request(customer, page=page, requests=requests)
        found[measure] = {ON_READ: gate, STORED: without}
    return found


class ByStoredStatus(Runner):
    """What most projects do."""

    name, title, path = "stored-status", STORED, "access"
    how = "Whoever asks reads the stored status, which one update() a day writes."

    def run(self) -> None:
        """Nothing runs: ``figures`` measures both deciders at once."""


class DecidedOnRead(ByStoredStatus):
    """What this project does."""

    name, title = "on-read", ON_READ
    how = "Whoever asks applies the rule to the account, obeying the fuse; the gate does so for every page."
