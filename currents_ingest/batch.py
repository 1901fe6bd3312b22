"""The work of one batch: fetch, decode, conform, deduplicate, write to staging.

It leaves no trace but staging objects, so it may be done twice, on another thread or
machine, or be thrown away.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson
import polars as pl

from currents_ingest import avro, conform, dedupe, parquet, schemas
from currents_ingest.conform import FILE, REASON, ROW, Origin
from currents_ingest.contracts import Contract, raw_contract
from currents_ingest.errors import (
    CorruptObjectError,
    CurrentsError,
    NotThereError,
)
from currents_ingest.manifest import (
    FileId,
    Input,
    Manifest,
    Output,
    SetAside,
    UnknownSchema,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from currents_ingest.avro import Container
    from currents_ingest.keys import CurrentsKey
    from currents_ingest.store import Store, StoredObject


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
    """The feed's pinned contract, if it has one."""
    max_reject_share: float
    max_bytes: int
    """What one file may hold, so that memory stays within its limit."""
    asked_for: bool = False
    """Someone released these files from quarantine: one that is gone goes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of a batch; nothing of it counts before it is in the ledger."""

    job: Job
    manifest: Manifest | None
    contract: Contract | None
    set_aside: tuple[SetAside, ...]
    unread: tuple[tuple[str, CurrentsError], ...]
    """Files that the bucket did not give; they stay pending."""
    schemas: tuple[UnknownSchema, ...]
    index: pl.DataFrame
    """Ids and event hours of the rows to deliver."""


@dataclass(slots=True)
class _Sorting:
    """Files on their way: each ends in exactly one of these."""

    read: list[tuple[SourceFile, Container]] = field(default_factory=list)
    aside: list[SetAside] = field(default_factory=list)
    unread: list[tuple[str, CurrentsError]] = field(default_factory=list)

    def put_aside(self, file: SourceFile, reason: str) -> None:
        self.aside.append(set_aside(file, reason))


def set_aside(file: SourceFile, reason: str) -> SetAside:
    """Return the quarantine record of a file."""
    return SetAside(
        **file.id.model_dump(),
        event_type=file.key.event_type,
        hour=file.key.hour,
        reason=reason,
    )


def work(  # noqa: PLR0913 (all that a batch depends on)
    job: Job,
    source: Store,
    feeds: Store,
    staging: str,
    history: Callable[[Sequence[int]], Sequence[str]],
    rivals: Sequence[pl.DataFrame] = (),
) -> Done:
    """Do one batch up to its staging objects.

    Args:
        job: The batch.
        source: Where its files are.
        feeds: Where staging and the id index are.
        staging: Key prefix of this attempt's staging objects, used by no other.
        history: From event hours to the index objects that may hold their ids.
        rivals: Index frames of batches not in *history* yet that count as delivered.

    Raises:
        StoreError: Staging or the index cannot be reached.
    """
    files = _fetch(job, source)
    contract = job.contract or _first_contract(job.event_type, files)
    if contract is None:
        for file, container in files.read:
            files.put_aside(file, "; ".join(conform.unusable(container.schema)))
        return _nothing(job, files)
    rows, rejects = _held_back(job, files, _conformed(job, files, contract))
    if not files.read:
        return _nothing(job, files)
    hours = dedupe.index_of(rows)[dedupe.HOUR].unique().sort().to_list()
    delivered = [*rivals, *_delivered(feeds, history(hours), hours)]
    result = dedupe.deduplicate(rows, delivered)
    outputs = _staged(feeds, staging, contract.feed, result, rejects)
    return Done(
        job=job,
        manifest=_manifest(job, contract, files, result, rejects, outputs),
        contract=contract,
        set_aside=tuple(files.aside),
        unread=tuple(files.unread),
        schemas=_unknown(job.event_type, files),
        index=result.index,
    )


def _fetch(job: Job, source: Store) -> _Sorting:
    files = _Sorting()
    fitting = [file for file in job.files if file.listed.size <= job.max_bytes]
    for file in job.files:
        if file.listed.size > job.max_bytes:
            files.put_aside(file, _too_large(file, job.max_bytes))
    bodies = source.read([file.listed for file in fitting])
    for file, body in zip(fitting, bodies, strict=True):
        if isinstance(body, bytes):
            _walk(files, file, body)
        elif job.asked_for and isinstance(body, NotThereError):
            files.put_aside(file, "the object is no longer in the bucket")
        else:
            files.unread.append((file.listed.key, body))
    return files


