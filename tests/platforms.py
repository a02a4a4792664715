"""Runs the fast tests on other versions than the pinned ones, and prints a table: ``make test-platforms``.

Each row differs from the pinned versions in one thing, or in the Python that it needs. The environments are kept in
.platforms/, with the output of the tests beside them. ARGS choose rows by a part of their name, such as ``Django``.
"""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sandbox import servers

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".platforms"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
POSTGRES = (15, 16, 17)
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
FAST = ("-n", "2")
WORKERS = ("-m", "faults", "tests/test_celery.py", "tests/faults/test_workers.py", "tests/faults/test_mail.py")
"""What starts workers; the fast tests start hardly any."""
NOT_WHEN_SPAWNED = ("-k", "not test_a_worker_told_to_stop_finishes_the_mails_in_hand")
"""A spawned process does not share the flag of tasks.py that ends a delivery: it finishes its batch of mails first."""


class Skipped(Exception):  # noqa: N818 (it is no error)
    """The machine lacks what a platform needs; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What differs from the pinned versions."""

    name: str
    python: str = THIS_PYTHON
    packages: tuple[str, ...] = ()
    """Arguments of ``uv pip install``, over the pinned packages."""
    postgres: int | None = None
    settings: str = "project.settings"
    """Of workers and commands."""
    tests: tuple[str, ...] = FAST

    def run(self) -> tuple[str, str]:
        """Run the tests; returns the versions, and the last line of pytest.

        Raises:
            Skipped: the machine lacks what it needs.
        """
        python = self._environment()
        with ExitStack() as running, (FOLDER / f"{self.name}.log").open("w+") as log:
            variables = {**os.environ, "TEST_PROCESS_SETTINGS": self.settings}
            if self.postgres:
                if self.postgres not in servers.postgres_versions():
                    raise Skipped(f"PostgreSQL {self.postgres} is not installed")
                variables["TEST_DATABASE_URL"] = running.enter_context(servers.postgres(self.postgres))
            command = (str(python), "-m", "pytest", "-q", "-rs", f"--basetemp={FOLDER / 'tmp'}", *self.tests)
            subprocess.run(command, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT, check=False)
            log.seek(0)
            return self._versions(python), log.read().splitlines()[-1].strip("= ")

    def _environment(self) -> Path:
        """Make or update the environment; returns its Python."""
        folder = FOLDER / "-".join((self.python, *(word for word in self.packages if not word.startswith("-"))))
        python = folder / "bin" / "python"
        installed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
        named = next((str(path) for path in installed.glob(f"{self.python}.*/bin/python")), self.python)
        if not python.exists() and uv("venv", "--quiet", "--python", named, str(folder)):
            raise Skipped(f"Python {self.python} is not installed, and uv cannot download it")
        install = ("pip", "install", "--quiet", "--python", str(python))
        if uv(*install, "--require-hashes", "-r", "requirements-dev.txt"):
            raise Skipped("the pinned packages cannot be installed")
        if self.packages and uv(*install, *self.packages):
            raise Skipped(f"{' '.join(self.packages)} cannot be installed")
        return python

    def _versions(self, python: Path) -> str:
        """The versions that ran."""
        ask = "from importlib.metadata import version; print(*map(version, ('django', 'redis')), sep=' | ')"
        packages = subprocess.check_output((python, "-c", ask), text=True).strip()
        return f"{self.python} | {packages} | {self.postgres or 18}"


def uv(*arguments: str) -> int:
    """Run uv; returns its exit code. What it says goes to stderr."""
    return subprocess.run((ROOT / ".venv" / "bin" / "uv", *arguments), cwd=ROOT, check=False).returncode


def platforms() -> Iterator[Platform]:
    """The rows of the table, those that tell most first."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    oldest_redis = next(text.replace(">=", "==") + ".*" for text in dependencies if text.startswith("redis>="))
    newest = ("--upgrade-package", "django", "django", "django-celery-beat")
    yield from (Platform(name=f"Django's newest, Python {v}", python=v, packages=newest) for v in PYTHONS[2:0:-1])
    yield from (Platform(name=f"Python {v}", python=v) for v in reversed(PYTHONS))
    yield Platform(name="redis-py's oldest", packages=(oldest_redis,))
    yield from (Platform(name=f"PostgreSQL {version}", postgres=version) for version in POSTGRES)
    yield Platform(
        name="workers that spawn", python="3.13", settings="tests.platforms_spawn", tests=(*WORKERS, *NOT_WHEN_SPAWNED)
    )


def main(chosen: list[str]) -> int:
    """Run the chosen platforms, or all; returns how many failed."""
    FOLDER.mkdir(exist_ok=True)
    uv("pip", "install", "--quiet", "--python", sys.executable, "--group", "platforms")
    rows, failed = [], 0
    for platform in platforms():
        if chosen and not any(word in platform.name for word in chosen):
            continue
        print(f"{platform.name} ...", flush=True)  # noqa: T201
        try:
            versions, result = platform.run()
        except Skipped as reason:
            versions, result = " | ".join([platform.python, *"---"]), f"skipped: {reason}"
        failed += not result.startswith("skipped") and (" failed" in result or " passed" not in result)
        rows.append(f"| {platform.name} | {versions} | {result} |")
    print("| Platform | Python | Django | redis-py | PostgreSQL | Result |\n|---|---|---|---|---|---|")  # noqa: T201
    print("\n".join(rows))  # noqa: T201
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
