"""Which schemas lie in a bucket, and what each means for its feed; a look only.

Only the head of each object is read. What is kept is one entry for each schema and
kind of trouble, so memory does not grow with the number of files.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from currents_ingest import keys
from currents_ingest.avro import EMPTY, MAX_SCHEMA, read_head
from currents_ingest.backends import local_path
from currents_ingest.compatibility import Comparison, Verdict, judge
from currents_ingest.config import Limits, Schemas
from currents_ingest.contracts import feed_name, raw_contract
from currents_ingest.deep import Checks, DataReport
from currents_ingest.engine import max_bytes_in_work
from currents_ingest.errors import (
    CorruptObjectError,
    ForeignKeyError,
    HeaderCutError,
)
from currents_ingest.ledger import Ledger
from currents_ingest.places import place
from currents_ingest.registry import event_type_of, open_registry
from currents_ingest.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from currents_ingest.avro import Head
    from currents_ingest.config import Settings
    from currents_ingest.contracts import Contract
    from currents_ingest.keys import CurrentsKey
    from currents_ingest.schemas import Registry, WriterSchema
    from currents_ingest.store import StoredObject

HEAD = 8192
"""Bytes asked for first; Braze's largest header has about 4,000."""
_MOST = 10_000
"""Schemas and kinds of trouble that are told apart; more are counted together."""
_TOO_MANY = f"one of more than {_MOST:,} different schemas or troubles"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaReport:
    """One writer schema of an event type, over all files looked at."""

    event_type: str
    fingerprint: str
    record: str
    """Name of the record inside."""
    version: int | None
    """Number in the registry; None if it has no such schema."""
    currents_version: str | None
    verdict: Verdict
    differences: tuple[str, ...]
    files: int
    bytes: int
    first: datetime | None
    last: datetime | None
    """Queued hours; None if no key tells one."""
    layouts: dict[str, int]
    """Files by key layout."""
    codecs: dict[str, int]
    example: str
    """URL of the first file met."""
    data: DataReport | None = None
    """What --deep found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Files that a poll would put into quarantine, by event type and kind of reason."""

    event_type: str
    reason: str
    """Of the first of them."""
    files: int
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found."""

    places: tuple[str, ...]
    schemas: tuple[SchemaReport, ...]
    troubles: tuple[Trouble, ...]
    unread: tuple[Trouble, ...]
    """What the bucket did not give."""
    listed: int
    """Objects, without folder markers."""
    looked_at: int
    sample: int | None
    """Files looked at per event type, schema segment of the key, and day."""

    @property
    def worst(self) -> Verdict:
        """Return the worst verdict; files that cannot be read count as breaking."""
        found = [one.verdict for one in self.schemas]
        found += [Verdict.BREAKING] if self.troubles else []
        return max(found, key=lambda one: one.rank, default=Verdict.KNOWN)

    @property
    def passed_over(self) -> int:
        """Return how many files were listed and not looked at."""
        return self.listed - self.looked_at


def validate(
    settings: Settings | None,
    urls: Sequence[str] = (),
    *,
    sample: int | None = None,
    deep: bool = False,
    seen: Callable[[int], None] = lambda _: None,
) -> Report:
    """Look at files, folders or URLs; changes nothing.

    Args:
        settings: Tells the source, the user's schemas and where contracts are pinned;
            without, schemas are held against the shipped ones.
        urls: What to look at; none: the configured source.
        sample: Look at so many files only of each event type, schema segment of the
            key (``version=12``, or the schema id of older layouts) and day.
        deep: Read whole files and check what they hold, too.
        seen: Told now and then how many more files were looked at.

    Raises:
        NotThereError: A path does not exist.
        StoreError: A bucket cannot be reached.
    """
    chosen = tuple(urls) or ((settings.source.url,) if settings else ())
    judged = _Judge(
        open_registry(settings.schemas if settings else Schemas()), _pinned(settings)
    )
    tally = _Tally(sample)
    limits = settings.limits if settings else Limits()
    with closing(Checks(max_bytes_in_work(limits))) as checks:
        for url in chosen:
            store, key = place(url, concurrency=limits.concurrency)
            for page in _pages(store, key):
                files = tally.chosen(store, page)
                for file, head in _heads(store, files, tally):
                    group = tally.add(judged, file, head)
                    if group and deep:
                        checks.want(group.key, file.stored)
                checks.read(store, tally.trouble, tally.unread)
                seen(len(files))
        return tally.report(chosen, checks)


@dataclass(frozen=True, slots=True)
class _File:
    """An object to look at; its key is understood if it is Currents'."""

    url: str
    stored: StoredObject
    key: CurrentsKey | None


