"""The admin: its pages and actions for operators and support, which change rows only through the services."""

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.contrib.messages import get_messages
from django.db import DatabaseError, connection
from django.db.models import Model
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, PeriodicTask
from pytest_django import DjangoAssertNumQueries

from accounts import services
from accounts.admin.accounts import AccountAdmin
from accounts.admin.lists import CappedPaginator
from accounts.models import Account, ExpiryRun, Notice
from accounts.words import NOTHING
from tests.factories import AccountFactory, NoticeFactory, UserFactory, fill_tables
from tests.runs import DAY
from users.models import User

pytestmark = pytest.mark.django_db

ACCOUNTS, RUNS, NOTICES = (f"/admin/accounts/{model}/" for model in ("account", "expiryrun", "notice"))
MODELS: dict[str, type[Model]] = {"account": Account, "expiryrun": ExpiryRun, "notice": Notice, "user": User}

Staff = Callable[..., Client]


@pytest.fixture
def run(now: datetime) -> ExpiryRun:
    AccountFactory.create_batch(3, created=now - timedelta(days=90))
    return services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)


@pytest.fixture
def notice(now: datetime) -> Notice:
    """A mail that was given up."""
    notice: Notice = NoticeFactory.create(
        status=Notice.Status.GIVEN_UP, attempts=5, last_error="550 no such user", next_attempt=now
    )
    return notice


