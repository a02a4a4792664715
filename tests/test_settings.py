"""What stops the start: system checks for the rule's settings, and refusals of an insecure production."""

import os
import subprocess
import sys

import pytest
from django.conf import settings as django_settings
from django.core import checks
from pytest_django import Settings

from project.celery import app

PRODUCTION = {
    "DJANGO_DEBUG": "0",
    "DJANGO_SECRET_KEY": "aV3ry-l0ng-random-key-for-tests-only-0123456789-abcdefghijklmnop",
    "DJANGO_ALLOWED_HOSTS": "trials.example.com",
    "DATABASE_URL": "postgres://trials@127.0.0.1/trials",
}


def manage(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``manage.py`` with nothing in its environment but this."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=django_settings.BASE_DIR,
        env={"PATH": os.environ["PATH"], "DJANGO_ENV_FILE": os.devnull, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_production_passes_djangos_deployment_checks() -> None:
    result = manage("check", "--deploy", "--fail-level=INFO", **PRODUCTION)

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"DJANGO_SECRET_KEY": ""}, "DJANGO_SECRET_KEY is not set."),
        ({"DJANGO_SECRET_KEY": "change-me" * 9}, "DJANGO_SECRET_KEY is a placeholder or shorter than 50 characters."),
        ({"DJANGO_SECRET_KEY": "short"}, "DJANGO_SECRET_KEY is a placeholder or shorter than 50 characters."),
        ({"DJANGO_ALLOWED_HOSTS": ""}, "DJANGO_ALLOWED_HOSTS is not set."),
        ({"DJANGO_ALLOWED_HOSTS": "*"}, "DJANGO_ALLOWED_HOSTS is '*'"),
        ({"DATABASE_URL": ""}, "DATABASE_URL is not set."),
    ],
)
def test_production_refuses_to_start_with_an_insecure_setting_and_says_which(
    change: dict[str, str], message: str
) -> None:
    result = manage("check", **{**PRODUCTION, **change})

    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_copy_of_the_example_environment_that_is_not_filled_in_is_refused() -> None:
    example = (django_settings.BASE_DIR / ".env.example").read_text()
    variables = dict(line.split("=", 1) for line in example.splitlines() if line and not line.startswith("#"))

    assert "DJANGO_SECRET_KEY is a placeholder" in manage("check", **variables).stderr


def test_every_variable_that_the_settings_read_is_in_the_example() -> None:
    source = (django_settings.BASE_DIR / "project" / "settings.py").read_text()
    example = (django_settings.BASE_DIR / ".env.example").read_text()
    read = {part.split('"')[1] for part in source.split("read(env.")[1:] if '"' in part}

    assert {name for name in read if f"{name}=" not in example} == set()


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


NOTICES = {
    "TRIAL_NOTICES": "1",
    "EMAIL_URL": "smtp+tls://user:p%40ss@mail.example.com:587",
    "DEFAULT_FROM_EMAIL": "Trials <trials@example.com>",
    "SITE_URL": "https://www.example.com",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EMAIL_BACKEND", "django.core.mail.backends.console.EmailBackend"),
        ("DEFAULT_FROM_EMAIL", "webmaster@localhost"),
        ("SITE_URL", "http://localhost:8000"),
    ],
)
def test_production_does_not_mail_customers_before_it_was_told_from_whom_where_to_and_by_which_server(
    settings: Settings, name: str, value: str
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
    values = (
        "s.TRIAL_NOTICES, s.TRIAL_REMINDER_DAYS, s.EMAIL_HOST, s.EMAIL_PORT, s.EMAIL_HOST_PASSWORD, s.EMAIL_USE_TLS"
    )
    code = f"from project import settings as s; print([{values}])"
    result = manage("shell", "--no-imports", "-c", code, **PRODUCTION, **NOTICES, **days)

    assert result.stdout.strip() == str([True, expected, "mail.example.com", 587, "p@ss", True])


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ({"EMAIL_URL": "smtp+tsl://user:secret@mail.example.com"}, "EMAIL_URL cannot be read: Invalid email schema"),
        ({"EMAIL_URL": "smtp://user:secret@mail.example.com:many"}, "EMAIL_URL cannot be read: Port"),
        ({"TRIAL_REMINDER_DAYS": "7,one"}, "TRIAL_REMINDER_DAYS='7,one' cannot be read"),
    ],
)
def test_a_notice_setting_that_cannot_be_read_is_named_and_a_password_in_it_is_not(
    variable: dict[str, str], message: str
) -> None:
    result = manage("check", **variable)

    assert result.returncode == 1
    assert message in result.stderr
    assert "secret" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_celery_gives_up_on_a_silent_broker_within_bounded_time() -> None:
    assert app.conf.broker_transport_options["socket_timeout"] > 0
    assert app.conf.task_time_limit < app.conf.visibility_timeout
