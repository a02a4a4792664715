"""A realistic sample of customers, deterministic for a seed and a moment."""

import random
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction

from accounts.models import Account
from users.models import User

STATUS_WEIGHTS = {
    Account.TRIALING: 50,
    Account.ACTIVE: 25,
    Account.TRIAL_EXPIRED: 8,
    Account.CANCELED: 7,
    Account.PAST_DUE: 4,
    Account.BETA: 3,
    Account.EXEMPT: 3,
}
FIRST_NAMES = ("Ada", "Barbara", "Chidi", "Dolores", "Edsger", "Fatima", "Grace", "Hedy", "Ivan", "Jin", "Kofi", "Lin")
LAST_NAMES = ("Abara", "Berg", "Costa", "Dahl", "Eze", "Fuchs", "Goto", "Hale", "Ito", "Juarez", "Kaya", "Lund")
OLDEST_DAYS = 200


def create_sample(*, size: int, seed: int, now: datetime) -> None:
    """Replace all customers by ``size`` accounts created in the 200 days before ``now``, in every status.

    A tenth of the trials was extended by one to eight weeks. Every hundredth account is at the boundary: not due
    at ``now``, due a moment later. All times differ from ``now`` by whole hours, so no other account becomes due in the
    hour after it, and two runs within that hour find the same accounts due. Of every hundred accounts at least one ends
    its trial in 6 days and one in 20 hours, so that every reminder is owed.
    """
    rng = random.Random(seed)  # noqa: S311 (a sample, not a secret)
    trial, grace = timedelta(days=settings.TRIAL_DAYS), timedelta(days=settings.TRIAL_GRACE_DAYS)
    users, accounts = [], []
    for number in range(1, size + 1):
        first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
        status = rng.choices(list(STATUS_WEIGHTS), weights=list(STATUS_WEIGHTS.values()))[0]
        created = now - timedelta(hours=rng.randrange(1, OLDEST_DAYS * 24))
        extension = timedelta(0)
        if number % 100 == 0:
            status, created = Account.TRIALING, now - grace - trial
        elif number % 100 == 25:
            status, created = Account.TRIALING, now - trial + timedelta(days=6)
        elif number % 100 == 50:
            status, created = Account.TRIALING, now - trial + timedelta(hours=20)
        elif status == Account.TRIALING and rng.random() < 0.1:
            extension = timedelta(weeks=rng.randint(1, 8))
        elif status == Account.TRIAL_EXPIRED:  # expired without a run
            created = min(created, now - grace - trial - timedelta(hours=1))
        email = f"{first}.{last}.{number}@example.com".lower()
        users.append(
            User(pk=number, username=email, email=email, first_name=first, last_name=last, date_joined=created)
        )
        trial_ends_at = created + trial + extension
        accounts.append(Account(pk=number, user_id=number, status=status, created=created, trial_ends_at=trial_ends_at))
    with transaction.atomic():
        Account.objects.all().delete()
        User.objects.filter(is_superuser=False).delete()
        User.objects.bulk_create(users, batch_size=1000)
        Account.objects.bulk_create(accounts, batch_size=1000)


def add_due(*, count: int, now: datetime) -> None:
    """Add ``count`` customers to the sample, whose grace ended an hour before ``now`` and whom no run has seen."""
    created = now - timedelta(days=settings.TRIAL_DAYS + settings.TRIAL_GRACE_DAYS, hours=1)
    last = Account.objects.latest("pk").pk
    numbers = range(last + 1, last + count + 1)
    emails = {number: f"late.customer.{number}@example.com" for number in numbers}
    User.objects.bulk_create(
        User(pk=number, username=email, email=email, date_joined=created) for number, email in emails.items()
    )
    Account.objects.bulk_create(Account(pk=number, user_id=number, created=created) for number in numbers)
