"""Gunicorn's settings: ``gunicorn --config project/gunicorn.py project.wsgi``."""

import os
import socket
import sys
from contextlib import suppress
from threading import Timer
from typing import Any

from django.conf import settings
from gunicorn import glogging
from gunicorn.workers.gthread import ThreadWorker

from project.start import one_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

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


class Logger(glogging.Logger):  # type: ignore[misc]
    """Gunicorn's log, which obeys LOG_FORMAT=json: its own lines and, where it is on, the access log."""

    def setup(self, cfg: Any) -> None:
        """Add the handlers; called at the start and at each reload."""
        with one_line():
            in_json = settings.LOG_FORMAT == "json"
        super().setup(cfg)
        if in_json:
            from project.logging import JsonLines, JsonStream

            for handler in (*self.error_log.handlers, *self.access_log.handlers):
                handler.setFormatter(JsonLines())
                if isinstance(handler.stream, JsonStream):
                    handler.setStream(sys.__stderr__)


logger_class = Logger
