"""The role of docs/deploy.md for commands, worker and beat: it has the permissions they need, and no others."""

import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import timedelta
from urllib.parse import urlsplit

import psycopg
import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone

from accounts.models import Account, Decision, ExpiryRun, Notice
from sandbox.mail_server import Mailbox
from sandbox.servers import wait_for
from tests.conftest import ManagePy, Process, database_url
from tests.factories import NoticeFactory, make_accounts
from tests.faults.conftest import ticks_every_second

pytestmark = [pytest.mark.faults, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

PAGE = (settings.BASE_DIR / "docs" / "deploy.md").read_text()


@pytest.fixture
def role_url(transactional_db: None) -> Iterator[str]:
    """The database's URL for the role, which the statements of the page create."""
    block = re.search(r"```sql\n(CREATE ROLE .+?)```", PAGE, re.DOTALL)
    assert block
    role = f"trials_job_{secrets.token_hex(4)}"  # roles belong to the server, which other tests may share
    with connection.cursor() as cursor:
        cursor.execute(block[1].replace("trials_job", role))
    parts = urlsplit(database_url())
    yield parts._replace(netloc=f"{role}:change-me@{parts.netloc.rpartition('@')[2]}").geturl()
    with connection.cursor() as cursor:
        cursor.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.fixture
def environment(environment: Mapping[str, str], role_url: str) -> Mapping[str, str]:
    return {**environment, "DATABASE_URL": role_url}


def test_the_role_can_expire_undo_mail_and_prune(manage_py: ManagePy, mailbox: Mailbox) -> None:
    now = timezone.now()
    make_accounts(3, ended=timedelta(days=2), now=now)
    old = now - timedelta(days=400)
    ExpiryRun.objects.create(path="command", as_of=old, started=old, finished=old, status="succeeded")
    account = Account.objects.first()
    NoticeFactory.create(account=account, queued=old, trial_ends_at=old, next_attempt=old, status="skipped")

    Decision.objects.create(kind="allow", by="anna", reason="a test", max_accounts=3, until=now + timedelta(days=1))

    def manage(*arguments: str) -> None:
        result = manage_py(*arguments, TRIAL_NOTICES="1", TRIAL_EXPIRY_MAX="1", EMAIL_URL=mailbox.url)
        assert (result.returncode, result.stderr) == (0, ""), arguments

    manage("expire_trials")
    manage("send_trial_notices")
    manage("check_expiry")
    run = ExpiryRun.objects.get()  # the old one is pruned
    manage("undo_expiry", str(run.pk), "--extend-days=7")

    run.refresh_from_db()
    assert (run.expired_count, run.undone_count) == (3, 3)
    assert len(mailbox.mails) == 3
    assert not Notice.objects.filter(queued=old).exists()


def test_a_thread_that_gets_no_connection_fails_the_run_in_one_line(manage_py: ManagePy, role_url: str) -> None:
    make_accounts(9, ended=timedelta(days=2), now=timezone.now())
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER ROLE {urlsplit(role_url).username} CONNECTION LIMIT 1")

    failed = manage_py("expire_trials", "--jobs=2", "--batch-size=1")

    run = ExpiryRun.objects.get()
    assert (run.status, run.jobs, failed.returncode) == (ExpiryRun.Status.FAILED, 2, 1)
    assert "too many connections for role" in run.error
    (line,) = failed.stderr.splitlines()
    assert line.startswith("CommandError: The run failed: ")
    assert line.endswith(" If the database has too few connections, use a smaller --jobs: it needs 3.")
    assert manage_py("expire_trials", "--batch-size=1").returncode == 0
    assert Account.objects.filter(status=Account.TRIAL_EXPIRED).count() == 9


HARM = (
    "DROP TABLE accounts_account",
    "TRUNCATE accounts_account",
    "DELETE FROM accounts_account",
    "INSERT INTO accounts_account DEFAULT VALUES",
    "ALTER TABLE accounts_account DROP COLUMN status",
    "TRUNCATE accounts_expiryrun",
    "INSERT INTO accounts_decision DEFAULT VALUES",
    "UPDATE accounts_accountevent SET by = ''",
    "DELETE FROM accounts_accountevent",
    "UPDATE accounts_decision SET until = now()",
    "UPDATE users_user SET is_superuser = true",
    "DELETE FROM users_user",
    "SELECT session_data FROM django_session",
    "DELETE FROM django_celery_beat_periodictask",
    "CREATE TABLE mine (id integer)",
)


def test_the_role_cannot_harm(role_url: str) -> None:
    with psycopg.connect(role_url, autocommit=True) as job:
        for statement in HARM:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                job.execute(statement)


@pytest.mark.faults  # for its length
def test_worker_and_beat_work_as_the_role(celery: Process) -> None:
    make_accounts(3, ended=timedelta(days=2), now=timezone.now())
    entry = ticks_every_second(kwargs='{"batch_size": 1}')
    began = timezone.now()

    with celery("worker", "--concurrency=1"), celery("beat"):
        runs = ExpiryRun.objects.filter(status=ExpiryRun.Status.SUCCEEDED, expired_count=3)
        wait_for("the run to succeed", runs.first)

    entry.refresh_from_db()  # beat has written it at its end
    assert entry.last_run_at > began
