"""The other engines of the comparison: each expires what is due, and recovers from a kill by its own means."""

import os
import re
import subprocess
import sys

import pytest
from django.conf import settings

from comparison.engines.contenders import ENGINES
from comparison.runners import Runner
from sandbox import scratch

DIRECTORY = settings.BASE_DIR / "comparison" / "engines"


@pytest.mark.faults
@pytest.mark.postgres
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_an_engine_expires_what_is_due_and_recovers_from_a_kill(engine: type[Runner]) -> None:
    with scratch.environment(database_url=os.environ["DATABASE_URL"]) as environment:
        walk = subprocess.run(
            [sys.executable, "-m", "tests.engine_walk", engine.name],
            cwd=settings.BASE_DIR,
            env={**environment, "DJANGO_SETTINGS_MODULE": "comparison.engines.settings"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert walk.returncode == 0, walk.stderr


def test_an_engine_is_a_thin_face_on_the_one_service() -> None:
    packages = [each for each in DIRECTORY.iterdir() if (each / "tasks.py").is_file()]
    assert {f"{each.__module__}" for each in ENGINES} == {
        f"comparison.engines.{package.name}.contender" for package in packages
    }
    for package in packages:
        assert sum(len(module.read_text().splitlines()) for module in package.glob("*.py")) <= 100, package
        assert re.findall(r"services\.(\w+)\(", (package / "tasks.py").read_text()) == ["expire_trials"], package


def test_production_neither_installs_nor_loads_an_engine() -> None:
    requirements = (settings.BASE_DIR / "requirements.txt").read_text()
    for package in ("huey", "procrastinate", "django-tasks"):
        assert not re.search(rf"^{package}", requirements, re.MULTILINE)
        assert not [app for app in settings.INSTALLED_APPS if app.startswith(package.replace("-", "_"))]
