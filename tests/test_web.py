"""The protection of the site: throttles, the client's address, headers, and a server that slow clients cannot block."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from axes.models import AccessAttempt, AccessLog
from django.contrib.auth.password_validation import validate_password
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.test import Client
from pytest_django import Settings

from project.middleware import client_address
from sandbox import servers
from tests.factories import UserFactory
from users.models import User

pytestmark = pytest.mark.django_db

LOGIN = "/admin/login/"
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def _nothing_counted() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def operator() -> User:
    operator: User = UserFactory.create(username="operator", is_staff=True)
    operator.set_password("right")
    operator.save()
    return operator


def log_in(address: str, password: str, *, username: str = "operator", page: str = LOGIN, **headers: str) -> int:
    """Post the login form from that address; returns the status, which is 302 after a successful login."""
    form = {"username": username, "password": password}
    return Client(headers=headers or None, REMOTE_ADDR=address).post(page, form).status_code


# --- Logins ---


@pytest.mark.parametrize("page", [LOGIN, "/login/"])
def test_ten_wrong_passwords_lock_the_address_out_but_not_the_operator(operator: User, page: str) -> None:
    answers = [log_in("192.0.2.1", "wrong", username=f"guess{number}", page=page) for number in range(10)]

    assert answers == [200] * 9 + [429]
    assert log_in("192.0.2.1", "right") == log_in("192.0.2.1", "right", page="/login/") == 429
    assert log_in("192.0.2.2", "right", page=page) == 302


def test_a_lockout_ends_and_attempts_meanwhile_do_not_prolong_it(operator: User, settings: Settings) -> None:
    for _ in range(10):
        log_in("192.0.2.1", "wrong")
    began = AccessAttempt.objects.get().attempt_time
    assert log_in("192.0.2.1", "wrong") == 429

    attempt = AccessAttempt.objects.get()
    assert attempt.attempt_time == began
    attempt.attempt_time -= settings.AXES_COOLOFF_TIME
    attempt.save()
    assert log_in("192.0.2.1", "right") == 302


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("93842750183746", "entirely numeric"),
        ("password123", "too common"),
        ("Sh0rt!a", "too short"),
        ("operator12", "too similar"),
    ],
)
def test_a_password_that_is_guessed_soon_is_not_taken(operator: User, password: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        validate_password(password, operator)


def test_a_login_forgives_the_wrong_passwords_before_it(operator: User) -> None:
    for _ in range(9):
        log_in("192.0.2.1", "wrong")
    assert log_in("192.0.2.1", "right") == 302

    assert [log_in("192.0.2.1", "wrong") for _ in range(9)] == [200] * 9
    assert not AccessLog.objects.exists()  # who logs in, from where and when, is not recorded


# --- The client's address ---


@pytest.fixture
def behind_a_proxy(settings: Settings) -> None:
    settings.MIDDLEWARE = ["project.middleware.client_address", *settings.MIDDLEWARE]


@pytest.mark.usefixtures("behind_a_proxy")
def test_behind_a_proxy_each_client_is_counted_by_its_own_address(operator: User) -> None:
    for number in range(10):  # the proxy appends to the header that a client sends
        log_in("10.0.0.1", "wrong", **{"X-Forwarded-For": f"198.51.100.{number}, 192.0.2.1"})

    assert log_in("10.0.0.1", "right", **{"X-Forwarded-For": "192.0.2.1"}) == 429
    assert log_in("10.0.0.1", "right", **{"X-Forwarded-For": "192.0.2.2"}) == 302


def test_without_a_proxy_a_forged_address_is_not_believed(operator: User) -> None:
    for number in range(10):
        log_in("192.0.2.1", "wrong", **{"X-Forwarded-For": f"198.51.100.{number}"})

    assert log_in("192.0.2.1", "right", **{"X-Forwarded-For": "198.51.100.99"}) == 429


@pytest.mark.parametrize("header", ["", "unknown", "192.0.2.1, ", "192.0.2.1:8080", "x" * 10_000])
@pytest.mark.usefixtures("behind_a_proxy")
def test_a_hop_that_is_no_address_leaves_that_of_the_connection(operator: User, header: str) -> None:
    assert log_in("10.0.0.1", "wrong", **{"X-Forwarded-For": header}) == 200

    assert AccessAttempt.objects.get().ip_address == "10.0.0.1"


@pytest.mark.parametrize(("behind", "used"), [("1", True), ("0", False), ("", False)])
def test_the_header_is_read_only_where_the_setting_says_so(behind: str, used: bool) -> None:
    code = "from project.settings import MIDDLEWARE; print(MIDDLEWARE[0])"
    with_setting = {**os.environ, "DJANGO_BEHIND_PROXY": behind}
    shown = subprocess.run([sys.executable, "-c", code], env=with_setting, capture_output=True, check=True)

    assert (f"{client_address.__module__}.{client_address.__name__}" in shown.stdout.decode()) is used


# --- Tokens ---


def ask(address: str, token: str, page: str = "/metrics") -> int:
    return Client(REMOTE_ADDR=address).get(page, headers={"authorization": f"Bearer {token}"}).status_code


@pytest.mark.parametrize("page", ["/metrics", "/health/expiry/"])
def test_ten_wrong_tokens_shut_the_address_out_for_a_minute(settings: Settings, page: str) -> None:
    settings.METRICS_TOKEN = TOKEN
    for number in range(10):
        ask("192.0.2.1", f"wrong{number}", page)

    assert ask("192.0.2.1", TOKEN) == 429
    assert ask("192.0.2.2", TOKEN) == 200
    cache.clear()  # as after a minute
    assert ask("192.0.2.1", TOKEN) == 200


# --- Headers ---


@pytest.mark.parametrize(
    "page", ["/admin/", LOGIN, "/health/", "/metrics", "/nowhere", "/", "/login/", "/trial/", "/app/"]
)
def test_every_answer_forbids_inline_scripts_frames_and_devices(admin_client: Client, page: str) -> None:
    headers = admin_client.get(page).headers

    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "style-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "geolocation=()" in headers["Permissions-Policy"]


# --- The server ---

Gunicorn = Callable[..., AbstractContextManager[int]]


@pytest.fixture
def gunicorn(environment: Mapping[str, str], tmp_path: Path) -> Gunicorn:
    """A real gunicorn with one process and two threads, which waits one second for a request; yields its port."""
    config = tmp_path / "gunicorn.conf.py"
    config.write_text("from project.gunicorn import *\nthreads = 2\nWorker.REQUEST_SECONDS = 1\n")

    @contextmanager
    def serve(**extra: str) -> Iterator[int]:
        port = servers.free_port()
        command = ("-m", "gunicorn", "project.wsgi", "--config", str(config), "--bind", f"127.0.0.1:{port}")
        with servers.process(
            *command, "--no-control-socket", env={**environment, **extra}, log=tmp_path / "gunicorn.log"
        ):
            servers.wait_for("gunicorn", lambda: health(port))
            yield port

    return serve


def health(port: int, page: str = "/health/", *, token: str = "") -> tuple[int, str] | None:
    """The status and text of a page; None when no answer comes within a few seconds."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", page, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return None
    finally:
        connection.close()


