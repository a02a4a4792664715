"""What an account may do now: decided when it is asked, by the rule and by the fuse, not by the last run."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase
from pytest_django import DjangoAssertNumQueries, Settings

from accounts import access, decisions, ledger, services
from accounts.models import EARLIEST_END, LATEST_END, Account, ExpiryRun
from comparison import access as comparison
from tests.factories import AccountFactory, make_accounts
from tests.runs import DAY, expire

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CUTOFF = NOW - DAY
MICROSECOND, MINUTE = timedelta(microseconds=1), timedelta(minutes=1)

ends = st.one_of(
    st.sampled_from([CUTOFF, CUTOFF - MICROSECOND, CUTOFF + MICROSECOND, NOW, EARLIEST_END, LATEST_END]),
    st.timedeltas(timedelta(days=-400), timedelta(days=400)).map(NOW.__add__),
)


class TheRule(TestCase):
    @hypothesis_settings(deadline=None, max_examples=30)
    @given(st.lists(st.tuples(st.sampled_from(Account.Status), ends), max_size=20))
    def test_python_and_sql_say_what_a_run_would_leave(self, population: list[tuple[Account.Status, datetime]]) -> None:
        for status, end in population:
            AccountFactory.create(status=status, trial_ends_at=end)
        in_python = {account.pk: access.status_at(account, NOW) for account in Account.objects.all()}
        in_sql = {account.pk: account.status_now for account in Account.objects.with_status_at(NOW)}
        assert in_sql == in_python

        expire(NOW)

        assert dict(Account.objects.values_list("pk", "status")) == in_python


def overdue(**fields: object) -> Account:
    """An account that only the clock has ended."""
    account: Account = AccountFactory.create(**{"trial_ends_at": timezone.now() - 2 * DAY, **fields})
    return account


@pytest.mark.parametrize(
    ("status", "may"),
    [
        ("exempt", True),
        ("beta", True),
        ("active", True),
        ("past_due", True),
        ("canceled", False),
        ("trial_expired", False),
    ],
)
def test_off_trial_the_status_decides_whatever_the_clock_says(status: str, may: bool) -> None:
    for ends_in in (-100 * DAY, 100 * DAY):
        account = Account(status=status, trial_ends_at=NOW + ends_in)

        assert access.may_use(account, NOW) is may


def test_on_trial_an_account_is_in_until_its_grace_is_over() -> None:
    now = timezone.now()

    for end, may in ((now, True), (now - DAY, True), (now - DAY - MICROSECOND, False), (LATEST_END, True)):
        assert access.may_use(Account(status=Account.TRIALING, trial_ends_at=end), now) is may


# --- The fuse ---


def test_a_refused_run_keeps_in_whom_only_the_clock_has_ended() -> None:
    account, _ = overdue(), overdue()
    expired = AccountFactory.create(status=Account.TRIAL_EXPIRED)
    now = timezone.now()
    assert not access.may_use(account, now)

    with pytest.raises(services.TooManyDue):
        expire(now, max_accounts=1)
    assert access.may_use(account, now + MINUTE)
    assert not access.may_use(expired, now + MINUTE)  # a run or a person has decided that one
    run = ExpiryRun.objects.get()
    assert access.why_on_hold(now) == f"run {run.pk} was refused, and no run has been allowed since"

    expire(now, max_accounts=2)
    assert not access.may_use(account, now + 2 * MINUTE)


def test_a_pause_keeps_in_whom_only_the_clock_has_ended() -> None:
    account = overdue()
    expired = AccountFactory.create(status=Account.TRIAL_EXPIRED)
    now = timezone.now()
    assert not access.may_use(account, now)

    decisions.pause(until=now + DAY, by="anna", reason="a look")
    assert access.may_use(account, now + MINUTE)
    assert not access.may_use(expired, now + MINUTE)

    decisions.resume(by="anna", reason="looked")
    assert not access.may_use(account, now + 2 * MINUTE)


def test_a_wrong_clock_locks_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    account = AccountFactory.create()
    in_a_year = timezone.now() + 365 * DAY
    assert not access.may_use(account, in_a_year), "without a fuse only the clocks can tell"

    access._is_on_hold.cache_clear()
    monkeypatch.setattr(access, "database_now", lambda: timezone.now() - 365 * DAY)
    assert access.may_use(account, in_a_year)


def test_a_clock_that_jumps_is_noticed_at_once_by_the_fuse(settings: Settings) -> None:
    settings.TRIAL_EXPIRY_MAX = 2
    accounts = [overdue(), *AccountFactory.create_batch(2)]
    now = timezone.now()
    assert [access.may_use(account, now) for account in accounts] == [False, True, True]

    in_a_year = now + 365 * DAY
    assert [access.may_use(account, in_a_year) for account in accounts] == [True, True, True]
    assert access.why_on_hold(in_a_year) == "more than 2 accounts are due, and a run would be refused"


def test_a_job_that_is_dead_for_days_lets_nobody_in_though_a_fuse_is_set(settings: Settings) -> None:
    settings.TRIAL_EXPIRY_MAX = 2
    settings.TRIAL_RUN_MAX_AGE_HOURS = 3
    now = timezone.now()
    expire(now)
    make_accounts(34, ended=0 * DAY, now=now)  # two for each hour and a half that has begun
    account = Account.objects.earliest("pk")
    assert not access.may_use(account, now + DAY + MINUTE)

    make_accounts(1, ended=0 * DAY, now=now)
    assert access.may_use(account, now + DAY + 2 * MINUTE)

    make_accounts(2 * 112 - 35, ended=0 * DAY, now=now)  # two for each hour and a half of a week
    assert not access.may_use(account, now + 8 * DAY)
    make_accounts(1, ended=0 * DAY, now=now)
    assert access.may_use(account, now + 9 * DAY)


def test_the_fuse_lets_as_many_go_as_a_run_would(settings: Settings) -> None:
    settings.TRIAL_EXPIRY_MAX = 2
    accounts = [overdue(), overdue()]
    now = timezone.now()

    assert [access.may_use(account, now) for account in accounts] == [False, False]
    assert expire(now).expired_count == 2


def test_a_process_looks_once_a_minute_and_only_for_an_account_that_is_due(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    account, running = overdue(), AccountFactory.create()
    noon = datetime(2030, 3, 1, 12, tzinfo=UTC)

    with django_assert_num_queries(0):
        assert access.may_use(running, timezone.now())
    access.may_use(account, noon)
    with django_assert_num_queries(0):
        for second in range(60):
            access.may_use(account, noon + timedelta(seconds=second))
    ledger.refuse(ledger.new_run(path=ExpiryRun.Path.COMMAND, now=noon, task_id=""), "too many")
    assert not access.may_use(account, noon + timedelta(seconds=59))
    assert access.may_use(account, noon + timedelta(seconds=60))


# --- The comparison ---


def test_the_comparison_counts_who_is_in_without_jobs_and_out_by_a_clock() -> None:
    now = timezone.now()
    make_accounts(3, ended=1.5 * DAY, now=now)
    make_accounts(2, ended=0.5 * DAY, now=now)  # over in a day
    make_accounts(4, ended=-20 * DAY, now=now)

    assert comparison.in_after_their_end(now=now + DAY, fuse=5) == {comparison.STORED: 5, comparison.ON_READ: 0}
    in_a_year = comparison.locked_out(now=now, ahead=365 * DAY, fuse=5)
    assert in_a_year == {comparison.STORED: 6, comparison.ON_READ: 0}


def test_the_comparison_times_a_request_with_and_without_the_gate() -> None:
    user = AccountFactory.create().user

    for page in ("/", "/app/"):
        assert all(seconds > 0 for seconds in comparison.seconds_of_a_request(user, page=page, requests=2))
