"""The loop in the comparison."""

import signal
from collections.abc import Mapping

from comparison.runners import Program, Standing


class Loop(Standing):
    name = title = "loop"
    how = (
        "A signal to a process that sleeps until the next tick or that signal, from sending it to the closed run: no "
        "library, no queue, and no connection between two runs. After a kill the next tick takes what is left."
    )
    store = ""

    def programs(self, every: int | None) -> Mapping[str, Program]:
        return {"worker": Program(("-m", "comparison.engines.loop.tasks"), ready="The loop is ready.")}

    def trigger(self) -> None:
        for process in self.roles()["worker"]:
            process.send_signal(signal.SIGUSR1)
