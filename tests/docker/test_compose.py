"""docker-compose.yml, unchanged: each profile deploys one of the two paths."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from django.conf import settings

from sandbox.servers import free_port
from tests.docker.deployment import PSQL, Deployment

pytestmark = pytest.mark.docker

Compose = Callable[..., str]

# No env file, so that the developer's own .env does not change the deployment.
COMPOSE = ("docker", "compose", "--env-file", os.devnull)
INSPECT = ("docker", "inspect")


@pytest.fixture(autouse=True)
def compose_plugin() -> None:
    if subprocess.run([*COMPOSE, "version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no docker compose here")


@contextmanager
def deployed(profile: str, **extra: str) -> Iterator[tuple[Compose, Deployment]]:
    """The services of a profile, built, started and healthy; removed afterwards."""
    environment = {
        **os.environ,
        "COMPOSE_PROJECT_NAME": f"trial-expiry-test-{secrets.token_hex(4)}",
        "COMPOSE_PROFILES": profile,
        "TRIAL_EXPIRY_IMAGE": "trial-expiry:test",
        "POSTGRES_PASSWORD": secrets.token_hex(),
        "REDIS_PASSWORD": secrets.token_hex(),
        "DJANGO_SECRET_KEY": secrets.token_urlsafe(50),
        "DJANGO_ALLOWED_HOSTS": ".trials.example.com",
        "WEB_PORT": str(free_port()),
        **extra,
    }

    def compose(*arguments: str) -> str:
        done = subprocess.run(
            [*COMPOSE, *arguments],
            cwd=settings.BASE_DIR,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    deployment = Deployment(
        manage_py=partial(compose, "exec", "--no-TTY", "web", "python", "manage.py"),
        psql=partial(compose, "exec", "--no-TTY", "postgres", *PSQL),
    )
    try:
        compose("up", "--build", "--detach", "--wait")
        deployment.add_others()
        yield compose, deployment
    finally:
        sys.stdout.write(compose("logs", "--no-color"))  # which pytest shows when the test failed
        compose("down", "--volumes", "--timeout", "5")


def healthy_services(compose: Compose) -> set[str]:
    states = [json.loads(line) for line in compose("ps", "--format", "json").splitlines()]
    return {state["Service"] for state in states if state["Health"] == "healthy"}


def inspect(compose: Compose) -> dict[str, dict[str, Any]]:
    """Docker's inspection of each container, by the name of its service."""
    containers = compose("ps", "--all", "--quiet").split()
    found = json.loads(subprocess.run([*INSPECT, *containers], capture_output=True, check=True).stdout)
    return {container["Config"]["Labels"]["com.docker.compose.service"]: container for container in found}


def assert_locked_down(compose: Compose) -> None:
    """Every container is read-only except for memory and volumes, unprivileged, and has resource limits."""
    for service, container in inspect(compose).items():
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert not host["CapAdd"], service
        assert host["SecurityOpt"] == ["no-new-privileges:true"], service
        assert 0 < host["Memory"] <= 2**30, service
        assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "5"}}, service
        assert not container["State"]["OOMKilled"], service
        assert container["Config"]["User"] in {"postgres", "redis", "10001:10001"}, service


def networks(compose: Compose, service: str) -> set[str]:
    attached = inspect(compose)[service]["NetworkSettings"]["Networks"]
    return {name.rpartition("_")[2] for name in attached}


REACH_REDIS = """
import socket
try:
    socket.create_connection(("redis", 6379), timeout=5)
except OSError as error:
    print(type(error).__name__)
"""


def test_the_celery_profile_expires_by_schedule_and_without_celery_by_hand() -> None:
    with deployed("celery") as (compose, deployment):
        assert healthy_services(compose) == {"postgres", "redis", "web", "worker", "beat"}
        deployment.add_due(30)
        deployment.tick_every_second()
        deployment.wait_until_expired(30)
        deployment.assert_expired_exactly_once(30)
        assert deployment.paths() == {"celery"}

        assert_locked_down(compose)
        assert networks(compose, "web") & networks(compose, "redis") == set()
        assert "gaierror" in compose("exec", "--no-TTY", "web", "python", "-c", REACH_REDIS)
        assert "REDIS_URL" not in compose("exec", "--no-TTY", "web", "env")
        assert "NOAUTH" in compose("exec", "--no-TTY", "redis", "redis-cli", "ping")

        compose("stop", "worker", "beat", "redis")
        deployment.add_due(12)

        assert "Expired 12 trial(s)" in deployment.manage_py("expire_trials")
        deployment.assert_expired_exactly_once(42)
        assert deployment.paths() == {"celery", "command"}


def test_the_cron_profile_expires_without_celery() -> None:
    with deployed("cron", EXPIRY_INTERVAL="5") as (compose, deployment):
        assert healthy_services(compose) == {"postgres", "web", "cron"}
        deployment.add_due(30)

        deployment.wait_until_expired(30)

        deployment.assert_expired_exactly_once(30)
        assert deployment.paths() == {"command"}
        assert_locked_down(compose)
