"""Who is let in when no run comes or a clock is wrong, by two ways to decide it; and what the gate costs a request."""

import time
from datetime import datetime, timedelta
from statistics import median

from django.test import Client, override_settings

from accounts.access import may_use
from accounts.models import Account
from users.models import User

STORED, ON_READ = "stored status", "decided on read"


def in_after_their_end(*, now: datetime) -> dict[str, int]:
    """How many are in at ``now`` although their trial and grace are over, while every job is off."""
    over = Account.objects.due(now)
    return {STORED: over.count(), ON_READ: sum(may_use(account, now) for account in over.iterator())}


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
