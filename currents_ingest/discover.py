"""List what is there, keep what the ledger does not hold, group it into batches.

No pointer ever means that all before it is done: the look-back only bounds how much a
poll lists. What is new is what the ledger does not hold with the same key, ETag and
size.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING, TypeVar

from currents_ingest import keys
from currents_ingest.cache_entries import seconds
from currents_ingest.contracts import feed_name, raw_contract
from currents_ingest.errors import ForeignKeyError
from currents_ingest.manifest import SetAside
from currents_ingest.reading import Job, SourceFile
from currents_ingest.schemas import parse
from currents_ingest.store import StoredObject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime

    from currents_ingest.cache import Cache
    from currents_ingest.contracts import Contract
    from currents_ingest.ledger import Ledger
    from currents_ingest.schemas import WriterSchema
    from currents_ingest.selection import Selection
    from currents_ingest.store import Store
    from currents_ingest.unified import UnifiedContract

T = TypeVar("T")

_THREADS = 16
"""Event types that are listed at once."""
MAX_FILES = 10_000
"""Files in one batch: what a manifest and one round of requests can bear."""


@dataclass(frozen=True, slots=True)
class Found:
    """New files of one ``event_type=`` folder."""

    event_type: str
    files: tuple[SourceFile, ...]
    foreign: tuple[SetAside, ...] = ()
    asked_for: bool = False
    """Someone released them from quarantine."""


@dataclass(frozen=True, slots=True)
class Window:
    """Which queued hours to list; None leaves a side open."""

    since: datetime | None = None
    until: datetime | None = None
    """First hour that is not listed any more."""


def event_folders(source: Store, events: Iterable[str]) -> list[tuple[str, str]]:
    """Return event types and their folders, sorted.

    They lie below ``dataexport.*`` (several, if there are several connectors) or
    directly below the root.
    """
    globs, found = tuple(events), []
    for top in source.folders():
        name = top.rsplit("/", 1)[-1]
        below = source.folders(top) if name.startswith("dataexport.") else [top]
        for folder in below:
            event_type = keys.event_type_of(folder)
            if event_type and any(fnmatchcase(event_type, glob) for glob in globs):
                found.append((event_type, folder))
    return sorted(found)


def new_files(
    source: Store,
    ledger: Ledger,
    events: Iterable[str],
    window: Callable[[str], Window],
    *,
    at_once: int = _THREADS,
) -> Iterator[Found]:
    """Yield pages of files that the ledger does not hold, by event type.

    Several event types are listed and looked up at once, each as far as its next page
    with something new.

    Args:
        source: The Currents folder.
        ledger: What is done.
        events: Globs of event types.
        window: The hours to list of an event type.
        at_once: Requests in flight at most.
    """
    stop = threading.Event()

    def pages(event_type: str, folder: str) -> Iterator[Found]:
        hours = window(event_type)
        after = keys.hour_prefix(folder, hours.since) if hours.since else ""
        end = keys.hour_prefix(folder, hours.until) if hours.until else ""
        for page in source.listing(folder, after=after):
            inside = [one for one in page if not end or one.key < end]
            if found := found_in(ledger, event_type, inside):
                yield found
            if len(inside) < len(page) or stop.is_set():
                return

    folders = groupby(event_folders(source, events), key=itemgetter(0))
    found = [
        chain.from_iterable([pages(*one) for one in several]) for _, several in folders
    ]
    return ahead(found, min(_THREADS, at_once), stop)


def ahead(
    sources: Iterable[Iterator[T]], threads: int, stop: threading.Event
) -> Iterator[T]:
    """Yield what each iterator has, one after the other.

    Args:
        sources: So many of them as there are threads are asked for one item ahead.
        threads: How many.
        stop: Set once nobody wants more, so that who still looks for an item gives up.
    """
    waiting = iter(sources)
    asked: deque[tuple[Iterator[T], Future[T | None]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="list") as pool:
        try:
            while True:
                for one in islice(waiting, threads - len(asked)):
                    asked.append((one, pool.submit(next, one, None)))
                if not asked:
                    return
                current, future = asked.popleft()
                while (found := future.result()) is not None:
                    future = pool.submit(next, current, None)
                    yield found
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def found_in(ledger: Ledger, event_type: str, page: list[StoredObject]) -> Found | None:
    """Return what of a page of one event type the ledger does not hold, if anything."""
    files: list[SourceFile] = []
    foreign: list[tuple[StoredObject, str]] = []
    for one in page:
        try:
            files.append(SourceFile(keys.parse(one.key), one))
        except ForeignKeyError as error:
            if not keys.is_folder_marker(one.key, one.size):
                foreign.append((one, str(error)))
    days = {(event_type, seconds(file.key.hour) // 86400) for file in files}
    fresh = {one.key for one in ledger.cache.unseen(page, days)}
    files = [file for file in files if file.listed.key in fresh]
    asides = tuple(
        SetAside(
            key=one.key,
            etag=one.etag,
            size=one.size,
            event_type=event_type,
            reason=reason,
        )
        for one, reason in foreign
        if one.key in fresh
    )
    return Found(event_type, tuple(files), asides) if files or asides else None


def worth_an_object(
    found: Iterable[Found],
    target: int,
    oldest: datetime,
    waiting: Callable[[int], None],
) -> Iterator[Found]:
    """Yield the pages of event types that have enough; hold the others back.

    Args:
        found: Pages, those of an event type together.
        target: Bytes of files that are enough.
        oldest: When a file was written that waits no longer.
        waiting: Told how many files of an event type are held back.
    """
    for _, group in groupby(found, key=_kind):
        pages, held, size = iter(group), [], 0
        for page in pages:
            held.append(page)
            size += sum(file.listed.size for file in page.files)
            written = (file.listed.modified for file in page.files)
            due = any(time is None or time <= oldest for time in written)
            if due or page.asked_for or size >= target:
                yield from chain(held, pages)
                held = []
                break
        if held:
            waiting(sum(len(page.files) for page in held))


def released(cache: Cache) -> Iterator[Found]:
    """Yield files that someone released from quarantine, by event type."""
    by_type: dict[str, list[SourceFile]] = {}
    for one in cache.files("released"):
        try:
            key = keys.parse(one.key)
        except ForeignKeyError:
            continue  # a foreign key stays one; retry refuses it
        listed = StoredObject(key=one.key, etag=one.etag, size=one.size)
        by_type.setdefault(key.event_type, []).append(SourceFile(key, listed))
    for event_type, files in sorted(by_type.items()):
        yield Found(event_type, tuple(files), asked_for=True)


def batches(found: Iterable[Found], max_bytes: int) -> Iterator[Found]:
    """Group files of one event type until they are enough for a batch.

    The files of a batch are in the order in which Braze wrote them.
    """
    for (event_type, asked_for), pages in groupby(found, key=_kind):
        held: list[SourceFile] = []
        foreign: list[SetAside] = []
        size = 0
        for page in pages:
            foreign += page.foreign
            for file in page.files:
                full = size + file.listed.size > max_bytes or len(held) == MAX_FILES
                if held and full:
                    yield Found(event_type, _ordered(held), tuple(foreign), asked_for)
                    held, foreign, size = [], [], 0
                held.append(file)
                size += file.listed.size
        yield Found(event_type, _ordered(held), tuple(foreign), asked_for)


def _kind(found: Found) -> tuple[str, bool]:
    return found.event_type, found.asked_for


def _ordered(files: list[SourceFile]) -> tuple[SourceFile, ...]:
    return tuple(sorted(files, key=lambda file: file.key.order))


@lru_cache(maxsize=256)
def _registered(event_type: str, writers: tuple[WriterSchema, ...]) -> Contract:
    """Return the contract that the registry makes of an event type."""
    return raw_contract(event_type, writers)


def job(  # noqa: PLR0913 (all that a batch depends on)
    found: Found,
    cache: Cache,
    selection: Selection,
    pinned: Mapping[str, UnifiedContract],
    now: datetime,
    max_bytes: int,
) -> Job:
    """Add to a batch's files all that its work depends on.

    Args:
        found: The files.
        cache: What the ledger says.
        selection: What the settings say.
        pinned: The contracts in force of the unified feeds that are made.
        now: The batch's planned time.
        max_bytes: What one file may hold.
    """
    event_type, feed = found.event_type, feed_name(found.event_type)
    writers = tuple(selection.registry.writers(event_type))
    contract = cache.contract(feed)
    if contract is None and writers:
        contract = _registered(event_type, writers)
    return Job(
        event_type=event_type,
        files=found.files,
        planned_at=now,
        contract=contract,
        registered=writers,
        seen=tuple(
            parse(drift.avro)
            for drift, _ in cache.drift()
            if drift.event_type == event_type
        ),
        max_reject_share=selection.settings.feeds.max_reject_share,
        max_bytes=max_bytes,
        raw=selection.writes_raw(feed),
        privacy=selection.privacy(feed),
        unified=tuple(
            (one, selection.decided(one.feed))
            for one in pinned.values()
            if one.sources_of(event_type)
        ),
        joins=tuple(
            one.feed
            for one in pinned.values()
            if one.joins_of(event_type, selection.decided(one.feed).options)
        ),
        asked_for=found.asked_for,
    )
