"""Gunicorn's settings: ``gunicorn --config project/gunicorn.py project.wsgi``."""

import socket
from contextlib import suppress
from threading import Timer
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

preload_app = True  # so that a wrong setting ends gunicorn with one line, and not each worker with a traceback
threads = 8  # for each process; each thread holds a connection to the database


class Worker(ThreadWorker):  # type: ignore[misc]
    """A worker process with threads that limits the time in which a client must send its request.

    Gunicorn's own worker (27.0) waits for the rest of a request without limit, so as many half-sent requests as there
    are threads block it forever. Its documentation recommends a buffering proxy, which not every installation has.
    """

    REQUEST_SECONDS = 10

    def handle(self, conn: Any) -> Any:
        """Read and answer one request, and stop reading after ``REQUEST_SECONDS``."""
        cut_off = Timer(self.REQUEST_SECONDS, stop_reading, [conn.sock])
        cut_off.daemon = True
        cut_off.start()
        try:
            return super().handle(conn)
        finally:
            cut_off.cancel()


def stop_reading(connection: socket.socket) -> None:
    """End the wait for the rest of a request. A response that is being sent is not affected."""
    with suppress(OSError):  # already closed
        connection.shutdown(socket.SHUT_RD)


worker_class = Worker
