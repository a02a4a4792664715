"""What a browser, a proxy and a probe see of the settings of production, and what its processes do with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import AbstractBaseUser
from django.db import OperationalError
from django.db.utils import ConnectionHandler
from django.test import Client, override_settings

from accounts.base_tasks import BaseTask
from project.celery import app
from tests.test_settings import PRODUCTION, start

pytestmark = pytest.mark.django_db


@contextmanager
def production(**variables: str) -> Iterator[Client]:
    """A client of a site with the settings that are read from these variables and those that production needs."""
    read = start(**PRODUCTION, **variables)
    names = [name for name in read if name.startswith(("SECURE_", "SESSION_", "CSRF_", "ALLOWED_HOSTS"))]
    with override_settings(**{name: read[name] for name in names}):
        yield Client(HTTP_HOST="trials.example.com")


@pytest.mark.parametrize("page", ["/", "/login/", "/admin/"])
def test_a_page_over_http_is_led_to_https(page: str) -> None:
    with production() as client:
        answer = client.get(page)

    assert (answer.status_code, answer["Location"]) == (301, f"https://trials.example.com{page}")


@pytest.mark.parametrize("page", ["/health/", "/health/expiry/", "/metrics"])
def test_a_probe_over_http_is_answered(page: str) -> None:
    with production() as client:
        assert client.get(page).status_code not in (301, 302)


def test_a_proxy_that_is_told_of_may_say_that_it_spoke_https() -> None:
    forwarded = {"X-Forwarded-Proto": "https"}

    with production() as client:
        assert client.get("/login/", headers=forwarded).status_code == 301, "anybody could say so"
    with production(DJANGO_BEHIND_PROXY="1") as client:
        assert client.get("/login/", headers=forwarded).status_code == 200
        assert client.get("/login/", headers={"X-Forwarded-Proto": "http"}).status_code == 301
    with production(DJANGO_SSL_REDIRECT="0") as client:
        assert client.get("/login/").status_code == 200


def test_browsers_are_told_for_an_hour_to_use_https_alone_until_more_is_asked_for() -> None:
    with production() as client:
        assert client.get("/login/", secure=True)["Strict-Transport-Security"] == (
            "max-age=3600; includeSubDomains; preload"
        )
    with production(DJANGO_HSTS_SECONDS="0") as client:
        assert "Strict-Transport-Security" not in client.get("/login/", secure=True)


def test_cookies_travel_over_https_alone(admin_user: AbstractBaseUser) -> None:
    with production() as client:
        client.get("/login/", secure=True)
        client.post("/login/", {"username": "admin", "password": "password"}, secure=True)

    assert {name: bool(cookie["secure"]) for name, cookie in client.cookies.items()} == {
        "csrftoken": True,
        "sessionid": True,
    }


# --- The database ---


def connections(url: str) -> tuple[Any, Any]:
    """Two connections to the database at this URL, by the settings that are read from it."""
    databases = start(DATABASE_URL=url)["DATABASES"]
    databases["other"] = databases["default"] | {"OPTIONS": databases["default"]["OPTIONS"] | {"timeout": 0}}
    both = ConnectionHandler(databases)
    return both["default"], both["other"]


def test_processes_share_an_sqlite_file_without_locking_each_other_out(tmp_path: Path) -> None:
    first, impatient = connections(f"sqlite:///{tmp_path}/db.sqlite3")
    try:
        with first.cursor() as cursor:
            cursor.execute("CREATE TABLE t (id integer)")
            waits = cursor.execute("PRAGMA busy_timeout").fetchone()[0]
            assert cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert cursor.execute("PRAGMA synchronous").fetchone() == (1,)
            assert 5_000 < waits < 60_000, "milliseconds; a slice takes a tenth of a second"

            # A transaction takes the lock at its beginning. If it took it at its first write, it could not wait.
            cursor.execute("BEGIN IMMEDIATE")
            with impatient.cursor(), pytest.raises(OperationalError, match="locked"):
                impatient._start_transaction_under_autocommit()
            assert impatient.cursor().execute("SELECT count(*) FROM t").fetchone() == (0,), "readers do not wait"
    finally:
        first.close()
        impatient.close()


def test_a_web_process_keeps_its_connection_and_looks_whether_it_still_lives() -> None:
    database = start(**PRODUCTION)["DATABASES"]["default"]

    assert 0 < database["CONN_MAX_AGE"] < 3600
    assert database["CONN_HEALTH_CHECKS"]
    assert 0 < database["OPTIONS"]["connect_timeout"] < 30, "a server that is gone must not hold up every request"


# --- Celery ---


def test_no_message_is_sent_again_while_its_task_may_still_run() -> None:
    options = [app.conf.broker_transport_options, app.conf.result_backend_transport_options]
    visibility = {app.conf.visibility_timeout, *(option["visibility_timeout"] for option in options)}

    assert len(visibility) == 1, "Celery reads all three"
    assert BaseTask.soft_time_limit < BaseTask.time_limit < visibility.pop() <= 3600


def test_whatever_waits_for_the_broker_waits_for_less_than_a_minute() -> None:
    policy = app.conf.task_publish_retry_policy
    waits = [
        *(app.conf.broker_transport_options[name] for name in ("socket_timeout", "socket_connect_timeout")),
        *(app.conf.redis_socket_timeout, app.conf.redis_socket_connect_timeout, app.conf.broker_pool_acquire_timeout),
        policy["max_retries"] * policy["interval_max"],
    ]

    assert all(0 < wait < 60 for wait in waits), waits
    assert app.conf.broker_transport_options["socket_keepalive"]
    assert app.conf.redis_socket_keepalive


def test_a_worker_waits_for_its_broker_as_long_as_it_takes() -> None:
    assert app.conf.broker_connection_retry_on_startup
    assert app.conf.broker_connection_max_retries is None
    assert not app.conf.worker_cancel_long_running_tasks_on_connection_loss, "a slice in hand is finished"


def test_a_worker_takes_one_message_for_each_process_and_leaves_others_theirs() -> None:
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.task_default_queue == "trial-expiry", "not Celery's default, which another project may use"
    assert app.conf.worker_soft_shutdown_timeout > 1, "a slice takes a tenth of a second"
    assert app.conf.worker_max_tasks_per_child > 100, "a new process takes as long as several slices"


def test_the_schedule_is_in_utc_in_the_database_and_answers_to_ping() -> None:
    assert (app.conf.enable_utc, str(app.timezone)) == (True, "UTC")
    assert app.conf.beat_scheduler == "project.beat:Scheduler"
    assert app.conf.beat_schedule == {}
    assert app.conf.beat_enable_remote_control


def test_the_results_of_slices_outlast_a_restart_of_the_broker_and_their_run() -> None:
    assert app.conf.result_backend_always_retry
    assert app.conf.result_backend_max_retries >= 12, "about 20 seconds"
    assert app.conf.result_expires >= 3600
