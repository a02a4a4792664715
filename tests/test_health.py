"""The freshness check, as a command and over HTTP: it checks the effect, not the processes."""

from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from accounts import health, ledger, services
from accounts.models import Account, ExpiryRun
from accounts.services import TooManyDue
from accounts.words import moment
from tests.conftest import ManagePy
from tests.factories import AccountFactory, NoticeFactory, make_accounts
from tests.runs import DAY, expire

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


def check(*arguments: str) -> str:
    output = StringIO()
    call_command("check_expiry", *arguments, stdout=output)
    return output.getvalue()


def problems(now: datetime) -> list[str]:
    return [finding.text for finding in health.check(now=now, max_age=3 * HOUR).problems]


def installed(at: datetime) -> None:
    """Pretend that the migrations were applied at this moment."""
    MigrationRecorder(connection).migration_qs.filter(app="accounts").update(applied=at)


def test_all_is_well_after_a_run_that_left_nothing(now: datetime) -> None:
    AccountFactory.create(created=now - timedelta(days=90))
    expire(now)

    assert problems(now + 3 * HOUR) == []


def test_a_fresh_installation_is_new_until_a_run_is_late_or_an_account_overdue(now: datetime) -> None:
    installed(now - 3 * HOUR + timedelta(seconds=1))
    (note,) = health.check(now=now, max_age=3 * HOUR).findings
    assert (note.text, note.row, note.is_problem) == ("No run has been started yet.", "new", False)

    never = "No run has succeeded within 3 hours; none ever has."
    assert problems(now + timedelta(seconds=1)) == [never]

    AccountFactory.create(created=now - timedelta(days=90))
    assert problems(now) == [f"{never} 1 account is due."]