@pytest.fixture
def staff() -> Staff:
    """A client, logged in as a user with only these permissions."""

    def log_in(*permissions: str) -> Client:
        user: User = UserFactory.create(username="support", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client = Client()
        client.force_login(user)
        return client

    return log_in


def shown(client: Client, **query: Any) -> set[int]:
    """The keys of the accounts on a list."""
    page = client.get(ACCOUNTS, query).content.decode()
    return {int(pk) for pk in re.findall(r"/admin/accounts/account/(\d+)/change/", page)}


def act(client: Client, action: str, accounts: Sequence[Account], days: object = 14, **more: Any) -> list[str]:
    """Post an action of the list of accounts; returns the messages of the page."""
    chosen = {"_selected_action": [account.pk for account in accounts], "action": action, "days": days, "index": 0}
    return [str(message) for message in get_messages(client.post(ACCOUNTS, {**chosen, **more}).wsgi_request)]


# --- Lists and pages ---


def test_the_front_page_is_the_admin(admin_client: Client) -> None:
    assert admin_client.get("/", follow=True).status_code == 200


@pytest.mark.parametrize("model", MODELS)
def test_every_list_and_row_can_be_looked_at(admin_client: Client, run: ExpiryRun, notice: Notice, model: str) -> None:
    row = MODELS[model]._default_manager.latest("pk")
    page = f"/admin/{row._meta.app_label}/{model}/"

    assert admin_client.get(page).status_code == 200
    assert admin_client.get(f"{page}{row.pk}/change/").status_code == 200


def test_support_finds_an_account_by_e_mail_and_sees_which_run_expired_it(admin_client: Client, run: ExpiryRun) -> None:
    expired = Account.objects.filter(expiry_run=run).first()
    assert expired

    page = admin_client.get(ACCOUNTS, {"q": expired.user.email.upper()}).content.decode()

    assert shown(admin_client, q=expired.user.email.upper()) == {expired.pk}
    assert f'<a href="{RUNS}{run.pk}/change/">run {run.pk}</a>' in page


@pytest.mark.parametrize("model", ["account", "expiryrun", "notice"])
def test_nobody_adds_changes_or_deletes_rows_by_hand(
    admin_client: Client, run: ExpiryRun, notice: Notice, model: str
) -> None:
    pk = MODELS[model]._default_manager.latest("pk").pk

    for page in ("add/", f"{pk}/delete/"):
        assert admin_client.get(f"/admin/accounts/{model}/{page}").status_code == 403
    assert admin_client.post(f"/admin/accounts/{model}/{pk}/change/", {"status": "active"}).status_code == 403


def test_accounts_are_filtered_by_what_the_rule_says_of_them(admin_client: Client) -> None:
    now = timezone.now()
    ending = AccountFactory.create(trial_ends_at=now + 6 * DAY)
    AccountFactory.create(trial_ends_at=now + 8 * DAY)
    grace = AccountFactory.create(trial_ends_at=now - 0.5 * DAY)
    due = AccountFactory.create(trial_ends_at=now - 2 * DAY)
    long_ago, lately = AccountFactory.create_batch(2, trial_ends_at=now - 90 * DAY)
    for account, days in ((long_ago, 8), (lately, 6)):
        run = ExpiryRun.objects.create(path="command", as_of=now - days * DAY)
        account.status, account.expiry_run = Account.TRIAL_EXPIRED, run
        account.save()

    trial = {name: shown(admin_client, trial=name) for name in ("ending", "grace", "due", "expired")}

    assert trial == {"ending": {ending.pk}, "grace": {grace.pk}, "due": {due.pk}, "expired": {lately.pk}}
    assert shown(admin_client, status__exact="trial_expired") == {long_ago.pk, lately.pk}
    assert shown(admin_client, expiry_run=long_ago.expiry_run_id) == {long_ago.pk}


@pytest.mark.parametrize(("hours", "left"), [(49, "in 2 days"), (40.5, "in 40 hours"), (-2.5, "2 hours ago")])
def test_the_list_says_when_a_trial_ends_as_the_mails_do(admin_client: Client, hours: float, left: str) -> None:
    AccountFactory.create(trial_ends_at=timezone.now() + timedelta(hours=hours))

    assert f'<td class="field-time_left">{left}</td>' in admin_client.get(ACCOUNTS).content.decode()


def test_an_account_that_is_not_trialing_has_no_time_left(admin_client: Client) -> None:
    AccountFactory.create(status=Account.ACTIVE)

    assert f'<td class="field-time_left">{NOTHING}</td>' in admin_client.get(ACCOUNTS).content.decode()


def test_the_ledger_tells_how_fast_a_run_was_and_leads_to_its_accounts(admin_client: Client, now: datetime) -> None:
    run = ExpiryRun.objects.create(
        path="celery",
        status="failed",
        as_of=now,
        started=now,
        finished=now + timedelta(seconds=2),
        expired_count=5000,
        longest_slice=timedelta(milliseconds=80),
        error="OperationalError: the connection was lost",
    )
    ledger = admin_client.get(RUNS).content.decode()
    page = admin_client.get(f"{RUNS}{run.pk}/change/").content.decode()

    for cell in ("1 March 2026, 12:00 UTC", "2 s"):
        assert f">{cell}</td>" in ledger
    assert '<span class="status failed">Failed</span><div class="note">OperationalError: the connection' in ledger
    for value in ("1 March 2026, 12:00:02 UTC", "2,500", "80 ms", "OperationalError: the connection was lost"):
        assert f">{value}</div>" in page
    for answer in (ledger, page):
        assert f'<a href="{ACCOUNTS}?expiry_run={run.pk}">5,000</a>' in answer
    assert "Trials that had ended" not in page  # the help text of a form


def test_the_ledger_leaves_out_runs_that_found_nothing_to_do(admin_client: Client, now: datetime) -> None:
    def recorded(status: str, expired: int = 0) -> ExpiryRun:
        finished = None if status == "running" else now
        return ExpiryRun.objects.create(
            path="command", status=status, as_of=now, finished=finished, expired_count=expired
        )

    _idle, _under_way = recorded("succeeded"), recorded("running")
    telling = [recorded("succeeded", 1), recorded("running", 1)]
    telling += [recorded(status) for status in ("failed", "refused", "interrupted", "undone")]

    page = admin_client.get(RUNS, {"happened": "something"}).content.decode()

    assert {int(pk) for pk in re.findall(r"/expiryrun/(\d+)/change/", page)} == {run.pk for run in telling}


def test_a_list_that_a_link_filtered_says_by_what_and_can_be_cleared(
    admin_client: Client, run: ExpiryRun, notice: Notice
) -> None:
    for path, query, words in (
        (ACCOUNTS, f"expiry_run={run.pk}", f"run: Expired by run {run.pk}"),
        (NOTICES, f"account={notice.account_id}&status__exact=given_up", "status: Given up; account: Account"),
        (RUNS, "happened=something", "what happened: Expired somebody or went wrong"),
    ):
        page = admin_client.get(f"{path}?{query}").content.decode()
        assert f"Filtered by {words}" in page
        assert page.count("Clear all filters") == 2  # there, and above the choices
        assert "Filtered by" not in admin_client.get(path).content.decode()


def test_no_page_has_a_number_or_a_moment_in_another_style(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, now: datetime
) -> None:
    monkeypatch.setattr(CappedPaginator, "count", 3000)
    account = AccountFactory.create(pk=51234)
    run = ExpiryRun.objects.create(pk=41234, path="command", as_of=now, due_count=61234, expired_count=61234)
    NoticeFactory.create(account=account, next_attempt=now)

    pages = [
        admin_client.get(path).content.decode()
        for path in (
            *(ACCOUNTS, RUNS, NOTICES, f"{ACCOUNTS}?expiry_run={run.pk}", f"{ACCOUNTS}51234/change/"),
            *(f"{RUNS}{run.pk}/change/", f"{RUNS}{run.pk}/undo/"),
        )
    ]

    for page in pages:
        text = re.sub(r"<[^>]*>", " ", page)
        assert re.findall(r".*(?:\b(?:3000|61234)\b|2026-\d\d|[ap]\.m\.).*", text) == []
        assert re.findall(r".*[45]1,234.*", page) == []  # a key has no separator
    assert "3,000 results" in pages[3]


def test_a_run_by_celery_leads_to_its_schedule(admin_client: Client, now: datetime) -> None:
    hourly, _ = CrontabSchedule.objects.get_or_create(minute="0", hour="*", timezone="UTC")
    entry, _ = PeriodicTask.objects.get_or_create(
        task="accounts.expire_trials", defaults={"name": "Expire trials", "crontab": hourly}
    )
    pages = [
        admin_client.get(f"{RUNS}{ExpiryRun.objects.create(path=path, as_of=now).pk}/change/").content.decode()
        for path in ("celery", "command")
    ]

    assert [f"/admin/django_celery_beat/periodictask/{entry.pk}/change/" in page for page in pages] == [True, False]


# --- Actions ---


def test_extending_lets_trials_end_later_and_brings_expired_accounts_back(admin_client: Client, run: ExpiryRun) -> None:
    expired = list(run.accounts.all())

    said = act(admin_client, "extend", expired, days=10)

    assert said == ["3 of 3 accounts extended by 10 days."]
    assert {account.status for account in Account.objects.all()} == {"trialing"}
    ends = Account.objects.earliest("trial_ends_at").trial_ends_at
    assert timedelta(0) <= timezone.now() + 10 * DAY - ends < timedelta(minutes=5)


@pytest.mark.parametrize(
    ("action", "done", "status"), [("activate", "activated", "active"), ("cancel", "cancelled", "canceled")]
)
def test_actions_go_through_the_service_and_tell_what_it_refused(
    admin_client: Client, action: str, done: str, status: str
) -> None:
    willing = AccountFactory.create()
    exempt = AccountFactory.create(status=Account.EXEMPT)

    said = act(admin_client, action, [willing, exempt])

    assert said == [f"1 of 2 accounts {done}.", "1 left as they were: their status does not allow it."]
    assert [Account.objects.get(pk=account.pk).status for account in (willing, exempt)] == [status, "exempt"]


def test_each_changed_account_has_an_entry_in_its_history(staff: Staff, now: datetime) -> None:
    changed = AccountFactory.create(status=Account.TRIAL_EXPIRED)
    refused = AccountFactory.create(status=Account.BETA)

    act(staff("view_account", "change_account"), "extend", [changed, refused], days=7)

    entry = LogEntry.objects.get()
    assert (entry.user.get_username(), entry.object_id) == ("support", str(changed.pk))
    assert entry.get_change_message() == "Extended by 7 days; was trial expired."


@pytest.mark.parametrize("action", ["extend", "activate", "cancel"])
def test_whoever_may_only_look_is_offered_no_action_and_can_take_none(staff: Staff, action: str) -> None:
    account = AccountFactory.create()
    client = staff("view_account")

    assert 'name="action"' not in client.get(ACCOUNTS).content.decode()
    act(client, action, [account])
    account.refresh_from_db()
    assert (account.status, LogEntry.objects.count()) == ("trialing", 0)


@pytest.mark.parametrize("days", ["", "0", "-3", "1.5", "3651", "x"])
def test_a_senseless_number_of_days_extends_nothing(admin_client: Client, days: str) -> None:
    account = AccountFactory.create()
    before = account.trial_ends_at

    act(admin_client, "extend", [account], days=days)

    account.refresh_from_db()
    assert account.trial_ends_at == before


def test_an_action_refuses_more_accounts_than_a_request_can_take(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AccountAdmin, "ACTION_LIMIT", 2)
    accounts = AccountFactory.create_batch(3)

    said = act(admin_client, "cancel", accounts[:1], select_across=1)

    assert said == ["More than 2 accounts are selected. Nothing was changed: select fewer."]
    assert Account.objects.filter(status=Account.TRIALING).count() == 3


# --- Undo ---


def test_the_confirmation_says_what_an_undo_would_do_and_changes_nothing(admin_client: Client, now: datetime) -> None:
    accounts = AccountFactory.create_batch(5, created=now - timedelta(days=90))
    run = services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now)
    services.activate(account_id=accounts[0].pk)
    services.extend_trial(account_id=accounts[1].pk, days=5, now=now)
    for account in accounts[1:3]:
        NoticeFactory.create(account=account, kind="ended", days_before=0, status="sent", sent=now, next_attempt=now)

    page = " ".join(admin_client.get(f"{RUNS}{run.pk}/undo/").content.decode().split())

    assert "<strong>3 accounts</strong> that this run expired, and that are still expired" in page
    assert "1 that paid or was cancelled since: no change." in page
    assert "1 that was extended or deleted since: no change." in page
    assert "<strong>1 of them was mailed already</strong> that the trial has ended." in page
    assert "The rule then expires 3 of them again at the next tick" in page
    assert re.findall(r'value="(\w+)"[^>]* checked', page) == ["extend"]
    assert Account.objects.filter(status=Account.TRIAL_EXPIRED).count() == 3


