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
    ],
)
def test_a_senseless_trial_setting_is_an_error(settings: Settings, name: str, value: object, error: str) -> None:
    setattr(settings, name, value)

    (found,) = checks.run_checks(tags=["accounts"])

    assert found.id == error
    assert f"{name} is {value!r}" in found.msg


@pytest.mark.parametrize(("name", "value"), [("TRIAL_DAYS", 1), ("TRIAL_GRACE_DAYS", 0), ("TRIAL_EXPIRY_MAX", None)])
def test_the_least_sensible_values_are_accepted(settings: Settings, name: str, value: object) -> None:
    setattr(settings, name, value)

    assert checks.run_checks(tags=["accounts"]) == []


def test_celery_gives_up_on_a_silent_broker_within_bounded_time() -> None:
    assert app.conf.broker_transport_options["socket_timeout"] > 0
    assert app.conf.task_time_limit < app.conf.visibility_timeout
