"""What a Celery worker does with our messages beyond what Celery does by itself. Imported by workers only."""

from celery.worker.request import Request as CeleryRequest
from kombu.asynchronous import get_event_loop


class Request(CeleryRequest):
    """A message in work that, when the broker cannot be told that it is done, makes the worker connect anew.

    Celery logs "Couldn't ack" and goes on. But the message still counts as one that the worker holds; when it holds as
    many as it may, which with one process is one, the worker lives, answers pings, and never takes another message.
    A new connection starts with a clean count, and what was not acknowledged is handed out again, which costs nothing.
    """

    def acknowledge(self) -> None:
        """Acknowledge the message, once."""
        super().acknowledge()
        if not self.message.acknowledged and (loop := get_event_loop()):
            loop.call_soon(self._reconnect)

    def _reconnect(self) -> None:
        # Raised in the worker's event loop, where a lost connection is noticed.
        raise ConnectionError(f"message {self.id} could not be acknowledged")
