"""The project's image, run by pytest-celery as worker and beat, with containers of PostgreSQL and Redis.

No port is published to this machine: tests run their queries inside the containers.
"""

import subprocess
from collections.abc import Callable, Iterator, Mapping

import docker  # type: ignore[import-untyped]
import pytest
from celery import Celery
from django.conf import settings
from pytest_celery import CeleryTestContainer, CeleryTestWorker, CeleryWorkerContainer, RedisContainer
from pytest_docker_tools import build, container, fxtr

from project.celery import app
from sandbox.servers import wait_for
from tests.docker.deployment import PSQL, Deployment

DOCKER_VERSION = ("docker", "version")
NETWORK = "{default_pytest_celery_network.name}"
WORKER = ["celery", "-A", "project", "worker", "--loglevel=INFO", "--concurrency=1"]
PG_ISREADY = ["pg_isready", "--host=127.0.0.1", "--username=trials"]
BEAT = ["celery", "-A", "project", "beat", "--loglevel=INFO", "--pidfile="]


@pytest.fixture(scope="session", autouse=True)
def docker_client() -> Iterator[docker.DockerClient]:
    try:
        subprocess.run(DOCKER_VERSION, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no Docker engine answers: {error}")
    client = docker.from_env()
    yield client
    client.close()


image = build(path=str(settings.BASE_DIR), tag="trial-expiry:test")
next_image = build(path=str(settings.BASE_DIR), tag="trial-expiry:test-next", labels={"release": "next"})

# Data in memory, because a volume would remain after the test.
postgres = container(
    image="postgres:18-alpine",
    environment={"POSTGRES_USER": "trials", "POSTGRES_PASSWORD": "secret"},
    tmpfs={"/var/lib/postgresql": ""},
    network=NETWORK,
    wrapper_class=CeleryTestContainer,
)
default_redis_broker = container(
    image="redis:8-alpine",
    tmpfs={"/data": ""},
    network=NETWORK,
    wrapper_class=RedisContainer,
)


@pytest.fixture
def environment(postgres: CeleryTestContainer, default_redis_broker: RedisContainer) -> Mapping[str, str]:
    """The environment of every container of the project, once the database answers."""
    wait_for("PostgreSQL", lambda: postgres.exec_run(PG_ISREADY).exit_code == 0)
    return {
        "DJANGO_SECRET_KEY": "a-key-for-tests-that-is-long-enough-to-be-taken-for-a-real-one",
        "DJANGO_ALLOWED_HOSTS": "trials.example.com",
        "DATABASE_URL": f"postgres://trials:secret@{postgres.attrs['Config']['Hostname']}/trials",
        "REDIS_URL": default_redis_broker.url,
    }


@pytest.fixture
def manage_py(
    docker_client: docker.DockerClient,
    image: docker.models.images.Image,
    default_pytest_celery_network: docker.models.networks.Network,
    environment: Mapping[str, str],
) -> Callable[..., str]:
    """Run ``manage.py`` in a separate container, which is removed afterwards."""

    def run(*arguments: str) -> str:
        output: bytes = docker_client.containers.run(
            image.id,
            ["python", "manage.py", *arguments],
            environment=dict(environment),
            network=default_pytest_celery_network.name,
            remove=True,
        )
        return output.decode()

    return run


@pytest.fixture
def deployment(manage_py: Callable[..., str], postgres: CeleryTestContainer) -> Deployment:
    """A migrated database and a broker; tests start worker and beat when they need them."""

    def psql(statement: str) -> str:
        status, output = postgres.exec_run([*PSQL, statement])
        assert status == 0, output
        return str(output.decode())

    manage_py("migrate")
    deployment = Deployment(manage_py=manage_py, psql=psql)
    deployment.add_others()
    return deployment


@pytest.fixture
def deployed_environment(deployment: Deployment, environment: Mapping[str, str]) -> Mapping[str, str]:
    """The environment, once the database is migrated."""
    return environment


default_worker_container = container(
    image="{image.id}",
    command=WORKER,
    environment=fxtr("deployed_environment"),
    network=NETWORK,
    wrapper_class=CeleryWorkerContainer,
)
next_worker_container = container(
    image="{next_image.id}",
    command=WORKER,
    environment=fxtr("deployed_environment"),
    network=NETWORK,
    wrapper_class=CeleryWorkerContainer,
)
beat = container(
    image="{image.id}",
    command=BEAT,
    environment=fxtr("deployed_environment"),
    network=NETWORK,
    wrapper_class=CeleryTestContainer,
)


@pytest.fixture
def default_worker_app() -> Celery:
    return app


@pytest.fixture
def next_worker(next_worker_container: CeleryWorkerContainer) -> CeleryTestWorker:
    """A worker of the next release, started when a test requests it."""
    return CeleryTestWorker(next_worker_container, app)