def test_more_due_accounts_than_are_counted_are_told_as_that(now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MANY", 2)
    installed(now - 4 * HOUR)
    make_accounts(2, ended=10 * DAY, now=now)
    never = "No run has succeeded within 3 hours; none ever has."
    assert problems(now) == [f"{never} 2 accounts are due."]

    AccountFactory.create(created=now - timedelta(days=90))
    assert problems(now) == [f"{never} More than 2 accounts are due."]


def test_a_success_that_is_too_old_is_a_problem_and_says_when_it_was(now: datetime) -> None:
    expire(now)

    assert problems(now + 3.5 * HOUR) == [
        "No run has succeeded within 3 hours; the last one, by command, was as of 1 March 2026, 12:00 UTC."
    ]


def test_a_refused_run_is_a_problem_at_once_until_a_run_succeeds(now: datetime) -> None:
    expire(now)
    AccountFactory.create_batch(2, created=now - timedelta(days=61, hours=1))
    with pytest.raises(TooManyDue):
        expire(now, max_accounts=1)

    (because,) = problems(now)

    assert because.startswith("The latest refused run, ")
    assert "2 accounts are due and at most 1 may expire" in because

    expire(now, max_accounts=2)
    assert problems(now) == []


def test_the_last_words_of_a_run_that_was_undone_are_no_problem(now: datetime) -> None:
    expire(now)
    failed = ExpiryRun.objects.create(path=ExpiryRun.Path.COMMAND, as_of=now)
    ledger.fail_run(run_id=failed.pk, error=RuntimeError("the lights went out"))
    services.undo_run(run=failed, now=now, by="me")

    assert problems(now + 3.5 * HOUR) == [
        "No run has succeeded within 3 hours; the last one, by command, was as of 1 March 2026, 12:00 UTC."
    ]


def test_a_database_without_our_tables_is_told_from_one_that_does_not_answer() -> None:
    MigrationRecorder(connection).record_unapplied("accounts", "0001_initial")

    with pytest.raises(CommandError, match=r"^The database lacks 1 migration\(s\) of accounts: 0001_initial\. "):
        check()


def test_an_account_long_overdue_is_a_problem_although_runs_succeed(now: datetime) -> None:
    expire(now)
    account = AccountFactory.create(created=now - timedelta(days=62))

    assert problems(now) == [
        f"Account {account.pk}, whose trial ended at 27 February 2026, 12:00 UTC, should have expired long ago. "
        "1 account is due."
    ]


def test_one_situation_is_one_problem_that_says_where_to_look(now: datetime) -> None:
    accounts = AccountFactory.create_batch(2, created=now - timedelta(days=62))
    expire(now - 4 * HOUR, max_accounts=2)
    Account.objects.update(status=Account.TRIALING, trial_expired_at=None, expiry_run=None)
    assert [finding.row for finding in health.check(now=now, max_age=3 * HOUR).findings] == ["stale"]

    with pytest.raises(TooManyDue):
        expire(now, max_accounts=1)
    (refused,) = health.check(now=now, max_age=3 * HOUR).findings
    assert (refused.row, refused.about) == ("fuse", ExpiryRun.objects.latest("pk"))
    assert "2 accounts are due. The latest refused run, " in refused.text

    failed = ExpiryRun.objects.create(path=ExpiryRun.Path.COMMAND, as_of=now)
    ledger.fail_run(run_id=failed.pk, error=RuntimeError("the lights went out"))
    (finding,) = health.check(now=now, max_age=3 * HOUR).findings
    assert (finding.row, finding.about) == ("failed", failed)

    expire(now)
    Account.objects.filter(pk=accounts[0].pk).update(status=Account.TRIALING, trial_expired_at=None, expiry_run=None)
    (finding,) = health.check(now=now, max_age=3 * HOUR).findings
    assert (finding.row, finding.about) == ("overdue", accounts[0])


def test_every_problem_stands_on_a_line_of_its_own(settings: Settings) -> None:
    settings.TRIAL_NOTICES = True
    NoticeFactory.create(queued=timezone.now() - 4 * HOUR, next_attempt=timezone.now())
    installed(timezone.now() - 4 * HOUR)

    with pytest.raises(CommandError) as found:
        check()

    assert len(str(found.value).splitlines()) == 2


# --- Mails ---


@pytest.mark.parametrize(
    ("notices", "expected"),
    [
        ([], {}),
        ([{"queued": 3 * HOUR}], {}),
        ([{"queued": 3.1 * HOUR}], {"mails-waiting": True}),
        ([{"queued": 3.1 * HOUR, "last_error": "550 no such user"}], {}),
        ([{"queued": 3.1 * HOUR, "last_error": "451 later"}] * 10, {"mails-waiting": True}),
        ([{"queued": 5 * HOUR, "status": "sent", "sent": HOUR}], {}),
        ([{"status": "given_up"}], {"mails-given-up": False}),
        ([{"status": "given_up"}] * 10, {"mails-given-up": True}),
        ([{"status": "given_up", "next_attempt": timedelta(days=7)}] * 10, {}),
    ],
)
def test_mails_that_wait_or_are_given_up_are_findings(
    now: datetime, settings: Settings, notices: list[dict[str, Any]], expected: dict[str, bool]
) -> None:
    settings.TRIAL_NOTICES = True
    expire(now)
    for notice in notices:
        ago = {name: now - value for name, value in notice.items() if isinstance(value, timedelta)}
        NoticeFactory.create(**{"queued": now, "next_attempt": now, **notice, **ago})

    found = health.check(now=now, max_age=3 * HOUR).findings
    assert {finding.row: finding.is_problem for finding in found} == expected
    if notices and "mails-waiting" in expected:
        ten = "10 mails have" if len(notices) == 10 else "1 mail has"
        assert found[0].text == f"{ten} waited for more than 3 hours, the first since 1 March 2026, 08:54 UTC."

    settings.TRIAL_NOTICES = False
    assert health.check(now=now, max_age=3 * HOUR).findings == []


def test_an_account_that_waits_for_the_next_tick_is_no_problem(now: datetime) -> None:
    expire(now)
    AccountFactory.create(created=now - timedelta(days=61, hours=2))

    assert problems(now) == []


def test_the_command_says_so_when_all_is_well() -> None:
    run = expire(timezone.now())

    assert check() == f"Trials are being expired: the last one, by command, was as of {moment(run.as_of)}.\n"


def test_the_command_fails_with_what_is_wrong() -> None:
    expire(timezone.now() - 2 * HOUR)

    check("--max-age=3")
    with pytest.raises(CommandError, match=r"^No run has succeeded within 1\.5 hours; the last one, by command, was"):
        check("--max-age=1.5")


@pytest.mark.django_db(transaction=True)
def test_a_database_that_does_not_answer_is_one_line(manage_py: ManagePy) -> None:
    result = manage_py("check_expiry", DATABASE_URL="postgres://nobody:secret@127.0.0.1:1/nowhere")

    assert result.returncode == 1
    assert result.stderr.startswith("CommandError: The database nowhere at 127.0.0.1 port 1 does not answer (")
    assert len(result.stderr.strip().splitlines()) == 1


# --- Over HTTP ---

TOKEN = "0123456789abcdef0123456789abcdef"
EXPIRY = "/health/expiry/"


@pytest.fixture
def overdue(settings: Settings) -> Account:
    """An account that is long overdue, which the problems name."""
    settings.METRICS_TOKEN = TOKEN
    account: Account = AccountFactory.create(created=timezone.now() - timedelta(days=90))
    return account


def page(client: Client, **headers: str) -> tuple[int, str]:
    answer = client.get(EXPIRY, headers=headers)
    return answer.status_code, answer.content.decode()


def test_without_a_credential_monitoring_learns_only_that_all_is_well(client: Client) -> None:
    expire(timezone.now())

    assert page(client) == (200, "Trials are being expired.\n")


@pytest.mark.parametrize("authorization", ["", "Bearer wrong", f"Basic {TOKEN}", "Bearer "])
def test_without_a_credential_monitoring_learns_only_that_something_is_wrong(
    client: Client, overdue: Account, authorization: str
) -> None:
    told = "Trial expiry has a problem. ./manage.py check_expiry and the admin say which.\n"
    assert page(client, authorization=authorization) == (503, told)


def test_a_user_who_is_no_staff_learns_no_more(client: Client, overdue: Account) -> None:
    client.force_login(overdue.user)

    assert "Account" not in page(client)[1]


def test_the_token_shows_the_particulars(client: Client, overdue: Account) -> None:
    status, told = page(client, authorization=f"Bearer {TOKEN}")

    assert status == 503
    assert told == "No run has succeeded within 3 hours; none ever has. 1 account is due.\n"


def test_a_staff_session_shows_the_particulars(admin_client: Client) -> None:
    run = expire(timezone.now())

    told = f"Trials are being expired: the last one, by command, was as of {moment(run.as_of)}.\n"
    assert page(admin_client) == (200, told)


@pytest.mark.postgres
def test_a_web_process_with_a_wrong_clock_goes_by_the_database_s(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = timezone.now()
    expire(now)
    monkeypatch.setattr(timezone, "now", lambda: now + timedelta(days=30))

    assert page(client)[0] == 200


def test_the_process_is_healthy_even_when_no_trial_expires(client: Client) -> None:
    Account.objects.all().delete()

    assert client.get("/health/").status_code == 200


@pytest.mark.parametrize("path", ["/health/", EXPIRY])
def test_health_is_read_and_never_posted(client: Client, path: str) -> None:
    assert client.post(path).status_code == 405
    assert client.head(path).status_code in {200, 503}


# --- Of several ---


def test_of_several_the_latest_run_and_the_oldest_account_are_named(now: datetime) -> None:
    for hours in (6, 5):
        expire(now - hours * HOUR)
    for error in ("the first reason", "the second reason"):
        failed = ExpiryRun.objects.create(path=ExpiryRun.Path.COMMAND, as_of=now - 4 * HOUR)
        ledger.fail_run(run_id=failed.pk, error=RuntimeError(error))

    (finding,) = health.check(now=now, max_age=3 * HOUR).findings
    assert finding.about == failed
    assert "the last one, by command, was as of 1 March 2026, 07:00 UTC." in finding.text
    assert "the second reason" in finding.text
    assert "the first reason" not in finding.text

    expire(now)
    AccountFactory.create(created=now - timedelta(days=62))
    oldest = AccountFactory.create(created=now - timedelta(days=64))
    AccountFactory.create(created=now - timedelta(days=63))
    (finding,) = health.check(now=now, max_age=3 * HOUR).findings
    assert finding.about == oldest


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_failed_is_told_only_when_none_has_succeeded_since(now: datetime, status: str) -> None:
    def bad() -> None:
        ExpiryRun.objects.create(path="command", status=status, as_of=now, finished=now, error="the lights went out")

    bad()
    installed(now - 4 * HOUR)
    assert problems(now)[0].endswith("says: the lights went out")

    expire(now)
    assert problems(now) == []
    bad()
    assert problems(now) == [], "the next tick is the best retry"
    assert "the lights went out" in problems(now + 3.5 * HOUR)[0]
