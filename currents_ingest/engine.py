"""Where the pure part of batches runs: an engine is this protocol, and no more.

Steps are plain functions of this package; their arguments and what they return can be
pickled. They leave no trace but staging objects under keys that no other call uses, so
an engine may call one again, on another machine, when it has lost what it returned.
"""

from __future__ import annotations

import os
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from currents_ingest.config import Limits

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

WORKERS = min(4, (os.cpu_count() or 2) + 1)
"""Batches in work at once: one more than cores, for fetching waits on the network."""
_BASE_MEMORY = 220 * 10**6
"""What the process takes before any data: interpreter, Polars, obstore, boto3."""
_EXPANSION = 10
"""Peak memory of a batch in work, per byte of its files; measured, see
docs/performance.md."""


class Pending(Protocol[T_co]):
    """What a step will return."""

    def result(self) -> T_co:
        """Wait for it; raises what the step raised."""

    def done(self) -> bool:
        """Tell whether it is there, or never will be."""

    def cancel(self) -> Any:
        """Give it up if it has not begun."""

    def add_done_callback(self, told: Callable[[Any], Any]) -> Any:
        """Have *told* called, on any thread, once it is done."""


class Engine(Protocol):
    """Runs steps, each as soon as its arguments are there and there is room."""

    @property
    def at_once(self) -> int:
        """Return how many batches to keep in work."""

    @property
    def bytes_at_once(self) -> int:
        """Return how many bytes of files may be in work, all batches together."""

    @property
    def bytes_each(self) -> int:
        """Return how many bytes of files a batch may have."""

    @property
    def largest(self) -> int:
        """Return how many bytes a single file may have."""

    def submit(self, work: Callable[..., T], *arguments: Any) -> Pending[T]:
        """Have a step called; of arguments that are pending it gets the results."""

    def close(self) -> None:
        """Wait for what is in work, and end."""


def max_bytes_in_work(limits: Limits) -> int:
    """Return how many bytes of files a process may have in work under limits.memory."""
    return max(0, limits.memory - _BASE_MEMORY) // _EXPANSION


class _Step(Future[T]):
    """A step on its way; it takes a thread once the last of its arguments is there."""

    def __init__(
        self, pool: Executor, work: Callable[..., T], arguments: Sequence[Any]
    ) -> None:
        super().__init__()
        self._pool, self._work = pool, work
        self._arguments = arguments
        self._context = copy_context()

    def begin(self) -> None:
        """Begin now, or when an argument is there that is not yet."""
        for one in self._arguments:
            if isinstance(one, Future) and not one.done():
                self._begin_after(one)
                return
        self._pool.submit(self._context.run, self._call)

    def _begin_after(self, argument: Future[Any]) -> None:
        later = [self]  # an argument keeps whom it called; so it may not know us
        argument.add_done_callback(lambda _: later.pop().begin())

    def _call(self) -> None:
        if self.set_running_or_notify_cancel():
            given, self._arguments = self._arguments, ()
            try:
                values = [a.result() if isinstance(a, Future) else a for a in given]
                del given  # or rows would stay as long as we do
                self.set_result(self._work(*values))
            except BaseException as error:  # noqa: BLE001 (whoever waits gets it)
                self.set_exception(error)


class Threads:
    """The engine of one machine: threads, for the steps are native code."""

    def __init__(self, limits: Limits) -> None:
        self.at_once = WORKERS
        self.bytes_at_once = self.largest = max_bytes_in_work(limits)
        self.bytes_each = self.bytes_at_once // WORKERS
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="batch")

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have a step called; see Engine."""
        step: _Step[T] = _Step(self._pool, work, arguments)
        step.begin()
        return step

    def close(self) -> None:
        """Wait for what is in work, and end."""
        self._pool.shutdown(cancel_futures=True)
