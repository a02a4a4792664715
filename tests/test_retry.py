"""A transaction that is repeated: how often, and after which errors."""

import time
from collections.abc import Callable

import pytest
from django.db import DataError, OperationalError, connection, transaction

from accounts.retry import PAUSES, with_retries

pytestmark = pytest.mark.django_db(transaction=True)


class DeadlockError(Exception):
    """What psycopg raises after a deadlock."""

    sqlstate = "40P01"


def failing(error: Exception, *, times: int, cause: Exception | None = None) -> Callable[[], str]:
    """A change that fails so many times, and then is done."""
    left = [error] * times

    def change() -> str:
        if left:
            raise left.pop() from cause
        return "done"

    return change


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    connection.ensure_connection()
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.mark.parametrize("times", [0, 1, len(PAUSES)])
def test_a_deadlock_is_repeated_after_longer_and_longer_pauses(pauses: list[float], times: int) -> None:
    assert with_retries(failing(OperationalError("deadlock"), times=times, cause=DeadlockError())) == "done"

    assert pauses == list(PAUSES[:times])


def test_what_fails_every_time_is_raised(pauses: list[float]) -> None:
    with pytest.raises(OperationalError, match="deadlock"):
        with_retries(failing(OperationalError("deadlock"), times=len(PAUSES) + 1, cause=DeadlockError()))


@pytest.mark.parametrize("error", [OperationalError("out of memory"), DataError("too long")])
def test_an_error_that_repeating_does_not_mend_is_raised_at_once(pauses: list[float], error: Exception) -> None:
    with pytest.raises(type(error)):
        with_retries(failing(error, times=1))

    assert pauses == []


def test_a_part_of_a_transaction_is_not_repeated(pauses: list[float]) -> None:
    with pytest.raises(OperationalError, match="deadlock"), transaction.atomic():
        with_retries(failing(OperationalError("deadlock"), times=1, cause=DeadlockError()))

    assert pauses == []


@pytest.mark.postgres
def test_a_lost_connection_is_opened_again(pauses: list[float]) -> None:
    def change() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (pid,) = cursor.fetchone()
            if not pauses:
                pauses.append(-1)
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return int(pid)

    assert with_retries(change) > 0
    assert pauses == [-1, 0]
