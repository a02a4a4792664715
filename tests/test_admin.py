"""The admin: its pages and actions for operators and support, which change rows only through the services."""

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from html import unescape
from typing import Any

import pytest
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.contrib.messages import get_messages
from django.db import DatabaseError, connection
from django.db.models import Model
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import URLPattern, URLResolver
from django.urls.resolvers import RegexPattern
from django.utils import timezone
from django.utils.html import strip_tags
from django_celery_beat.models import CrontabSchedule, PeriodicTask
from pytest_django import DjangoAssertNumQueries

from accounts import ledger, services, tasks
from accounts.admin import actions, schedule, undo
from accounts.admin.accounts import AccountAdmin
from accounts.admin.lists import CappedPaginator
from accounts.admin.schedule import Processes
from accounts.models import Account, AccountEvent, ExpiryRun, Notice
from accounts.words import NOTHING
from tests.factories import AccountFactory, NoticeFactory, fill_tables
from tests.runs import DAY
from users.models import User

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_worker")]

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
        user, _ = User.objects.get_or_create(username="support", is_staff=True)
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
    """Post an action on accounts, confirmed as by the page that asks; returns the messages of the page."""
    form = {**selected(accounts, action), "days": days, "confirmed": "yes", **more}
    return [str(message) for message in get_messages(client.post(ACCOUNTS, form).wsgi_request)]


def selected(accounts: Sequence[Account], action: str) -> dict[str, Any]:
    """What the list of accounts posts."""
    return {"_selected_action": [account.pk for account in accounts], "action": action}


def text(answer: Any) -> str:
    """The content in one line, without tags."""
    return unescape(" ".join(strip_tags(answer.content.decode()).split()))


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


def test_a_search_finds_the_beginning_of_an_address_or_a_name(admin_client: Client) -> None:
    anna, annabel, bob = (
        AccountFactory.create(user__email=f"{name}@example.com", user__first_name=first, user__last_name=last).pk
        for name, first, last in (
            ("a.schmidt", "Anna", "Schmidt"),
            ("annabel", "Annabel", "Berg"),
            ("bob", "Bob", "Ann"),
        )
    )

    found = {
        words: shown(admin_client, q=words) for words in ("ann", "ANNA", "A.Sch", "anna sch", "schmidt anna", "nna")
    }

    assert found == {
        "ann": {anna, annabel, bob},
        "ANNA": {anna, annabel},
        "A.Sch": {anna},
        "anna sch": {anna},
        "schmidt anna": {anna},
        "nna": set(),
    }


@pytest.mark.parametrize("path", [ACCOUNTS, NOTICES, "/admin/users/user/"])
def test_a_search_that_finds_nothing_says_what_it_looks_for(admin_client: Client, path: str) -> None:
    page = text(admin_client.get(path, {"q": "<nobody>"}))

    assert "Nothing found for “<nobody>”. The search looks for: the beginning of an e-mail address or a name" in page


def test_the_overview_has_the_search_of_accounts(admin_client: Client) -> None:
    page = admin_client.get("/admin/").content.decode()

    assert f'<form class="find" method="get" action="{ACCOUNTS}" role="search">' in page
    assert '<input type="search" name="q"' in page


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


def test_the_style_sheet_names_columns_that_exist() -> None:
    css = (settings.BASE_DIR / "accounts/static/accounts/admin.css").read_text()
    shown = {str(name) for page in admin.site._registry.values() for name in page.list_display}

    assert set(re.findall(r"\.field-(\w+)", css)) <= shown


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
        (ACCOUNTS, "expired_on=2026-11-24", "runs: Expired by the runs of 24 November 2026"),
        (ACCOUNTS, "ends_on=2026-11-24&status__exact=trialing", "status: Trialing; end: Trial ends on 24 November"),
        (ACCOUNTS, f"expiry_run__in={run.pk},7", f"expiry run in: {run.pk},7"),
        (ACCOUNTS, "status__exact=beta&created__lt=2026-01-01T00:00Z", "status: Beta; created lt: 2026"),
        (NOTICES, f"account={notice.account_id}&status__exact=given_up", "status: Given up; account: Account"),
        (RUNS, "happened=something", "what happened: Expired somebody or went wrong"),
    ):
        page = admin_client.get(f"{path}?{query}&q=ann").content.decode()
        assert f"Filtered by {words}" in page
        assert re.findall(r'<a href="([^"]*)">[^<]*Clear all filters', page) == ["?q=ann"] * 2  # also above the choices
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

    assert said == ["3 accounts were extended by 10 days."]
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

    assert said == [f"1 account was {done}.", f"1 account was not {done}: its status does not allow it."]
    assert [Account.objects.get(pk=account.pk).status for account in (willing, exempt)] == [status, "exempt"]