def _walk(files: _Sorting, file: SourceFile, body: bytes) -> None:
    try:
        container = avro.walk(body)
    except CorruptObjectError as error:
        files.put_aside(file, str(error))
        return
    if container.schema.is_of(file.key.event_type):
        files.read.append((file, container))
    else:
        files.put_aside(
            file,
            f"the key says {file.key.event_type}, the record inside is named "
            f"{container.schema.name[:200]}",
        )


def _first_contract(event_type: str, files: _Sorting) -> Contract | None:
    """Return the shipped contract, or one made of the first writer schema."""
    if known := schemas.known().get(event_type):
        return raw_contract(event_type, [version.writer for version in known])
    usable = (
        container.schema
        for _, container in files.read
        if not conform.unusable(container.schema)
    )
    first = next(usable, None)
    return raw_contract(event_type, [first]) if first else None


def _conformed(
    job: Job, files: _Sorting, contract: Contract
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Decode and conform every readable file; the others leave ``files.read``."""
    if contract.event_type != job.event_type:
        for file, _ in files.read:
            files.put_aside(
                file,
                f"the feed {contract.feed} belongs to the event type "
                f"{contract.event_type}",
            )
        files.read = []
    parts: list[tuple[list[tuple[SourceFile, Container]], pl.DataFrame]] = []
    for group in _by_schema(files.read):
        if found := conform.differences(group[0][1].schema, contract):
            reason = "the schema breaks the feed's contract: " + "; ".join(found)
            for file, _ in group:
                files.put_aside(file, reason)
        else:
            parts += _decoded(files, group)
    results = [
        conform.conform(
            frame,
            group[0][1].schema,
            contract,
            [_origin(file, container) for file, container in group],
            job.planned_at,
        )
        for group, frame in parts
    ]
    good = {file.listed.key for group, _ in parts for file, _ in group}
    files.read = [one for one in files.read if one[0].listed.key in good]
    if not results:
        return _empty(contract)
    rows = pl.concat([result.rows for result in results])
    rejects = pl.concat([result.rejects for result in results])
    return (rows if len(results) == 1 else _in_order(rows, files)), rejects


def _by_schema(
    read: Iterable[tuple[SourceFile, Container]],
) -> list[list[tuple[SourceFile, Container]]]:
    groups: dict[str, list[tuple[SourceFile, Container]]] = {}
    for file, container in read:
        groups.setdefault(container.schema.fingerprint, []).append((file, container))
    return list(groups.values())


def _decoded(
    files: _Sorting, group: list[tuple[SourceFile, Container]]
) -> list[tuple[list[tuple[SourceFile, Container]], pl.DataFrame]]:
    """Decode files together; if that fails, in halves until the bad ones are found."""
    try:
        return [(group, avro.decode([container for _, container in group]))]
    except CorruptObjectError:
        if len(group) > 1:
            half = len(group) // 2
            return _decoded(files, group[:half]) + _decoded(files, group[half:])
    file, container = group[0]
    try:  # row by row: text that is no UTF-8 costs its row and not its file
        return [(group, avro.decode_any(container))]
    except CorruptObjectError as error:
        files.put_aside(file, str(error))
        return []


def _in_order(rows: pl.DataFrame, files: _Sorting) -> pl.DataFrame:
    """Put rows of several schemas back into the files' order."""
    keys = [file.listed.key for file, _ in files.read]
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
        for key, count, reason in rejects.group_by(FILE)
        .agg(pl.len(), pl.col(REASON).first())
        .iter_rows()
    }
    for file, container in files.read:
        if found := counts.get(file.listed.key):
            files.put_aside(
                file,
                f"held back: {found[0]} of its {container.rows} rows break a rule "
                f"({found[1]}), and its batch has more such rows than "
                "feeds.max_reject_share allows",
            )
    files.read = [one for one in files.read if one[0].listed.key not in counts]
    held = pl.col(FILE).is_in(list(counts))
    return rows.filter(~held), rejects.head(0)


