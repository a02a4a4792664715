"""What the storm's processes do. Multiprocessing's fork server imports it once: a process starts in milliseconds."""

import json
import os
import time
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import django

django.setup()

from django.core.management import execute_from_command_line  # noqa: E402
from django.db import Error, connection  # noqa: E402
from django.utils import timezone  # noqa: E402

from accounts import services  # noqa: E402
from project.celery import app  # noqa: E402
from users.models import User  # noqa: E402


def manage(who: str, log: Path, *arguments: str) -> None:
    """Run ``manage.py ARGUMENTS``, as ``who`` to the database, with its output in ``log``."""
    os.environ["PGAPPNAME"] = who
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    execute_from_command_line(["manage.py", *arguments])


def send(task: str, kwargs: dict[str, Any]) -> None:
    """Send a task, as beat does."""
    app.send_task(task, kwargs=kwargs, ignore_result=True)


VERBS = {
    "pay": lambda account: services.activate(account_id=account),
    "extend": lambda account: services.extend_trial(account_id=account, days=1, now=timezone.now()),
    "cancel": lambda account: services.cancel(account_id=account),
    "delete": lambda account: User.objects.filter(account=account).delete()[0] > 0,
}

SOMEBODY = """
    SELECT id FROM accounts_account WHERE status IN ('trialing', 'trial_expired')
    AND trial_ends_at < now() - interval '1 day' + %s * interval '1 second' ORDER BY trial_ends_at DESC, id
    OFFSET %s LIMIT 1
    """


def customers(who: str, seed: int, journal: Path) -> None:
    """Pay, extend, cancel and delete, until killed; each act has a line before it and one after, both on the disk.

    Every fifth act is that of a page left open: its account may have been changed or deleted since.
    """
    random = Random(seed)
    seen: list[int] = []
    os.environ["PGAPPNAME"] = who
    with journal.open("a") as file:

        def write(what: str, **line: Any) -> None:
            file.write(json.dumps({"what": what, "who": name, "at": time.time(), **line}) + "\n")
            file.flush()
            os.fsync(file.fileno())

        for number in count():
            name = f"{who}-{number}"
            try:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT set_config('application_name', %s, false)", [name])
                    # Of those who are about to expire, or just did.
                    cursor.execute(SOMEBODY, [random.choice((0, 2)), random.randrange(60)])
                    (account,) = cursor.fetchone() or (None,)
                if account is not None:
                    seen.append(account)
                    if random.random() < 0.2:
                        account = random.choice(seen[-30:])
                    (verb,) = random.choices(list(VERBS), weights=(5, 4, 2, 1))
                    write("intent", verb=verb, account=account)
                    write("done", result=VERBS[verb](account))
            except Error as error:
                write("error", error=type(error).__name__)
                connection.close()
            time.sleep(random.uniform(0, 0.4))