def test_the_actor_of_an_action_is_on_record_and_the_history_is_the_page(staff: Staff, now: datetime) -> None:
    account = AccountFactory.create(status=Account.TRIAL_EXPIRED)
    client = staff("view_account", "change_account")

    act(client, "extend", [account], days=7)

    event = AccountEvent.objects.get()
    assert (event.account, event.by, event.status_before) == (account, "admin user support", "trial_expired")
    page = f"{ACCOUNTS}{account.pk}/change/"
    assert client.get(f"{ACCOUNTS}{account.pk}/history/").headers["Location"] == page
    assert "Extended by admin user support; was trial expired." in text(client.get(page))


@pytest.mark.parametrize("action", ["extend", "activate", "cancel"])
def test_a_list_s_action_says_how_many_and_what_and_changes_nothing_yet(admin_client: Client, action: str) -> None:
    willing = AccountFactory.create_batch(21)
    exempt = AccountFactory.create(status=Account.EXEMPT)

    answer = admin_client.post(ACCOUNTS, {**selected([*willing, exempt], action), "index": 0})

    page, done = text(answer), {"cancel": "cancelled"}.get(action, f"{action.removesuffix('e')}ed")
    assert f"21 accounts will be {done}." in page
    assert f"Will be {done}: 21 accounts" in page
    assert "and 1 more account" in page
    assert "Stay as they are, because their status does not allow this: 1 account" in page
    assert f"{exempt.user.email} Exempt" in page
    assert f'value="Yes, {action} 21 accounts"' in answer.content.decode()
    assert Account.objects.filter(status=Account.TRIALING).count() == 21
    assert not AccountEvent.objects.exists()


def test_what_the_page_that_asks_shows_is_what_it_posts(admin_client: Client) -> None:
    accounts = AccountFactory.create_batch(3)
    filtered = f"{ACCOUNTS}?status__exact=trialing"
    page = admin_client.post(filtered, {**selected(accounts[:1], "cancel"), "index": 0, "select_across": 1})

    form = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.content.decode())
    keys = [int(value) for name, value in form if name == "_selected_action"]
    answer = admin_client.post(ACCOUNTS, {**{name: unescape(value) for name, value in form}, "_selected_action": keys})

    assert Account.objects.filter(status=Account.CANCELED).count() == len(keys) == 3
    assert answer.headers["Location"] == filtered


def test_accounts_that_cannot_be_changed_are_told_without_a_question(admin_client: Client) -> None:
    exempt = AccountFactory.create(status=Account.EXEMPT)

    page = text(admin_client.post(ACCOUNTS, {**selected([exempt], "cancel"), "index": 0}))

    assert "The status of 1 selected account does not allow this. Nothing was changed." in page
    assert "Yes, cancel" not in page


@pytest.mark.parametrize("where", ["https://elsewhere.example/", "//elsewhere.example/", "javascript:alert(1)"])
def test_an_action_never_leads_to_another_site(admin_client: Client, where: str) -> None:
    form = {**selected([AccountFactory.create()], "activate"), "confirmed": "yes", "next": where}

    assert admin_client.post(ACCOUNTS, form).headers["Location"] == ACCOUNTS


