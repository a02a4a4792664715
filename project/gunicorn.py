"""Gunicorn's settings, wherever it runs: ``gunicorn --config project/gunicorn.py project.wsgi``."""

import socket
from contextlib import suppress
from threading import Timer
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

preload_app = True  # before there is a worker: a wrong setting ends gunicorn with one line, not each worker with many
threads = 8  # of each process; each holds a connection to the database


class Worker(ThreadWorker):  # type: ignore[misc]
    """A process with threads, in which a client has a limited time to send its request.

    Gunicorn's own (27.0) waits for the second half of a request without limit: as many half-sent requests as there are
    threads stop it for good. Its documentation leaves that to a buffering proxy, and not every installation has one.
    """

    REQUEST_SECONDS = 10

    def handle(self, conn: Any) -> Any:
        """Read and answer one request; what has not arrived in time is taken as never sent."""
        cut_off = Timer(self.REQUEST_SECONDS, stop_reading, [conn.sock])
        cut_off.daemon = True
        cut_off.start()
        try:
            return super().handle(conn)
        finally:
            cut_off.cancel()


def stop_reading(connection: socket.socket) -> None:
    """End the waiting for more of a request. An answer that is being sent is not disturbed."""
    with suppress(OSError):  # closed already
        connection.shutdown(socket.SHUT_RD)


worker_class = Worker
