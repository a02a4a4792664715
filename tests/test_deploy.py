"""The files in deploy/, app.json and the probes of docker-compose.yml."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from django.conf import settings

from project.heartbeat import WAITS, WORKS
from tests.processes import manage

DEPLOY = settings.BASE_DIR / "deploy"
COMPOSE = yaml.safe_load((settings.BASE_DIR / "docker-compose.yml").read_text())["services"]


# --- .env ---


@pytest.mark.parametrize(("hosts", "redirect"), [(["trials.example.com"], None), ([], "0")])
def test_the_env_that_is_written_starts_the_project(hosts: list[str], redirect: str | None, tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    env = shutil.copy(DEPLOY / "env", tmp_path / "deploy")
    shutil.copy(settings.BASE_DIR / ".env.example", tmp_path)

    subprocess.run([env, *hosts], check=True)

    written = (tmp_path / ".env").read_text()
    values = dict(re.findall(r"^([A-Z_]+)=(.*)$", written, re.MULTILINE))
    assert values["DJANGO_ALLOWED_HOSTS"] == (hosts or ["localhost"])[0]
    assert values.get("DJANGO_SSL_REDIRECT") == redirect
    assert len({values[name] for name in ("DJANGO_SECRET_KEY", "POSTGRES_PASSWORD", "REDIS_PASSWORD")} - {""}) == 3
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    if hosts:
        known = {"DJANGO_ENV_FILE": str(tmp_path / ".env"), "DATABASE_URL": "postgres://localhost/x"}
        assert manage("check", "--deploy", "--fail-level=WARNING", **known).returncode == 0

    assert subprocess.run([env], capture_output=True, check=False).returncode == 1
    assert (tmp_path / ".env").read_text() == written


# --- Kubernetes ---

PARTS = pytest.mark.parametrize("part", ["migrate", "cron", "celery"])


@cache
def applied(part: str) -> list[dict[str, Any]]:
    """What ``kubectl apply -k`` applies; where there is no kubectl, the same files without the image and namespace."""
    directory = DEPLOY / "kubernetes" / part
    if kubectl := shutil.which("kubectl"):
        done = subprocess.run([kubectl, "kustomize", directory], capture_output=True, text=True, check=True)
        return list(yaml.safe_load_all(done.stdout))
    return list(resources(directory))


def resources(directory: Path) -> Iterator[dict[str, Any]]:
    """The resources that a kustomization lists."""
    for name in yaml.safe_load((directory / "kustomization.yaml").read_text())["resources"]:
        path = (directory / name).resolve()
        if path.is_dir():
            yield from resources(path)
        else:
            yield from yaml.safe_load_all(path.read_text())


def pods(part: str) -> dict[str, dict[str, Any]]:
    """The pod of each Deployment, Job and CronJob, by its name."""
    found = {}
    for resource in applied(part):
        spec = resource.get("spec", {})
        if template := spec.get("jobTemplate", {}).get("spec", spec).get("template"):
            found[resource["metadata"]["name"]] = template["spec"]
    return found


@PARTS
def test_every_manifest_fits_the_schema_of_kubernetes(part: str) -> None:
    for resource in applied(part):
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


@PARTS
def test_every_pod_fits_the_restricted_security_standard_and_has_limits(part: str) -> None:
    for name, pod in pods(part).items():
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}, name
        assert pod["automountServiceAccountToken"] is False, name
        [container] = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }, name
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
        assert "memory" in container["resources"]["limits"], name


# --- The heartbeat ---


@pytest.mark.parametrize("role", ["worker", "beat"])
def test_the_probes_read_age_and_text_of_the_heartbeat(role: str, tmp_path: Path) -> None:
    heartbeat = tmp_path / "heartbeat"
    probes = {name: probe["exec"]["command"] for name, probe in container(role).items() if name.endswith("Probe")}
    probes["compose"] = ["sh", "-c", COMPOSE[role]["healthcheck"]["test"][1]]
    assert probes.pop("startupProbe") == probes["livenessProbe"]

    def succeed() -> set[str]:
        return {name for name, command in probes.items() if succeeds(command)}

    def succeeds(command: list[str]) -> bool:
        here = [argument.replace(COMPOSE_HEARTBEAT, str(heartbeat)) for argument in command]
        return subprocess.run(here, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0

    assert succeed() == set()
    heartbeat.write_text(f"{WORKS}\n")
    assert succeed() == {"livenessProbe", "readinessProbe", "compose"}
    heartbeat.write_text(f"{WAITS}\n")
    assert succeed() == {"livenessProbe"}
    heartbeat.write_text(f"{WORKS}\n")
    three_minutes_ago = time.time() - 180
    os.utime(heartbeat, (three_minutes_ago, three_minutes_ago))
    assert succeed() == {"readinessProbe"}  # for which no age counts: liveness ends this one


def container(role: str) -> dict[str, Any]:
    found: dict[str, Any] = pods("celery")[role]["containers"][0]
    return found


[COMPOSE_HEARTBEAT] = re.findall(r"HEARTBEAT_FILE=(\S+)", (settings.BASE_DIR / "Dockerfile").read_text())


# --- systemd ---


def test_systemd_takes_every_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("systemd-analyze is not installed; on Debian: apt-get install systemd")
    for unit in (DEPLOY / "systemd").iterdir():
        here = unit.read_text().replace("/srv/trials/.venv", sys.prefix).replace("/srv/trials", str(settings.BASE_DIR))
        (tmp_path / unit.name).write_text(here)

    done = subprocess.run([analyze, "verify", *tmp_path.iterdir()], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


# --- Heroku ---


def test_app_json_names_known_variables_and_processes() -> None:
    app = json.loads((settings.BASE_DIR / "app.json").read_text())
    variables = re.findall(r"^(?:# )?([A-Z_]+)=", (settings.BASE_DIR / ".env.example").read_text(), re.MULTILINE)

    assert app["env"].keys() <= set(variables)
    assert app["formation"].keys() == procfile().keys() - {"release"}


def procfile() -> dict[str, str]:
    """The commands of the Procfile, without the PATH that stands before each."""
    lines = (settings.BASE_DIR / "Procfile").read_text().splitlines()
    return {line.partition(": ")[0]: line.partition(": ")[2].partition(" ")[2] for line in lines}


# --- Everywhere ---


@pytest.mark.parametrize("role", ["worker", "beat"])
def test_celery_is_started_by_the_same_command_everywhere(role: str) -> None:
    unit = (DEPLOY / "systemd" / f"trials-{role}.service").read_text()
    commands = [
        procfile()[role],
        " ".join(COMPOSE[role]["command"]),
        unit.partition("ExecStart=/srv/trials/.venv/bin/")[2].partition("\n")[0],
        " ".join(container(role)["args"]),
    ]

    assert len({re.sub(r"\$\{\w+:-(\d)\}", r"\1", command) for command in commands}) == 1, commands
