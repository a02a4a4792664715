"""Other ways to schedule the same verb, as contenders only."""

from comparison.runners import Runner

ENGINES: tuple[type[Runner], ...] = ()
