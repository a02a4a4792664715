"""deploy/upgrade: the old release serves until the new one does, and a release back works on the newer database."""

import random
import shutil
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.conf import settings

from tests.docker.compose import Compose, deployed, service_of

pytestmark = pytest.mark.docker

MIGRATION = """
from django.db import migrations

class Migration(migrations.Migration):
    dependencies = [("accounts", "{last}")]
    operations = [migrations.RunSQL("{sql}")]
"""


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A copy of the project, as a checkout of the next release."""
    release = tmp_path / "release"
    release.mkdir()
    for name in ("Dockerfile", ".dockerignore", "docker-compose.yml", "manage.py", "requirements.txt"):
        shutil.copy(settings.BASE_DIR / name, release)
    for name in ("accounts", "deploy", "project", "users"):
        shutil.copytree(settings.BASE_DIR / name, release / name, ignore=shutil.ignore_patterns("__pycache__"))
    return release


def migrate_by(release: Path, sql: str) -> None:
    """Give the release a migration of its own."""
    migrations = release / "accounts" / "migrations"
    last = max(file.stem for file in migrations.glob("0*.py") if file.stem != "0999_next")
    (migrations / "0999_next.py").write_text(MIGRATION.format(last=last, sql=sql))


def two_free_ports() -> range:
    """Two ports that follow each other, and that no outgoing connection takes meanwhile, as those from 32768 on."""
    for first in range(20000 + random.randrange(10000), 32767):
        try:
            for port in range(first, first + 2):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return range(first, first + 2)
    raise OSError("There are no two free ports from 20000 to 32768.")


def images(compose: Compose) -> dict[str, list[str]]:
    """The containers that run, by service, each with its image."""
    running: dict[str, list[str]] = {}
    for container in compose.containers():
        if container["State"]["Running"]:
            running.setdefault(service_of(container), []).append(f"{container['Id']} {container['Image']}")
    return running


@contextmanager
def asked_all_the_time(ports: range) -> Iterator[list[str]]:
    """Ask web as a proxy with two upstreams does; yields the failures, of which each is one of all ports."""
    failures: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        request = [
            urllib.request.Request(f"http://127.0.0.1:{port}/health/", headers={"Host": "trials.example.com"})
            for port in ports
        ]
        while not stop.wait(0.05):
            errors = []
            for one in request:
                try:
                    urllib.request.urlopen(one, timeout=10).read()  # noqa: S310 (our own URL)
                    break
                except (OSError, urllib.error.HTTPError) as error:
                    errors.append(str(error))
            else:
                failures.append(" and ".join(errors))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield failures
    finally:
        stop.set()
        asking.join()


def test_an_upgrade_keeps_the_old_release_until_the_new_one_serves(release: Path) -> None:
    ports = two_free_ports()
    with deployed("celery", "--scale", "worker=2", WEB_PORT=f"{ports[0]}-{ports[1]}") as (compose, deployment):
        before = images(compose)
        assert len(before["worker"]) == 2

        with asked_all_the_time(ports) as failures:
            migrate_by(release, "SELECT 1 / 0")
            compose_file = release / "docker-compose.yml"
            compose_file.write_text(compose_file.read_text().replace("user: postgres", "user: postgres\n    tty: true"))
            told = compose.run("deploy/upgrade", cwd=release, fails=True)
            assert "Not upgraded: the migration failed" in told
            assert "division by zero" in compose("logs", "migrate")
            assert images(compose) == before, "nor does a changed service restart PostgreSQL"

            shutil.copy(settings.BASE_DIR / "docker-compose.yml", release)
            migrate_by(release, "SELECT 1")
            (release / "project" / "wsgi.py").write_text("raise SystemExit('This release does not start.')")
            told = compose.run("deploy/upgrade", cwd=release, fails=True)
            assert "This release does not start." in told
            assert "Not upgraded: the new web does not become healthy" in told
            assert images(compose) == before

            shutil.copy(settings.BASE_DIR / "project" / "wsgi.py", release / "project")
            compose.run("deploy/upgrade", cwd=release)
        assert failures == []
        after = images(compose)
        assert {service: len(containers) for service, containers in after.items()} == {
            service: len(containers) for service, containers in before.items()
        }
        for service in ("web", "worker", "beat"):
            assert set(after[service]).isdisjoint(before[service])
        for service in ("postgres", "redis"):
            assert after[service] == before[service]

        compose.run("deploy/upgrade")  # back to this release
        deployment.add_due(3)
        deployment.tick_every_second()
        deployment.wait_until_expired(3)
        for service in ("web", "worker", "beat"):
            assert "The database is ahead of this code" in compose("logs", "--no-log-prefix", service)


def test_an_upgrade_with_one_port_tries_the_new_web_before_it_replaces(release: Path) -> None:
    with deployed("cron", COMPOSE_PROFILES="cron") as (compose, _):
        before = images(compose)
        (release / "project" / "wsgi.py").write_text("raise SystemExit('This release does not start.')")
        assert "This release does not start." in compose.run("deploy/upgrade", cwd=release, fails=True)
        assert images(compose) == before

        shutil.copy(settings.BASE_DIR / "project" / "wsgi.py", release / "project")
        migrate_by(release, "SELECT 1")
        compose.run("deploy/upgrade", cwd=release)
        assert images(compose).keys() == before.keys()
        assert set(images(compose)["cron"]).isdisjoint(before["cron"])
