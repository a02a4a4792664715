"""A database restored from a dump: what the next tick repeats, and what it does not. docs/backup.md says the same."""

import subprocess
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from django.db import connection
from django.utils import timezone
from psycopg.rows import scalar_row
from psycopg.sql import SQL, Identifier

from accounts import services
from accounts.models import Account, ExpiryRun
from sandbox.mail_server import Mailbox
from sandbox.servers import postgres_program
from tests.conftest import ManagePy
from tests.factories import make_accounts
from tests.faults import faults

pytestmark = [pytest.mark.faults, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

MAILS = {"TRIAL_NOTICES": "1", "TRIAL_REMINDER_DAYS": ""}


@pytest.fixture
def restored_url(environment: Mapping[str, str]) -> Iterator[str]:
    """The DATABASE_URL of an empty database beside the tests' own."""
    name = "restored_" + str(connection.settings_dict["NAME"])
    with psycopg.connect(**connection.get_connection_params(), autocommit=True) as owner:
        owner.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        yield urlsplit(environment["DATABASE_URL"])._replace(path=f"/{name}").geturl()
        owner.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def test_what_happened_after_the_dump_is_repeated_but_no_mail_is(
    environment: Mapping[str, str], restored_url: str, manage_py: ManagePy, mailbox: Mailbox, tmp_path: Path
) -> None:
    mails = {**MAILS, "EMAIL_URL": mailbox.url}
    restored = {**mails, "DATABASE_URL": restored_url}
    make_accounts(1, ended=timedelta(days=2), now=timezone.now())
    assert manage_py("expire_trials", **mails).stdout.endswith("Expired 1 trial(s)\n")
    manage_py("send_trial_notices", **mails)
    make_accounts(3, ended=timedelta(days=2), now=timezone.now())
    before, *after, paid = Account.objects.order_by("pk")
    assert mailbox.recipients == [before.user.email]

    dump = tmp_path / "trials.dump"
    run(postgres_program("pg_dump"), "--format=custom", f"--file={dump}", environment["DATABASE_URL"])

    # After the dump one pays, and the others expire and are told.
    services.activate(account_id=paid.pk)
    assert manage_py("expire_trials", **mails).stdout.endswith("Expired 2 trial(s)\n")
    manage_py("send_trial_notices", **mails)
    told = [before.user.email, *(account.user.email for account in after)]
    assert sorted(mailbox.recipients) == sorted(told)
    lost = ExpiryRun.objects.latest()

    faults.inflict(
        *(run, postgres_program("pg_restore"), "--exit-on-error", "--single-transaction", "--no-owner"),
        *(f"--dbname={restored_url}", str(dump)),
    )
    restored_at = timezone.now()

    # The payment is not in the dump: who paid would expire.
    assert manage_py("expire_trials", "--dry-run", **restored).stdout.endswith("Would expire 3 trial(s)\n")
    activate = f"from accounts import services; services.activate(account_id={paid.pk})"
    manage_py("shell", "--command", activate, **restored)
    assert manage_py("expire_trials", **restored).stdout.endswith("Expired 2 trial(s)\n")

    # The run that the dump does not know is gone, and its number is used again.
    with psycopg.connect(restored_url, row_factory=scalar_row) as owner:
        assert owner.execute("SELECT max(id) FROM accounts_expiryrun").fetchone() == lost.pk
        assert owner.execute("SELECT sum(expired_count) FROM accounts_expiryrun").fetchone() == 3
        assert owner.execute("SELECT status FROM accounts_account WHERE id = %s", [paid.pk]).fetchone() == "active"

    since = {**restored, "TRIAL_NOTICES_SINCE": restored_at.isoformat()}
    manage_py("send_trial_notices", **since)
    assert len(mailbox.mails) == len(told)

    # Without the setting the mails go out again, with the Message-IDs that they had.
    manage_py("send_trial_notices", **restored)
    repeated = mailbox.mails[len(told) :]
    assert sorted(str(mail["To"]) for mail in repeated) == sorted(account.user.email for account in after)
    assert {mail["Message-ID"] for mail in repeated} < {mail["Message-ID"] for mail in mailbox.mails[: len(told)]}


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
