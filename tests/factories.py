"""Users, accounts and notices for tests."""

from datetime import datetime, timedelta

from django.conf import settings
from django.db import connection
from factory.declarations import LazyAttribute, SelfAttribute, Sequence, SubFactory
from factory.django import DjangoModelFactory

from accounts.models import Account, Notice
from users.models import User


class UserFactory(DjangoModelFactory[User]):
    class Meta:
        model = User

    username = Sequence(lambda number: f"user{number}")
    email = LazyAttribute(lambda user: f"{user.username}@example.com")


class AccountFactory(DjangoModelFactory[Account]):
    class Meta:
        model = Account

    user = SubFactory(UserFactory)
    status = Account.TRIALING


class NoticeFactory(DjangoModelFactory[Notice]):
    """A notice for ``account`` about its trial end; pass ``next_attempt`` as well."""

    class Meta:
        model = Notice

    account = SubFactory(AccountFactory)
    kind = Notice.Kind.ENDING_SOON
    trial_ends_at = SelfAttribute("account.trial_ends_at")
    days_before = 1


def fill_tables(count: int) -> None:
    """Add active accounts and users, because PostgreSQL's query plans depend on the size of the tables."""
    with connection.cursor() as cursor:
        cursor.execute(
            "WITH filler AS ("
            "  INSERT INTO users_user (username, email, password, first_name, last_name, date_joined,"
            "    is_superuser, is_staff, is_active)"
            "  SELECT 'filler' || n, 'filler' || n || '@example.com', '', '', '', now(), false, false, true"
            "  FROM generate_series(1, %s) n RETURNING id) "
            "INSERT INTO accounts_account (user_id, status, created, trial_ends_at)"
            "  SELECT id, 'active', now(), now() FROM filler",
            [count],
        )
        cursor.execute("ANALYZE")


def make_accounts(count: int, *, status: Account.Status = Account.TRIALING, ended: timedelta, now: datetime) -> None:
    """Store ``count`` accounts whose trial ended ``ended`` before ``now``, in two statements."""
    created = now - ended - timedelta(days=settings.TRIAL_DAYS)
    users = User.objects.bulk_create(UserFactory.build_batch(count))
    Account.objects.bulk_create(Account(user=user, status=status, created=created) for user in users)
