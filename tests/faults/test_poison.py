"""Malformed messages: each is rejected and logged in one line, and the worker continues."""

import base64
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from tests.conftest import Process
from tests.faults import faults
from tests.faults.conftest import Customers, Tick

pytestmark = [pytest.mark.faults, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

QUEUE = "trial-expiry"
PERSONAL = "ann@example.com"
EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def envelope(
    body: object = None, *, raw_body: Any = None, headers: Any = None, properties: Any = None, **parts: Any
) -> str:
    """A message as Celery stores it in a Redis list, with changes; a header or property of None is omitted."""
    task_id = str(uuid4())
    text = json.dumps([[], {"batch_size": 2}, EMBED] if body is None else body).encode()
    message: dict[str, Any] = {
        "body": base64.b64encode(text).decode() if raw_body is None else raw_body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": with_changes({"task": "accounts.expire_trials", "id": task_id, "lang": "py"}, headers),
        "properties": with_changes(
            {
                "correlation_id": task_id,
                "delivery_info": {"exchange": "", "routing_key": QUEUE},
                "delivery_tag": str(uuid4()),
                "body_encoding": "base64",
            },
            properties,
        ),
        **parts,
    }
    return json.dumps(message)


def with_changes(usual: dict[str, Any], changes: Any) -> Any:
    if not isinstance(changes, dict | None):
        return changes
    return {name: value for name, value in {**usual, **(changes or {})}.items() if value is not None}


POISON: dict[str, str | bytes] = {
    # No envelope
    "empty": "",
    "text": PERSONAL,
    "not UTF-8": b"\xff\xfe\x00",
    "JSON text": '"x"',
    "null": "null",
    "empty list": "[]",
    "empty object": "{}",
    "number": "7",
    "huge number": "9" * 5000,
    "nested garbage": "[" * 100_000,
    "cut off": envelope()[:-20],
    "a type that JSON does not have": '{"__type__": "datetime", "__value__": "never"}',
    # An envelope, but a wrong one
    "no properties": json.dumps({"body": PERSONAL}),
    "properties are a list": envelope(properties=[]),
    "no delivery tag": envelope(properties={"delivery_tag": None}),
    "delivery tag is an object": envelope(properties={"delivery_tag": {}}),
    "delivery tag is no text": envelope(properties={"delivery_tag": "\ud800"}),
    "no delivery info": envelope(properties={"delivery_info": None}),
    "delivery info is a list": envelope(properties={"delivery_info": [1]}),
    "body is not base64": envelope(raw_body="\u20ac!"),
    "body encoding is unknown": envelope(properties={"body_encoding": "rot13"}),
    "body is an object": envelope(raw_body={"a": 1}),
    "compression is unknown": envelope(headers={"compression": "none-such"}),
    "not compressed": envelope(headers={"compression": "zlib"}),
    # An envelope that is right, around no task
    "no headers": envelope(headers=[]),
    "empty headers": envelope(headers={"task": None, "id": None}),
    "headers are text": envelope(headers="x"),
    "pickle": envelope(**{"content-type": "application/x-python-serialize"}),
    "content type is unknown": envelope(**{"content-type": "application/none-such"}),
    "content encoding is unknown": envelope(**{"content-type": "text/plain", "content-encoding": "none-such"}),
    "content encoding of data is unknown": envelope(
        **{"content-type": "application/data", "content-encoding": "none-such"}
    ),
    "content encoding is a number": envelope(**{"content-encoding": 7}),
    "body is text": envelope("x"),
    "body is an empty list": envelope([]),
    "body is no JSON": envelope(raw_body=base64.b64encode(PERSONAL.encode()).decode()),
    "no body": envelope(raw_body=""),
    "protocol 1": envelope({"task": "accounts.expire_trials", "args": 1}, headers={"task": None}),
    "protocol 99": envelope({"protocol": 99, "name": PERSONAL}, headers={"task": None}),
    # A task, but one that cannot be started
    "unknown task": envelope([[PERSONAL], {}, EMBED], headers={"task": "accounts.none_such"}),
    "task is a list": envelope(headers={"task": []}),
    "no id": envelope(headers={"id": None}),
    "id is an object": envelope(headers={"id": {}}),
    "args are a number": envelope([1, {}, EMBED]),
    "args are text": envelope([PERSONAL, {}, EMBED]),
    "kwargs are a list": envelope([[], [1], EMBED]),
    "kwargs are text": envelope([[], PERSONAL, EMBED]),
    "callbacks are a number": envelope([[], {}, 3]),
    "due at no time": envelope(headers={"eta": PERSONAL}),
    "expires at an object": envelope(headers={"expires": {}}),
    "expires beyond the calendar": envelope(headers={"expires": 10**30}),
    "time limit is text": envelope(headers={"timelimit": ["x", None]}),
    "time limit is huge": envelope(headers={"timelimit": [10**400, 10**400]}),
    "time limit is one number": envelope(headers={"timelimit": 5}),
    "time limit is infinite": envelope(headers={"timelimit": [float("inf"), None]}),
    "stamps are a number": envelope(headers={"stamped_headers": 3}),
    "stamps are lists": envelope(headers={"stamped_headers": [[1]], "stamps": {}}),
    "stamps hold nothing": envelope(headers={"stamped_headers": ["a"], "stamps": [1]}),
}


def test_malformed_messages_are_rejected_in_a_line_each_at_every_start(
    customers: Customers, celery: Process, tick: Tick, broker: str, tmp_path: Path
) -> None:
    messages = redis.Redis.from_url(broker)
    log = tmp_path / "worker.log"

    for start in (1, 2):
        faults.inflict(messages.lpush, QUEUE, *POISON.values())
        with celery("worker", "--concurrency=1") as worker:
            customers.assert_settled_by(tick)
            assert worker.poll() is None

        assert log.read_text().count(" message_rejected queue=trial-expiry length=") == start * len(POISON)
        assert not messages.exists(QUEUE, "unacked", "unacked_index")

    assert "Traceback" not in log.read_text()
    assert PERSONAL not in log.read_text()
