"""How a log line is written. Which lines there are, and their fields, is the application's."""

import logging
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter


class JsonLines(JsonFormatter):
    """A line of JSON for each record: time in UTC, level, logger, message, and the fields of a message made of fields.

    What libraries attach to a record stays out, such as Django's request, whose URL may name a customer.
    """

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Write just these."""
        log_data["timestamp"] = datetime.fromtimestamp(record.created, tz=UTC)
        log_data["level"] = record.levelname
        log_data["logger"] = record.name
        log_data["message"] = record.message
        log_data.update(message_dict)
