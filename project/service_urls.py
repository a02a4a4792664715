"""Parsers of the URLs of the database, the broker, the mail server and the site.

django-environ and Celery parse them too, and misread a password that is not percent-encoded. So each URL is checked
first. No message quotes a part of a URL: what looks like a host may be part of a password.
"""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

import environ

CHARACTERS = re.compile(r"(%[0-9A-Fa-f]{2}|[^\s%#])+")
ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._%-]*)(:(?P<port>[0-9]{1,5}))?")
ENCODE = (
    "Percent-encode special characters in a user name or password: "
    "@ is %40, / is %2F, ? is %3F, # is %23, ; is %3B, % is %25."
)
NOT_LIBPQ = {"assume_role", "prepare_threshold"}  # options of Django and psycopg
CERTIFICATES = {"required", "optional", "none", "CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE"}
LIKE_POSTGRES = "postgres://user:password@host:5432/name"
LIKE_SMTP = "smtp+tls://user:password@host:587"
LIKE_REDIS = "redis://:password@host:6379/0"
LIKE_PING = "https://hc-ping.com/your-uuid"
LIKE_DSN = "https://key@sentry.example.com/1"
LIKE_COLLECTOR = "http://collector.example.com:4318"
LIKE_SITE = "https://www.example.com"


def database(text: str) -> dict[str, Any]:
    """Parse the URL of a PostgreSQL or SQLite database into an entry of DATABASES.

    Raises:
        ValueError: another database, no name, or an option that the database's driver does not support.
    """
    parts = _split(text, like=f"{LIKE_POSTGRES} or sqlite:////path", schemes=("postgres", "postgresql", "sqlite"))
    if parts.scheme == "sqlite" and parts.netloc:
        raise ValueError("is for SQLite and names a host. A path begins after three slashes: sqlite:///db.sqlite3")
    config: dict[str, Any] = environ.Env.db_url_config(text)
    options = config.setdefault("OPTIONS", {})
    if parts.scheme == "sqlite":
        if options.keys() - {"timeout"} or not isinstance(options.get("timeout", 0), int):
            raise ValueError("has an option other than timeout, a whole number of seconds.")
        return config

    import psycopg
    from psycopg.conninfo import make_conninfo

    if not config["NAME"] and "service" not in options:
        raise ValueError(f"names no database. It must be like {LIKE_POSTGRES}.")
    try:
        make_conninfo("", **{name: options[name] for name in options.keys() - NOT_LIBPQ})
    except psycopg.Error:
        raise ValueError("has an option that PostgreSQL's client library does not know.") from None
    return config


def email(text: str) -> dict[str, Any]:
    """Parse the URL of a mail server into Django's EMAIL_* settings."""
    parts = _split(text, like=LIKE_SMTP, schemes=environ.Env.EMAIL_SCHEMES)
    if parts.query:
        raise ValueError(f"has options, and none is known. It must be like {LIKE_SMTP}.")
    if parts.scheme.startswith("smtp") and not parts.hostname:
        raise ValueError(f"names no host. It must be like {LIKE_SMTP}.")
    config: dict[str, Any] = environ.Env.email_url_config(text)
    return config


def site(text: str) -> str:
    """Parse the public URL of the site."""
    return _web(text, like=LIKE_SITE)


def ping(text: str) -> str:
    """Parse the URL of a monitor, which is pinged."""
    return _web(text, like=LIKE_PING)


def _web(text: str, *, like: str) -> str:
    if not _split(text, like=like, schemes=("http", "https")).hostname:
        raise ValueError(f"names no host. It must be like {like}.")
    return text


def sentry(text: str) -> str:
    """Parse the DSN of a Sentry project."""
    parts = _split(text, like=LIKE_DSN, schemes=("http", "https"))
    if not (parts.username and parts.hostname and re.fullmatch(r"/(.+/)?[0-9]+", parts.path)):
        raise ValueError(f"is not like {LIKE_DSN}: a key, a host and the number of a project.")
    return text


def collector(text: str) -> str:
    """Parse the URL of a collector of traces."""
    return _web(text, like=LIKE_COLLECTOR)


def broker(text: str) -> str:
    """Parse the URL of a broker that Celery supports; several, separated by ``;``, for failover."""
    return _known_to_celery(text, "kombu.transport:TRANSPORT_ALIASES")


def result_backend(text: str) -> str:
    """Parse the URL of a result backend that Celery supports."""
    return _known_to_celery(text, "celery.app.backends:BACKEND_ALIASES")


def _known_to_celery(text: str, classes: str) -> str:
    for part in text.split(";"):
        parts = _split(part, like=LIKE_REDIS)
        if parts.scheme in {"redis", "rediss"}:  # always installed; importing kombu here would slow down every command
            if not re.fullmatch(r"/?[0-9]*", parts.path):
                raise ValueError(f"has a path that is no number of a database. It must be like {LIKE_REDIS}.")
            if not CERTIFICATES.issuperset(parse_qs(parts.query).get("ssl_cert_reqs", [])):
                raise ValueError(
                    "has an ssl_cert_reqs other than required, optional and none. Without it, required holds."
                )
            continue
        if parts.scheme == "sentinel":
            raise ValueError(f"is for Redis Sentinel, which is not supported. Give one address: {LIKE_REDIS}.")
        from kombu.utils.imports import symbol_by_name

        try:
            symbol_by_name(symbol_by_name(classes)[parts.scheme.partition("+")[0]])
        except (KeyError, ImportError):
            raise ValueError(f"has a scheme that Celery lacks here. It must be like {LIKE_REDIS}.") from None
    return text


def _split(text: str, *, like: str, schemes: Iterable[str] = ()) -> SplitResult:
    """Split a URL into its parts.

    Raises:
        ValueError: another scheme, or signs of an unencoded password, such as an @ in the path.
    """
    try:
        parts = urlsplit(text)
        _ = parse_qs(parts.query, strict_parsing=True) if parts.query else None
    except ValueError:
        raise ValueError(f"is not like {like}. {ENCODE}") from None
    user, _, hosts = parts.netloc.rpartition("@")
    addresses = [ADDRESS.fullmatch(host) for host in hosts.split(",")]
    if (
        not text.startswith(f"{parts.scheme}://")
        or (schemes and parts.scheme not in schemes)
        or not CHARACTERS.fullmatch(text)
        or "@" in user + parts.path + parts.query
        or not all(address and int(address["port"] or 0) < 65536 for address in addresses)
    ):
        raise ValueError(f"is not like {like}. {ENCODE}")
    return parts
