"""The worker's consumer and request, which survive malformed messages and failed acknowledgements.

Imported by workers only. The tasks name ``Request``; CELERY_WORKER_CONSUMER names ``Consumer``.
"""

import logging
from collections.abc import Callable
from queue import Empty
from typing import Any

from celery.exceptions import InvalidTaskError, NotRegistered, WorkerShutdown
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.request import Request as CeleryRequest

from accounts.log import Fields

logger = logging.getLogger(__name__)

LONGEST_TIME_LIMIT = 10**9
"""The longest time limit in seconds that a message may request; the worker's timer overflows with more."""


class Consumer(CeleryConsumer):
    """Rejects a malformed message and logs one line, where Celery's own consumer ends the worker (celery issue 7975).

    Celery's own consumer also requeues such a message when it ends, so the worker ends again at every start. It logs
    the messages that it does reject with their whole body, which may name a customer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Begin without gossip and mingle, by which workers share what nothing here needs.

        With them Celery logs six tracebacks whenever the broker restarts.
        """
        super().__init__(*args, **kwargs, without_gossip=True, without_mingle=True)

    connection_errors: tuple[type[Exception], ...]
    channel_errors: tuple[type[Exception], ...]

    @property
    def _broker_errors(self) -> tuple[type[Exception], ...]:
        """Errors that no message causes: the queue is empty, the connection is lost, the broker refuses a command."""
        return (Empty, *self.connection_errors, *self.channel_errors)

    _received: tuple[bytes, bytes] = b"", b""

    def start(self) -> None:
        """Consume until stopped. A broker that refuses a command, such as a full Redis, ends the worker in one line."""
        try:
            super().start()
        except self.channel_errors as refusal:
            why = str(refusal).rpartition(" caused error: ")[2]  # without the command, which may contain a message
            logger.critical("The broker refuses to work with this worker: %s", why)
            raise WorkerShutdown(1) from None

    def connect(self) -> Any:
        """Connect, and guard the reading from Redis, where the envelope of a message can be malformed too."""
        connection: Any = super().connect()
        if connection.transport.driver_type == "redis":
            channel = connection.default_channel
            channel.client.set_response_callback("BRPOP", self._note)
            read = channel.handlers["BRPOP"]
            channel.handlers["BRPOP"] = lambda: self._read_or_reject(read)
        return connection

    def _note(self, reply: list[bytes] | None) -> tuple[bytes, bytes] | None:
        if not reply:
            return None
        self._received = reply[0], reply[1]
        return self._received

    def _read_or_reject(self, read: Callable[[], Any]) -> Any:
        from redis.exceptions import DataError  # here, because a worker of another broker may lack it

        try:
            return read()
        except (KeyError, DataError) as error:  # no envelope, or a delivery tag that is not a string
            _log_rejection(error, *self._received)
        except self._broker_errors:
            raise
        except Exception as error:  # a message may contain anything
            _log_rejection(error, *self._received)

    def create_task_handler(self, *args: Any) -> Callable[[Any], None]:
        """Return the handler of a message whose envelope could be read."""
        handle = super().create_task_handler(*args)

        def handle_or_reject(message: Any) -> None:
            try:
                _check(message)
                handle(message)
            except KeyError as error:  # kombu lists it among the connection errors of Redis
                self.on_decode_error(message, error)
            except self._broker_errors:
                raise
            except Exception as error:
                self.on_decode_error(message, error)

        return handle_or_reject

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Reject the message."""
        _log_rejection(exc, self._received[0] or message.delivery_info.get("routing_key"), message.body)
        if not message.acknowledged:
            message.reject()

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Reject the message."""
        raise exc

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Reject the message."""
        raise NotRegistered(message.headers.get("task"))

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Reject the message."""
        raise InvalidTaskError


def _check(message: Any) -> None:
    """Raise on what Celery reads only when it starts or times the task, outside of ``handle_or_reject``."""
    body, headers = message.payload, message.headers
    if isinstance(body, dict):  # protocol 1
        args, kwargs, embed = body.get("args", []), body.get("kwargs", {}), {}
    else:
        args, kwargs, embed = body
    soft, hard = headers.get("timelimit") or (None, None)
    stamps = headers.get("stamped_headers") or []
    if not (
        isinstance(args, list)
        and isinstance(kwargs, dict)
        and isinstance(embed or {}, dict)
        and isinstance(headers.get("stamps") or {}, dict)
        and all(isinstance(stamp, str) for stamp in stamps)
        and all(limit is None or 0 <= limit < LONGEST_TIME_LIMIT for limit in (soft, hard))
    ):
        raise InvalidTaskError


def _log_rejection(error: Exception, queue: Any, content: Any) -> None:
    # Without the body of the message and the text of the error, which may quote it.
    fields = Fields(
        "message_rejected",
        queue=queue.decode(errors="replace") if isinstance(queue, bytes) else queue,
        length=len(content or ""),
        error=type(error).__name__,
        task=repr(error.args[0])[:100] if isinstance(error, NotRegistered) else None,
    )
    logger.error(fields)


class Request(CeleryRequest):
    """A message being processed, which makes the worker reconnect when it cannot be acknowledged.

    Celery's own request logs "Couldn't ack" and continues. But the message still counts towards the prefetch limit.
    When the limit is reached, which with one process takes one message, the worker answers pings and never receives
    another message. A new connection starts with an empty count, and the broker redelivers what was not acknowledged.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Celery only logs these errors when they occur during an acknowledgement. None are listed, so that the error
        # reaches the worker's event loop, which then reconnects.
        super().__init__(*args, **{**kwargs, "connection_errors": ()})
