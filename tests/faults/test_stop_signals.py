"""Ctrl-C and SIGTERM for every command: it finishes its current slice, leaves the rest, and prints one line."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone

from accounts import notices, services
from accounts.models import Account, ExpiryRun, Notice
from sandbox.mail_server import Mailbox
from tests.factories import make_accounts
from tests.faults import faults
from tests.faults.conftest import Customers, gate_before
from tests.locks import wait_until_blocked

pytestmark = [
    pytest.mark.faults,
    pytest.mark.postgres,
    pytest.mark.django_db(transaction=True),
    pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM]),
]


@pytest.fixture
def many_customers(transactional_db: None) -> Customers:
    """Sixty due accounts, for as many slices that threads do not come to an end of."""
    return Customers(due=60)


@contextmanager
def started(environment: Mapping[str, str], *arguments: str, **extra: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``manage.py``, which the block must stop; asserts one line on stderr and exit code 130."""
    with subprocess.Popen(
        [sys.executable, "manage.py", *arguments],
        cwd=settings.BASE_DIR,
        env={**os.environ, **environment, **extra},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def assert_stopped(process: subprocess.Popen[str], lasting: str) -> None:
    _, errors = process.communicate(timeout=faults.SHOWS_WITHIN)
    assert errors == f"CommandError: Stopped by a signal. {lasting}\n"
    assert process.returncode == 130


def test_a_run_told_to_stop_finishes_the_slice_in_hand(
    customers: Customers, environment: Mapping[str, str], how: signal.Signals
) -> None:
    with (
        gate_before(customers.due[2]) as gate,
        started(environment, "expire_trials", "--batch-size=2") as process,
    ):
        gate.wait_until_held()  # the first of three slices is done, the second is in progress
        faults.send_signal(process, how)
        gate.open()
        assert_stopped(process, "What it expired stays expired; the next run takes the rest.")

    run = ExpiryRun.objects.get()
    assert (run.status, run.expired_count, run.accounts.count()) == (ExpiryRun.Status.INTERRUPTED, 4, 4)


def test_an_undo_told_to_stop_finishes_the_slice_in_hand(
    customers: Customers, environment: Mapping[str, str], how: signal.Signals
) -> None:
    run = services.expire_trials(path=ExpiryRun.Path.COMMAND, now=timezone.now())
    with (
        gate_before(customers.due[2]) as gate,
        started(environment, "undo_expiry", str(run.pk), "--batch-size=2", "--extend-days=7") as process,
    ):
        gate.wait_until_held()
        faults.send_signal(process, how)
        gate.open()
        assert_stopped(process, "What it put back stays on trial; run it again for the rest.")

    run.refresh_from_db()
    assert (run.status, run.undone_count, run.accounts.count()) == (ExpiryRun.Status.UNDONE, 4, 2)


def test_a_run_with_two_jobs_told_to_stop_finishes_the_slices_in_hand(
    many_customers: Customers, environment: Mapping[str, str], how: signal.Signals
) -> None:
    with (
        gate_before(*many_customers.due[:2]) as gate,
        started(environment, "expire_trials", "--batch-size=1", "--jobs=2") as process,
    ):
        gate.wait_until_held(2)
        faults.send_signal(process, how)
        gate.open()
        assert_stopped(process, "What it expired stays expired; the next run takes the rest.")

    run = ExpiryRun.objects.get()
    assert (run.status, run.jobs) == (ExpiryRun.Status.INTERRUPTED, 2)
    # Each thread may take another slice before the main thread learns of the first.
    assert 2 <= run.expired_count == run.accounts.count() < 60


def test_an_undo_with_two_jobs_told_to_stop_finishes_the_slices_in_hand(
    many_customers: Customers, environment: Mapping[str, str], how: signal.Signals
) -> None:
    run = services.expire_trials(path=ExpiryRun.Path.COMMAND, now=timezone.now())
    with (
        gate_before(*many_customers.due[:2]) as gate,
        started(environment, "undo_expiry", str(run.pk), "--batch-size=1", "--jobs=2") as process,
    ):
        gate.wait_until_held(2)
        faults.send_signal(process, how)
        gate.open()
        warning, *after = process.communicate(timeout=faults.SHOWS_WITHIN)[1].splitlines()

    assert "The rule will expire 60 of them again" in warning
    assert after == ["CommandError: Stopped by a signal. What it put back stays on trial; run it again for the rest."]
    assert process.returncode == 130
    run.refresh_from_db()
    assert 2 <= run.undone_count == 60 - run.accounts.count() < 60


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_delivery_told_to_stop_sends_the_mails_in_hand(
    mailbox: Mailbox, environment: Mapping[str, str], how: signal.Signals, jobs: int
) -> None:
    make_accounts(6, ended=timedelta(days=-0.5), now=timezone.now())
    notices.queue_notices(now=timezone.now())
    with (
        gate_before(*Notice.objects.order_by("pk")[:jobs]) as gate,
        started(
            environment, "send_trial_notices", f"--jobs={jobs}", TRIAL_NOTICES="1", EMAIL_URL=mailbox.url
        ) as process,
    ):
        gate.wait_until_held(jobs)  # while they claim their notice
        faults.send_signal(process, how)
        gate.open()
        assert_stopped(process, "What was sent is on record; the next run sends the rest.")

    assert len(mailbox.received) == Notice.objects.filter(status=Notice.Status.SENT).count() == jobs
    assert not Notice.objects.exclude(claimed=None)


@pytest.mark.parametrize(
    ("command", "lasting"),
    [
        ("check_expiry", "It changed nothing."),
        ("send_trial_notices", "What was sent is on record; the next run sends the rest."),
        ("undo_expiry 1", "What it put back stays on trial; run it again for the rest."),
        ("expire_trials --dry-run", "What it expired stays expired; the next run takes the rest."),
    ],
)
def test_a_command_that_waits_for_the_database_stops_at_once(
    environment: Mapping[str, str], how: signal.Signals, command: str, lasting: str
) -> None:
    with psycopg.connect(**connection.get_connection_params()) as owner:
        owner.execute("LOCK TABLE accounts_account, accounts_expiryrun")
        with started(environment, *command.split(), TRIAL_NOTICES="1") as process:
            wait_until_blocked("")  # whatever it asks
            faults.send_signal(process, how)
            assert_stopped(process, lasting)


def test_a_second_signal_stops_a_run_at_once(
    customers: Customers, environment: Mapping[str, str], how: signal.Signals
) -> None:
    with (
        gate_before(customers.due[2]) as gate,
        started(environment, "expire_trials", "--batch-size=2") as process,
    ):
        gate.wait_until_held()
        faults.send_signal(process, how)
        # two pending signals of one kind are delivered as one
        faults.send_signal(process, signal.SIGTERM if how == signal.SIGINT else signal.SIGINT)
        assert_stopped(process, "What it expired stays expired; the next run takes the rest.")

    run = ExpiryRun.objects.get()
    assert (run.status, run.expired_count) == (ExpiryRun.Status.INTERRUPTED, 2)
    assert Account.objects.filter(status=Account.TRIAL_EXPIRED, expiry_run=run).count() == 2


@pytest.mark.parametrize(
    ("command", "lasting"),
    [
        ("expire_trials --batch-size=1", "What it expired stays expired; the next run takes the rest."),
        ("send_trial_notices", "What was sent is on record; the next run sends the rest."),
    ],
)
def test_a_second_signal_stops_threads_at_once(
    many_customers: Customers, environment: Mapping[str, str], how: signal.Signals, command: str, lasting: str
) -> None:
    make_accounts(2, ended=timedelta(days=-0.5), now=timezone.now())
    notices.queue_notices(now=timezone.now())
    rows = many_customers.due[:2] if "expire" in command else Notice.objects.order_by("pk")[:2]
    with (
        gate_before(*rows) as gate,
        started(environment, *command.split(), "--jobs=2", TRIAL_NOTICES="1") as process,
    ):
        gate.wait_until_held(2)
        faults.send_signal(process, how)
        faults.send_signal(process, signal.SIGTERM if how == signal.SIGINT else signal.SIGINT)
        assert_stopped(process, lasting)  # while both threads wait in the database

    assert {run.status for run in ExpiryRun.objects.all()} <= {ExpiryRun.Status.INTERRUPTED}
    assert not Account.objects.filter(status=Account.TRIAL_EXPIRED, expiry_run__isnull=False)
    assert not Notice.objects.exclude(attempts=0)
