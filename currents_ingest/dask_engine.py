"""The engine of many machines: steps run on the workers of a Dask cluster.

Workers fetch and write by themselves and hold what lies between two steps; here there
are only names of it. A worker that is lost has its steps done again elsewhere, under
staging keys of their own. Source: Dask.distributed docs, "Resilience".
"""

from __future__ import annotations

import platform
import time
from concurrent.futures import CancelledError
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from currents_ingest import memory
from currents_ingest.engine import Pending, max_bytes_in_work
from currents_ingest.errors import EngineError, SettingsError

try:
    from distributed import Client, KilledWorker, LocalCluster, WorkerPlugin
    from distributed.client import ClosedClientError
except ImportError:  # an extra; Dask below says so
    Client = None  # type: ignore[assignment, misc]
    WorkerPlugin = object  # type: ignore[assignment, misc]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from currents_ingest.config import Limits

T = TypeVar("T")
log = structlog.get_logger()

_MISSING = (
    "--engine dask needs Dask: pip install 'currents-ingest[dask]', here and on "
    "every worker"
)
_MATTER = ("currents-ingest", "polars", "polars-avro", "fastavro", "obstore")
"""What makes the same bytes of the same batch, if it is the same on both sides."""
_PATIENCE = 300
"""Seconds to wait for the first worker, which may be a machine that has to start, and
for what a step returned, which may have to be made again. How long to wait for the
scheduler is Dask's setting ``distributed.comm.timeouts.connect``."""
_PRIVATE = "127.0.0.1:0"
"""Where a cluster of this machine tells of itself: to this machine, at any free port,
so that a second load beside the first has one of its own."""
_ASK_EVERY = 1.0
"""Seconds for which we believe what the scheduler said of its workers."""


class Dask:
    """An engine on the cluster of a scheduler; on one of this machine without it."""

    def __init__(self, limits: Limits, address: str = "") -> None:
        """Connect, and wait for the first worker.

        Args:
            limits: The limit of memory is that of each worker.
            address: Of the scheduler, such as ``tcp://10.0.0.5:8786``.

        Raises:
            SettingsError: Dask is not installed.
            EngineError: There is no scheduler, or no worker.
        """
        if Client is None:
            raise SettingsError((_MISSING,))
        self.largest = max_bytes_in_work(limits)
        self._stamp = stamp()
        self._known, self._ask_at = [1], 0.0
        cluster: Any = LocalCluster
        client: Any = Client
        with _told(f"reach the Dask cluster {address}".rstrip()):
            self._cluster = None if address else cluster(dashboard_address=_PRIVATE)
            self._client = client(address or self._cluster)
            self._client.register_plugin(_Prepared(), name=_Prepared.__module__)
            if not self._client.scheduler_info().get("workers"):
                log.info("waiting for a worker", scheduler=address)
            self._client.wait_for_workers(1, timeout=_PATIENCE)

    @property
    def at_once(self) -> int:
        """Return how many batches to keep in work: one more a worker than threads."""
        return sum(threads + 1 for threads in self._threads())

    @property
    def bytes_at_once(self) -> int:
        """Return how many bytes of files may be in work, all workers together."""
        return self.largest * len(self._threads())

    @property
    def bytes_each(self) -> int:
        """Return how many bytes of files a batch may have."""
        return self.largest // (max(self._threads()) + 1)

    def _threads(self) -> list[int]:
        """Return the threads of each worker; the cluster may grow and shrink."""
        if (now := time.monotonic()) >= self._ask_at:  # it is a request each time
            with _told("ask the scheduler"):
                found = self._client.scheduler_info(n_workers=-1)
            workers = found.get("workers", {})  # a lost scheduler: none
            self._known = [one["nthreads"] for one in workers.values()] or [1]
            self._ask_at = now + _ASK_EVERY
        return self._known

    def submit(self, work: Callable[..., T], *arguments: Any) -> Step[T]:
        """Have a step called; see Engine."""
        given = [one.future if isinstance(one, Step) else one for one in arguments]
        with _told(f"ask for {work.__name__}"):
            return Step(
                self._client.submit(call, self._stamp, work, *given, pure=False)
            )

    def close(self) -> None:
        """Let go of the cluster; what is in work there is given up."""
        self._client.close()
        if self._cluster:
            self._cluster.close()


class _Prepared(WorkerPlugin):
    """Makes workers ready before any step has them import Polars, late ones too."""

    def setup(self, worker: Any) -> None:  # noqa: ARG002 (Dask gives it)
        memory.keep_what_is_freed()


class Step(Pending[T]):
    """A step on the cluster."""

    def __init__(self, future: Any) -> None:
        self.future = future

    def result(self) -> T:
        """Wait for what it returned; raises what it raised, or EngineError."""
        with _told("finish a step"):
            found: T = self.future.result(timeout=_PATIENCE)
            return found

    def done(self) -> bool:
        """Tell whether it is there, or never will be."""
        return bool(self.future.done())

    def cancel(self) -> None:
        """Give it up."""
        self.future.cancel()

    def add_done_callback(self, told: Callable[[Any], Any]) -> None:
        """Have *told* called once it is done."""
        self.future.add_done_callback(told)


def stamp() -> dict[str, str]:
    """Return the versions that have to be the same on both sides."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in _MATTER
    }


def call(wanted: dict[str, str], work: Callable[..., T], *arguments: Any) -> T:
    """Do a step on a worker.

    Raises:
        EngineError: The worker has other versions than the coordinator.
    """
    if (own := stamp()) != wanted:
        other = ", ".join(
            f"{name} {own[name]} and not {wanted[name]}"
            for name in wanted
            if own[name] != wanted[name]
        )
        raise EngineError("use a worker", f"it has {other}; install the same there")
    return work(*arguments)


_LOST: tuple[type[Exception], ...] = (CancelledError, OSError, ImportError)
if Client is not None:
    _LOST = (*_LOST, ClosedClientError, KilledWorker)


@contextmanager
def _told(action: str) -> Iterator[None]:
    """Make errors of the cluster ours; those of steps pass."""
    try:
        yield
    except _LOST as error:
        raise EngineError(action, f"{type(error).__name__}: {error}") from error
