"""The number of frames between an entry point and the UPDATE, and the one place of the faults.

``make lint`` checks the direction of imports.
"""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from accounts import tasks
from accounts.models import Account, ExpiryRun
from tests.factories import make_accounts

pytestmark = pytest.mark.django_db


@contextmanager
def frames_at_the_update(face: str) -> Iterator[list[str]]:
    """The project's functions on the stack from ``face`` to the UPDATE of accounts in the block."""
    seen: list[str] = []

    def look(execute: Any, sql: str, *more: Any) -> Any:
        if sql.startswith('UPDATE "accounts_account"'):
            ours = [frame.function for frame in inspect.stack() if "/accounts/" in frame.filename]
            outermost = len(ours) - ours[::-1].index(face)
            seen.extend(reversed(ours[:outermost]))
        return execute(sql, *more)

    make_accounts(1, ended=timedelta(days=10), now=timezone.now())
    with connection.execute_wrapper(look):
        yield seen


def test_from_handle_to_the_update_are_at_most_seven_frames() -> None:
    with frames_at_the_update("handle") as frames:
        call_command("expire_trials", verbosity=0)

    assert frames == ["handle", "expire_trials", "run_here", "on_each", "_outcomes", "on", "_attempt"]


def test_from_the_slice_task_to_the_update_are_at_most_five_frames() -> None:
    run = ExpiryRun.objects.create(path=ExpiryRun.Path.CELERY, as_of=timezone.now())

    with frames_at_the_update("expire_slice") as frames:
        account = Account.objects.get()
        tasks.expire_slice.run(run_id=run.pk, after=None, upto=[account.trial_ends_at.isoformat(), account.pk])

    assert frames == ["expire_slice", "expire_slice", "on", "_attempt"]


def test_the_tests_of_faults_inflict_them_through_one_module() -> None:
    by_hand = re.compile(r"os\.kill|(?<!faults)\.(?:send_signal|terminate|suspend|config_set)\(")
    tests = sorted((Path(__file__).parent / "faults").glob("test_*.py"))

    assert tests
    assert [test.name for test in tests if by_hand.search(test.read_text())] == []
