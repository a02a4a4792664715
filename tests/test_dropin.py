"""``accounts`` in another project, in which Celery, beat and humanize are not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

HOST = {
    "host_apps.py": """
from django.contrib.admin.apps import AdminConfig

class HostAdmin(AdminConfig):
    default_site = "accounts.sites.OperatorSite"
""",
    "host_urls.py": """
from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
""",
    "host_settings.py": """
from accounts.defaults import *
SECRET_KEY = "host"
ALLOWED_HOSTS = ["testserver"]
ROOT_URLCONF = "host_urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
USE_TZ = True
STATIC_URL = "static/"
CONTRIB = [f"django.contrib.{app}" for app in ("auth", "contenttypes", "sessions", "messages", "staticfiles")]
INSTALLED_APPS = ["host_apps.HostAdmin", *CONTRIB, "accounts"]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]},
}]
""",
    "use.py": """
import sys
from datetime import timedelta

for absent in ("celery", "django_celery_beat", "kombu", "redis", "axes", "prometheus_client", "project", "users"):
    sys.modules[absent] = None  # importing it raises ImportError

import django
from django.core.management import call_command
from django.utils import timezone

django.setup()
call_command("migrate", verbosity=0)
call_command("check", fail_level="WARNING")

from django.contrib.auth import get_user_model
from django.test import Client
from accounts.models import Account, ExpiryRun

user = get_user_model().objects.create_superuser("host", "host@example.com", "x")
Account.objects.create(user=user, created=timezone.now() - timedelta(days=90))
call_command("expire_trials")
run = ExpiryRun.objects.get()
client = Client()
client.force_login(user)
pages = ["", "accounts/account/", "accounts/notice/", "accounts/expiryrun/", "auth/user/"]
pages += [f"accounts/expiryrun/{run.pk}/{page}/" for page in ("change", "undo")]
print([client.get(f"/admin/{page}").status_code for page in pages])
overview = client.get("/admin/").content.decode()
print("Trials now" in overview, "Celery&#x27;s schedule" in overview or "Celery's schedule" in overview)
call_command("erase_user", "host@example.com", "--yes")
""",
}


@pytest.mark.faults
def test_the_admin_and_the_commands_work_without_celery(tmp_path: Path) -> None:
    for name, text in HOST.items():
        (tmp_path / name).write_text(text)

    used = subprocess.run(
        [sys.executable, "-W", "error", "use.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(settings.BASE_DIR), "DJANGO_SETTINGS_MODULE": "host_settings"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert used.stderr == ""
    assert used.stdout.splitlines()[:5] == [
        "System check identified no issues (0 silenced).",
        "Search for old trial accounts...",
        "Expired 1 trial(s)",
        "[200, 200, 200, 200, 200, 200, 200]",
        "True False",
    ]
    assert used.stdout.endswith("Erased.\n")