def test_undoing_puts_the_accounts_back_and_says_so_in_ledger_and_history(staff: Staff, run: ExpiryRun) -> None:
    client = staff("view_expiryrun", "undo_expiryrun")

    answer = client.post(f"{RUNS}{run.pk}/undo/", {"ends": "extend", "days": "14"})

    run.refresh_from_db()
    assert (run.status, run.undone_count, run.undone_by) == ("undone", 3, "support")
    assert Account.objects.filter(status=Account.TRIALING, trial_ends_at__gt=timezone.now() + 13 * DAY).count() == 3
    assert answer.headers["Location"] == f"{RUNS}{run.pk}/change/"
    said = "Undone: 3 accounts back on trial, extended by 14 days."
    assert [str(message) for message in get_messages(answer.wsgi_request)] == [said]
    assert LogEntry.objects.get().get_change_message() == said


def test_a_run_that_is_undone_has_nothing_more_to_undo_and_says_so(admin_client: Client, run: ExpiryRun) -> None:
    admin_client.post(f"{RUNS}{run.pk}/undo/", {"ends": "leave"})
    page = " ".join(admin_client.get(f"{RUNS}{run.pk}/undo/").content.decode().split())

    assert "There is nothing to undo" in page
    assert "3 were put back by admin before." in page
    assert "Undo…" not in admin_client.get(f"{RUNS}{run.pk}/change/").content.decode()


