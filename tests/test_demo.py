"""``make demo``: the sample it shows, and that it stops what it starts."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.conf import settings

from accounts.models import Account
from sandbox.sample import put_sample
from sandbox.servers import wait_for


@pytest.mark.django_db
def test_the_sample_is_believable_and_the_same_for_the_same_seed(now: datetime) -> None:
    def sample(seed: int) -> list[Any]:
        put_sample(size=400, seed=seed, now=now)
        return list(Account.objects.order_by("pk").values("pk", "status", "created", "trial_ends_at", "user__email"))

    assert sample(1) == sample(1) != sample(2)

    assert set(Account.objects.values_list("status", flat=True)) == set(Account.Status)
    trialing = Account.objects.filter(status=Account.TRIALING)
    assert any(account.trial_ends_at > account.created + timedelta(days=60) for account in trialing)
    assert trialing.filter(created=now - timedelta(days=61)).count() >= 4  # exactly on the boundary
    assert not Account.objects.filter(created__lt=now - timedelta(days=200)).exists()


@pytest.mark.django_db
def test_two_runs_within_the_hour_find_the_same_accounts_due(now: datetime) -> None:
    put_sample(size=400, seed=1, now=now)

    def due(moment: datetime) -> set[int]:
        return set(Account.objects.due(moment).values_list("pk", flat=True))

    assert due(now + timedelta(microseconds=1)) == due(now + timedelta(minutes=59)) != due(now)


@pytest.fixture
def demo_environment(tmp_path: Path) -> dict[str, str]:
    """As a newcomer has it, but with the database elsewhere."""
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    return {
        **environment,
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "DEMO_DATABASE": str(tmp_path / "demo.sqlite3"),
    }


def started_by_the_demo(database: str) -> list[str]:
    """The command lines of the living processes that were told to use the demo's database."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("DATABASE_URL") == f"sqlite:///{database}":
                found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.postgres  # once is enough: it uses a database of its own
def test_the_demo_shows_both_paths_and_leaves_no_process_behind(demo_environment: dict[str, str]) -> None:
    result = subprocess.run(
        [sys.executable, "manage.py", "demo", "--accounts=300"],
        cwd=settings.BASE_DIR,
        env=demo_environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"Both paths expired the same \d+ accounts, and no other\.", result.stdout)
    for end in ("ends in [3-7] days", "ends in 1 day", "has ended"):
        assert re.search(
            rf"To: \S+@example.com  Subject: Your Trial expiry trial {end}\n    your trial of", result.stdout
        )
    assert result.stdout.rstrip().endswith("make test")
    assert started_by_the_demo(demo_environment["DEMO_DATABASE"]) == []


@pytest.mark.faults
@pytest.mark.postgres
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_stopped_by_hand_stops_what_it_started(demo_environment: dict[str, str], how: signal.Signals) -> None:
    database = demo_environment["DEMO_DATABASE"]
    with subprocess.Popen(
        [sys.executable, "manage.py", "demo", "--accounts=300"],
        cwd=settings.BASE_DIR,
        env=demo_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        wait_for(
            "a worker and beat to be started",
            lambda: sum("-m celery" in line for line in started_by_the_demo(database)) >= 2,
            seconds=60,
        )
        demo.send_signal(how)
        _, errors = demo.communicate(timeout=60)

    assert demo.returncode == 128 + how
    assert "Traceback" not in errors
    assert started_by_the_demo(database) == []
