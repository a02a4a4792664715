"""``./manage.py send_trial_notices``: its output, its options, its exit codes."""

from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings

from accounts import services
from accounts.models import ExpiryRun, Notice
from sandbox.mail_server import Mailbox
from tests.conftest import ManagePy
from tests.factories import make_accounts
from tests.runs import DAY

pytestmark = pytest.mark.django_db


def run(*arguments: str, **options: Any) -> str:
    """What the command prints."""
    output = StringIO()
    call_command("send_trial_notices", *arguments, stdout=output, **options)
    return output.getvalue()


@pytest.fixture(autouse=True)
def switched_on(settings: Settings) -> None:
    settings.TRIAL_NOTICES = True


@pytest.fixture
def owed(db: None) -> None:
    """By the real clock: two customers are owed a reminder, and one the notice that the trial has ended."""
    make_accounts(1, ended=10 * DAY, now=timezone.now())
    services.expire_trials(path=ExpiryRun.Path.COMMAND, now=timezone.now())
    make_accounts(2, ended=-DAY / 2, now=timezone.now())


ALL_SENT = """\
Queued 3 notice(s): 2 ending soon, 1 ended
Delivered: 3 sent, 0 skipped, 0 refused, 0 given up, 0 deferred; 0 wait
"""


@pytest.mark.usefixtures("owed")
def test_it_sends_what_is_owed_and_says_how_much(mailbox: Mailbox) -> None:
    assert run() == ALL_SENT
    assert len(mailbox.mails) == 3

    assert run().startswith("Queued 0 notice(s): 0 ending soon, 0 ended\nDelivered: 0 sent")
    assert len(mailbox.mails) == 3


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("owed")
def test_as_cron_runs_it_switched_on_by_the_environment(manage_py: ManagePy, mailbox: Mailbox) -> None:
    result = manage_py("send_trial_notices", TRIAL_NOTICES="1", TRIAL_REMINDER_DAYS="", EMAIL_URL=mailbox.url)

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Queued 1 notice(s): 0 ending soon, 1 ended\nDelivered: 1 sent")
    assert len(mailbox.mails) == 1


@pytest.mark.usefixtures("owed")
def test_it_is_silent_when_told_to_be(mailbox: Mailbox) -> None:
    assert run(verbosity=0) == ""
    assert len(mailbox.mails) == 3


@pytest.mark.usefixtures("owed")
def test_switched_off_it_says_so_and_does_not_touch_the_database(
    settings: Settings, mailbox: Mailbox, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    settings.TRIAL_NOTICES = False

    with django_assert_num_queries(0):
        assert run() == "TRIAL_NOTICES is off: no mail is sent.\n"
    assert mailbox.mails == []


@pytest.mark.usefixtures("owed")
def test_a_dry_run_counts_what_is_owed_also_while_it_is_switched_off(settings: Settings, mailbox: Mailbox) -> None:
    run("--limit=1")
    make_accounts(1, ended=-DAY / 2, now=timezone.now())
    settings.TRIAL_NOTICES = False

    assert run("--dry-run", "--max-notices=2") == (
        "TRIAL_NOTICES is off: no mail is sent.\n"
        "Would queue 1 notice(s): 1 ending soon, 0 ended\n"
        "2 wait from before\n"
        "Would be refused: at most 2 may be owed.\n"
    )
    assert "refused" not in run("--dry-run", "--max-notices=3")
    assert Notice.objects.count() == 3
    assert len(mailbox.mails) == 1


@pytest.mark.usefixtures("owed")
def test_a_dry_run_tells_who_would_be_reminded_at_another_moment() -> None:
    five_days_ago = timezone.now() - 5 * DAY

    assert "2 ending soon, 0 ended" in run("--dry-run", f"--as-of={five_days_ago.isoformat()}")


@pytest.mark.usefixtures("owed")
def test_what_a_limit_leaves_stays_queued_for_the_next_run(mailbox: Mailbox) -> None:
    assert run("--limit=2").endswith("Delivered: 2 sent, 0 skipped, 0 refused, 0 given up, 0 deferred; 1 wait\n")
    assert "1 sent" in run()
    assert len(set(mailbox.recipients)) == 3


@pytest.mark.usefixtures("owed")
def test_the_fuse_sends_nothing_and_says_how_to_go_on(mailbox: Mailbox) -> None:
    with pytest.raises(CommandError) as refusal:
        run("--max-notices=2")

    assert refusal.value.returncode == 3
    assert str(refusal.value) == (
        "Refused: 3 mails are owed and at most 2 are allowed. Nothing was queued or sent. If the number is right, "
        "allow it with --max-notices 3; if not, look at TRIAL_REMINDER_DAYS, TRIAL_NOTICE_WINDOW_DAYS and the clock."
    )
    assert not Notice.objects.exists()
    assert run("--max-notices=3") == ALL_SENT


@pytest.mark.usefixtures("owed")
def test_without_a_mail_server_it_fails_and_loses_nothing(settings: Settings, mailbox: Mailbox) -> None:
    settings.EMAIL_PORT = 1
    with pytest.raises(CommandError) as failure:
        run()

    assert failure.value.returncode == 1
    assert str(failure.value).startswith("The mail server cannot be used: ConnectionRefusedError: ")
    assert str(failure.value).endswith(" 3 mail(s) wait for the next run; none is lost.")

    settings.EMAIL_PORT = mailbox.port
    assert "3 sent" in run()
