"""Wrong settings stop the start, with one line on stderr that names the setting and quotes no secret."""

import os
import re
import runpy
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from _pytest.mark.structures import ParameterSet
from django.conf import settings as django_settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings
from pytest_django import Settings

from accounts import defaults
from accounts.base_tasks import BaseTask
from accounts.checks import RULES, require_valid_settings
from project import environment
from project.celery import app
from tests.processes import manage, python

PRODUCTION = {
    "DJANGO_DEBUG": "0",
    "DJANGO_SECRET_KEY": "aV3ry-l0ng-random-key-for-tests-only-0123456789-abcdefghijklmnop",
    "DJANGO_ALLOWED_HOSTS": "trials.example.com",
    "DATABASE_URL": "postgres://trials@127.0.0.1/trials",
}
NOTICES = {
    "TRIAL_NOTICES": "1",
    "EMAIL_URL": "smtp+tls://user:p%40ss@mail.example.com:587",
    "DEFAULT_FROM_EMAIL": "Trials <trials@example.com>",
    "SITE_URL": "https://www.example.com",
}


def test_production_passes_djangos_deployment_checks() -> None:
    result = manage("check", "--deploy", "--fail-level=INFO", **PRODUCTION)

    assert result.returncode == 0, result.stderr


def start(**variables: str) -> dict[str, Any]:
    """Read and check the settings in this process, as every process does at its start."""
    with mock.patch.dict(os.environ, {"DJANGO_ENV_FILE": os.devnull, **variables}, clear=True):
        read = runpy.run_path(str(django_settings.BASE_DIR / "project" / "settings.py"))
    checked = ("TRIAL_", "SITE_", "METRICS_", "EMAIL_", "DEFAULT_FROM_EMAIL", "BILLING_", "SUPPORT_", "DEBUG")
    with override_settings(**{name: read[name] for name in read if name.startswith(checked)}):
        require_valid_settings()
    return read


# The expected line: {it} is the variable with its value, which is quoted only when it is not a secret.
BOOLEAN = "{it} is neither 1 nor 0."
WHOLE = "{it} is not a whole number."
NUMBER = "{it} is not a number such as 3 or 1.5."
DAYS = "{name} is {value}; it must be a whole number of days, 1 to 3650."
GRACE = DAYS.replace("1 to", "0 to")
HOURS = "{name} is {value}.0; it must be a number of hours above 0 and up to 8760."
REMINDERS = (
    "{name} is [{value}]; it must be whole numbers of days, 1 to 3650, from high to low, each once, such as 7,1, "
    "or empty."
)
CONTROL = "{name} is {value!r}; it must be one line, without control characters."
UNSUBSCRIBE = (
    "{name} is {value!r}; it must be a link such as https://www.example.com/unsubscribe, "
    "or mailto:unsubscribe@example.com, or not set."
)
BILLING = (
    "{name} is {value!r}; it must be a link such as https://www.example.com/plans, "
    "a path such as /billing/, or not set."
)
SUPPORT = "{name} is {value!r}; it must be an address such as help@example.com, or not set."
EMPTY_ITEM = "{it} has an empty item. Separate items by one comma each."
HOST = (
    "{it} has the item {value!r}, which is not a host such as trials.example.com, "
    "without scheme, port, path and blanks."
)
ORIGIN = (
    "{it} has the item {value!r}, which is not an origin such as https://www.example.com or https://*.example.com, "
    "without path."
)
ENCODE = (
    "Percent-encode special characters in a user name or password: "
    "@ is %40, / is %2F, ? is %3F, # is %23, ; is %3B, % is %25."
)
LIKE_PING = "{name} is not like https://hc-ping.com/your-uuid. " + ENCODE
LIKE_DSN = "{name} is not like https://key@sentry.example.com/1"
LIKE_POSTGRES = "{name} is not like postgres://user:password@host:5432/name or sqlite:////path. " + ENCODE
LIKE_SMTP = "{name} is not like smtp+tls://user:password@host:587. " + ENCODE
LIKE_REDIS = "{name} is not like redis://:password@host:6379/0. " + ENCODE
SQLITE_OPTION = "{name} has an option other than timeout, a whole number of seconds."
SENTINEL = "{name} is for Redis Sentinel, which is not supported. Give one address: redis://:password@host:6379/0."
TRANSPORT = "{name} has a scheme that Celery lacks here. It must be like redis://:password@host:6379/0."

