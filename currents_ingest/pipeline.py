"""The order of the steps and the commit; the only module that knows them all."""

from __future__ import annotations

import time
from collections import Counter, deque
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice, takewhile
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import structlog
from structlog.contextvars import bound_contextvars

from currents_ingest import batch, merging, reading
from currents_ingest.batch import Done
from currents_ingest.errors import CurrentsError, LedgerConflictError, WorkLostError
from currents_ingest.ledger import STAGING
from currents_ingest.manifest import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from currents_ingest.batch import About, Index
    from currents_ingest.config import Settings
    from currents_ingest.contracts import Contract
    from currents_ingest.discover import Found
    from currents_ingest.engine import Engine, Pending
    from currents_ingest.lease import Lease
    from currents_ingest.ledger import Ledger
    from currents_ingest.manifest import Delivery
    from currents_ingest.reading import Job, Read
    from currents_ingest.store import Store

log = structlog.get_logger()

AHEAD = 4
"""Batches that may be done while one before them is not, for each in work."""
MAX_PER_ENTRY = 200
_LOOK_EVERY = 1.0
"""Seconds to wait for word of a step: one that was done, and that a cluster lost before
we looked, is made again without another word."""
COMMIT_EVERY = 5.0
"""Seconds of work that a commit gathers: what a crash may cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A ledger entry of this run, and files that it had to leave pending."""

    entry: Entry | None
    unread: tuple[tuple[str, CurrentsError], ...] = ()


@dataclass(slots=True, kw_only=True)
class _Open:
    """A batch that is not committed, step by step."""

    name: str
    found: Found
    job: Job
    size: int
    """Bytes of its files."""
    read: Pending[Read] | None
    """Let go of as soon as the next steps have it."""
    about: Pending[About]
    index: Pending[Index] | None = None
    written: Pending[Done] | None = None

    def done(self) -> bool:
        return self.written is not None and self.written.done()


