"""The project's settings for tests, on a real PostgreSQL: an embedded one, or the server of TEST_DATABASE_URL.

``TEST_DATABASE_URL=sqlite:///`` runs what SQLite can.
"""

import atexit
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from sandbox import servers

_started = ExitStack()
atexit.register(_started.close)

os.environ["DATABASE_URL"] = os.environ.get("TEST_DATABASE_URL") or _started.enter_context(servers.postgres())
# Nothing of the developer's own settings may change what the tests see, here and in the processes they start.
os.environ["DJANGO_ENV_FILE"] = os.devnull
for _name in [
    name
    for name in os.environ
    if name.startswith(("TRIAL_", "CELERY_", "REDIS_", "EMAIL_", "SITE_", "DEFAULT_FROM_EMAIL"))
]:
    del os.environ[_name]

from project.settings import *  # noqa: E402, F403
from project.settings import DATABASES  # noqa: E402

if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # A file, so that worker, beat and command processes see it too.
    _directory = _started.enter_context(tempfile.TemporaryDirectory(prefix="sqlite-"))
    DATABASES["default"]["TEST"] = {"NAME": str(Path(_directory) / "test.sqlite3")}

WHITENOISE_AUTOREFRESH = True  # else it warns that nobody has collected the static files
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