@pytest.mark.faults
@pytest.mark.django_db(transaction=True)
def test_half_sent_requests_do_not_stop_the_server(gunicorn: Gunicorn) -> None:
    half = (
        b"GET /admin/ HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /admin/login/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nusername=",
    )
    with gunicorn() as port, ExitStack() as clients:
        for number in range(6):  # three for each thread
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(half[number % 2])

        answer = servers.wait_for("an answer beside half-sent requests", lambda: health(port))
    assert answer == (200, "The database answers.\n")


@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_away_is_one_sentence_and_a_line_of_log(gunicorn: Gunicorn, tmp_path: Path) -> None:
    pages = ["/health/", "/health/expiry/", "/metrics"]
    with gunicorn(DATABASE_URL="postgres://nobody:secret@127.0.0.1:1/nowhere", METRICS_TOKEN=TOKEN) as port:
        before = len((tmp_path / "gunicorn.log").read_text().splitlines())

        assert {health(port, page, token=TOKEN) for page in pages} == {(503, "The database does not answer.\n")}

        log = (tmp_path / "gunicorn.log").read_text().splitlines()[before:]
    assert len(log) == 3
    for page, line in zip(pages, log, strict=True):
        assert f"ERROR django.request: {page}: The database nowhere at 127.0.0.1 port 1 does not answer (" in line


def test_the_image_and_the_procfile_start_gunicorn_with_its_settings(settings: Settings) -> None:
    for file in ("Dockerfile", "Procfile"):
        assert "project/gunicorn.py" in (settings.BASE_DIR / file).read_text()