def test_a_run_that_is_under_way_can_be_stopped(admin_client: Client, now: datetime) -> None:
    run = ExpiryRun.objects.create(path="celery", as_of=now)

    assert "Undo…" in admin_client.get(f"{RUNS}{run.pk}/change/").content.decode()
    assert "Undoing it stops it." in admin_client.get(f"{RUNS}{run.pk}/undo/").content.decode()
    admin_client.post(f"{RUNS}{run.pk}/undo/", {"ends": "leave"})

    run.refresh_from_db()
    assert run.status == "undone"


def test_an_undo_that_had_to_leave_accounts_out_says_so(
    admin_client: Client, run: ExpiryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "undo_run", lambda **_: 0)  # as when another transaction holds locks on all three
    answer = admin_client.post(f"{RUNS}{run.pk}/undo/", {"ends": "leave"})

    assert "3 accounts left out: locked by another transaction. Undo again for the rest." in map(
        str, get_messages(answer.wsgi_request)
    )


@pytest.mark.parametrize("days", ["", "0", "3651", "x"])
def test_a_senseless_extension_undoes_nothing_and_asks_again(admin_client: Client, run: ExpiryRun, days: str) -> None:
    answer = admin_client.post(f"{RUNS}{run.pk}/undo/", {"ends": "extend", "days": days})

    assert 'class="errorlist"' in answer.content.decode()
    assert Account.objects.filter(status=Account.TRIAL_EXPIRED).count() == 3