@dataclass(slots=True)
class _Group:
    """What is counted of one schema of an event type."""

    key: tuple[str, str]
    """Event type and fingerprint."""
    record: str
    """Its name; the schema itself may be large, and groups are many."""
    version: int | None
    currents_version: str | None
    found: Comparison
    example: str
    files: int = 0
    bytes: int = 0
    first: datetime | None = None
    last: datetime | None = None
    layouts: Counter[str] = field(default_factory=Counter)
    codecs: Counter[str] = field(default_factory=Counter)

    def add(self, file: _File, codec: str) -> None:
        self.files += 1
        self.bytes += file.stored.size
        self.codecs[codec] += 1
        self.layouts[file.key.layout if file.key else "other"] += 1
        if file.key:
            hour = file.key.hour
            self.first = min(self.first or hour, hour)
            self.last = max(self.last or hour, hour)

    def report(self, data: DataReport | None) -> SchemaReport:
        return SchemaReport(
            event_type=self.key[0],
            fingerprint=self.key[1],
            record=self.record,
            version=self.version,
            currents_version=self.currents_version,
            verdict=self.found.verdict,
            differences=self.found.differences,
            files=self.files,
            bytes=self.bytes,
            first=self.first,
            last=self.last,
            layouts=dict(sorted(self.layouts.items())),
            codecs=dict(sorted(self.codecs.items())),
            example=self.example,
            data=data,
        )


@dataclass(frozen=True, slots=True)
class _Judge:
    """Holds schemas against the registry and the contracts that are pinned."""

    registry: Registry
    pinned: dict[str, Contract]
    """By feed."""
    contracts: dict[str, Contract | None] = field(default_factory=dict)
    """By event type, as they are asked for."""

    def group(self, event_type: str, file: _File, writer: WriterSchema) -> _Group:
        registered = self.registry.writers(event_type)
        if event_type not in self.contracts:
            pinned = self.pinned.get(feed_name(event_type))
            made = raw_contract(event_type, registered) if registered else None
            self.contracts[event_type] = pinned or made
        known = self.registry.version(event_type, writer.fingerprint)
        return _Group(
            key=(event_type, writer.fingerprint),
            record=writer.name,
            version=known.number if known else None,
            currents_version=known.currents_version if known else None,
            found=judge(writer, self.contracts[event_type], registered),
            example=file.url,
        )


