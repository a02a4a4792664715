"""The machine that measures, and what runs on it."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

import psutil
from django.db import connection
from redis import Redis


def describe(broker: str) -> dict[str, str]:
    """What a reader has to know of it, by what it is called."""
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version")
        database = f"PostgreSQL {cursor.fetchone()[0].split()[0]}"
    with Redis.from_url(broker) as client:
        info: dict[str, str] = client.info("server")
    valkey = info.get("valkey_version")
    cpuinfo = Path("/proc/cpuinfo")  # where Linux has the name; elsewhere Python can tell it
    named = re.search("^model name.*: (.+)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return {
        "Processor": f"{named[1] if named else platform.processor() or platform.machine()}, {cores()} cores",
        "Memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
        "System": f"{platform.system()} {platform.release()}",
        "Database": database,
        "Broker": f"Valkey {valkey}" if valkey else f"Redis {info['redis_version']}",
        "Python": platform.python_version(),
        **{package: version(package) for package in ("Django", "Celery")},
    }


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def database_process() -> psutil.Process | None:
    """The database server, when it runs where we see it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        try:
            backend = psutil.Process(cursor.fetchone()[0])
            # A server in a container, or on another machine, counts its processes otherwise.
            return backend.parent() if str(connection.settings_dict["NAME"]) in " ".join(backend.cmdline()) else None
        except psutil.Error:
            return None
