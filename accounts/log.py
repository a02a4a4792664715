"""Structured log lines. They never contain an e-mail address, nor text of the database, which could quote one."""

import json
from typing import Any


class Fields(dict[str, Any]):
    """The message of a log line: an event name and fields, such as ``expiry_run run=7 path=celery``.

    Every plain formatter writes it in this form. python-json-logger, which supports a dict as message, writes a key for
    each field. Fields that are None or empty are omitted.
    """

    def __init__(self, name: str, **fields: Any) -> None:
        super().__init__(message=name, **{key: value for key, value in fields.items() if value not in (None, "")})

    def __str__(self) -> str:
        pairs = ((key, str(value)) for key, value in self.items() if key != "message")
        quoted = (f"{key}={json.dumps(value) if set(value) & set(SPECIAL) else value}" for key, value in pairs)
        return " ".join((self["message"], *quoted))


SPECIAL = ' ="\\\n'


def one_line(text: str, *, most: int) -> str:
    """``text`` in one line of at most ``most`` characters, without control characters."""
    cut = text[: 4 * most]  # first, because the text may have millions of characters
    return " ".join("".join(letter if letter.isprintable() else " " for letter in cut).split())[:most]