class _Tally:
    """Everything counted so far."""

    def __init__(self, sample: int | None) -> None:
        self._sample = sample
        self._groups: dict[tuple[str, str], _Group] = {}
        self._troubles: dict[tuple[str, str], list[str | int]] = {}
        self._unread: dict[tuple[str, str], list[str | int]] = {}
        self._taken: Counter[tuple[str, str, str]] = Counter()
        self._listed = self._looked_at = 0

    def chosen(self, store: Store, page: Iterable[StoredObject]) -> list[_File]:
        """Return the files of a page to look at; foreign ones are counted."""
        files, folder = [], keys.path_of(store.url)
        for one in page:
            if keys.is_folder_marker(one.key, one.size):
                continue
            self._listed += 1
            url = f"{store.url}/{one.key}"
            try:
                key = keys.parse(f"{folder}/{one.key}" if folder else one.key)
            except ForeignKeyError as error:
                if not one.key.endswith(".avro"):
                    self._looked_at += 1
                    self.trouble("", str(error), url)
                    continue
                key = None
            if self._wanted(key):
                self._looked_at += 1
                files.append(_File(url, one, key))
        return files

    def _wanted(self, key: CurrentsKey | None) -> bool:
        if self._sample is None or key is None:
            return True
        at = key.event_type, key.schema_segment, f"{key.hour:%Y-%m-%d}"
        self._taken[at] += 1
        return self._taken[at] <= self._sample

    def add(self, judged: _Judge, file: _File, head: Head) -> _Group | None:
        """Count a file by its schema; None if a poll would put it aside."""
        writer = head.schema
        event_type = file.key.event_type if file.key else event_type_of(writer.name)
        if file.key and not writer.is_of(event_type):
            name = writer.name[:200]
            reason = f"the key says {event_type}, the record inside is named {name}"
            self.trouble(event_type, reason, file.url)
            return None
        at = event_type, writer.fingerprint
        if at not in self._groups:
            if len(self._groups) >= _MOST:
                self.trouble("", _TOO_MANY, file.url)
                return None
            self._groups[at] = judged.group(event_type, file, writer)
        self._groups[at].add(file, head.codec)
        return self._groups[at]

    def trouble(self, event_type: str, reason: str, url: str) -> None:
        """Count a file that a poll would put into quarantine."""
        _count(self._troubles, event_type, reason, url)

    def unread(self, event_type: str, reason: str, url: str) -> None:
        """Count a file that the bucket did not give."""
        _count(self._unread, event_type, reason, url)

    def report(self, places: tuple[str, ...], checks: Checks) -> Report:
        ordered = sorted(
            self._groups.values(), key=lambda one: (one.key[0], str(one.first))
        )
        data = checks.reports()
        return Report(
            places=places,
            schemas=tuple(one.report(data.get(one.key)) for one in ordered),
            troubles=_troubles(self._troubles),
            unread=_troubles(self._unread),
            listed=self._listed,
            looked_at=self._looked_at,
            sample=self._sample,
        )


def _heads(
    store: Store, files: Sequence[_File], tally: _Tally
) -> Iterator[tuple[_File, Head]]:
    """Yield the heads of files; those that give none are counted."""
    size, wanted = HEAD, []
    for file in files:
        if file.stored.size:
            wanted.append(file)
        else:
            tally.trouble(_event_type(file), EMPTY, file.url)
    while wanted:
        bodies = store.heads([file.stored for file in wanted], size)
        longer = []
        for file, body in zip(wanted, bodies, strict=True):
            if not isinstance(body, bytes):
                told = body.told().replace(file.stored.key, "the object")
                tally.unread(_event_type(file), told, file.url)
                continue
            try:
                yield file, read_head(body)
            except HeaderCutError as error:
                if len(body) < file.stored.size and size <= MAX_SCHEMA:
                    longer.append(file)
                else:
                    tally.trouble(_event_type(file), str(error), file.url)
            except CorruptObjectError as error:
                tally.trouble(_event_type(file), str(error), file.url)
        wanted, size = longer, size * 8


def _event_type(file: _File) -> str:
    return file.key.event_type if file.key else ""


def _count(
    counts: dict[tuple[str, str], list[str | int]],
    event_type: str,
    reason: str,
    url: str,
) -> None:
    """Count by event type and kind: a reason with its numbers left out."""
    at = event_type, re.sub(r"\d+", "0", reason)
    if at not in counts and len(counts) >= _MOST:
        at, reason = ("", _TOO_MANY), _TOO_MANY
    found = counts.setdefault(at, [reason, 0, url])
    found[1] = int(found[1]) + 1


def _troubles(counts: dict[tuple[str, str], list[str | int]]) -> tuple[Trouble, ...]:
    return tuple(
        Trouble(
            event_type=at[0], reason=str(reason), files=int(files), example=str(url)
        )
        for at, (reason, files, url) in sorted(counts.items())
    )


def _pages(store: Store, key: str | None) -> Iterator[list[StoredObject]]:
    if key is None:
        return store.scan()
    found = store.stat(key)
    return iter([[found]] if found else [])


def _pinned(settings: Settings | None) -> dict[str, Contract]:
    """Return the pinned contracts by feed; none where no feeds are yet."""
    if settings is None:
        return {}
    path = local_path(settings.feeds.url)
    if path is not None and not path.exists():
        return {}
    feeds = Store.open(settings.feeds.url, concurrency=settings.limits.concurrency)
    with closing(Ledger.look(feeds, settings.ledger.cache)) as ledger:
        return {one.feed: one for one in ledger.cache.contracts()}
