"""django.tasks in the comparison: with a worker that stands ready, and with one that cron starts."""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping

from django.conf import settings

from comparison.runners import CronRun, Program, Standing, python

ENQUEUE = python(
    *("manage.py", "shell", "--no-imports", "--command"),
    "from comparison.engines.django_tasks.tasks import expire_trials; expire_trials.enqueue()",
)
"""What cron runs."""


class DatabaseWorker(Standing):
    name, title = "django-tasks", "django.tasks"
    how = (
        "Cron starts a process that enqueues a task, and a standing db_worker, which looks every second, runs it: from "
        "the start of that process to the closed run. A loop in Python stands in for cron. The task of a killed worker "
        "stays RUNNING forever; the next tick takes what is left."
    )
    settings = "comparison.engines.django_tasks.settings"
    store = "database"
    keeps_connections = True
    enqueuing = 0.0  # CPU seconds of the processes that enqueued

    def programs(self, every: int | None) -> Mapping[str, Program]:
        programs = {"worker": Program(("manage.py", "db_worker"), ready="Starting worker")}
        if every:
            cron = ("-m", "comparison.engines.cron", str(every), *ENQUEUE)
            programs["scheduler"] = Program(cron, ready="cron is ready")
        return programs

    def trigger(self) -> None:
        child = subprocess.Popen(ENQUEUE, cwd=settings.BASE_DIR, env=self.process_environment(None))  # noqa: S603
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        self.enqueuing += used.ru_utime + used.ru_stime

    def cpu_seconds(self) -> float:
        return super().cpu_seconds() + self.enqueuing

    def scheduled(self, as_of: float, every: int) -> float:
        """The last tick of cron before the task of that run was enqueued: cron waits for the process that enqueues."""
        _, _, log = self.running["scheduler"]
        [(enqueued,)] = self.site.ask(
            "SELECT extract(epoch FROM enqueued_at)::float FROM django_tasks_database_dbtaskresult "
            "WHERE started_at <= to_timestamp(%s) ORDER BY started_at DESC LIMIT 1",
            as_of,
        )
        return max(
            float(tick) for tick in re.findall(r"^tick (\d+)", log.read_text(), re.MULTILINE) if float(tick) <= enqueued
        )


class BatchByCron(CronRun):
    name, title, path = "django-tasks-cron", "django.tasks, cron", "engine"
    how = (
        "Cron starts a process that enqueues and then db_worker --batch, which works off the queue and ends: nothing "
        "stands between two runs. A task of a killed process stays RUNNING; the next cron run takes what is left."
    )
    settings = "comparison.engines.django_tasks.settings"
    store = "database"
    arguments = (
        *("sh", "-c"),
        f"{shlex.join(ENQUEUE)} && {shlex.join(python('manage.py', 'db_worker', '--batch', '--no-startup-delay'))}",
    )
