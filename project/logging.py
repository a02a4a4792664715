"""The JSON format of log lines, and of everything else that a process writes to stderr."""

import io
import logging
import os
import socket
import sys
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

TRACEBACK = "Traceback (most recent call last):"


class JsonLines(JsonFormatter):
    """Writes a record as a line of JSON: time in UTC, host, level, logger, message, and the fields of a structured one.

    A traceback is the field ``exc_info``. Omits what libraries attach to a record, such as Django's request, whose URL
    may name a customer.
    """

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Write only these fields."""
        log_data["timestamp"] = datetime.fromtimestamp(record.created, tz=UTC)
        log_data["host"] = socket.gethostname()  # one collector has the logs of several
        log_data["level"] = record.levelname
        log_data["logger"] = record.name
        log_data["message"] = record.message
        log_data.update(message_dict)


def as_json(name: str, level: int, text: str, **exception: Any) -> str:
    """``text`` as a line of JSON, with ``exc_info`` or ``exc_text`` of a LogRecord."""
    record = logging.LogRecord(name, level, "", 0, text, None, exception.get("exc_info"))
    record.exc_text = exception.get("exc_text")
    return JsonLines().format(record) + "\n"


class JsonStream(io.TextIOBase):
    """Takes the place of stderr or stdout, and writes each line that is printed there as a line of JSON.

    So do not only log lines become JSON, but also the error of a command, which Django prints, that of an option
    (argparse), the message of ``sys.exit``, and what a library prints. Lines of a traceback stay together.
    """

    def __init__(self, stream: TextIO, *, name: str, level: int) -> None:
        """Args: stream: what to write to. name, level: the logger and the level that the lines state."""
        self.stream = stream
        self.name = name
        self.level = level
        self.unwritten = threading.local()  # each thread completes its own lines

    def write(self, text: str) -> int:
        """Write the complete lines, and keep the rest for the next call."""
        self.unwritten.text = getattr(self.unwritten, "text", "") + text
        last = self.unwritten.text.rstrip("\n").rpartition("\n")[2]
        in_traceback = TRACEBACK in self.unwritten.text and (last == TRACEBACK or last.startswith(" "))
        if self.unwritten.text.endswith("\n") and not in_traceback:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Write what is kept."""
        text = getattr(self.unwritten, "text", "").strip("\n")
        self.unwritten.text = ""
        if TRACEBACK in text:
            self.stream.write(as_json(self.name, self.level, text.rpartition("\n")[2], exc_text=text))
        else:
            for line in filter(str.strip, text.split("\n")):
                self.stream.write(as_json(self.name, self.level, line))
        self.stream.flush()

    def fileno(self) -> int:
        """Return the number of the stream, for a subprocess that inherits it."""
        return self.stream.fileno()


def write_json() -> None:
    """Write everything on stderr as JSON from now on: what is printed, warnings, and uncaught exceptions."""
    if isinstance(sys.stderr, JsonStream) or sys.__stderr__ is None:
        return
    sys.stderr = JsonStream(sys.__stderr__, name="stderr", level=logging.ERROR)
    sys.excepthook = log_uncaught
    threading.excepthook = lambda thread: sys.excepthook(
        thread.exc_type, thread.exc_value or thread.exc_type(), thread.exc_traceback
    )
    logging.captureWarnings(True)


def write_json_on_stdout() -> None:
    """The same for stdout: in worker and beat, where it is a log. That of a command is for whoever runs it."""
    if not isinstance(sys.stdout, JsonStream) and sys.__stdout__ is not None:
        sys.stdout = JsonStream(sys.__stdout__, name="stdout", level=logging.INFO)


def log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write an uncaught exception as one line. A ``sys.excepthook``."""
    message = "".join(traceback.format_exception_only(error)).strip()
    if sys.__stderr__ is not None:
        sys.__stderr__.write(as_json("stderr", logging.CRITICAL, message, exc_info=(kind, error, trace)))
        sys.__stderr__.flush()


def say_from_signal_handler(message: str, *_: Any) -> None:
    """Write a line of JSON past all buffers and locks, which the interrupted code may hold."""
    os.write(2, as_json("celery.worker", logging.INFO, message).encode())
