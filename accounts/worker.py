"""What a Celery worker does with our messages beyond what Celery does by itself. Imported by workers only."""

from typing import Any

from celery.worker.request import Request as CeleryRequest


class Request(CeleryRequest):
    """A message in work that, when the broker cannot be told that it is done, makes the worker connect anew.

    By itself Celery logs "Couldn't ack" and goes on. But the message still counts as one that the worker holds; when it
    holds as many as it may, which with one process is one, the worker lives, answers pings, and takes no other message
    ever again. A new connection starts with a clean count, and what was not acknowledged is handed out again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The errors that are only logged when they happen on acknowledging: none. In the worker's event loop, where
        # messages are acknowledged, such an error is what tells it that the connection is lost.
        super().__init__(*args, **{**kwargs, "connection_errors": ()})
