"""The project's settings for tests, on a real PostgreSQL: an embedded one, or the server of TEST_DATABASE_URL.

``TEST_DATABASE_URL=sqlite:///`` runs what SQLite can.
"""

import atexit
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from comparison import servers

_started = ExitStack()
atexit.register(_started.close)

os.environ["DATABASE_URL"] = os.environ.get("TEST_DATABASE_URL") or _started.enter_context(servers.postgres())
# Nothing of the developer's own .env may change what the tests see.
for _name in ("TRIAL_DAYS", "TRIAL_GRACE_DAYS", "TRIAL_EXPIRY_MAX"):
    os.environ[_name] = ""

from project.settings import *  # noqa: E402, F403
from project.settings import DATABASES  # noqa: E402

if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # A file, so that worker, beat and command processes see it too.
    _directory = _started.enter_context(tempfile.TemporaryDirectory(prefix="sqlite-"))
    DATABASES["default"]["TEST"] = {"NAME": str(Path(_directory) / "test.sqlite3")}

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
