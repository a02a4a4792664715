"""docs/adopt.md, applied unchanged to a new project with UUID users and its own Subscription model."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

pytestmark = pytest.mark.faults  # no faults, but half a minute of new projects and processes

PAGE = (settings.BASE_DIR / "docs" / "adopt.md").read_text()

HOST_SETTINGS = """
INSTALLED_APPS += ["people", "subscriptions"]
AUTH_USER_MODEL = "people.User"
"""
PEOPLE = """
import uuid
from django.contrib.auth.models import AbstractUser
from django.db import models

class User(AbstractUser):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
"""
SUBSCRIPTIONS = """
import uuid
from django.conf import settings
from django.db import models

class Expiry(models.Model):
    as_of = models.DateField()
    lapsed = models.PositiveIntegerField(default=0)
    finished = models.DateTimeField(null=True)

class Subscription(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    active = models.BooleanField(default=True)
    trial_end = models.DateField(null=True)
    lapsed_by = models.ForeignKey(Expiry, null=True, on_delete=models.PROTECT)
"""
SUBSCRIPTIONS_APP = """
from django.apps import AppConfig

class SubscriptionsConfig(AppConfig):
    name = "subscriptions"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self):
        from subscriptions import trials
"""
# Python imports this module at its start: it makes the packages that it names unimportable, as if not installed.
NOT_INSTALLED = """
import sys
for absent in "celery kombu redis django_celery_beat prometheus_client environ axes csp psycopg".split():
    sys.modules[absent] = None
"""


def block(title: str) -> str:
    """The code block of the page whose first line is this comment."""
    (found,) = re.findall(rf"```python\n(# {re.escape(title)}\n.*?)```", PAGE, re.DOTALL)
    return str(found)


class Host:
    """A new project, created with ``startproject``, on SQLite."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.without_celery = directory / "without"
        self.without_celery.mkdir()
        (self.without_celery / "sitecustomize.py").write_text(NOT_INSTALLED)
        self.django("-m", "django", "startproject", "host", ".")
        for app, models in (("people", PEOPLE), ("subscriptions", SUBSCRIPTIONS)):
            (directory / app / "migrations").mkdir(parents=True)
            (directory / app / "__init__.py").touch()
            (directory / app / "migrations" / "__init__.py").touch()
            (directory / app / "models.py").write_text(models)
        (directory / "subscriptions" / "apps.py").write_text(SUBSCRIPTIONS_APP)
        self.add("host/settings.py", HOST_SETTINGS)

    def add(self, file: str, text: str) -> None:
        with (self.directory / file).open("a") as opened:
            opened.write("\n" + text)

    def django(self, *arguments: str, celery: bool = False) -> str:
        """Run Python with these arguments and warnings as errors; returns its output."""
        done = subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], **({} if celery else {"PYTHONPATH": str(self.without_celery)})},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    def manage(self, *arguments: str, celery: bool = False) -> str:
        return self.django("manage.py", *arguments, celery=celery)

    def shell(self, code: str, *, celery: bool = False) -> str:
        return self.manage("shell", "--no-imports", "--command", code, celery=celery)


TRIALS = "subscriptions/trials.py, imported by ready() of your app"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    shutil.copytree(settings.BASE_DIR / "accounts", tmp_path / "accounts", ignore=shutil.ignore_patterns("__pycache__"))
    return host


CUSTOMERS = """
from datetime import timedelta
from django.contrib.auth import get_user_model
from django.utils import timezone
from subscriptions import trials
from subscriptions.models import Subscription
for name, days in (("old", 90), ("older", 120), ("new", 5)):
    user = get_user_model().objects.create(username=name, date_joined=timezone.now() - timedelta(days=days))
    trials.sign_up(user)
    Subscription.objects.create(user=user)
"""
ACTIVE = """
from subscriptions.models import Subscription
print(sorted(Subscription.objects.filter(active=True).values_list("user__username", flat=True)))
"""


BY_CELERY = """
from datetime import UTC, datetime
from accounts import tasks
from accounts.models import Account
Account.objects.filter(user__username="old").update(trial_ends_at=datetime(2026, 1, 1, tzinfo=UTC))
tasks.expire_trials.apply(throw=True)
"""


def adopt(host: Host, app: str = "accounts") -> None:
    """Steps 2 and 3 of the page."""
    host.add("host/settings.py", block("at the end of settings.py").replace("accounts", app))
    host.add("subscriptions/trials.py", block(TRIALS).replace("from accounts", f"from {app}"))
    host.manage("makemigrations", "people", "subscriptions")
    host.manage("migrate")
    host.shell(CUSTOMERS)


