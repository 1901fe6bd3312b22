"""The order of the steps and the commit; the only module that knows them all."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from structlog.contextvars import bound_contextvars

from currents_ingest import batch, dedupe, merging
from currents_ingest.batch import Turn
from currents_ingest.errors import CurrentsError, LedgerConflictError
from currents_ingest.ledger import STAGING
from currents_ingest.manifest import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from currents_ingest.batch import Done
    from currents_ingest.config import Limits, Settings
    from currents_ingest.discover import Found
    from currents_ingest.lease import Lease
    from currents_ingest.ledger import Ledger
    from currents_ingest.manifest import Delivery
    from currents_ingest.reading import Job
    from currents_ingest.store import Store

log = structlog.get_logger()

WORKERS = min(4, (os.cpu_count() or 2) + 1)
"""Batches in work at once: one more than cores, for fetching waits on the network."""
DEPTH = 4 * WORKERS
"""Batches handed to the workers ahead of the one to be accepted next."""
MAX_PER_ENTRY = 200
COMMIT_EVERY = 5.0
"""Seconds of work that a commit gathers: what a crash may cost."""
_BASE_MEMORY = 220 * 10**6
"""What the process takes before any data: interpreter, Polars, obstore, boto3."""
_EXPANSION = 10
"""Peak memory of a batch in work, per byte of its files; measured, see
docs/performance.md."""


def max_bytes_in_work(limits: Limits) -> int:
    """Return how many bytes of files may be in work under limits.memory."""
    return max(0, limits.memory - _BASE_MEMORY) // _EXPANSION


class Budget:
    """Bytes that may be in work at once; batches get theirs in the order planned."""

    def __init__(self, size: int) -> None:
        self._free = self._size = size
        self._next = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, turn: int, wanted: int) -> Iterator[None]:
        """Hold *wanted* bytes, or all there are if that is less, for the block.

        Args:
            turn: 0, 1, 2, ... in the order planned. A batch waits for what earlier
                ones deliver, so a later one must not hold what they need.
            wanted: Bytes.
        """
        share = min(wanted, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._next == turn and self._free >= share)
            self._next += 1
            self._free -= share
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += share
                self._changed.notify_all()


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A ledger entry of this run, and files that it had to leave pending."""

    entry: Entry | None
    unread: tuple[tuple[str, CurrentsError], ...] = ()


@dataclass(frozen=True, slots=True)
class _InWork:
    """A batch on a worker."""

    found: Found
    turn: Turn
    future: Future[Done]


