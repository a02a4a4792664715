"""What is removed from everything that leaves for Sentry or a collector of traces."""

import re
from typing import Any

ADDRESS = re.compile(r"[^\s@<>()\[\]{},;:'\"=&?/%]+(@|%40)[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
"""An e-mail address, as in text or percent-encoded as in a URL."""


def without_addresses(value: Any) -> Any:
    """The value, with every e-mail address in it replaced; looks into mappings, lists and tuples."""
    if isinstance(value, str):
        return ADDRESS.sub("(address)", value)
    if isinstance(value, dict):
        return {without_addresses(key): without_addresses(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_addresses(item) for item in value)
    return value


def is_outcome(kind: type[BaseException] | None) -> bool:
    """Whether an exception is one of this project's own, such as RunRefused: an outcome that the ledger tells of."""
    return kind is not None and kind.__module__.startswith("accounts.")