@dataclass(slots=True, kw_only=True)
class Run:
    """One run over new files, in order, several batches at a time.

    A batch is held against the ids that earlier ones of its event type deliver: those
    in the index if they are committed, else those that the batches themselves tell.
    """

    source: Store
    ledger: Ledger
    settings: Settings
    engine: Engine
    token: str
    attempt: int
    """How often this run planned anew; keeps staging keys apart."""
    lease: Lease | None
    make_job: Callable[[Found], Job]
    stop: Callable[[], bool]
    stopped: bool = False
    """It was asked to stop before everything was done."""
    _open: deque[_Open] = field(default_factory=deque)
    """In order."""
    _next: Found | None = None
    """There is no room for it yet."""
    _ended: SimpleQueue[object] = field(default_factory=SimpleQueue)
    """Steps that came to an end."""
    _told: set[str] = field(default_factory=set)
    """Tokens of the indexes of committed batches."""
    _planned: int = 0
    _commits: int = 0

    def over(self, found: Iterable[Found]) -> Iterator[Committed]:
        """Do all batches; yield an entry at each commit.

        Raises:
            LedgerConflictError: Another run committed first. What is done is done;
                the rest has to be planned anew.
            WorkLostError: The same, for a step had to be done again.
            LeaseLostError: We may not be alone any more.
        """
        incoming = iter(found)
        since = time.monotonic()
        try:
            while True:
                ready = [*takewhile(_Open.done, self._open)]
                self._fill(incoming, len(ready))
                if not self._open:
                    return
                self._go_on()
                late = time.monotonic() - since > COMMIT_EVERY
                if ready and (late or self._enough(ready)):
                    yield self._commit(len(ready))
                    since = time.monotonic()
                elif len(ready) < len(self._open):
                    with suppress(Empty):
                        self._ended.get(timeout=_LOOK_EVERY)
        finally:
            self._clear()

    def _enough(self, ready: list[_Open]) -> bool:
        """Tell whether there is no use in waiting for more to commit."""
        done = [one.written.result() for one in ready if one.written]
        size = sum(len(part.body) for each in done for part in each.parts)
        whole = len(ready) == len(self._open)
        return whole or len(ready) >= MAX_PER_ENTRY or size > merging.AT_ONCE

    def _fill(self, incoming: Iterator[Found], ready: int) -> None:
        """Keep the engine busy."""
        if self.lease:
            self.lease.check()
        in_work = [one.size for one in self._open if not one.done()]
        room, size = self.engine.at_once, sum(in_work)
        ahead = (1 + AHEAD) * room
        while len(in_work) < room and len(self._open) - ready < ahead:
            if self._next is None and not self.stopped:
                self._next = next(incoming, None)
                if self._next and self.stop():
                    self.stopped = True  # what was found is found again the next time
                    self._next = None
            if self._next is None:
                return
            more = sum(file.listed.size for file in self._next.files)
            if in_work and size + more > self.engine.bytes_at_once:
                return
            self._submit(self._next, more)
            self._next = None
            in_work.append(more)
            size += more

    def _submit(self, found: Found, size: int) -> None:
        job = self.make_job(found)
        if job.contract is None:
            job = replace(job, contract=self._adopted(job.event_type))
        name = f"{self.attempt}-{self._planned:06}"
        self._planned += 1
        with bound_contextvars(batch=name):
            read = self.engine.submit(reading.read, job, self.source)
            about = self.engine.submit(batch.about, read)
        about.add_done_callback(self._ended.put)
        self._open.append(
            _Open(name=name, found=found, job=job, size=size, read=read, about=about)
        )

    def _adopted(self, event_type: str) -> Contract | None:
        """Return what the first batch in work of an unknown event type makes of it."""
        same = (one for one in self._open if one.job.event_type == event_type)
        contracts = (one.about.result().contract for one in same)
        return next(filter(None, contracts), None)

    def _go_on(self) -> None:
        """Do the next steps of batches whose rows' hours are known, in order."""
        earlier: dict[str, list[Pending[Index]]] = {}
        blocked: set[str] = set()
        for one in self._open:
            kind = one.job.event_type
            if one.index is None and kind not in blocked and one.about.done():
                self._deduplicate(one, earlier.get(kind, ()))
            if one.index is None:
                blocked.add(kind)
            else:
                earlier.setdefault(kind, []).append(one.index)

    def _deduplicate(self, one: _Open, earlier: Sequence[Pending[Index]]) -> None:
        feeds, submit = self.ledger.store, self.engine.submit
        hours = one.about.result().hours
        objects = self._history(one.job, hours)
        with bound_contextvars(batch=one.name):
            kept = submit(batch.keep, one.read, hours, feeds, objects, *earlier)
            one.index = submit(batch.delivered, kept)
            prefix = f"{STAGING}/{self.token}/{one.name}"
            one.written = submit(batch.write, one.job, kept, feeds, prefix)
        one.read = None
        one.written.add_done_callback(self._ended.put)

    def _history(self, job: Job, hours: Sequence[int]) -> Sequence[str]:
        """Return index objects that may hold these event hours' ids.

        Only those within the horizon of the batch's queued hours.
        """
        horizon = self.settings.feeds.dedupe_horizon
        queued = [file.key.hour for file in job.files] or [job.planned_at]
        since, until = min(queued) - horizon, max(queued) + horizon
        return self.ledger.cache.index_objects(job.event_type, hours, since, until)

    def _commit(self, ready: int) -> Committed:
        """Commit the first so many batches."""
        batches = [*islice(self._open, ready)]
        done = [one.written.result() for one in batches if one.written]
        self._check(done)
        for one, each in zip(batches, done, strict=True):
            _report_batch(one.name, one.job, each)
            self._open.popleft()
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

    def _check(self, done: Sequence[Done]) -> None:
        """See that each batch was held against what the ones before it deliver.

        An engine that lost an index makes it again, and that may hold other ids.
        """
        for each in done:
            if not self._told.issuperset(each.after):
                raise WorkLostError
            self._told.add(each.kept)

    def _merged(self, done: list[Done]) -> list[Delivery]:
        """Make objects of what the batches gave to unified feeds in small parts."""
        parts = [part for each in done for part in each.parts]
        prefix = f"{STAGING}/{self.token}/{self.attempt}-merged-{self._commits:06}"
        self._commits += 1
        return list(merging.merge(parts, self.ledger.store, prefix, datetime.now(UTC)))

    def _draft(
        self, batches: list[_Open], done: list[Done], deliveries: list[Delivery]
    ) -> Entry:
        cache = self.ledger.cache
        manifests = [each.manifest for each in done if each.manifest]
        contracts = {
            each.read.contract.feed: each.read.contract
            for each in done
            if each.manifest and each.read.contract
        }
        pinned, pinned_unified = cache.pinned(), cache.unified()
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
                if feed not in pinned
            ),
            unified=tuple(
                one
                for feed, one in sorted(unified.items())
                if feed not in pinned_unified
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
            for step in (one.written, one.about):
                if step:
                    step.cancel()
        for one in self._open:
            for step in (one.about, one.written):
                with suppress(CancelledError, Exception):
                    if step and isinstance(done := step.result(), Done):
                        self._unstage([done])
        self._open.clear()

    def _unstage(self, done: list[Done], deliveries: Sequence[Delivery] = ()) -> None:
        merging.unstage(self.ledger.store, deliveries)
        for each in done:
            if each.manifest:
                self.ledger.store.delete(one.staged for one in each.manifest.outputs)


def _report_batch(name: str, job: Job, done: Done) -> None:
    made = done.manifest
    log.info(
        "batch done",
        batch=name,
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
