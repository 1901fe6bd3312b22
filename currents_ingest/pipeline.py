"""The order of the steps and the commit; the only module that knows them all."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from currents_ingest import batch, dedupe
from currents_ingest.errors import CurrentsError, LedgerConflictError
from currents_ingest.ledger import STAGING
from currents_ingest.manifest import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import polars as pl

    from currents_ingest.batch import Done, Job
    from currents_ingest.config import Settings
    from currents_ingest.contracts import Contract
    from currents_ingest.discover import Found
    from currents_ingest.lease import Lease
    from currents_ingest.ledger import Ledger
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
_EXPANSION = 8
"""Peak memory of a batch in work, per byte of its files; measured, see
docs/performance.md."""


def max_bytes_in_work(settings: Settings) -> int:
    """Return how many bytes of files may be in work under limits.memory."""
    return max(0, settings.limits.memory - _BASE_MEMORY) // _EXPANSION


class Budget:
    """Bytes that may be in work at once; a batch waits until its own fit in."""

    def __init__(self, size: int) -> None:
        self._free = self._size = size
        self._changed = threading.Condition()

    @contextmanager
    def take(self, wanted: int) -> Iterator[None]:
        """Hold *wanted* bytes, or all of them if that is less, for the block."""
        share = min(wanted, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= share)
            self._free -= share
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
    job: Job
    seen: int
    """How many accepted batches its look at the index was sure to see."""
    future: Future[Done]


@dataclass(slots=True, kw_only=True)
class Run:
    """One run over new files, in order, several batches at a time.

    Batches are accepted in the order in which they were planned. One whose ids, or
    whose feed's contract, another batch took after it looked, is done again.
    """

    source: Store
    ledger: Ledger
    settings: Settings
    token: str
    lease: Lease | None
    make_job: Callable[[Found], Job]
    stop: Callable[[], bool]
    _accepted: dict[int, tuple[str, pl.DataFrame]] = field(default_factory=dict)
    _pinned: dict[str, Contract] = field(default_factory=dict)
    _count: int = 0
    _published: int = 0
    _attempts: int = 0
    _budget: Budget = field(default_factory=lambda: Budget(0))

    def over(self, found: Iterable[Found]) -> Iterator[Committed]:
        """Do all batches; yield an entry at each commit.

        Raises:
            LedgerConflictError: Another run committed first. What is done is done;
                the rest has to be planned anew.
            LeaseLostError: We may not be alone any more.
        """
        self._budget = Budget(max_bytes_in_work(self.settings))
        incoming = iter(found)
        waiting: deque[_InWork] = deque()
        ready: list[tuple[Found, Done]] = []
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="batch") as pool:
            try:
                since = time.monotonic()
                while self._fill(waiting, incoming, pool):
                    one = waiting.popleft()
                    ready.append((one.found, self._accept(one)))
                    self._forget(waiting)
                    full = len(ready) >= MAX_PER_ENTRY
                    if full or time.monotonic() - since > COMMIT_EVERY:
                        yield self._commit(ready)
                        ready, since = [], time.monotonic()
                if ready:
                    yield self._commit(ready)
            finally:
                self._clear(waiting)

    def _fill(
        self,
        waiting: deque[_InWork],
        incoming: Iterator[Found],
        pool: ThreadPoolExecutor,
    ) -> bool:
        """Keep the workers busy; False when there is nothing left to wait for."""
        if self.lease:
            self.lease.check()
        while len(waiting) < DEPTH and not self.stop():
            if (found := next(incoming, None)) is None:
                break
            job = self.make_job(found)
            seen = self._published
            waiting.append(_InWork(found, job, seen, pool.submit(self._work, job)))
        return bool(waiting)

    def _work(self, job: Job, rivals: Sequence[pl.DataFrame] = ()) -> Done:
        self._attempts += 1
        staging = f"{STAGING}/{self.token}/{self._attempts:06}-{threading.get_ident()}"
        with self._budget.take(sum(file.listed.size for file in job.files)):
            return batch.work(
                job, self.source, self.ledger.store, staging, self._history(job), rivals
            )

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

    def _accept(self, one: _InWork) -> Done:
        """Take a batch when it is finished; do it again if another came before."""
        done = one.future.result()
        rivals = [
            index
            for number, (event_type, index) in self._accepted.items()
            if number >= one.seen and event_type == one.job.event_type
        ]
        pinned = self._contract(done)
        lost = any(dedupe.overlap(done.index, index) for index in rivals)
        if lost or pinned != done.contract:
            log.info("batch done again", event_type=one.job.event_type)
            self._unstage(done)
            done = self._work(replace(one.job, contract=pinned), rivals)
        if done.manifest and done.contract:
            self._pinned[done.manifest.feed] = done.contract
        self._accepted[self._count] = (one.job.event_type, done.index)
        self._count += 1
        return done

    def _contract(self, done: Done) -> Contract | None:
        """Return the contract that the batch must have used."""
        if done.contract is None:
            return None
        feed = done.contract.feed
        pinned = self.ledger.cache.contract(feed) or self._pinned.get(feed)
        return pinned or done.contract

    def _commit(self, ready: list[tuple[Found, Done]]) -> Committed:
        unread = tuple(pair for _, done in ready for pair in done.unread)
        draft = self._draft(ready)
        if not (draft.batches or draft.set_aside):
            return Committed(entry=None, unread=unread)
        if self.lease:
            self.lease.check()
        try:
            entry = self.ledger.commit(draft)
        except LedgerConflictError:
            for _, done in ready:
                self._unstage(done)
            raise
        self._published = self._count
        _report(entry)
        return Committed(entry=entry, unread=unread)

    def _draft(self, ready: list[tuple[Found, Done]]) -> Entry:
        manifests = [done.manifest for _, done in ready if done.manifest]
        known = {row["fingerprint"] for row in self.ledger.cache.table("schemas")}
        unknown = {
            one.fingerprint: one
            for _, done in ready
            for one in done.schemas
            if one.fingerprint not in known
        }
        return Entry(
            at=datetime.now(UTC),
            run=self.token,
            batches=tuple(manifests),
            pinned=tuple(
                self._pinned[feed]
                for feed in sorted({manifest.feed for manifest in manifests})
                if self.ledger.cache.contract(feed) is None
            ),
            set_aside=tuple(
                one
                for found, done in ready
                for one in (*found.foreign, *done.set_aside)
            ),
            schemas=tuple(unknown.values()),
        )

    def _forget(self, waiting: deque[_InWork]) -> None:
        """Drop index frames that no batch in work can still collide with."""
        oldest = min((one.seen for one in waiting), default=self._count)
        for number in [n for n in self._accepted if n < min(oldest, self._published)]:
            del self._accepted[number]

    def _clear(self, waiting: deque[_InWork]) -> None:
        """End batches that will not be committed, and remove what they staged."""
        for one in waiting:
            if not one.future.cancel() and not one.future.exception():
                self._unstage(one.future.result())
        waiting.clear()

    def _unstage(self, done: Done) -> None:
        if done.manifest:
            self.ledger.store.delete(one.staged for one in done.manifest.outputs)


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
    for aside in entry.set_aside:
        log.warning("file quarantined", key=aside.key, reason=aside.reason)
    for schema in entry.schemas:
        log.warning(
            "drift: a schema that no shipped version has",
            event_type=schema.event_type,
            fingerprint=schema.fingerprint,
        )