def test_it_works_without_celery_and_celery_can_be_added_later(host: Host, tmp_path: Path) -> None:
    adopt(host)

    add_the_gate(host)
    assert host.shell(VISITS).splitlines() == VISITED
    assert host.manage("check") == "System check identified no issues (0 silenced).\n"
    assert host.manage("expire_trials") == "Search for old trial accounts...\nExpired 2 trial(s)\n"
    assert host.shell(ACTIVE) == "['new']\n"
    assert host.manage("undo_expiry", "1", "--extend-days", "9").endswith("Put 2 account(s) back on trial\n")
    assert host.shell(ACTIVE) == "['new', 'old', 'older']\n"

    host.add("host/settings.py", block("at the end of settings.py, for Celery"))
    host.manage("migrate", celery=True)
    entries = "from django_celery_beat.models import PeriodicTask as P; print(*P.objects.order_by('pk'), sep='\\n')"
    assert [line.partition(":")[0] for line in host.shell(entries, celery=True).splitlines()][-2:] == [
        "Expire trials",
        "Send trial notices",
    ]
    host.shell(BY_CELERY, celery=True)
    assert host.shell(ACTIVE, celery=True) == "['new', 'older']\n"


APP = """
from django.http import HttpResponse
urlpatterns += [path("app/", lambda request: HttpResponse("in"))]
"""
VISITS = """
from django.contrib.auth import get_user_model
from django.test import Client
for name in ("old", "new"):
    client = Client(SERVER_NAME="localhost")
    client.force_login(get_user_model().objects.get(username=name))
    print(*(client.get(page).status_code for page in ("/app/", "/trial/")), client.get("/app/").get("Location"))
"""
VISITED = ["302 200 /trial/?next=/app/", "200 200 None"]


def add_the_gate(host: Host, app: str = "accounts") -> None:
    for file, title in (("settings", "at the end of settings.py"), ("urls", "at the end of urls.py")):
        host.add(f"host/{file}.py", block(f"{title}, for the gate").replace("accounts", app))
    host.add("host/urls.py", APP)


def test_it_works_under_another_name_beside_an_app_called_accounts(host: Host, tmp_path: Path) -> None:
    (tmp_path / "rename.py").write_text(block("rename.py"))
    host.django("rename.py", "trials")
    (tmp_path / "accounts" / "migrations").mkdir(parents=True)
    for file in ("__init__.py", "models.py", "migrations/__init__.py"):
        (tmp_path / "accounts" / file).touch()
    host.add("host/settings.py", 'INSTALLED_APPS += ["accounts"]')
    adopt(host, "trials")

    add_the_gate(host, "trials")
    assert host.shell(VISITS).splitlines() == VISITED
    assert host.manage("check") == "System check identified no issues (0 silenced).\n"
    assert host.manage("makemigrations", "--check") == "No changes detected\n"
    assert host.manage("expire_trials") == "Search for old trial accounts...\nExpired 2 trial(s)\n"
    assert "0 ending soon, 2 ended" in host.manage("send_trial_notices", "--dry-run")
    assert host.manage("undo_expiry", "1", "--extend-days", "9").endswith("Put 2 account(s) back on trial\n")
    assert host.shell(ACTIVE) == "['new', 'old', 'older']\n"


LAPSE = """
from datetime import date, timedelta
from django.contrib.auth import get_user_model
from subscriptions import expiry
from subscriptions.models import Subscription
for ago in (1, 2, 3, 4):
    user = get_user_model().objects.create(username=ago)
    Subscription.objects.create(user=user, trial_end=date(2026, 3, 9) - timedelta(days=ago))
try:
    expiry.expire(date(2026, 3, 9), most=2)
except RuntimeError as refusal:
    print(refusal)
run = expiry.expire(date(2026, 3, 9), most=3)
print(run.lapsed, Subscription.objects.filter(lapsed_by=run, active=False).count())
print(expiry.undo(run), Subscription.objects.filter(active=True).count())
"""


def test_a_model_of_another_name_takes_slices_and_fifty_lines(host: Host) -> None:
    code = block("subscriptions/expiry.py")
    host.add("subscriptions/expiry.py", code)
    (host.directory / "subscriptions" / "trials.py").touch()
    host.manage("makemigrations", "people", "subscriptions")
    host.manage("migrate")

    assert host.shell(LAPSE).splitlines() == [
        "3 subscriptions are due, and at most 2 may lapse in one run.",
        "3 3",
        "3 4",
    ]
    assert len(code.splitlines()) <= 50


def test_adopting_takes_thirty_lines_at_most() -> None:
    blocks = [block(title) for title in ("at the end of settings.py", TRIALS)]

    assert len("\n".join(blocks).splitlines()) <= 30
