"""Log lines made of fields. They never hold an e-mail address, nor words of the database, which could quote one."""

import json
from typing import Any


class Fields(dict[str, Any]):
    """The message of a log line: its name, and fields that say the rest, such as ``expiry_run run=7 path=celery``.

    Written so by every plain formatter. python-json-logger, which knows a message that is a dict, makes a key of each
    field. Fields that are None or empty are left out.
    """

    def __init__(self, name: str, **fields: Any) -> None:
        super().__init__(message=name, **{key: value for key, value in fields.items() if value not in (None, "")})

    def __str__(self) -> str:
        pairs = ((key, str(value)) for key, value in self.items() if key != "message")
        quoted = (f"{key}={json.dumps(value) if set(value) & set(SPECIAL) else value}" for key, value in pairs)
        return " ".join((self["message"], *quoted))


SPECIAL = ' ="\\\n'


def one_line(text: str, *, most: int) -> str:
    """``text`` in one line of ``most`` characters at most, without control characters: fit to be stored and shown."""
    cut = text[: 4 * most]  # before it is worked on: it may have millions
    return " ".join("".join(letter if letter.isprintable() else " " for letter in cut).split())[:most]
