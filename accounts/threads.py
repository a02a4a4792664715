"""Work on several items at once: threads that share the items, each with a database connection of its own.

Imports only Django, so a project can copy this file.
"""

import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from contextvars import copy_context
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Generic, TypeVar

from django.db import connection, connections

Item = TypeVar("Item")
Result = TypeVar("Result")
Results = Generator[Result, None, None]

Work = Callable[[Iterator[Item]], Results[Result]]
"""Takes items, as many as it can get, and yields results."""


def side_by_side(work: Work[Item, Result], items: Iterable[Item], *, jobs: int) -> Results[Result]:
    """Yield the results of ``work(items)``; with more than one job, of as many threads that share the items.

    Each thread has a database connection of its own, and closes it when it ends. The results are yielded in the order
    in which they are ready, in the thread that asks for them. When a thread raises an error, or this generator is
    closed, no more items are handed out, and the threads finish the ones they are at; then the error is raised. But an
    exception that a signal handler raises while this waits is raised at once; the threads then end after their items.

    Raises:
        ValueError: more than one job on SQLite, which has one writer.
    """
    if jobs == 1:
        return work(iter(items))
    if connection.vendor == "sqlite":
        raise ValueError(f"jobs must be 1 on SQLite, which has one writer, got {jobs}.")
    return _in_threads(work, _Shared(items), jobs)


class _Shared(Iterator[Item], Generic[Item]):
    """An iterator that several threads may take items from, until one of them stops it."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._one_at_a_time = Lock()
        self.stopped = False

    def __next__(self) -> Item:
        with self._one_at_a_time:
            if self.stopped:
                raise StopIteration
            return next(self._items)


def _in_threads(work: Work[Item, Result], items: _Shared[Item], jobs: int) -> Results[Result]:
    reports = SimpleQueue[tuple[Result] | BaseException | None]()
    # Daemons, so that after a second Ctrl-C the process does not wait for them. In the caller's context: its language.
    threads = [Thread(target=copy_context().run, args=(_run, work, items, reports), daemon=True) for _ in range(jobs)]
    errors: list[BaseException] = []
    try:
        for thread in threads:
            thread.start()
        running = jobs
        while running:
            report = reports.get()
            if isinstance(report, tuple):
                yield report[0]
            else:
                running -= 1
                errors += [report] if report else []
    except GeneratorExit:
        items.stopped = True
        for thread in threads:
            thread.join()
        raise
    finally:
        items.stopped = True
    if errors:
        raise errors[0]


def _run(work: Work[Item, Any], items: _Shared[Item], reports: SimpleQueue[Any]) -> None:
    """Report each result in a tuple, and last an error or None."""
    # Otherwise the kernel may deliver a signal to this thread, and the main thread, which handles it, is not woken.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        try:
            for result in work(items):
                reports.put((result,))
        finally:
            connections.close_all()  # those of this thread
    except BaseException as error:
        items.stopped = True
        reports.put(error)
    else:
        reports.put(None)