REFUSED: list[tuple[str, ...]] = [
    (
        "{it} is not a date and time with its time zone, such as 2026-03-01T14:00:00Z.",
        "TRIAL_NOTICES_SINCE",
        "2026-03-01",
        "soon",
    ),
    ("{it} is none of DEBUG, INFO, WARNING, ERROR, CRITICAL.", "LOG_LEVEL", "LOUD"),
    ("{it} is none of line, json.", "LOG_FORMAT", "xml"),
    (BOOLEAN, "DJANGO_DEBUG", "enabled", "-1"),
    (BOOLEAN, "TRIAL_NOTICES", "2", "ja"),
    (BOOLEAN, "TRIAL_GATE", "closed"),
    (
        BILLING,
        "BILLING_URL",
        "www.example.com",
        "javascript:alert(1)",
        "//www.example.com",
        "/",
        "/a b",
        "/\\b.example",
    ),
    (SUPPORT, "SUPPORT_EMAIL", "help", "Help <help@example.com>", "a@b.example,c@d.example", "a@b.example?bcc=c@d"),
    (WHOLE, "TRIAL_DAYS", "sixty", "60 # days", "1_000", "6.0", " ", "٦"),
    (DAYS, "TRIAL_DAYS", "10000000", "3651", "0", "-1"),
    (GRACE, "TRIAL_GRACE_DAYS", "1000000", "3651", "-1"),
    (DAYS, "TRIAL_LEDGER_DAYS", str(10**30), "0"),
    (DAYS, "TRIAL_NOTICE_WINDOW_DAYS", "99999999", "0"),
    (HOURS, "TRIAL_RUN_MAX_AGE_HOURS", "20000000", "8761", "0"),
    (NUMBER, "TRIAL_RUN_MAX_AGE_HOURS", "1e9", "3 days", "1h30", "nan", "-1", "1,5"),
    (REMINDERS, "TRIAL_REMINDER_DAYS", "40000", "1, 7", "0"),
    ("{it} has the item 'one', which is not a whole number.", "TRIAL_REMINDER_DAYS", "7,one"),
    (EMPTY_ITEM, "TRIAL_REMINDER_DAYS", "7,,1", ","),
    (CONTROL, "DEFAULT_FROM_EMAIL", "a@b.example\nBcc: c@d.example"),
    (CONTROL, "SITE_NAME", "Trials\r\nBcc: c@d.example", "Trials\x7f"),
    (UNSUBSCRIBE, "TRIAL_NOTICE_UNSUBSCRIBE", "mailto:a@b.example\nBcc: c", "https://é.example"),
    (HOST, "DJANGO_ALLOWED_HOSTS", "a.example b.example", "https://a.example", "a.example:8000", "*.a.example", "a/"),
    (EMPTY_ITEM, "DJANGO_ALLOWED_HOSTS", "a.example,", ",a.example", " "),
    (ORIGIN, "DJANGO_CSRF_TRUSTED_ORIGINS", "https://*", "a.example", "https://a.example/", "https://a b.example"),
    ("{name} is not like https://www.example.com. " + ENCODE, "SITE_URL", "www.example.com", "ftp://a.example"),
    ("{name} names no host. It must be like https://www.example.com.", "SITE_URL", "https://"),
    (LIKE_PING, "TRIAL_PING_URL", "hc-ping.com/S3CRET", "ftp://h/S3CRET", "https://h/S3 CRET", "file:///S3CRET"),
    ("{name} names no host. It must be like https://hc-ping.com/your-uuid.", "TRIAL_PING_URL", "https:///S3CRET"),
    (f"{LIKE_DSN}. {ENCODE}", "SENTRY_DSN", "sentry.example.com/1", "https://S3 CRET@h/1"),
    (
        f"{LIKE_DSN}: a key, a host and the number of a project.",
        "SENTRY_DSN",
        "https://h/1",
        "https://S3CRET@h",
        "https://S3CRET@h/x",
    ),
    (
        "{name} is not like http://collector.example.com:4318. " + ENCODE,
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "collector:4318",
        "grpc://h:4317",
    ),
    (
        "{name} names no host. It must be like http://collector.example.com:4318.",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "http://",
    ),
    ("{it} is none of otlp, none.", "OTEL_TRACES_EXPORTER", "jaeger"),
    ("{it} is none of http/protobuf.", "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    (LIKE_POSTGRES, "DATABASE_URL", "mysql://u:S3CRET@h/x", "oracle:x", "postgres://u:S3CRET@h:99999/x"),
    *((LIKE_POSTGRES, "DATABASE_URL", f"postgres://u:S3{character}CRET@h/x") for character in "/?#@[]% \t\n"),
    (LIKE_POSTGRES, "DATABASE_URL", "postgres://u:12/S3CRET@h/x", "postgres://u:12?S3CRET@h/x", "sqlite:///a?b"),
    (
        "{name} names no database. It must be like postgres://user:password@host:5432/name.",
        "DATABASE_URL",
        "postgres://u:S3CRET@h",
        "postgres://u:S3CRET@h/",
    ),
    (
        "{name} has an option that PostgreSQL's client library does not know.",
        "DATABASE_URL",
        "postgres://u:S3CRET@h/x?shout=1",
    ),
    (SQLITE_OPTION, "DATABASE_URL", *(f"sqlite:///x?{option}" for option in ("mode=ro", "timeout=long", "shout=1"))),
    (
        "{name} is for SQLite and names a host. A path begins after three slashes: sqlite:///db.sqlite3",
        "DATABASE_URL",
        "sqlite://db.sqlite3",
    ),
    (LIKE_SMTP, "EMAIL_URL", "smtp+tsl://u:S3CRET@h", "smtp://u:S3CRET@h:many", "mail.example.com"),
    *((LIKE_SMTP, "EMAIL_URL", f"smtp://u:S3{character}CRET@h") for character in "/?#@[]%"),
    (
        "{name} has options, and none is known. It must be like smtp+tls://user:password@host:587.",
        "EMAIL_URL",
        "smtp://u:S3CRET@h?ssl=1",
    ),
    ("{name} names no host. It must be like smtp+tls://user:password@host:587.", "EMAIL_URL", "smtp://"),
    (LIKE_REDIS, "CELERY_BROKER_URL", "localhost:6379", "redis://:S3;CRET@h/0"),
    *((LIKE_REDIS, "CELERY_BROKER_URL", f"redis://:S3{character}CRET@h/0") for character in "/?#@[]%"),
    (TRANSPORT, "CELERY_BROKER_URL", "kafkaesque://:S3CRET@h/0", "mongodb://:S3CRET@h/0"),
    (SENTINEL, "CELERY_BROKER_URL", "sentinel://:S3CRET@h:26379/0"),
    (SENTINEL, "CELERY_RESULT_BACKEND", "sentinel://h:26379;sentinel://i:26379"),
    (TRANSPORT, "CELERY_RESULT_BACKEND", "amqp://u:S3CRET@h//", "django-db://"),
    (
        "{name} has a path that is no number of a database. It must be like redis://:password@host:6379/0.",
        "CELERY_BROKER_URL",
        "redis://:S3CRET@h/zero",
    ),
    (
        "{name} has an ssl_cert_reqs other than required, optional and none. Without it, required holds.",
        "REDIS_URL",
        "rediss://:S3CRET@h/0?ssl_cert_reqs=maybe",
    ),
]


def rows(table: list[tuple[str, ...]]) -> list[ParameterSet]:
    """A row for each value."""
    return [pytest.param(line, name, value, id=f"{name}={value}") for line, name, *values in table for value in values]


@pytest.mark.parametrize(("line", "name", "value"), rows(REFUSED))
def test_a_setting_that_is_not_understood_stops_the_start(line: str, name: str, value: str) -> None:
    with pytest.raises(ImproperlyConfigured) as refusal:
        start(**{name: value})

    assert str(refusal.value) == line.format(it=f"{name}={value!r}", name=name, value=value)
    assert "CRET" not in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


GENERATE = "Generate one: python -c 'import secrets; print(secrets.token_urlsafe(50))'"
NOT_SET = "{name} is not set. ANYTHING (DJANGO_DEBUG=1 is for development only.)"
PLACEHOLDER = f"{{name}} is a placeholder or shorter than 50 characters. {GENERATE}"
EMAIL_BACKEND = (
    "EMAIL_BACKEND is 'django.core.mail.backends.NAME.EmailBackend' while TRIAL_NOTICES is on; it must be one that "
    "sends; mails would be recorded as sent and reach nobody. Set EMAIL_URL to a mail server."
)
SITE_URL = (
    "{name} is {value!r} while TRIAL_NOTICES is on; "
    "it must be where customers reach the site, such as https://www.example.com."
)

REFUSED_IN_PRODUCTION: list[tuple[str, ...]] = [
    (NOT_SET.replace("ANYTHING", GENERATE), "DJANGO_SECRET_KEY", ""),
    (PLACEHOLDER, "DJANGO_SECRET_KEY", "change-me" * 9, "short", " " * 60, "django-insecure-" + "abcdefghij" * 5),
    (f"{{name}} is made of fewer than 5 different characters. {GENERATE}", "DJANGO_SECRET_KEY", "a" * 60),
    (
        NOT_SET.replace("ANYTHING", "List the host names this site answers to, such as trials.example.com."),
        "DJANGO_ALLOWED_HOSTS",
        "",
    ),
    ("{name} is '*', which lets anybody forge links. List the host names.", "DJANGO_ALLOWED_HOSTS", "*"),
    (
        NOT_SET.replace("ANYTHING", "Give the PostgreSQL to use, such as postgres://user:password@host:5432/name."),
        "DATABASE_URL",
        "",
    ),
    (BOOLEAN, "DJANGO_SSL_REDIRECT", "enabled"),
    (BOOLEAN, "DJANGO_BEHIND_PROXY", "nginx"),
    ("{it} is not from 0 to 315360000.", "DJANGO_HSTS_SECONDS", "-1", "999999999"),
    (
        "{name} is not safe in production; it must be 32 characters or more, without blanks, or not set, "
        "which switches the metrics off.",
        "METRICS_TOKEN",
        "S3CRET",
        "x" * 31,
        "x " * 20,
    ),
    (EMAIL_BACKEND.replace("NAME", "console"), "EMAIL_URL", "consolemail://", ""),
    (EMAIL_BACKEND.replace("NAME", "dummy"), "EMAIL_URL", "dummymail://"),
    (EMAIL_BACKEND.replace("NAME", "locmem"), "EMAIL_URL", "memorymail://"),
    (SITE_URL, "SITE_URL", "http://localhost:8000", "https://trials", "https://a.localhost", "https://a.local"),
    (SITE_URL, "SITE_URL", "http://127.1.2.3", "http://[::1]/", "http://0.0.0.0", "http://10.1.2.3"),
]


@pytest.mark.parametrize(("line", "name", "value"), rows(REFUSED_IN_PRODUCTION))
def test_production_refuses_to_start_with_an_insecure_setting(line: str, name: str, value: str) -> None:
    start(**PRODUCTION, **NOTICES)
    with pytest.raises(ImproperlyConfigured) as refusal:
        start(**{**PRODUCTION, **NOTICES, name: value})

    assert str(refusal.value) == line.format(it=f"{name}={value!r}", name=name, value=value)


@pytest.mark.parametrize(
    ("variables", "setting", "expected"),
    [
        ({"TRIAL_NOTICES": " Yes "}, "TRIAL_NOTICES", True),
        ({"TRIAL_NOTICES": "off"}, "TRIAL_NOTICES", False),
        ({"TRIAL_DAYS": ""}, "TRIAL_DAYS", 60),
        ({"TRIAL_RUN_MAX_AGE_HOURS": "1.5"}, "TRIAL_RUN_MAX_AGE_HOURS", 1.5),
        ({"LOG_LEVEL": "info"}, "LOG_LEVEL", "INFO"),
        ({"DJANGO_ALLOWED_HOSTS": ".example.com, [2001:db8::1]"}, "ALLOWED_HOSTS", [".example.com", "[2001:db8::1]"]),
        (
            {"DJANGO_CSRF_TRUSTED_ORIGINS": "https://*.example.com,http://a:8000"},
            "CSRF_TRUSTED_ORIGINS",
            ["https://*.example.com", "http://a:8000"],
        ),
        (
            {"TRIAL_PING_URL": "https://s.example/cron/x/?status="},
            "TRIAL_PING_URL",
            "https://s.example/cron/x/?status=",
        ),
        ({"REDIS_URL": "redis://h/1"}, "CELERY_RESULT_BACKEND", "redis://h/1"),
        ({"REDIS_URL": "rediss://h?ssl_cert_reqs=none"}, "CELERY_BROKER_URL", "rediss://h?ssl_cert_reqs=none"),
        ({"REDIS_URL": "rediss://h"}, "CELERY_BROKER_USE_SSL", {"ssl_cert_reqs": ssl.CERT_REQUIRED}),
        ({"REDIS_URL": "rediss://h"}, "CELERY_REDIS_BACKEND_USE_SSL", {"ssl_cert_reqs": ssl.CERT_REQUIRED}),
        ({"CELERY_BROKER_URL": "amqp://h//", "CELERY_RESULT_BACKEND": "rpc://"}, "CELERY_BROKER_URL", "amqp://h//"),
        ({"CELERY_BROKER_URL": "amqp://h//"}, "CELERY_RESULT_BACKEND", "disabled://"),
        ({"CELERY_BROKER_URL": "amqp://h//", "REDIS_URL": "redis://h/1"}, "CELERY_RESULT_BACKEND", "redis://h/1"),
        (
            {"CELERY_BROKER_URL": "amqps://h//"},
            "CELERY_BROKER_USE_SSL",
            {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None},
        ),
    ],
)
def test_what_is_understood_is_read(variables: dict[str, str], setting: str, expected: object) -> None:
    assert start(**variables)[setting] == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://u:p%40%2F%3F%23@h:1/x", {"PASSWORD": "p@/?#", "HOST": "h", "PORT": 1}),
        ("postgresql://u@/x?host=/run/s&sslmode=require", {"NAME": "x", "HOST": ""}),
        ("postgres://u@a:1,b:2/x?target_session_attrs=read-write", {"HOST": "a,b", "PORT": "1,2"}),
        ("sqlite:////srv/a%20b.sqlite3?timeout=5", {"NAME": "/srv/a b.sqlite3"}),
    ],
)
def test_a_database_url_is_taken_apart(url: str, expected: dict[str, object]) -> None:
    database = start(DATABASE_URL=url)["DATABASES"]["default"]

    assert expected.items() <= database.items()


