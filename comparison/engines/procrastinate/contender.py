"""procrastinate in the comparison."""

from collections.abc import Mapping
from types import MappingProxyType

from comparison.runners import Program, Standing


class ProcrastinateWorker(Standing):
    name, title = "procrastinate", "procrastinate"
    how = (
        "A job in PostgreSQL for a standing procrastinate worker, from deferring it to the closed run. The worker is "
        "its own scheduler. After a kill the next tick takes what is left, or the job is run again within about eleven "
        "minutes if that is earlier."
    )
    settings = "comparison.engines.procrastinate.settings"
    environment: Mapping[str, str] = MappingProxyType({"LOG_LEVEL": "INFO"})
    store = "database"
    keeps_connections = True

    def programs(self, every: int | None) -> Mapping[str, Program]:
        return {"worker": Program(("manage.py", "procrastinate", "worker"), ready="Starting worker on all queues")}

    def trigger(self) -> None:
        from procrastinate.contrib.django import app

        app.configure_task("expire_trials").defer(timestamp=0)
