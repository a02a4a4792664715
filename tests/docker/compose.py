"""Deployments by docker-compose.yml."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from sandbox.servers import free_port
from tests.docker.deployment import PSQL, Deployment

# No env file, so that the developer's own .env does not change the deployment.
COMPOSE = ("docker", "compose", "--env-file", os.devnull)
INSPECT = ("docker", "inspect")


@dataclass(frozen=True)
class Compose:
    """``docker compose``, with the profile and the environment of one deployment."""

    profile: str
    environment: Mapping[str, str]

    def __call__(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run ``docker compose ARGUMENTS`` and return its output; asserts that it succeeds."""
        return self.run(*COMPOSE, "--profile", self.profile, *arguments, stdin=stdin)

    def run(self, *command: str, cwd: Path = settings.BASE_DIR, stdin: bytes = b"", fails: bool = False) -> str:
        """Run a command for this deployment and return its output; asserts that it succeeds, or that it fails."""
        done = subprocess.run(
            command, cwd=cwd, env=self.environment, input=stdin, capture_output=True, timeout=600, check=False
        )
        output = done.stdout.decode() + done.stderr.decode() * (fails or done.returncode != 0)
        assert (done.returncode != 0) == fails, f"{command}\n{output}"
        return output

    def containers(self) -> list[dict[str, Any]]:
        """What Docker knows of each container."""
        ids = self("ps", "--all", "--quiet").split()
        found: list[dict[str, Any]] = json.loads(self.run(*INSPECT, *ids))
        return found

    def inspect(self) -> dict[str, dict[str, Any]]:
        """Docker's inspection of each container, by the name of its service."""
        return {service_of(container): container for container in self.containers()}


def service_of(container: Mapping[str, Any]) -> str:
    """The name of the service that a container belongs to."""
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


@contextmanager
def deployed(profile: str, *options: str, **extra: str) -> Iterator[tuple[Compose, Deployment]]:
    """The services of a profile, built, started and healthy; removed afterwards. ``options`` are those of ``up``.

    ``--profile`` names it, as on the command line of README; for COMPOSE_PROFILES in its place, give that, too.
    """
    if subprocess.run([*COMPOSE, "version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no docker compose here")
    compose = Compose(
        profile,
        {
            **os.environ,
            "COMPOSE_PROJECT_NAME": f"trial-expiry-test-{secrets.token_hex(4)}",
            "COMPOSE_PROFILES": "",
            "TRIAL_EXPIRY_IMAGE": "trial-expiry:test",
            "POSTGRES_PASSWORD": secrets.token_hex(),
            "REDIS_PASSWORD": secrets.token_hex(),
            "DJANGO_SECRET_KEY": secrets.token_urlsafe(50),
            "DJANGO_ALLOWED_HOSTS": ".trials.example.com",
            "WEB_PORT": str(free_port()),
            **extra,
        },
    )
    deployment = Deployment(
        manage_py=partial(compose, "exec", "--no-TTY", "web", "python", "manage.py"),
        psql=partial(compose, "exec", "--no-TTY", "postgres", *PSQL),
    )
    try:
        compose("up", "--build", "--detach", "--wait", *options)
        deployment.add_others()
        yield compose, deployment
    finally:
        sys.stdout.write(compose("logs", "--no-color"))  # which pytest shows when the test failed
        compose("down", "--volumes", "--timeout", "5")
