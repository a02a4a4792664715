"""docker-compose.yml, unchanged: each profile deploys one of the two paths."""

import json
import re
import sys
from collections import Counter

import pytest

from sandbox.servers import wait_for
from tests.docker.compose import Compose, deployed

pytestmark = pytest.mark.docker


def healthy_services(compose: Compose) -> set[str]:
    states = [json.loads(line) for line in compose("ps", "--format", "json").splitlines()]
    return {state["Service"] for state in states if state["Health"] == "healthy"}


def assert_locked_down(compose: Compose) -> None:
    """Every container is read-only except for memory and volumes, unprivileged, and has resource limits."""
    for service, container in compose.inspect().items():
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
    attached = compose.inspect()[service]["NetworkSettings"]["Networks"]
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
        deployment.wait_until_well()
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
        deployment.wait_until_well()
        deployment.add_due(30)

        deployment.wait_until_expired(30)

        deployment.assert_expired_exactly_once(30)
        assert deployment.paths() == {"command"}
        assert_locked_down(compose)


HALF_A_MILLION = 500_000
DUE = f"""
WITH new AS (
    INSERT INTO users_user (username, email, password, first_name, last_name, date_joined,
        is_superuser, is_staff, is_active)
    SELECT 'due' || n, 'due' || n || '@example.com', '', '', '', now(), false, false, true
    FROM generate_series(1, {HALF_A_MILLION}) n RETURNING id)
INSERT INTO accounts_account (user_id, status, created, trial_ends_at)
    SELECT id, 'trialing', now() - interval '90 days', now() - interval '30 days' FROM new
"""  # noqa: S608 (a number of ours)
RUN = f"SELECT status, expired_count, finished - started FROM accounts_expiryrun WHERE due_count = {HALF_A_MILLION}"  # noqa: S608
READY = re.compile(r"(worker-\d+) .* ready\.")
SLICE = re.compile(r"(worker-\d+) .*Task accounts\.expire_slice\[\S+ succeeded in \S+: (\d+)")


def log(compose: Compose) -> str:
    """The lines of all workers, each after the name of its container."""
    return compose("logs", "--no-color", "worker")


def test_four_workers_share_a_run_and_the_log_says_who_expired_what() -> None:
    with deployed("celery") as (compose, deployment):
        deployment.wait_until_well()
        compose("up", "--detach", "--no-recreate", "--scale", "worker=4", "worker")
        wait_for("four workers", lambda: len(set(READY.findall(log(compose)))) == 4, seconds=180)
        deployment.psql(DUE)
        compose("exec", "--no-TTY", "beat", "celery", "-A", "project", "call", "accounts.expire_trials")

        wait_for("the run", lambda: deployment.psql(RUN).startswith("succeeded"), seconds=120)

        share: Counter[str] = Counter()
        for worker, expired in SLICE.findall(log(compose)):
            share[worker] += int(expired)
        sys.stdout.write(f"{deployment.psql(RUN).strip()}: {dict(share)}\n")
        assert set(share) == {"worker-1", "worker-2", "worker-3", "worker-4"}
        assert min(share.values()) > HALF_A_MILLION / 20
        assert sum(share.values()) > HALF_A_MILLION / 2, "what the tick does not run itself"
        deployment.assert_expired_exactly_once(HALF_A_MILLION)
