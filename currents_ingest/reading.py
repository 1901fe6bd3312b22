"""Files to conformed rows: fetch, walk, decode, conform; bad files and rows aside.

Every file of a job ends in exactly one place: read, set aside, or unread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from currents_ingest import avro, conform
from currents_ingest.codecs import MAX_UNPACKED
from currents_ingest.compatibility import Comparison, Verdict, judge, unusable
from currents_ingest.conform import FILE, REASON, ROW, Origin
from currents_ingest.contracts import Contract, raw_contract
from currents_ingest.errors import (
    CorruptObjectError,
    CurrentsError,
    NoRoomError,
    NotThereError,
)
from currents_ingest.manifest import Drift, FileId, Input, SetAside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from currents_ingest.avro import Container
    from currents_ingest.keys import CurrentsKey
    from currents_ingest.privacy import Choice
    from currents_ingest.schemas import WriterSchema
    from currents_ingest.store import Buffer, Store, StoredObject
    from currents_ingest.unified import UnifiedContract
    from currents_ingest.unify import Decided

DECODED_AT_ONCE = 16 << 20
"""Bytes of rows; decoding takes several times as much for a moment."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A Currents file as listed, its key understood."""

    key: CurrentsKey
    listed: StoredObject

    @property
    def id(self) -> FileId:
        """Return what the ledger knows it by."""
        return FileId(key=self.listed.key, etag=self.listed.etag, size=self.listed.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A batch and all that its work depends on."""

    event_type: str
    files: tuple[SourceFile, ...]
    planned_at: datetime
    contract: Contract | None
    """The feed's pinned contract, or what the registry or an earlier batch makes of the
    event type; None if nobody knows it: then it is made of the first schema read."""
    registered: tuple[WriterSchema, ...]
    """The event type's versions in the registry, oldest first."""
    seen: tuple[WriterSchema, ...]
    """Those that the ledger has met beside them."""
    max_reject_share: float
    max_bytes: int
    """What one file may hold, so that memory stays within its limit."""
    raw: bool = True
    """Whether the event type's own feed is made."""
    privacy: Mapping[str, Choice]
    """What becomes of personal fields in that feed."""
    unified: tuple[tuple[UnifiedContract, Decided], ...] = ()
    """The unified feeds that take rows of the event type."""
    joins: tuple[str, ...] = ()
    """The unified feeds that take rows of the event type once they are joined."""
    asked_for: bool = False
    """Someone released these files from quarantine: one that is gone goes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What a job's files came to."""

    contract: Contract | None
    """None if no file could be read."""
    rows: pl.DataFrame
    """Contract columns, in the order of the files and their rows."""
    rejects: pl.DataFrame
    """Columns ``currents_file``, ``currents_row``, ``reason``."""
    inputs: tuple[Input, ...]
    set_aside: tuple[SetAside, ...]
    unread: tuple[tuple[str, CurrentsError], ...]
    """Files that the bucket did not give, or that had no room; they stay pending."""
    drift: tuple[Drift, ...]
    """Schemas that the contract does not know whole, one each."""

    def __sizeof__(self) -> int:
        """Bytes of the rows: engines weigh by it where to do the next step."""
        return int(self.rows.estimated_size())


@dataclass(slots=True)
class _Opened:
    """A file that was walked; its bytes are let go once they are decoded."""

    file: SourceFile
    container: Container

    @property
    def key(self) -> str:
        return self.file.listed.key

    def forget(self) -> None:
        """Let go of the bytes."""
        known = self.container
        self.container = avro.Container(known.schema, (), known.rows, known.size)


@dataclass(slots=True)
class _Sorting:
    """Files on their way: each ends in exactly one of these."""

    read: list[_Opened] = field(default_factory=list)
    aside: list[SetAside] = field(default_factory=list)
    unread: list[tuple[str, CurrentsError]] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    unpacked: int = 0
    """Bytes that those read take beyond their files."""

    def put_aside(self, file: SourceFile, reason: str, fingerprint: str = "") -> None:
        self.aside.append(
            SetAside(
                **file.id.model_dump(),
                event_type=file.key.event_type,
                hour=file.key.hour,
                reason=reason,
                fingerprint=fingerprint,
            )
        )

    def drifted(self, first: _Opened, found: Comparison) -> None:
        schema = first.container.schema
        self.drift.append(
            Drift(
                fingerprint=schema.fingerprint,
                event_type=first.file.key.event_type,
                avro=schema.text,
                verdict=found.verdict,
                differences=found.differences,
                key=first.key,
            )
        )


def read(job: Job, source: Store) -> Read:
    """Read a job's files.

    Args:
        job: The batch.
        source: Where its files are.
    """
    files = _fetch(job, source)
    contract = job.contract or _first_contract(job.event_type, files)
    if contract is None:
        for group in _by_schema(files.read):
            _refuse(files, group, judge(group[0].container.schema, None, ()))
        files.read = []
        rows = rejects = pl.DataFrame()
    else:
        rows, rejects = _held_back(job, files, _conformed(job, files, contract))
    return Read(
        contract=contract,
        rows=rows,
        rejects=rejects,
        inputs=tuple(map(_input, files.read)),
        set_aside=tuple(files.aside),
        unread=tuple(files.unread),
        drift=tuple(files.drift),
    )


def _fetch(job: Job, source: Store) -> _Sorting:
    files = _Sorting()
    fitting = [file for file in job.files if file.listed.size <= job.max_bytes]
    for file in job.files:
        if file.listed.size > job.max_bytes:
            files.put_aside(file, too_large(file.listed.size, job.max_bytes))
    bodies = source.read([file.listed for file in fitting])
    for file, body in zip(fitting, bodies, strict=True):
        if not isinstance(body, CurrentsError):
            _walk(files, file, body)
        elif job.asked_for and isinstance(body, NotThereError):
            files.put_aside(file, "the object is no longer in the bucket")
        else:
            files.unread.append((file.listed.key, body))
    return files


def _walk(files: _Sorting, file: SourceFile, body: Buffer) -> None:
    try:
        container = avro.walk(memoryview(body))
    except CorruptObjectError as error:
        files.put_aside(file, str(error))
        return
    if container.schema.is_of(file.key.event_type):
        unpacked = files.unpacked + max(0, container.size - file.listed.size)
        if files.read and unpacked > MAX_UNPACKED:
            files.unread.append((file.listed.key, NoRoomError(file.listed.key)))
        else:
            files.unpacked = unpacked
            files.read.append(_Opened(file, container))
    else:
        files.put_aside(
            file,
            f"the key says {file.key.event_type}, the record inside is named "
            f"{container.schema.name[:200]}",
        )


def _first_contract(event_type: str, files: _Sorting) -> Contract | None:
    """Make a contract of the first writer schema that can have one."""
    usable = (
        one.container.schema for one in files.read if not unusable(one.container.schema)
    )
    first = next(usable, None)
    return raw_contract(event_type, [first]) if first else None


def _conformed(
    job: Job, files: _Sorting, contract: Contract
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Decode and conform every readable file; the others leave ``files.read``."""
    results: list[conform.Conformed] = []
    good: set[str] = set()
    for group in _accepted(job, files, contract):
        for part in _parts(group):
            for where, frame in decode_apart([one.container for one in part]):
                if isinstance(frame, CorruptObjectError):
                    files.put_aside(part[where.start].file, str(frame))
                    continue
                read = part[where]
                results.append(_conformed_part(job, contract, read, frame))
                good.update(one.key for one in read)
            for one in part:
                one.forget()
    files.read = [one for one in files.read if one.key in good]
    if not results:
        return _empty(contract)
    rows = pl.concat([result.rows for result in results])
    rejects = pl.concat([result.rejects for result in results])
    schemas_ = {one.container.schema.fingerprint for one in files.read}
    return (rows if len(schemas_) == 1 else _in_order(rows, files)), rejects


def _accepted(job: Job, files: _Sorting, contract: Contract) -> Iterator[list[_Opened]]:
    """Yield the files that fit the contract, by schema; the others are put aside."""
    for group in _by_schema(files.read):
        found = judge(group[0].container.schema, contract, job.registered, job.seen)
        if contract.event_type != job.event_type:
            owner = contract.event_type
            for one in group:
                reason = f"the feed {contract.feed} belongs to the event type {owner}"
                files.put_aside(one.file, reason)
        elif found.verdict is Verdict.BREAKING:
            _refuse(files, group, found)
        else:
            if found.verdict is not Verdict.KNOWN:
                files.drifted(group[0], found)
            yield group


def _refuse(files: _Sorting, group: list[_Opened], found: Comparison) -> None:
    """Put files of a schema that breaks the contract aside; reported as one drift."""
    reason = "the schema breaks the feed's contract: " + "; ".join(found.differences)
    for one in group:
        files.put_aside(one.file, reason, one.container.schema.fingerprint)
    files.drifted(group[0], found)


def _by_schema(opened: Iterable[_Opened]) -> list[list[_Opened]]:
    groups: dict[str, list[_Opened]] = {}
    for one in opened:
        groups.setdefault(one.container.schema.fingerprint, []).append(one)
    return list(groups.values())


def _parts(group: list[_Opened]) -> Iterator[list[_Opened]]:
    """Split files so that what is decoded at once stays small beside the batch."""
    part: list[_Opened] = []
    size = 0
    for one in group:
        if part and size + one.container.size > DECODED_AT_ONCE:
            yield part
            part, size = [], 0
        part.append(one)
        size += one.container.size
    yield part


def decode_apart(
    containers: Sequence[Container], start: int = 0
) -> Iterator[tuple[slice, pl.DataFrame | CorruptObjectError]]:
    """Decode files together; if that fails, in halves until the bad ones are found.

    Args:
        containers: Files of one writer schema.
        start: Number of the first one, for the slices.

    Yields:
        Which files, and their rows in order or what is wrong with the one file.
    """
    where = slice(start, start + len(containers))
    try:
        yield where, avro.decode(containers)
    except CorruptObjectError:
        if len(containers) > 1:
            half = len(containers) // 2
            yield from decode_apart(containers[:half], start)
            yield from decode_apart(containers[half:], start + half)
            return
        try:  # row by row: text that is no UTF-8 costs its row and not its file
            yield where, avro.decode_any(containers[0])
        except CorruptObjectError as error:
            yield where, error


def _conformed_part(
    job: Job, contract: Contract, read: list[_Opened], frame: pl.DataFrame
) -> conform.Conformed:
    origins = [
        Origin(file=one.key, rows=one.container.rows, queued_at=one.file.key.hour)
        for one in read
    ]
    schema = read[0].container.schema
    return conform.conform(frame, schema, contract, origins, job.planned_at)


def _in_order(rows: pl.DataFrame, files: _Sorting) -> pl.DataFrame:
    """Put rows of several schemas back into the files' order."""
    keys = [one.key for one in files.read]
    position = pl.DataFrame({FILE: keys}).with_row_index("position")
    return (
        rows.join(position, on=FILE, how="left", maintain_order="left")
        .sort("position", ROW)
        .drop("position")
    )


def _held_back(
    job: Job, files: _Sorting, conformed: tuple[pl.DataFrame, pl.DataFrame]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Set files with rejects aside if the batch has too many of them."""
    rows, rejects = conformed
    if rejects.height <= job.max_reject_share * (rows.height + rejects.height):
        return rows, rejects
    counts = {
        key: (count, reason)
        for key, count, reason in rejects.group_by(FILE, maintain_order=True)
        .agg(pl.len(), pl.col(REASON).first())
        .iter_rows()
    }
    for one in files.read:
        if found := counts.get(one.key):
            files.put_aside(
                one.file,
                f"held back: {found[0]} of its {one.container.rows} rows break a rule "
                f"({found[1]}), and its batch has more such rows than "
                "feeds.max_reject_share allows",
            )
    files.read = [one for one in files.read if one.key not in counts]
    held = pl.col(FILE).is_in(list(counts))
    return rows.filter(~held), rejects.head(0)


def _input(one: _Opened) -> Input:
    listed = one.file.listed
    return Input(
        key=listed.key,
        etag=listed.etag,
        size=listed.size,
        hour=one.file.key.hour,
        rows=one.container.rows,
        fingerprint=one.container.schema.fingerprint,
    )


def _empty(contract: Contract) -> tuple[pl.DataFrame, pl.DataFrame]:
    types = {name: conform.POLARS_TYPES[kind] for name, kind in contract.types.items()}
    rejects = {FILE: pl.String, ROW: pl.Int64, REASON: pl.String}
    return pl.DataFrame(schema=types), pl.DataFrame(schema=rejects)


def too_large(size: int, limit: int) -> str:
    """Say why a file is not read."""
    return (
        f"the file has {size:,} bytes, and limits.memory leaves room for "
        f"{limit:,} at once; raise limits.memory and retry"
    )
