"""Huey in the comparison."""

from collections.abc import Mapping

from comparison.runners import Program, Standing


class HueyConsumer(Standing):
    name, title = "huey", "Huey"
    how = (
        "A message in PostgreSQL to a standing Huey consumer, from sending it to the closed run. Its scheduler looks "
        "every second here and once a minute in production, where a tick comes up to a minute later. The task of a "
        "killed consumer is lost; the next tick takes what is left."
    )
    settings = "comparison.engines.huey.settings"
    store = "database"
    keeps_connections = True

    def programs(self, every: int | None) -> Mapping[str, Program]:
        no_schedule = () if every else ("--no-periodic",)
        return {"worker": Program(("manage.py", "run_huey", *no_schedule), ready="commands are available")}

    def trigger(self) -> None:
        from comparison.engines.huey.tasks import expire_trials

        expire_trials()
        expire_trials.huey.storage.close()  # the database is replaced after the run