@dataclass(slots=True, kw_only=True)
class Run:
    """One run over new files, in order, several batches at a time.

    A batch knows which ids earlier ones of its event type deliver: from the index if
    they are published, else from the batches themselves, for which it waits.
    """

    source: Store
    ledger: Ledger
    settings: Settings
    token: str
    attempt: int
    """How often this run planned anew; keeps staging keys apart."""
    lease: Lease | None
    make_job: Callable[[Found], Job]
    stop: Callable[[], bool]
    stopped: bool = False
    """It was asked to stop before everything was done."""
    _open: deque[_InWork] = field(default_factory=deque)
    """Batches whose ids the index does not show yet, in order."""
    _planned: int = 0
    _commits: int = 0

    def over(self, found: Iterable[Found]) -> Iterator[Committed]:
        """Do all batches; yield an entry at each commit.

        Raises:
            LedgerConflictError: Another run committed first. What is done is done;
                the rest has to be planned anew.
            LeaseLostError: We may not be alone any more.
        """
        incoming = iter(found)
        budget = Budget(max_bytes_in_work(self.settings.limits))
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="batch") as pool:
            try:
                since, ready, size = time.monotonic(), 0, 0
                while self._fill(ready, incoming, pool, budget):
                    done = self._open[ready].future.result()
                    ready += 1
                    size += sum(len(part.body) for part in done.parts)
                    late = time.monotonic() - since > COMMIT_EVERY
                    if late or ready == MAX_PER_ENTRY or size > merging.AT_ONCE:
                        yield self._commit(ready)
                        since, ready, size = time.monotonic(), 0, 0
                if ready:
                    yield self._commit(ready)
            finally:
                self._clear()

    def _fill(
        self,
        ready: int,
        incoming: Iterator[Found],
        pool: ThreadPoolExecutor,
        budget: Budget,
    ) -> bool:
        """Keep the workers busy; False when there is nothing left to wait for."""
        if self.lease:
            self.lease.check()
        while len(self._open) - ready < DEPTH and not self.stopped:
            if (found := next(incoming, None)) is None:
                break
            if self.stop():
                self.stopped = True  # what was found is found again by the next run
                break
            self._open.append(self._submit(found, pool, budget))
        return len(self._open) > ready

    def _submit(
        self, found: Found, pool: ThreadPoolExecutor, budget: Budget
    ) -> _InWork:
        job = self.make_job(found)
        earlier = [
            one.turn for one in self._open if one.found.event_type == job.event_type
        ]
        own, number = Turn(), self._planned
        name = f"{self.attempt}-{number:06}"
        self._planned += 1

        def work() -> Done:
            try:
                with budget.take(number, sum(file.listed.size for file in job.files)):
                    done = batch.work(
                        job,
                        self.source,
                        self.ledger.store,
                        f"{STAGING}/{self.token}/{name}",
                        self._history(job),
                        earlier,
                        own,
                    )
                _report_batch(job, done)
                return done
            finally:
                own.tell(None, dedupe.NOTHING)

        with bound_contextvars(batch=name):  # a thread of the pool inherits nothing
            context = copy_context()
        return _InWork(found, own, pool.submit(context.run, work))

    def _history(self, job: Job) -> Callable[[Sequence[int]], Sequence[str]]:
        """Look up the index objects within the horizon of the batch's queued hours."""
        horizon = self.settings.feeds.dedupe_horizon
        queued = [file.key.hour for file in job.files] or [job.planned_at]
        since, until = min(queued) - horizon, max(queued) + horizon
        first, last = (int(time_.timestamp()) // 86400 for time_ in (since, until))

        def objects(hours: Sequence[int]) -> Sequence[str]:
            self.ledger.need("hours", range(first, last + 1))
            return self.ledger.cache.index_objects(job.event_type, hours, since, until)

        return objects

    def _commit(self, ready: int) -> Committed:
        """Commit the first so many batches."""
        batches = [self._open.popleft() for _ in range(ready)]
        done = [one.future.result() for one in batches]
        deliveries = self._merged(done)
        unread = tuple(pair for each in done for pair in each.read.unread)
        draft = self._draft(batches, done, deliveries)
        if not (draft.batches or draft.set_aside):
            return Committed(entry=None, unread=unread)
        if self.lease:
            self.lease.check()
        try:
            entry = self.ledger.commit(draft)
        except LedgerConflictError:
            # After any other failure the entry may be there: what is staged stays.
            self._unstage(done, deliveries)
            raise
        _report(entry)
        return Committed(entry=entry, unread=unread)

    def _merged(self, done: list[Done]) -> list[Delivery]:
        """Make objects of what the batches gave to unified feeds in small parts."""
        parts = [part for each in done for part in each.parts]
        prefix = f"{STAGING}/{self.token}/{self.attempt}-merged-{self._commits:06}"
        self._commits += 1
        return list(merging.merge(parts, self.ledger.store, prefix, datetime.now(UTC)))

    def _draft(
        self, batches: list[_InWork], done: list[Done], deliveries: list[Delivery]
    ) -> Entry:
        cache = self.ledger.cache
        manifests = [each.manifest for each in done if each.manifest]
        contracts = {
            each.read.contract.feed: each.read.contract
            for each in done
            if each.manifest and each.read.contract
        }
        pinned = cache.unified()
        unified = {one.feed: one for each in done for one in each.unified}
        known = {(one.fingerprint, one.event_type) for one, _ in cache.drift()}
        drift = {
            (one.fingerprint, one.event_type): one
            for each in reversed(done)
            for one in each.read.drift
            if (one.fingerprint, one.event_type) not in known
        }
        return Entry(
            at=datetime.now(UTC),
            run=self.token,
            batches=tuple(manifests),
            deliveries=tuple(deliveries),
            pinned=tuple(
                contract
                for feed, contract in sorted(contracts.items())
                if cache.contract(feed) is None
            ),
            unified=tuple(
                one for feed, one in sorted(unified.items()) if feed not in pinned
            ),
            set_aside=tuple(
                one
                for batch_, each in zip(batches, done, strict=True)
                for one in (*batch_.found.foreign, *each.read.set_aside)
            ),
            schemas=tuple(drift[at] for at in sorted(drift)),
        )

    def _clear(self) -> None:
        """End batches that will not be committed, and remove what they staged."""
        for one in self._open:
            if not one.future.cancel() and not one.future.exception():
                self._unstage([one.future.result()])
        self._open.clear()

    def _unstage(self, done: list[Done], deliveries: Sequence[Delivery] = ()) -> None:
        merging.unstage(self.ledger.store, deliveries)
        for each in done:
            if each.manifest:
                self.ledger.store.delete(one.staged for one in each.manifest.outputs)


def _report_batch(job: Job, done: Done) -> None:
    made = done.manifest
    log.info(
        "batch done",
        event_type=job.event_type,
        files=len(job.files),
        rows=made.rows_out if made else 0,
        duplicates=made.duplicates if made else 0,
        rejects=made.rejects if made else 0,
        set_aside=len(done.read.set_aside),
        unread=len(done.read.unread),
    )


def _report(entry: Entry) -> None:
    log.info(
        "committed",
        entry=entry.number,
        batches=len(entry.batches),
        files=sum(len(one.inputs) for one in entry.batches),
        rows=sum(one.rows_out for one in entry.batches),
        duplicates=sum(one.duplicates for one in entry.batches),
        rejects=sum(one.rejects for one in entry.batches),
    )
    held = Counter(one.fingerprint for one in entry.set_aside)
    for aside in entry.set_aside:
        if not aside.fingerprint:
            log.warning("file quarantined", key=aside.key, reason=aside.reason)
    for fingerprint, files in sorted(held.items()):
        if fingerprint:  # the schema itself is warned of below, once and for all
            log.info("files quarantined", fingerprint=fingerprint, files=files)
    for one in entry.schemas:
        log.warning(
            "drift",
            event_type=one.event_type,
            fingerprint=one.fingerprint,
            verdict=str(one.verdict),
            differences="; ".join(one.differences),
            first=one.key,
        )
