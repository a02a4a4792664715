"""Stands in for cron: ``python -m comparison.engines.cron SECONDS COMMAND...``."""

import subprocess
import sys
import time


def main(every: int, command: list[str]) -> None:
    """Run the command at every multiple of ``every`` seconds, and print ``tick`` and that moment."""
    print("cron is ready", flush=True)  # noqa: T201
    while True:
        time.sleep(every - time.time() % every)
        print(f"tick {round(time.time() / every) * every}", flush=True)  # noqa: T201
        subprocess.run(command, check=False)  # noqa: S603 (our own)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
