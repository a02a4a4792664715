"""The heartbeat of worker and beat: their main process says every few seconds that it works, and what it does.

The file HEARTBEAT_FILE tells both: its age is for liveness, its text for readiness. A probe reads it in a millisecond,
where ``celery inspect ping`` starts Python and Django and asks the broker: while the broker is away that ping fails for
every worker, and a supervisor that kills what does not answer kills them all. systemd's watchdog is told the same.
"""

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from billiard import current_process
from celery import bootsteps
from celery.app import amqp
from django.conf import settings
from kombu import Connection

SECONDS = 5
"""Between two heartbeats. With a broker that accepts connections and answers nothing, up to 35 seconds were seen."""

WORKS = "connected"
WAITS = "waits for the broker"


def write(state: str) -> None:
    """Write ``state`` to HEARTBEAT_FILE, and tell systemd where it listens.

    Only the word of the main process and its main thread counts: the others go on when it hangs. A file that cannot be
    written grows old, which the probe sees; that is no reason to end the process.
    """
    if threading.current_thread() is not threading.main_thread() or current_process().name != "MainProcess":
        return
    if settings.HEARTBEAT_FILE:
        with suppress(OSError):
            Path(settings.HEARTBEAT_FILE).write_text(f"{state}\n")
    if address := os.environ.get("NOTIFY_SOCKET"):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            # sd_notify(3): a leading @ stands for the NUL of an abstract address.
            message, to = f"WATCHDOG=1\nSTATUS={state}".encode(), address.replace("@", "\0", 1)
            systemd.sendto(message, socket.MSG_DONTWAIT, to)


class WorkerStep(bootsteps.StartStopStep):
    """Writes from the worker's event loop, which runs while the worker is connected."""

    requires = ("celery.worker.components:Timer",)

    def start(self, worker: Any) -> None:
        """Begin."""
        write(WAITS)
        worker.timer.call_repeatedly(SECONDS, write, (WORKS,))


class WaitingConnection(Connection):
    """Writes whenever it waits for the broker, when the event loop of the worker and beat's own loop stand still."""

    # Not the public ensure_connection, which is this one: a publisher that retries comes here directly.
    def _ensure_connection(self, *args: Any, **options: Any) -> Any:
        callback = options.get("callback")

        def wait() -> None:
            write(WAITS)
            if callback:
                callback()

        return super()._ensure_connection(*args, **{**options, "callback": wait})


class AMQP(amqp.AMQP):
    """What the Celery app makes its connections of."""

    Connection = WaitingConnection