@pytest.mark.parametrize("action", ["extend", "activate", "cancel"])
def test_whoever_may_only_look_is_offered_no_action_and_can_take_none(staff: Staff, action: str) -> None:
    account = AccountFactory.create()
    client = staff("view_account")

    for page in (ACCOUNTS, f"{ACCOUNTS}{account.pk}/change/"):
        assert 'name="action"' not in client.get(page).content.decode()
    act(client, action, [account])
    account.refresh_from_db()
    assert (account.status, AccountEvent.objects.count()) == ("trialing", 0)


@pytest.mark.parametrize(
    ("days", "wrong"),
    [
        ("", "This field is required."),
        ("0", "Ensure this value is greater than or equal to 1."),
        ("1.5", "Enter a whole number."),
        ("3651", "Ensure this value is less than or equal to 3650."),
    ],
)
def test_a_wrong_number_of_days_keeps_the_selection_and_says_what_is_wrong(
    admin_client: Client, days: str, wrong: str
) -> None:
    accounts = AccountFactory.create_batch(2)
    before = [account.trial_ends_at for account in accounts]

    answer = admin_client.post(ACCOUNTS, {**selected(accounts, "extend"), "days": days, "confirmed": "yes"})

    page = answer.content.decode()
    assert wrong in page
    assert "Nothing was changed yet." in page
    assert [f'name="_selected_action" value="{account.pk}"' in page for account in accounts] == [True, True]
    assert [Account.objects.get(pk=account.pk).trial_ends_at for account in accounts] == before


def test_an_action_refuses_more_accounts_than_a_request_can_take(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AccountAdmin, "ACTION_LIMIT", 2)
    accounts = AccountFactory.create_batch(3)

    said = act(admin_client, "cancel", accounts[:1], select_across=1)

    assert said == ["More than 2 accounts are selected. Nothing was changed: select fewer."]
    assert Account.objects.filter(status=Account.TRIALING).count() == 3


def test_an_action_ends_in_time_and_says_how_many_it_did_not_reach(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "time", SlowClock())
    accounts = AccountFactory.create_batch(4)

    said = act(admin_client, "cancel", accounts)

    assert said == [
        "2 accounts were cancelled.",
        "2 accounts were not cancelled: the time for one request was over. Repeat it for them.",
    ]
    assert Account.objects.filter(status=Account.CANCELED).count() == 2


