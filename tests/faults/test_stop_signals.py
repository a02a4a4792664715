"""Ctrl-C and SIGTERM for every command: it finishes its current slice, leaves the rest, and prints one line."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg
import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone

from accounts import services
from accounts.models import Account, ExpiryRun
from tests.faults.conftest import Customers, gate_before
from tests.locks import wait_until_blocked

pytestmark = [
    pytest.mark.faults,
    pytest.mark.postgres,
    pytest.mark.django_db(transaction=True),
    pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM]),
]


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
    _, errors = process.communicate(timeout=30)
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
        process.send_signal(how)
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
        process.send_signal(how)
        gate.open()
        assert_stopped(process, "What it put back stays on trial; run it again for the rest.")

    run.refresh_from_db()
    assert (run.status, run.undone_count, run.accounts.count()) == (ExpiryRun.Status.UNDONE, 4, 2)


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
            process.send_signal(how)
            assert_stopped(process, lasting)


def test_a_second_signal_stops_a_run_at_once(
    customers: Customers, environment: Mapping[str, str], how: signal.Signals
) -> None:
    with (
        gate_before(customers.due[2]) as gate,
        started(environment, "expire_trials", "--batch-size=2") as process,
    ):
        gate.wait_until_held()
        process.send_signal(how)
        process.send_signal(
            signal.SIGTERM if how == signal.SIGINT else signal.SIGINT
        )  # two pending signals of one kind are delivered as one
        assert_stopped(process, "What it expired stays expired; the next run takes the rest.")

    run = ExpiryRun.objects.get()
    assert (run.status, run.expired_count) == (ExpiryRun.Status.INTERRUPTED, 2)
    assert Account.objects.filter(status=Account.TRIAL_EXPIRED, expiry_run=run).count() == 2
