"""Reads settings from the environment, strictly: an invalid value stops the start and is never guessed.

A parser takes the text of a variable and returns its value. For invalid text it raises ValueError, whose message
completes a sentence that begins with the variable's name. The parsers of URLs are in service_urls.py.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import TypeVar

import environ
from django.core.exceptions import ImproperlyConfigured

T = TypeVar("T")
Default = TypeVar("Default")

# No comment after a value: Docker Compose, which reads the same file, would remove it, and django-environ would not.
ASSIGNMENT = re.compile(
    r"""(export )?[A-Za-z_][A-Za-z0-9_]*=('[^'\0]*'|"([^"\\\0]|\\[^\0])*"|(?!['"])((?!\s\#)[^\0])*)"""
)
BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
HOST = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*)"
PORT = r"(:[0-9]{1,5})"


def read_file(path: Path, *, must_exist: bool) -> None:
    """Add the assignments of a .env file to the environment; variables that are already set do not change.

    Raises:
        ImproperlyConfigured: the file cannot be read or parsed; the message names the line and does not quote it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if not must_exist:
            return
        raise ImproperlyConfigured(f"{path} does not exist. Correct DJANGO_ENV_FILE, which names it.") from None
    except OSError as error:
        raise ImproperlyConfigured(f"{path} cannot be read: {error.strerror}.") from None
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ImproperlyConfigured(f"{path}, line {number}: not UTF-8. Save the file as UTF-8.") from None
    assignments = []
    for number, line in enumerate(lines, 1):
        if ASSIGNMENT.fullmatch(line):
            assignments.append(line)
        elif line.strip() and not line.lstrip().startswith("#"):
            raise ImproperlyConfigured(
                f"{path}, line {number}: not NAME=value, NAME='value', NAME=\"value\" or a # comment of its own."
            )
    environ.Env.read_env(StringIO("\n".join(assignments)))


class Environment:
    """The environment variables of the settings. An empty one counts as not set."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables

    def read(self, name: str, parse: Callable[[str], T], default: Default, *, secret: bool = False) -> T | Default:
        """Parse the variable ``name``, or return ``default`` when it is not set.

        Raises:
            ImproperlyConfigured: names the variable, quotes it unless it is ``secret``, and says what it must be.
        """
        text = self.variables.get(name)
        return self._parse(name, text, parse, secret=secret) if text else default

    def url(self, name: str, parse: Callable[[str], T], default: str) -> T:
        """Parse a URL, which no message quotes because it may contain a password. The default is parsed too."""
        return self._parse(name, self.variables.get(name) or default, parse, secret=True)

    def require(self, name: str, why: str) -> None:
        """Raise ImproperlyConfigured with the reason ``why`` when ``name`` is not set."""
        if not self.variables.get(name):
            raise ImproperlyConfigured(f"{name} is not set. {why} (DJANGO_DEBUG=1 is for development only.)")

    @staticmethod
    def _parse(name: str, text: str, parse: Callable[[str], T], *, secret: bool) -> T:
        try:
            return parse(text.strip())
        except ValueError as error:
            shown = name if secret else f"{name}={text[:80]!r}"
            raise ImproperlyConfigured(f"{shown} {error}") from None


def boolean(text: str) -> bool:
    """Parse 1, true, yes or on; 0, false, no or off."""
    try:
        return BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError("is neither 1 nor 0.") from None


def whole(text: str) -> int:
    """Parse a whole number; the caller checks its bounds."""
    if not re.fullmatch(r"-?[0-9]{1,40}", text):
        raise ValueError("is not a whole number.")
    return int(text)


def within(lowest: int, highest: int) -> Callable[[str], int]:
    """Parse a whole number within bounds."""

    def parse(text: str) -> int:
        if not lowest <= whole(text) <= highest:
            raise ValueError(f"is not from {lowest} to {highest}.")
        return whole(text)

    return parse


def decimal(text: str) -> float:
    """Parse a number such as 3 or 1.5, without unit, sign or exponent."""
    if not re.fullmatch(r"[0-9]{1,40}(\.[0-9]{1,40})?", text):
        raise ValueError("is not a number such as 3 or 1.5.")
    return float(text)


def moment(text: str) -> datetime:
    """Parse a date and time with a time zone, in ISO 8601."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        value = None
    if value is None or value.tzinfo is None:
        raise ValueError("is not a date and time with its time zone, such as 2026-03-01T14:00:00Z.")
    return value


def one_of(*choices: str) -> Callable[[str], str]:
    """Parse one of these words, in upper or lower case."""

    def parse(text: str) -> str:
        for choice in choices:
            if choice.lower() == text.lower():
                return choice
        raise ValueError(f"is none of {', '.join(choices)}.")

    return parse


def listed(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Parse values separated by commas; blanks around them are ignored."""

    def parse_each(text: str) -> list[T]:
        values = []
        for item in (item.strip() for item in text.split(",")):
            if not item:
                raise ValueError("has an empty item. Separate items by one comma each.")
            try:
                values.append(parse(item))
            except ValueError as error:
                raise ValueError(f"has the item {item[:80]!r}, which {error}") from None
        return values

    return parse_each


def host(text: str) -> str:
    """Parse a host of ALLOWED_HOSTS: a name, an address, ``.example.com`` for a domain and its subdomains, or ``*``."""
    if text != "*" and not re.fullmatch(rf"\.?{HOST}", text):
        raise ValueError("is not a host such as trials.example.com, without scheme, port, path and blanks.")
    return text


def origin(text: str) -> str:
    """Parse an origin: a scheme and a host, whose first label may be ``*``."""
    if not re.fullmatch(rf"https?://(\*\.)?{HOST}{PORT}?", text):
        raise ValueError("is not an origin such as https://www.example.com or https://*.example.com, without path.")
    return text


def signing_key(text: str) -> str:
    """Parse a secret key for production, with the limits of Django's ``check --deploy``.

    Raises:
        ValueError: it is too short, has too few different characters, or is a placeholder.
    """
    generate = "Generate one: python -c 'import secrets; print(secrets.token_urlsafe(50))'"
    if len(text) < 50 or "change-me" in text or text.startswith("django-insecure-"):
        raise ValueError(f"is a placeholder or shorter than 50 characters. {generate}")
    if len(set(text)) < 5:
        raise ValueError(f"is made of fewer than 5 different characters. {generate}")
    return text