class SlowClock:
    """Takes the place of the module ``time``: three seconds pass from one look at the clock to the next."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic(self) -> int:
        self.now += 3
        return self.now


def test_the_most_accounts_that_an_action_takes_fit_into_its_request() -> None:
    assert AccountAdmin.ACTION_LIMIT + 10 < settings.DATA_UPLOAD_MAX_NUMBER_FIELDS


# --- The page of an account ---


def test_the_page_of_an_account_offers_what_its_status_allows_and_comes_back(admin_client: Client) -> None:
    account = AccountFactory.create()
    page = f"{ACCOUNTS}{account.pk}/change/"
    buttons = ('value="extend"', 'value="activate"', 'value="cancel"')

    answer = admin_client.post(ACCOUNTS, {**selected([account], "activate"), "confirmed": "yes", "next": page})

    assert answer.headers["Location"] == page
    assert [button in admin_client.get(page).content.decode() for button in buttons] == [False, False, True]
    services.cancel(account_id=account.pk)
    assert not any(button in admin_client.get(page).content.decode() for button in buttons)


def test_links_and_mails_are_shown_to_those_who_may_see_them(staff: Staff, run: ExpiryRun, now: datetime) -> None:
    account = run.accounts.latest("pk")
    NoticeFactory.create(account=account, kind=Notice.Kind.ENDED, days_before=0, next_attempt=now)
    page = f"{ACCOUNTS}{account.pk}/change/"
    client = staff("view_account")

    shown = client.get(page).content.decode()
    assert f"by run {run.pk}:" in shown
    assert "Mail “" not in shown
    assert "Mails are not shown: this needs the permission to view notices." in shown

    client = staff("view_account", "view_expiryrun", "view_notice")
    shown = client.get(page).content.decode()
    assert f'by <a href="{RUNS}{run.pk}/change/">run {run.pk}</a>:' in shown
    assert "Mail “Trial ended”: waiting" in shown
    assert f"Your {settings.SITE_NAME} trial has ended" in shown


def test_an_undo_leads_to_the_accounts_that_it_put_back(admin_client: Client, run: ExpiryRun, now: datetime) -> None:
    returned = set(run.accounts.values_list("pk", flat=True))
    services.undo_run(run=run, now=now, by="ann")
    services.activate(account_id=min(returned))

    assert f"{ACCOUNTS}?returned_from={run.pk}" in admin_client.get(f"{RUNS}{run.pk}/change/").content.decode()
    assert shown(admin_client, returned_from=run.pk) == returned
    assert admin_client.get(ACCOUNTS, {"returned_from": "x"}).status_code == 302


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
    assert (run.status, run.undone_count, run.undone_by) == ("undone", 3, "admin user support")
    assert Account.objects.filter(status=Account.TRIALING, trial_ends_at__gt=timezone.now() + 13 * DAY).count() == 3
    assert answer.headers["Location"] == f"{RUNS}{run.pk}/change/"
    said = "Undone: 3 accounts back on trial, extended by 14 days."
    assert [str(message) for message in get_messages(answer.wsgi_request)] == [said]
    assert LogEntry.objects.get().get_change_message() == said


def test_a_run_that_is_undone_has_nothing_more_to_undo_and_says_so(admin_client: Client, run: ExpiryRun) -> None:
    admin_client.post(f"{RUNS}{run.pk}/undo/", {"ends": "leave"})
    page = " ".join(admin_client.get(f"{RUNS}{run.pk}/undo/").content.decode().split())

    assert "There is nothing to undo" in page
    assert "3 were put back by admin user admin before." in page
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


def test_an_undo_is_only_for_those_who_may_see_the_run(staff: Staff, run: ExpiryRun) -> None:
    client = staff("undo_expiryrun")

    assert client.get(f"{RUNS}{run.pk}/undo/").status_code == 403
    assert client.post(f"{RUNS}{run.pk}/undo/", {"ends": "leave"}).status_code == 403
    assert Account.objects.filter(status=Account.TRIAL_EXPIRED).count() == 3


def test_an_undo_cannot_be_posted_from_another_site(admin_user: User, run: ExpiryRun) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)

    assert client.post(f"{RUNS}{run.pk}/undo/").status_code == 403


def test_an_undo_goes_on_in_steps_and_each_account_is_extended_once(
    admin_client: Client, run: ExpiryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undo, "time", SlowClock())
    monkeypatch.setattr(services, "undo_run", partial(services.undo_run, batch_size=2))
    page = f"{RUNS}{run.pk}/undo/"

    first = admin_client.post(page, {"ends": "extend", "days": "14"})
    words = " ".join(first.content.decode().split())
    assert "<strong>2 of 3 accounts</strong> back on trial so far." in words
    assert re.findall(r'name="(\w+)" value="(\w+)"', words)[-3:] == [("ends", "extend"), ("days", "14"), ("done", "2")]

    last = admin_client.post(page, {"ends": "extend", "days": "14", "done": "2"})
    assert last.headers["Location"] == f"{RUNS}{run.pk}/change/"
    said = "Undone: 3 accounts back on trial, extended by 14 days."
    assert [str(message) for message in get_messages(last.wsgi_request)] == [said]
    assert [entry.get_change_message() for entry in LogEntry.objects.order_by("pk")] == ["Undo began, in steps.", said]
    assert AccountEvent.objects.filter(kind="undone").count() == 3


def test_a_worker_that_undoes_is_told_so_and_the_page_says_how_far_it_is(
    admin_client: Client, run: ExpiryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(schedule, "processes", lambda: Processes(broker=True, workers=1))

    def send_to_worker(task: Any, **arguments: Any) -> bool:
        sent.append({task.name: arguments})
        return True

    monkeypatch.setattr(schedule, "send_to_worker", send_to_worker)

    answer = admin_client.post(f"{RUNS}{run.pk}/undo/", {"ends": "extend", "days": "14"})

    (arguments,) = (message["accounts.undo_run"] for message in sent)
    assert {**arguments, "now": "a moment"} == {
        "run_id": run.pk,
        "by": "admin user admin",
        "now": "a moment",
        "extend_days": 14,
    }
    assert [str(message) for message in get_messages(answer.wsgi_request)] == [
        "A worker was told to undo this run. This page shows how far it is."
    ]
    run.refresh_from_db()
    assert (run.status, run.undone_count) == ("undone", 0)

    def progress() -> str:
        words = " ".join(admin_client.get(f"{RUNS}{run.pk}/change/").content.decode().split())
        return "".join(re.findall(r"Being undone: <strong>(.*?)</strong>", words))

    assert progress() == "0 of 3 accounts"
    tasks.undo_run(**arguments)
    assert progress() == ""
    assert Account.objects.filter(status=Account.TRIALING).count() == 3


def test_an_undo_by_a_worker_that_stopped_is_not_said_to_go_on(admin_client: Client, run: ExpiryRun) -> None:
    ledger.mark_undone(run, by="ann")
    assert undo.being_undone(ExpiryRun.objects.get())

    minute_ago = timezone.now() - ledger.ALIVE_FOR
    ExpiryRun.objects.update(undone_at=minute_ago, heartbeat=minute_ago)

    assert not undo.being_undone(ExpiryRun.objects.get())
    assert "Undo…" in admin_client.get(f"{RUNS}{run.pk}/change/").content.decode()


def test_of_a_large_run_the_confirmation_counts_a_part(
    admin_client: Client, run: ExpiryRun, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "COUNTED", 2)

    page = " ".join(admin_client.get(f"{RUNS}{run.pk}/undo/").content.decode().split())

    assert "This run is large. The first 2 accounts of it were looked at; an undo takes all." in page
    assert "<strong>2 accounts</strong> that this run expired" in page


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
        {"expired_on": "soon"},
        {"ends_on": "9999-12-31"},
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
    lists = [{}, {"p": "5"}, {"q": "Filler777"}, {"q": "nobody"}, {"expiry_run": str(run.pk)}, {"returned_from": "7"}]
    lists += [{"trial": choice} for choice in ("ending", "grace", "due", "expired")]
    lists += [{name: timezone.now().date().isoformat()} for name in ("expired_on", "ends_on")]
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
    scanned = re.findall(r"Scan .*on (?:accounts|users)_\w+ .*(?:actual rows=(\d+)|never executed)", plan)
    assert scanned, plan
    return sum(int(rows or 0) for rows in scanned + re.findall(r"Removed by Filter: (\d+)", plan))


def pages(patterns: Sequence[URLPattern | URLResolver], before: str = "/admin/") -> Iterator[str]:
    """The addresses of these patterns, with 1 for each argument."""
    for pattern in patterns:
        here = before + re.sub(r"<[^>]+>", "1", str(pattern.pattern))
        if isinstance(pattern, URLResolver):
            yield from pages(pattern.url_patterns, here)
        elif not isinstance(pattern.pattern, RegexPattern):
            yield here


def test_no_page_of_the_admin_opens_to_customers_and_strangers(client: Client) -> None:
    addresses = set(pages(admin.site.get_urls())) - {f"/admin/{page}/" for page in ("login", "logout", "jsi18n")}
    assert {"/admin/", "/admin/what-to-do/", f"{RUNS}1/undo/", f"{ACCOUNTS}1/change/"} < addresses

    for user in (None, User.objects.create_user("customer")):
        if user:
            client.force_login(user)
        for address in sorted(addresses):
            answer = client.get(address)
            assert (answer.status_code, answer["Location"][:13]) == (302, "/admin/login/"), address
        client.logout()
