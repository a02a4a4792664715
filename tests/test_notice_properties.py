"""For any sequence of events and runs: exactly the mails that a plain statement of the rule allows."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from django.core import mail
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from accounts import delivery, notices, services
from accounts.models import Account, ExpiryRun
from tests.factories import AccountFactory
from tests.runs import DAY

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

events = st.one_of(
    st.tuples(st.just("wait"), st.integers(1, 60)),  # hours
    st.tuples(st.just("wait"), st.integers(1, 9).map(lambda days: 24 * days)),
    st.tuples(st.just("send"), st.just(0)),
    st.tuples(st.just("expire"), st.just(0)),
    st.tuples(st.just("pay"), st.integers(0, 2)),
    st.tuples(st.just("extend"), st.integers(0, 2)),
)


@dataclass
class Customer:
    """An account by the plain statement of the rule, and the mails that its customer got."""

    account: Account
    ends: datetime
    status: str = "trialing"
    expired: datetime | None = None
    told: list[tuple[datetime, str]] = field(default_factory=list)

    def is_to_be_told(self, now: datetime) -> str | None:
        left = self.ends - now
        if self.status == "trialing" and 2 * DAY < left <= 7 * DAY:
            return "a week"
        if self.status == "trialing" and timedelta(0) < left <= DAY:
            return "a day"
        # At exactly seven days it is queued, and a moment later, when it would be sent, no longer true.
        if self.status == "trial_expired" and self.expired and now - self.expired < 7 * DAY:
            return "ended"
        return None


@dataclass
class World:
    """The real code and its model, changed together."""

    customers: list[Customer]
    now: datetime = NOW

    def wait(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

    def pay(self, number: int) -> None:
        customer = self.customers[number]
        if services.activate(account_id=customer.account.pk):
            customer.status = "active"

    def extend(self, number: int) -> None:
        customer = self.customers[number]
        if services.extend_trial(account_id=customer.account.pk, days=9, now=self.now):
            customer.status, customer.expired = "trialing", None
            customer.ends = max(customer.ends, self.now) + 9 * DAY

    def expire(self, _: int) -> None:
        services.expire_trials(path=ExpiryRun.Path.COMMAND, now=self.now)
        for customer in self.customers:
            if customer.status == "trialing" and customer.ends < self.now - DAY:
                customer.status, customer.expired = "trial_expired", self.now

    def send(self, _: int) -> None:
        expected = []
        for customer in self.customers:
            what = customer.is_to_be_told(self.now)
            if what and (customer.ends, what) not in customer.told:
                customer.told.append((customer.ends, what))
                expected.append(customer.account.user.email)
        mail.outbox.clear()
        for _again in range(2):  # a rerun sends nothing twice
            notices.queue_notices(now=self.now)
            delivery.deliver_notices(now=self.now)
        assert sorted(message.to[0] for message in mail.outbox) == sorted(expected)


class TheMails(TestCase):
    @settings(deadline=None, max_examples=12)
    @given(st.lists(events, max_size=25))
    def test_every_run_sends_exactly_what_is_true_and_was_not_said_before(self, story: list[tuple[str, int]]) -> None:
        world = World([])
        for days in (20, 52, 59):
            account = AccountFactory.create(created=NOW - days * DAY)
            world.customers.append(Customer(account, account.trial_ends_at))

        for name, number in story:
            getattr(world, name)(number)
        world.send(0)
