"""The engines that take part in a comparison."""

from comparison.runners import Runner

ENGINES: tuple[type[Runner], ...] = ()
