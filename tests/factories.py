"""Users and accounts for tests."""

from datetime import datetime, timedelta

import factory
from django.conf import settings

from accounts.models import Account, User


class UserFactory(factory.django.DjangoModelFactory[User]):
    class Meta:
        model = User

    username = factory.Sequence(lambda number: f"user{number}")
    email = factory.LazyAttribute(lambda user: f"{user.username}@example.com")


class AccountFactory(factory.django.DjangoModelFactory[Account]):
    class Meta:
        model = Account

    user = factory.SubFactory(UserFactory)
    status = Account.TRIALING


def make_accounts(count: int, *, status: Account.Status = Account.TRIALING, ended: timedelta, now: datetime) -> None:
    """Store ``count`` accounts whose trial ended ``ended`` before ``now``, in two statements."""
    created = now - ended - timedelta(days=settings.TRIAL_DAYS)
    users = User.objects.bulk_create(UserFactory.build_batch(count))
    Account.objects.bulk_create(Account(user=user, status=status, created=created) for user in users)
