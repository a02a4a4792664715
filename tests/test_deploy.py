"""The files in deploy/, app.json and the probes of docker-compose.yml."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import kubernetes_validate
import pytest
import yaml
from django.conf import settings
from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from accounts.admin import runbook
from accounts.services import TooManyDue
from project.heartbeat import WAITS, WORKS
from sandbox import servers
from tests.factories import NoticeFactory, make_accounts
from tests.processes import manage
from tests.runs import DAY, expire

DEPLOY = settings.BASE_DIR / "deploy"
COMPOSE = yaml.safe_load((settings.BASE_DIR / "docker-compose.yml").read_text())["services"]
LOCK_TIMEOUT = "-c lock_timeout=10s"


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


# --- Prometheus and Grafana ---

RULES = DEPLOY / "prometheus" / "trials.rules.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "trials.json").read_text())


def installed(program: str) -> str:
    """The path of a program of Debian's package prometheus; skips the test where it is not installed."""
    path = shutil.which(program)
    if not path:
        pytest.skip(f"{program} is not installed; on Debian: apt-get install prometheus")
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", RULES],
        ["check", "config", "--syntax-only", DEPLOY / "prometheus" / "prometheus.yml"],
        ["test", "rules", "tests/alerts.yml"],
    ],
    ids=["check rules", "check config", "test rules"],
)
def test_promtool_takes_rules_and_configuration(arguments: list[str | Path]) -> None:
    done = subprocess.run(
        [installed("promtool"), *arguments], cwd=settings.BASE_DIR, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_how_severe_it_is_and_leads_to_what_to_do() -> None:
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    page = (settings.BASE_DIR / "docs" / "operations.md").read_text()

    for rule in group["rules"]:
        assert rule["labels"]["severity"] in {"critical", "warning"}, rule["alert"]
        url, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        if url == "docs/operations.md":
            assert f"## {anchor.replace('-', ' ')}" in page.lower().replace(",", "")
        else:
            assert url == f"https://{{{{ $labels.instance }}}}{reverse('admin:what_to_do')}"
            assert anchor in {"{{ $labels.row }}", *(row.id for row in runbook.ROWS)}


Ask = Callable[..., Any]

TOKEN = "0123456789abcdef"


@contextmanager
def prometheus(directory: Path, *targets: str) -> Iterator[Ask]:
    """Run Prometheus with our configuration and rules for these targets; yields what asks its HTTP interface."""
    address = f"127.0.0.1:{servers.free_port()}"
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    job |= {"scheme": "http", "static_configs": [{"targets": targets}]}
    job["authorization"] = {"credentials_file": str(directory / "token")}
    config["rule_files"] = [str(RULES)]
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms"}
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    (directory / "token").write_text(TOKEN)
    command = [
        installed("prometheus"),
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/prometheus",
        f"--web.listen-address={address}",
    ]

    def ask(path: str, **query: str) -> Any:
        with suppress(OSError), urlopen(f"http://{address}/api/v1/{path}?{urlencode(query)}", timeout=5) as answer:
            return json.load(answer)["data"]
        return {}

    become = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    with servers.process("-c", become, *command, env={}, log=directory / "prometheus.log"):
        yield ask


@pytest.mark.faults
def test_a_real_prometheus_reads_a_site_and_answers_every_query(
    environment: Mapping[str, str], entry: PeriodicTask, tmp_path: Path
) -> None:
    now = timezone.now()
    make_accounts(3, ended=9 * DAY, now=now)
    expire(now - DAY)
    make_accounts(2, ended=9 * DAY, now=now)
    with pytest.raises(TooManyDue):
        expire(now, max_accounts=1)
    NoticeFactory.create(next_attempt=now)
    PeriodicTask.objects.filter(pk=entry.pk).update(last_run_at=now - DAY)
    site, dead = (f"127.0.0.1:{servers.free_port()}" for _ in range(2))
    web = ["-m", "gunicorn", "project.wsgi", "--config", "project/gunicorn.py", "--no-control-socket", "--bind", site]
    expected = {("TrialExpiryRefused", site), ("TrialBeatOverdue", site), ("TrialExpiryDown", dead)}

    with (
        servers.process(
            *web, env={**environment, "METRICS_TOKEN": TOKEN, "TRIAL_NOTICES": "1"}, log=tmp_path / "web.log"
        ),
        prometheus(tmp_path, site, dead) as ask,
    ):

        def rules() -> list[dict[str, Any]]:
            return [rule for group in ask("rules").get("groups", []) for rule in group["rules"]]

        def alerts() -> set[tuple[str, str]]:
            labels = [alert["labels"] for rule in rules() for alert in rule["alerts"]]
            return {(each["alertname"], each.get("instance", "")) for each in labels}

        for query in queries_of_the_dashboard():
            servers.wait_for(query, lambda query=query: ask("query", query=query).get("result"))  # type: ignore[misc]
        servers.wait_for("the alerts", lambda: alerts() >= expected)
        assert {rule["health"] for rule in rules()} == {"ok"}


def queries_of_the_dashboard() -> Iterator[str]:
    """Every query, for all sites."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$job", "trials").replace("$instance", ".*")


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


def test_no_new_release_waits_for_a_lock_longer_than_ten_seconds() -> None:
    kubernetes = pods("migrate")["migrate"]["containers"][0]
    guide = (settings.BASE_DIR / "docs" / "deploy.md").read_text()

    assert COMPOSE["migrate"]["environment"]["PGOPTIONS"] == LOCK_TIMEOUT
    assert kubernetes["env"] == [{"name": "PGOPTIONS", "value": LOCK_TIMEOUT}]
    assert procfile()["release"].startswith(f"PGOPTIONS='{LOCK_TIMEOUT}' python manage.py migrate")
    assert f"  PGOPTIONS='{LOCK_TIMEOUT}' .venv/bin/python manage.py migrate &&\n" in guide
