"""The environment of the demo, the comparison and the tests: of the machine's own, only what is listed here."""

import os
from fnmatch import fnmatchcase

INHERITED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHON*", "XDG_*"),
    *("LANG", "LANGUAGE", "LC_*", "TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"),
)
"""What an interpreter and a terminal need. A list of what to keep: a list of what to drop misses the next setting."""


def fixed(*, inherit: tuple[str, ...] = (), **stated: str) -> dict[str, str]:
    """The environment of a process that reads no ``.env`` file and no setting but those ``stated``.

    Args:
        inherit: names, or patterns of names, of more variables to keep.
    """
    keep = (*INHERITED, *inherit)
    inherited = {
        name: value for name, value in os.environ.items() if any(fnmatchcase(name, pattern) for pattern in keep)
    }
    return {**inherited, "DJANGO_ENV_FILE": os.devnull, "DJANGO_SETTINGS_MODULE": "project.settings", **stated}


def isolate(*, inherit: tuple[str, ...] = (), **stated: str) -> None:
    """Replace the environment of this process, and so of those it starts, by ``fixed``; before the settings load."""
    environment = fixed(inherit=inherit, **stated)
    os.environ.clear()
    os.environ.update(environment)
