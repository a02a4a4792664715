"""Processes that inherit no environment from the tests."""

import os
import subprocess
import sys
from functools import partial

from django.conf import settings


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python with only these environment variables."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=settings.BASE_DIR,
        env={"PATH": os.environ["PATH"], "DJANGO_ENV_FILE": os.devnull, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


manage = partial(python, "manage.py")
