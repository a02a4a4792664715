"""The broker's user in docker-compose.yml has the permissions that worker and beat need, in a fault too; no others."""

import re
from collections.abc import Iterator

import pytest
import redis
from django.conf import settings

from sandbox import servers
from tests.conftest import Process
from tests.faults import faults
from tests.faults.conftest import (
    ANOTHER,
    REDELIVER_AT_ONCE,
    Customers,
    Hold,
    Tick,
    run_that_succeeds,
    ticks_every_second,
)

pytestmark = [pytest.mark.faults, pytest.mark.django_db(transaction=True)]

COMPOSE = (settings.BASE_DIR / "docker-compose.yml").read_text()


@pytest.fixture
def administrator() -> Iterator[redis.Redis]:
    """A Redis configured as in docker-compose.yml, with a connection that has all permissions."""
    rules = re.search(r'"user trials on >\$\$REDIS_PASSWORD (.+?)"', COMPOSE, re.DOTALL)
    assert rules
    with servers.valkey() as url, redis.Redis.from_url(url, decode_responses=True) as connection:
        rest = rules[1].replace("\\\n", "").split()
        connection.execute_command("ACL", "SETUSER", "trials", "on", ">secret", *rest)
        connection.execute_command("ACL", "SETUSER", "default", "off")  # from the next connection on
        yield connection


@pytest.fixture
def broker(administrator: redis.Redis) -> str:
    port = administrator.connection_pool.connection_kwargs["port"]
    return f"redis://trials:secret@127.0.0.1:{port}/0"


@pytest.fixture
def empty_broker(broker: str) -> str:
    """It is new; and its user may not empty it."""
    return broker


def test_worker_beat_and_probe_are_denied_nothing_on_a_locked_broker(
    administrator: redis.Redis, customers: Customers, celery: Process, held_run: Hold, tick: Tick
) -> None:
    ticks_every_second()
    with held_run() as held:
        faults.kill(held.worker)
        held.gate.open()

        with celery(*ANOTHER, *REDELIVER_AT_ONCE), celery("beat"):
            # a message that was held, a chord and its results
            assert run_that_succeeds(held.task_id).expired_count == 6
            with celery("inspect", "ping", "--timeout=5") as probe:
                probe.wait(30)
            customers.assert_settled_by(tick)

    assert "2 nodes online" in held.log.with_name("inspect.log").read_text()
    assert administrator.acl_log() == []


@pytest.mark.no_fault("it is about permissions")
def test_a_locked_broker_refuses_strangers_and_administration(administrator: redis.Redis, broker: str) -> None:
    port = administrator.connection_pool.connection_kwargs["port"]
    with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()

    with redis.Redis.from_url(broker) as trials:
        for command in (
            "FLUSHALL",
            "FLUSHDB",
            "CONFIG GET *",
            "KEYS *",
            "SHUTDOWN",
            "ACL LIST",
            "SCRIPT FLUSH",
            "INFO",
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                trials.execute_command(*command.split())
        for command in ("GET session:1", "SET session:1 x", "PUBLISH chat x"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                trials.execute_command(*command.split())
