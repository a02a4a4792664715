"""The loop: ``python -m comparison.engines.loop.tasks``. It knows no retries: the next tick is the next attempt."""

import logging
import os
import signal
import time
from contextlib import suppress

import django


def main(every: int) -> None:
    """Run at every multiple of ``every`` seconds, and on SIGUSR1."""
    django.setup()
    from django.db import connection
    from django.utils import timezone

    from accounts import services
    from accounts.models import ExpiryRun

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    print("The loop is ready.", flush=True)  # noqa: T201
    while True:
        signal.sigtimedwait({signal.SIGUSR1}, every - time.time() % every)
        try:
            with suppress(services.NothingToDo):
                services.expire_trials(path=ExpiryRun.Path.COMMAND, now=timezone.now())
        except Exception:
            logging.getLogger(__name__).exception("A run failed.")
        connection.close()  # none is held until the next run


if __name__ == "__main__":
    main(int(os.environ.get("COMPARE_EVERY", "86400")))