def test_an_undo_needs_its_own_permission(staff: Staff, run: ExpiryRun) -> None:
    client = staff("view_expiryrun", "change_expiryrun", "change_account")

    assert "Undo…" not in client.get(f"{RUNS}{run.pk}/change/").content.decode()
    assert client.get(f"{RUNS}{run.pk}/undo/").status_code == 403
    assert client.post(f"{RUNS}{run.pk}/undo/").status_code == 403
    assert Account.objects.filter(status=Account.TRIAL_EXPIRED).count() == 3


def test_an_undo_cannot_be_posted_from_another_site(admin_user: User, run: ExpiryRun) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)

    assert client.post(f"{RUNS}{run.pk}/undo/").status_code == 403


def test_an_undo_that_fails_says_what_to_do(
    admin_client: Client, run: ExpiryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> int:
        raise DatabaseError("the connection was lost")

    monkeypatch.setattr(services, "undo_run", fail)
    answer = admin_client.post(f"{RUNS}{run.pk}/undo/", {"ends": "leave"})

    (said,) = get_messages(answer.wsgi_request)
    assert str(said) == (
        "The undo failed: the connection was lost. "
        "The accounts that were put back are counted. Undo again for the rest."
    )


# --- Mails ---


def test_the_notices_tell_which_mails_failed_and_why(admin_client: Client, notice: Notice, now: datetime) -> None:
    NoticeFactory.create(next_attempt=now)

    page = admin_client.get(NOTICES, {"status__exact": "given_up"}).content.decode()

    assert "550 no such user" in page
    assert notice.account.user.email in page
    assert "1 notice" in page


def test_only_mails_that_failed_are_tried_again(staff: Staff, notice: Notice, now: datetime) -> None:
    sent = NoticeFactory.create(status=Notice.Status.SENT, sent=now, next_attempt=now)
    skipped = NoticeFactory.create(status=Notice.Status.SKIPPED, next_attempt=now)
    waiting = NoticeFactory.create(attempts=2, next_attempt=timezone.now() + DAY)
    chosen = {"_selected_action": [notice.pk, sent.pk, skipped.pk, waiting.pk], "action": "retry", "index": 0}

    answer = staff("view_notice", "change_notice").post(NOTICES, chosen)

    assert [str(message) for message in get_messages(answer.wsgi_request)] == [
        "2 mails to be sent by the next delivery.",
        "2 mails left as before: sent already, or no longer true.",
    ]
    deliverable = Notice.objects.deliverable(timezone.now())
    assert {(n.pk, n.attempts) for n in deliverable} == {(notice.pk, 0), (waiting.pk, 0)}
    assert LogEntry.objects.count() == 2


def test_whoever_may_only_look_at_notices_cannot_have_them_sent(staff: Staff, notice: Notice) -> None:
    chosen = {"_selected_action": [notice.pk], "action": "retry", "index": 0}

    staff("view_notice").post(NOTICES, chosen)

    notice.refresh_from_db()
    assert notice.status == Notice.Status.GIVEN_UP


# --- Invalid values ---


@pytest.mark.parametrize(
    "query",
    [
        {"created__year": "99999"},
        {"trial_ends_at__year": "-1"},
        {"user__id__in": "1,x"},
        pytest.param({"status__exact": "\0"}, marks=pytest.mark.postgres),  # SQLite can store it
    ],
)
def test_a_filter_that_no_column_can_have_is_refused(admin_client: Client, query: dict[str, str]) -> None:
    assert admin_client.get(ACCOUNTS, query).status_code in {302, 400}  # 302: Django's own, to the list without it


def test_a_year_that_no_calendar_has_is_400(admin_client: Client) -> None:
    assert admin_client.get(ACCOUNTS, {"created__year": "99999"}).status_code == 400


@pytest.mark.parametrize("path", [ACCOUNTS, NOTICES, "/admin/users/user/", "/admin/django_celery_beat/periodictask/"])
@pytest.mark.parametrize("key", ["abc", "1.5", "\0"])
def test_a_key_that_is_none_is_400_on_every_list(admin_client: Client, path: str, key: str) -> None:
    action = {ACCOUNTS: "cancel", NOTICES: "retry"}.get(path, "delete_selected")

    answer = admin_client.post(path, {"_selected_action": key, "action": action, "days": 1, "index": 0})

    assert answer.status_code == 400


def test_an_error_in_the_history_has_one_line_and_is_cut(
    admin_client: Client, run: ExpiryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> int:
        raise DatabaseError("lost\n\x1b[31m\0" + 10_000_000 * "x")

    monkeypatch.setattr(services, "undo_run", fail)
    admin_client.post(f"{RUNS}{run.pk}/undo/", {"ends": "leave"})

    message = LogEntry.objects.get().get_change_message()
    assert message.startswith("Undo began, and failed: lost [31m xxx")
    assert message.isprintable()
    assert len(message) < 600


# --- Large tables ---


@pytest.mark.parametrize(("path", "queries"), [(ACCOUNTS, 5), (RUNS, 5), (NOTICES, 5)])
def test_a_list_asks_as_many_queries_for_many_rows_as_for_few(
    admin_client: Client, now: datetime, django_assert_max_num_queries: DjangoAssertNumQueries, path: str, queries: int
) -> None:
    for days in range(10):
        AccountFactory.create(created=now - timedelta(days=90))
        services.expire_trials(path=ExpiryRun.Path.COMMAND, now=now + days * DAY)
        NoticeFactory.create(next_attempt=now)

    with django_assert_max_num_queries(queries):
        admin_client.get(path)


def test_a_list_counts_no_further_than_it_pages_and_says_so(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CappedPaginator, "LIMIT", 3)
    AccountFactory.create_batch(3)
    assert "These are the first 3." in admin_client.get(ACCOUNTS).content.decode()

    AccountFactory.create_batch(2)
    assert "These are the first 3." in admin_client.get(ACCOUNTS).content.decode()

    Account.objects.filter(pk__in=Account.objects.values("pk")[:3]).delete()
    assert "These are the first" not in admin_client.get(ACCOUNTS).content.decode()


@pytest.mark.postgres
def test_no_list_of_accounts_reads_the_whole_table(
    admin_client: Client, run: ExpiryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    ExpiryRun.objects.update(as_of=timezone.now())
    monkeypatch.setattr(CappedPaginator, "LIMIT", 1000)  # 20,000 rows stand for millions
    fill_tables(20_000)
    lists = [{}, {"p": "5"}, {"q": "Filler77@example.com"}, {"expiry_run": str(run.pk)}]
    lists += [{"trial": choice} for choice in ("ending", "grace", "due", "expired")]
    for query in lists:
        with CaptureQueriesContext(connection) as asked:
            admin_client.get(ACCOUNTS, query)
        about_accounts = [question["sql"] for question in asked if '"accounts_account"' in question["sql"]]

        assert len(about_accounts) == 2
        for sql in about_accounts:
            assert rows_read(sql) <= 2000, (query, sql)


def rows_read(sql: str) -> int:
    """How many rows of accounts and users PostgreSQL reads to answer."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {sql}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    scanned = re.findall(r"Scan .*on accounts_\w+ .*actual rows=(\d+)", plan)
    assert scanned, plan
    return sum(map(int, scanned + re.findall(r"Removed by Filter: (\d+)", plan)))
