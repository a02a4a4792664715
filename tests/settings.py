"""The project's settings for tests, on a real PostgreSQL: an embedded one, or the server of TEST_DATABASE_URL.

``TEST_DATABASE_URL=sqlite:///`` runs the tests that work on SQLite.
"""

import atexit
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from sandbox import environment, servers

_started = ExitStack()
atexit.register(_started.close)

environment.isolate(
    # Also the variables of the tools: pytest and its plugins, Docker, package installers, proxies.
    inherit=(
        *("TEST_*", "PYTEST_*", "COV*", "HYPOTHESIS_*", "PLAYWRIGHT_*", "DOCKER_*", "CI"),
        *("PIP_*", "UV_*", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "*_proxy", "*_PROXY"),
    ),
    DJANGO_SETTINGS_MODULE="tests.settings",
    DATABASE_URL=os.environ.get("TEST_DATABASE_URL") or _started.enter_context(servers.postgres()),
)

from project.settings import *  # noqa: E402, F403
from project.settings import DATABASES  # noqa: E402

if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # A file, so that worker, beat and command processes use the same database.
    _directory = _started.enter_context(tempfile.TemporaryDirectory(prefix="sqlite-"))
    DATABASES["default"]["TEST"] = {"NAME": str(Path(_directory) / "test.sqlite3")}
else:
    # A statement that would wait for a lock forever fails.
    DATABASES["default"]["OPTIONS"]["options"] = "-c statement_timeout=30s"

WHITENOISE_AUTOREFRESH = True  # otherwise it warns that the static files were not collected
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