def _delivered(
    feeds: Store, objects: Sequence[str], hours: Sequence[int]
) -> list[pl.DataFrame]:
    return [
        parquet.from_bytes(body).filter(pl.col(dedupe.HOUR).is_in(hours))
        for body in feeds.gather(objects)
    ]


def _staged(
    feeds: Store,
    staging: str,
    feed: str,
    result: dedupe.Deduplicated,
    rejects: pl.DataFrame,
) -> tuple[Output, ...]:
    outputs = []
    if result.rows.height:
        times = result.rows["event_datetime"]
        span = {"first_event": times.min(), "last_event": times.max()}
        body = parquet.to_bytes(result.rows)
        outputs.append(
            _stage(feeds, staging, feed, "feed", body, result.rows.height, span)
        )
        body = parquet.index_to_bytes(result.index)
        outputs.append(_stage(feeds, staging, feed, "index", body, result.index.height))
    if rejects.height:
        lines = (
            orjson.dumps({"file": file, "row": row, "reason": reason})
            for file, row, reason in rejects.iter_rows()
        )
        body = b"\n".join([*lines, b""])
        outputs.append(_stage(feeds, staging, feed, "rejects", body, rejects.height))
    return tuple(outputs)


def _stage(  # noqa: PLR0913 (it names one object in full)
    feeds: Store,
    staging: str,
    feed: str,
    kind: str,
    body: bytes,
    rows: int,
    span: dict[str, object] | None = None,
) -> Output:
    key = f"{staging}-{feed}.{kind}"
    feeds.put(key, body)
    return Output.model_validate(
        {
            "kind": kind,
            "staged": key,
            "rows": rows,
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            **(span or {}),
        }
    )


def _manifest(  # noqa: PLR0913 (all that a batch came to)
    job: Job,
    contract: Contract,
    files: _Sorting,
    result: dedupe.Deduplicated,
    rejects: pl.DataFrame,
    outputs: tuple[Output, ...],
) -> Manifest:
    per_hour = result.index.group_by(dedupe.HOUR).len().sort(dedupe.HOUR)
    return Manifest(
        event_type=job.event_type,
        feed=contract.feed,
        contract_version=contract.version,
        planned_at=job.planned_at,
        inputs=tuple(
            Input(
                **file.id.model_dump(),
                hour=file.key.hour,
                rows=container.rows,
                fingerprint=container.schema.fingerprint,
            )
            for file, container in files.read
        ),
        outputs=outputs,
        rows_in=sum(container.rows for _, container in files.read),
        rows_out=result.rows.height,
        duplicates=result.duplicates,
        rejects=rejects.height,
        hours=dict(per_hour.iter_rows()),
    )


def _nothing(job: Job, files: _Sorting) -> Done:
    return Done(
        job=job,
        manifest=None,
        contract=None,
        set_aside=tuple(files.aside),
        unread=tuple(files.unread),
        schemas=_unknown(job.event_type, files),
        index=dedupe.NOTHING,
    )


def _unknown(event_type: str, files: _Sorting) -> tuple[UnknownSchema, ...]:
    known = schemas.known_fingerprints()
    found = {
        container.schema.fingerprint: container.schema.canonical
        for _, container in files.read
        if container.schema.fingerprint not in known
    }
    return tuple(
        UnknownSchema(fingerprint=name, event_type=event_type, canonical=text)
        for name, text in sorted(found.items())
    )


def _empty(contract: Contract) -> tuple[pl.DataFrame, pl.DataFrame]:
    types = {name: conform.POLARS_TYPES[kind] for name, kind in contract.types.items()}
    rejects = {FILE: pl.String, ROW: pl.Int64, REASON: pl.String}
    return pl.DataFrame(schema=types), pl.DataFrame(schema=rejects)


def _origin(file: SourceFile, container: Container) -> Origin:
    return Origin(file=file.listed.key, rows=container.rows, queued_at=file.key.hour)


def _too_large(file: SourceFile, limit: int) -> str:
    return (
        f"the file has {file.listed.size:,} bytes, and limits.memory leaves room for "
        f"{limit:,} at once; raise limits.memory and retry"
    )
