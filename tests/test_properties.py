"""The rule compared with its plain statement; any order of runs, undos, payments, extensions with a simple model."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

from django.db.models import F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from accounts import ledger, services
from accounts.models import LATEST_END, Account, AccountEvent, ExpiryRun
from accounts.slices import Slice
from tests.factories import AccountFactory

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SIXTY_ONE_DAYS = timedelta(days=61)

ages = st.one_of(
    st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=400)),
    st.timedeltas(min_value=timedelta(seconds=-1), max_value=timedelta(seconds=1)).map(SIXTY_ONE_DAYS.__add__),
    st.sampled_from([SIXTY_ONE_DAYS, SIXTY_ONE_DAYS + timedelta(microseconds=1)]),
)


class TheRule(TestCase):
    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.tuples(st.sampled_from(Account.Status), ages), max_size=12), st.integers(1, 5))
    def test_accounts_expire_when_trialing_and_created_over_61_days_ago(
        self, population: list[tuple[Account.Status, timedelta]], batch_size: int
    ) -> None:
        stored = [(AccountFactory.create(status=status, created=NOW - age), status, age) for status, age in population]

        run = services.expire_trials(path=ExpiryRun.Path.COMMAND, now=NOW, batch_size=batch_size)

        expected = {
            account.pk
            for account, status, age in stored
            if status == Account.TRIALING and NOW - age < NOW - SIXTY_ONE_DAYS
        }
        assert set(run.accounts.values_list("pk", flat=True)) == expected
        assert run.expired_count == run.due_count == len(expected)


# --- Interleavings ---

accounts_ = st.integers(0, 3)
actions = st.one_of(
    st.tuples(st.just("plan"), st.integers(1, 3)),  # a run whose slices are left for later
    st.tuples(st.just("slice"), st.integers(0, 9)),  # any planned slice: in any order, again, or never
    st.tuples(st.just("finish"), st.integers(0, 3)),
    st.tuples(st.just("run"), st.integers(1, 3)),  # a run from start to end
    st.tuples(st.just("undo"), st.integers(0, 5)),  # any run: running, finished, or undone before
    st.tuples(st.just("undo_and_extend"), st.integers(0, 5)),
    st.tuples(st.just("pay"), accounts_),
    st.tuples(st.just("cancel"), accounts_),
    st.tuples(st.just("extend"), accounts_),
    st.tuples(st.just("wait"), st.integers(1, 40)),  # days
)


@dataclass
class ModelAccount:
    """The expected state of an account, by a plain statement of the rule."""

    pk: int
    ends: datetime
    status: str = "trialing"
    run: int | None = None


@dataclass
class World:
    """The real code and its model, changed together."""

    now: datetime = NOW
    accounts: list[ModelAccount] = field(default_factory=list)
    slices: list[tuple[ExpiryRun, Slice]] = field(default_factory=list)
    runs: list[ExpiryRun] = field(default_factory=list)
    finished: set[int] = field(default_factory=set)
    expired: dict[int, int] = field(default_factory=dict)
    undone: dict[int, int] = field(default_factory=dict)  # of the runs that were undone
    extended: dict[int, int] = field(default_factory=dict)  # one by one, after they expired

    def plan(self, batch_size: int) -> None:
        def keep(run: ExpiryRun) -> None:
            self.slices += [(run, keys) for keys in services.slices_of(run)]

        # Those before are not waited for, as if their last slice were older than that.
        ExpiryRun.objects.update(heartbeat=F("heartbeat") - ledger.ALIVE_FOR)
        run = services.expire_trials(path=ExpiryRun.Path.CELERY, now=self.now, batch_size=batch_size, run_slices=keep)
        self.begin(run)

    def begin(self, run: ExpiryRun) -> None:
        self.runs.append(run)
        self.expired[run.pk] = self.extended[run.pk] = 0

    def slice(self, number: int) -> None:
        if self.slices:
            run, keys = self.slices[number % len(self.slices)]
            services.expire_slice(run=run, keys=keys)
            if run.pk not in self.finished:
                self.expect_expired(run, keys)

    def finish(self, number: int) -> None:
        if self.runs:
            run = self.runs[number % len(self.runs)]
            if ledger.MANY_EXPIRED < 0:  # the next run trusts that a closed one has done its slices
                for place, (of, _) in enumerate(self.slices):
                    if of.pk == run.pk:
                        self.slice(place)
            ledger.finish_run(run_id=run.pk)
            self.finished.add(run.pk)

    def run(self, batch_size: int) -> None:
        run = services.expire_trials(path=ExpiryRun.Path.COMMAND, now=self.now, batch_size=batch_size)
        self.begin(run)
        self.expect_expired(run, Slice(None, (LATEST_END, 0)))
        self.finished.add(run.pk)

    def undo(self, number: int, days: int | None = None) -> None:
        if not self.runs:
            return
        run = self.runs[number % len(self.runs)]
        returned = services.undo_run(run=run, now=self.now, by="ann", extend_days=days, batch_size=2)
        expected = [account for account in self.accounts if (account.run, account.status) == (run.pk, "trial_expired")]
        assert returned == len(expected)
        self.undone[run.pk] = self.undone.get(run.pk, 0) + returned
        for account in expected:
            account.status, account.run = "trialing", None
            if days:
                account.ends = max(account.ends, self.now) + timedelta(days=days)

    def undo_and_extend(self, number: int) -> None:
        self.undo(number, days=3)

    def expect_expired(self, run: ExpiryRun, keys: Slice) -> None:
        if run.pk in self.undone:
            return
        for account in self.accounts:
            over = account.ends < run.as_of - timedelta(days=1)
            place = (account.ends, account.pk)
            inside = place <= keys.upto and (keys.after is None or place > keys.after)
            if inside and account.status == "trialing" and over:
                account.status, account.run = "trial_expired", run.pk
                self.expired[run.pk] += 1

    def pay(self, number: int) -> None:
        account = self.accounts[number]
        expected = account.status in {"trialing", "trial_expired"}
        assert services.activate(account_id=account.pk) is expected
        if expected:
            account.status = "active"

    def cancel(self, number: int) -> None:
        account = self.accounts[number]
        expected = account.status != "canceled"
        assert services.cancel(account_id=account.pk) is expected
        account.status = "canceled"

    def extend(self, number: int) -> None:
        account = self.accounts[number]
        expected = account.status in {"trialing", "trial_expired"}
        assert services.extend_trial(account_id=account.pk, days=5, now=self.now) is expected
        if expected:
            if account.run:
                self.extended[account.run] += 1
            account.status, account.run = "trialing", None
            account.ends = max(account.ends, self.now) + timedelta(days=5)

    def wait(self, days: int) -> None:
        self.now += timedelta(days=days)

    def assert_real(self) -> None:
        assert list(Account.objects.order_by("pk").values_list("pk", "trial_ends_at", "status", "expiry_run")) == [
            (account.pk, account.ends, account.status, account.run) for account in self.accounts
        ]
        for run in ExpiryRun.objects.all():
            assert (run.expired_count, run.undone_count) == (self.expired[run.pk], self.undone.get(run.pk, 0))
            pointing = sum(account.run == run.pk for account in self.accounts)
            assert run.expired_count == pointing + run.undone_count + self.extended[run.pk]
            assert (run.status == ExpiryRun.Status.UNDONE) is (run.pk in self.undone)


def replay(account: Account) -> tuple[str, int | None, datetime]:
    """Status, run and end of the trial by the account's history: its events, and the run that it points to."""
    state: tuple[str, int | None, datetime] = ("trialing", None, account.default_trial_ends_at())
    for event in AccountEvent.objects.filter(account=account).order_by("pk"):
        status, run, ends = state
        if event.run_id != run:  # expired since the last event
            status, run = "trial_expired", event.run_id
        assert event.status_before == status
        if event.ends_before and event.ends_after:
            assert event.ends_before == ends
            ends = event.ends_after
        state = {
            AccountEvent.Kind.ACTIVATED: ("active", run, ends),
            AccountEvent.Kind.CANCELED: ("canceled", run, ends),
            AccountEvent.Kind.EXTENDED: ("trialing", None, ends),
            AccountEvent.Kind.UNDONE: ("trialing", None, ends),
        }[AccountEvent.Kind(event.kind)]
    status, run, ends = state
    return state if account.expiry_run_id == run else ("trial_expired", account.expiry_run_id, ends)


class Interleavings(TestCase):
    @settings(deadline=None, max_examples=60)
    @given(st.lists(actions, max_size=25), st.sampled_from([-1, ledger.MANY_EXPIRED]))
    def test_any_order_of_events_leaves_accounts_and_ledger_as_the_rule_says(
        self, events: list[tuple[str, int]], many: int
    ) -> None:
        world = World()
        for days in (0, 59, 62, 90):
            account = AccountFactory.create(created=NOW - timedelta(days=days))
            world.accounts.append(ModelAccount(pk=account.pk, ends=account.trial_ends_at))

        for name, number in events:
            with patch.object(ledger, "MANY_EXPIRED", many):  # with -1, runs begin at the low-water mark
                getattr(world, name)(number)
            world.assert_real()
        for account in Account.objects.all():
            assert replay(account) == (account.status, account.expiry_run_id, account.trial_ends_at)