# --- The .env file ---


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("# München\nDJANGO_SECRET_KEY=S3CRETü\n".encode("latin-1"), ", line 1: not UTF-8. Save the file as UTF-8."),
        ("A=1\n# ü\n".encode("latin-1"), ", line 2: not UTF-8. Save the file as UTF-8."),
        ("DJANGO_DEBUG=0\n".encode("utf-16"), ", line 1: not UTF-8. Save the file as UTF-8."),
        *(
            (line, ", line 2: not NAME=value, NAME='value', NAME=\"value\" or a # comment of its own.")
            for line in (
                b"A=1\nS3CRET\n",
                b"A=1\nDJANGO_SECRET_KEY: S3CRET\n",
                b"A=1\nDJANGO_SECRET_KEY = S3CRET\n",
                b"A=1\nDJANGO_SECRET_KEY='S3CRET\n",
                b'A=1\nDJANGO_SECRET_KEY="S3CRET"x\n',
                b"A=1\nDJANGO_SECRET_KEY=S3CRET # of production\n",
                b"A=1\nDJANGO_SECRET_KEY=S3\0CRET\n",
                b"A=1\n" + "DJANGO_DEBUG=0\n".encode("utf-16-le"),
            )
        ),
    ],
)
def test_an_env_file_that_is_not_understood_stops_the_start(content: bytes, problem: str, tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(content)

    with pytest.raises(ImproperlyConfigured) as refusal:
        start(DJANGO_ENV_FILE=str(file))

    assert str(refusal.value) == f"{file}{problem}"


@contextmanager
def somebody_else() -> Iterator[None]:
    """Root may read every file, so the process becomes the user nobody."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_an_env_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    secret = tmp_path / ".env"
    secret.write_text("DJANGO_DEBUG=0")
    secret.chmod(0)

    for file, problem in [
        (tmp_path, "cannot be read: Is a directory."),
        (tmp_path / "none", "does not exist. Correct DJANGO_ENV_FILE, which names it."),
    ]:
        with pytest.raises(ImproperlyConfigured) as refusal:
            start(DJANGO_ENV_FILE=str(file))
        assert str(refusal.value) == f"{file} {problem}"
    with somebody_else(), pytest.raises(ImproperlyConfigured) as refusal:
        environment.read_file(secret, must_exist=False)
    assert str(refusal.value) == f"{secret} cannot be read: Permission denied."


def test_an_env_file_is_read_with_its_mark_quotes_and_comments(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(
        "\ufeffSITE_NAME='Mürren # 1'\r\n\r\n# A comment\r\n  # another\r\nexport TRIAL_DAYS=6\r\n"
        'TRIAL_GRACE_DAYS="2"\r\nTRIAL_LEDGER_DAYS=9\r\n'.encode()
    )

    read = start(DJANGO_ENV_FILE=str(file), TRIAL_LEDGER_DAYS="5")

    assert (read["SITE_NAME"], read["TRIAL_DAYS"], read["TRIAL_GRACE_DAYS"]) == ("Mürren # 1", 6, 2)
    assert read["TRIAL_LEDGER_DAYS"] == 5, "the environment goes first"


def test_no_env_file_beside_manage_py_is_needed(tmp_path: Path) -> None:
    environment.read_file(tmp_path / ".env", must_exist=False)


# --- Real processes ---


@pytest.mark.parametrize(
    "process",
    [
        ["manage.py", "migrate", "--check"],
        ["-m", "celery", "-A", "project", "worker", "--loglevel=INFO"],
        ["-m", "celery", "-A", "project", "beat", "--loglevel=INFO", "--pidfile="],
        ["-m", "gunicorn", "project.wsgi", "--config=project/gunicorn.py", "--bind=127.0.0.1:0"],
    ],
    ids=["command", "worker", "beat", "gunicorn"],
)
@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("CELERY_BROKER_URL", "kafkaesque://:S3CRET@h/0", TRANSPORT),
        ("TRIAL_GRACE_DAYS", "-1", GRACE),
    ],
    ids=["setting", "check"],
)
def test_every_process_ends_with_one_line(process: list[str], name: str, value: str, line: str) -> None:
    result = python(*process, **PRODUCTION, **{name: value})

    assert result.returncode == 1
    assert result.stderr == f"Not started: {line.format(name=name, value=value)}\n"


def test_a_copy_of_the_example_environment_that_is_not_filled_in_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"^DJANGO_SECRET_KEY is a placeholder"):
        start(DJANGO_ENV_FILE=str(django_settings.BASE_DIR / ".env.example"))


def test_every_variable_that_the_settings_read_is_in_the_example() -> None:
    source = (django_settings.BASE_DIR / "project" / "settings.py").read_text()
    example = (django_settings.BASE_DIR / ".env.example").read_text()
    read = set(re.findall(r'env\.(?:read|url)\(\s*"(\w+)"', source))

    assert len(read) > 20
    assert {name for name in read if f"{name}=" not in example} == set()


def test_docker_compose_passes_on_every_variable_of_the_example() -> None:
    names = re.findall(r"^#? ?([A-Z_]+)=", (django_settings.BASE_DIR / ".env.example").read_text(), re.MULTILINE)
    compose = (django_settings.BASE_DIR / "docker-compose.yml").read_text()
    # The image sets the first two, compose has a broker of its own, and the last two are read by other programs.
    in_the_image = {"DJANGO_DEBUG", "HEARTBEAT_FILE"}
    elsewhere = in_the_image | {"CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "COMPOSE_PROFILES", "WEB_HOST"}

    assert {name for name in names if not re.search(rf"\b{name}\b", compose)} == elsewhere


# --- The system checks ---


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("TRIAL_DAYS", 0, "accounts.E001"),
        ("TRIAL_DAYS", 1.5, "accounts.E001"),
        ("TRIAL_DAYS", True, "accounts.E001"),
        ("TRIAL_DAYS", None, "accounts.E001"),
        ("TRIAL_GRACE_DAYS", -1, "accounts.E001"),
        ("TRIAL_LEDGER_DAYS", 0, "accounts.E001"),
        ("TRIAL_EXPIRY_MAX", 0, "accounts.E002"),
        ("TRIAL_EXPIRY_MAX", "many", "accounts.E002"),
        ("TRIAL_RUN_MAX_AGE_HOURS", 0, "accounts.E003"),
        ("TRIAL_RUN_MAX_AGE_HOURS", float("nan"), "accounts.E003"),
        ("TRIAL_NOTICE_WINDOW_DAYS", 0, "accounts.E001"),
        ("TRIAL_REMINDER_DAYS", [1, 7], "accounts.E004"),
        ("TRIAL_REMINDER_DAYS", [7, 7], "accounts.E004"),
        ("TRIAL_REMINDER_DAYS", [7, 0], "accounts.E004"),
        ("TRIAL_NOTICE_RATE", 0, "accounts.E005"),
        ("TRIAL_NOTICES_SINCE", "2026-03-01", "accounts.E011"),
        ("TRIAL_NOTICES_SINCE", datetime(2026, 3, 1), "accounts.E011"),  # noqa: DTZ001 (without a zone)
        ("TRIAL_NOTICE_UNSUBSCRIBE", "unsubscribe@example.com", "accounts.E006"),
        ("TRIAL_NOTICE_UNSUBSCRIBE", "mailto:a@example.com>, <b", "accounts.E006"),
    ],
)
def test_a_senseless_trial_setting_is_an_error(settings: Settings, name: str, value: object, error: str) -> None:
    setattr(settings, name, value)

    (found,) = checks.run_checks(tags=["accounts"])

    assert found.id == error
    assert f"{name} is {value!r}" in found.msg


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRIAL_DAYS", 1),
        ("TRIAL_GRACE_DAYS", 0),
        ("TRIAL_EXPIRY_MAX", None),
        ("TRIAL_REMINDER_DAYS", []),
        ("TRIAL_REMINDER_DAYS", [1]),
        ("TRIAL_NOTICE_RATE", None),
        ("TRIAL_NOTICE_UNSUBSCRIBE", "https://example.com/stop?user=1"),
    ],
)
def test_the_least_sensible_values_are_accepted(settings: Settings, name: str, value: object) -> None:
    setattr(settings, name, value)

    assert checks.run_checks(tags=["accounts"]) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EMAIL_BACKEND", "django.core.mail.backends.console.EmailBackend"),
        ("EMAIL_TIMEOUT", None),
        ("DEFAULT_FROM_EMAIL", "webmaster@localhost"),
        ("SITE_URL", "http://localhost:8000"),
        ("SITE_URL", "https://[1"),
    ],
)
def test_production_mails_nobody_before_sender_site_and_server_are_set(
    settings: Settings, name: str, value: str | None
) -> None:
    settings.TRIAL_NOTICES, settings.DEBUG = True, False
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.DEFAULT_FROM_EMAIL, settings.SITE_URL = NOTICES["DEFAULT_FROM_EMAIL"], NOTICES["SITE_URL"]
    assert checks.run_checks(tags=["accounts"]) == []
    setattr(settings, name, value)

    (found,) = checks.run_checks(tags=["accounts"])

    assert found.id == "accounts.E007"
    assert found.msg.startswith(f"{name} is {value!r} while TRIAL_NOTICES is on; ")

    settings.TRIAL_NOTICES = False
    assert checks.run_checks(tags=["accounts"]) == []


@pytest.mark.parametrize(
    ("days", "expected"), [({}, [7, 1]), ({"TRIAL_REMINDER_DAYS": ""}, []), ({"TRIAL_REMINDER_DAYS": "14, 3"}, [14, 3])]
)
def test_what_customers_are_told_is_read_from_the_environment(days: dict[str, str], expected: list[int]) -> None:
    read = start(**PRODUCTION, **NOTICES, **days)

    assert [read["TRIAL_NOTICES"], read["TRIAL_REMINDER_DAYS"]] == [True, expected]
    assert [read["EMAIL_HOST"], read["EMAIL_PORT"], read["EMAIL_USE_TLS"]] == ["mail.example.com", 587, True]
    assert read["EMAIL_HOST_PASSWORD"] == "p@ss"


@pytest.mark.parametrize("name", sorted({rule.setting for rule in RULES}))
def test_a_setting_that_is_missing_is_an_error_of_the_check(settings: Settings, name: str) -> None:
    delattr(settings, name)

    found = checks.run_checks(tags=["accounts"])

    assert [error.msg.partition(";")[0] for error in found] == [f"{name} is missing"]


def test_a_missing_setting_is_not_a_traceback_of_the_command_that_needs_it(settings: Settings) -> None:
    del settings.TRIAL_RUN_MAX_AGE_HOURS

    with pytest.raises(SystemCheckError, match="TRIAL_RUN_MAX_AGE_HOURS is missing"):
        call_command("check_expiry", skip_checks=False)


def test_the_defaults_pass_the_checks_in_a_project_that_takes_them(settings: Settings) -> None:
    for name, value in vars(defaults).items():
        if name.isupper():
            setattr(settings, name, value)

    assert checks.run_checks(tags=["accounts"]) == []


def test_all_wrong_settings_stand_in_one_line(settings: Settings) -> None:
    settings.TRIAL_DAYS, settings.SITE_NAME = 0, "a\nb"

    with pytest.raises(ImproperlyConfigured) as refusal:
        require_valid_settings()

    assert str(refusal.value) == (
        DAYS.format(name="TRIAL_DAYS", value=0) + " " + CONTROL.format(name="SITE_NAME", value="a\nb")
    )


def test_celery_gives_up_on_a_silent_broker_within_bounded_time() -> None:
    assert app.conf.broker_transport_options["socket_timeout"] > 0
    assert BaseTask.time_limit < app.conf.visibility_timeout
