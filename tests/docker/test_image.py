"""The image as worker and beat: each account expires once, whatever happens to the containers."""

import pytest
from pytest_celery import CeleryTestContainer, CeleryTestWorker

from sandbox.servers import wait_for
from tests.docker.deployment import Deployment

pytestmark = pytest.mark.docker

MANY = 500


def is_gone(worker: CeleryTestWorker) -> bool:
    worker.container.reload()
    return bool(worker.container.status == "exited")


def test_beat_ticks_and_the_worker_expires_what_is_due(
    deployment: Deployment, celery_worker: CeleryTestWorker, beat: CeleryTestContainer
) -> None:
    deployment.add_due(30)
    deployment.tick_every_second()

    deployment.wait_until_expired(30)

    deployment.assert_expired_exactly_once(30)
    assert deployment.paths() == {"celery"}


def test_a_run_whose_worker_is_killed_is_finished_by_the_next_tick(
    deployment: Deployment, celery_worker: CeleryTestWorker, request: pytest.FixtureRequest
) -> None:
    deployment.add_due(MANY)
    deployment.send_a_run_of_many_messages()
    wait_for("the run to expire the first accounts", deployment.expired)

    celery_worker.kill()

    assert 0 < deployment.expired() < MANY

    deployment.tick_every_second()
    request.getfixturevalue("beat")  # not earlier: its first tick comes at its first start, and takes every account
    celery_worker.restart()
    deployment.wait_until_expired(MANY)

    deployment.assert_expired_exactly_once(MANY)


def test_a_new_release_takes_over_in_mid_run_and_loses_no_message(
    deployment: Deployment, celery_worker: CeleryTestWorker, request: pytest.FixtureRequest
) -> None:
    deployment.add_due(MANY)
    deployment.send_a_run_of_many_messages()
    wait_for("the run to expire the first accounts", deployment.expired)

    celery_worker.kill("SIGTERM")
    wait_for("the old worker to leave", lambda: is_gone(celery_worker), seconds=40)
    assert 0 < deployment.expired() < MANY

    next_worker: CeleryTestWorker = request.getfixturevalue("next_worker")
    wait_for("the same run to succeed", deployment.succeeded, seconds=90)

    deployment.assert_expired_exactly_once(MANY)
    assert "expire_slice" in next_worker.logs()
