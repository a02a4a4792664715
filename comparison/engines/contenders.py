"""The engines that take part."""

from comparison.engines.django_tasks.contender import BatchByCron, DatabaseWorker
from comparison.engines.huey.contender import HueyConsumer
from comparison.engines.loop.contender import Loop
from comparison.engines.procrastinate.contender import ProcrastinateWorker
from comparison.runners import Runner

ENGINES: tuple[type[Runner], ...] = (HueyConsumer, ProcrastinateWorker, DatabaseWorker, BatchByCron, Loop)
