"""The environment of the demo, the comparison and the tests: of the machine's variables, only those listed here."""

import os
from fnmatch import fnmatchcase

INHERITED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHON*", "XDG_*"),
    *("LANG", "LANGUAGE", "LC_*", "TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"),
)
"""What an interpreter and a terminal need. An allowlist, because a denylist would miss new settings."""


def fixed(*, inherit: tuple[str, ...] = (), **stated: str) -> dict[str, str]:
    """The environment of a process that reads no ``.env`` file and only the settings in ``stated``.

    Args:
        inherit: names, or patterns of names, of more variables to inherit.
    """
    keep = (*INHERITED, *inherit)
    inherited = {
        name: value for name, value in os.environ.items() if any(fnmatchcase(name, pattern) for pattern in keep)
    }
    return {**inherited, "DJANGO_ENV_FILE": os.devnull, "DJANGO_SETTINGS_MODULE": "project.settings", **stated}


def isolate(*, inherit: tuple[str, ...] = (), **stated: str) -> None:
    """Replace the environment of this process and its children by ``fixed``; call it before the settings load."""
    environment = fixed(inherit=inherit, **stated)
    os.environ.clear()
    os.environ.update(environment)
