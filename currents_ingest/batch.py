"""The work of one batch: read (see ``reading``), keep what is new, write to staging.

It leaves no trace but staging objects, so it may be done twice, on another thread or
machine, or be thrown away. The steps are apart for what lies between them: which ids
were delivered before is known once the rows' hours are, and later batches wait for it.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import orjson
import polars as pl

from currents_ingest import conform, dedupe, parquet, unify
from currents_ingest.manifest import Manifest, Output, Share

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from currents_ingest.contracts import Contract
    from currents_ingest.reading import Job, Read
    from currents_ingest.store import Store
    from currents_ingest.unified import UnifiedContract


T = TypeVar("T")
_AT_ONCE = 8
"""Indexes that are read and looked up at once."""
SMALL = 4 << 20
"""Bytes of Parquet up to which rows for a unified feed wait to be merged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What has to be known of a batch's rows before it can be deduplicated."""

    contract: Contract | None
    """None if no file could be read."""
    hours: tuple[int, ...]
    """Event hours of the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Ids and event hours of the rows that a batch delivers."""

    token: str
    """Names the call that made it: one made again may hold other ids, for a file may
    be gone by then."""
    ids: pl.DataFrame

    def __sizeof__(self) -> int:
        """Bytes of the ids; see Read."""
        return int(self.ids.estimated_size())


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A batch without rows that were delivered before."""

    read: Read
    """Without its rows."""
    rows: pl.DataFrame
    index: Index
    duplicates: int
    after: tuple[str, ...]
    """Tokens of the earlier batches' indexes that it was held against."""

    def __sizeof__(self) -> int:
        """Bytes of the rows; see Read."""
        return int(self.rows.estimated_size())


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows for a unified feed, to be merged with those of other batches."""

    contract: UnifiedContract
    body: bytes
    """Parquet, with the contract's columns."""
    span: tuple[Any, Any]
    """First and last event time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of a batch; nothing of it counts before it is in the ledger."""

    read: Read
    manifest: Manifest | None
    unified: tuple[UnifiedContract, ...] = ()
    """Contracts under which it gave to unified feeds."""
    parts: tuple[Part, ...] = ()
    """What it gave to them that is too small for an object of its own."""
    kept: str
    """Token of its index."""
    after: tuple[str, ...] = ()
    """Tokens of the earlier batches' indexes that it was held against."""


def about(read: Read) -> About:
    """Say what a batch's rows are."""
    hours: list[int] = []
    if read.inputs:
        hours = dedupe.hours_of(read.rows).unique().sort().to_list()
    return About(contract=read.contract, hours=tuple(hours))


def keep(
    read: Read,
    hours: Sequence[int],
    feeds: Store,
    objects: Sequence[str],
    *earlier: Index,
) -> Kept:
    """Drop the rows that were delivered before.

    Args:
        read: The batch.
        hours: Its rows' event hours.
        feeds: Where the index is.
        objects: Index objects that may hold ids of these hours.
        earlier: Batches of this event type whose ids no object may hold yet.

    Raises:
        StoreError: The index cannot be reached.
    """
    rows, index, duplicates = pl.DataFrame(), dedupe.NOTHING, 0
    if read.inputs:
        looks = chain(
            (partial(_stored, feeds.gather(some), hours) for some in _some(objects)),
            (partial(_told, some, hours) for some in _some(earlier)),
        )
        kept = dedupe.deduplicate(read.rows, looks)
        rows, index, duplicates = kept.rows, kept.index, kept.duplicates
    return Kept(
        read=replace(read, rows=pl.DataFrame()),
        rows=rows,
        index=Index(token=secrets.token_hex(6), ids=index),
        duplicates=duplicates,
        after=tuple(one.token for one in earlier),
    )


def delivered(kept: Kept) -> Index:
    """Return what later batches have to know of this one."""
    return kept.index


def write(job: Job, kept: Kept, feeds: Store, staging: str) -> Done:
    """Write a batch to staging.

    Args:
        job: The batch.
        kept: Its rows.
        feeds: Where staging is.
        staging: Key prefix of this batch's staging objects; the call that kept the rows
            adds its own token, so that no other can write them.

    Raises:
        StoreError: Staging cannot be reached.
    """
    read, contract = kept.read, kept.read.contract
    if contract is None or not read.inputs:
        return Done(read=read, manifest=None, kept=kept.index.token)
    staged = Staging(feeds, f"{staging}-{kept.index.token}")
    if count := kept.rows.height:
        name = contract.feed
        if job.raw:
            times = kept.rows["event_datetime"]
            body = parquet.to_bytes(conform.hidden(kept.rows, job.privacy))
            staged.put("feed", name, "", body, count, (times.min(), times.max()))
        staged.put("index", name, "", parquet.index_to_bytes(kept.index.ids), count)
    staged.rejects(contract.feed, "", read.rejects)
    parts: list[Part] = []
    shares = tuple(_shared(job, kept.rows, staged, parts))
    return Done(
        read=replace(read, rejects=pl.DataFrame()),
        manifest=_manifest(job, kept, contract, staged.outputs, shares),
        unified=tuple(one for one, _ in job.unified),
        parts=tuple(parts),
        kept=kept.index.token,
        after=kept.after,
    )


def _shared(
    job: Job, rows: pl.DataFrame, staged: Staging, parts: list[Part]
) -> Iterator[Share]:
    """Write what the batch gives to each unified feed, or add it to *parts*."""
    for contract, decided in job.unified:
        sources = contract.sources_of(job.event_type)
        found = unify.unify(rows, contract, sources, decided)
        if count := found.rows.height:
            body, name = parquet.to_bytes(found.rows), contract.feed
            if len(body) <= SMALL:
                parts.append(Part(contract=contract, body=body, span=found.span))
            else:
                staged.put("feed", name, name, body, count, found.span)
        staged.rejects(contract.feed, contract.feed, found.rejects)
        yield Share(
            feed=contract.feed,
            contract_version=contract.version,
            rows=found.rows.height,
            rejects=found.rejects.height,
            passed_over=found.passed_over,
            superseded=found.superseded,
        )


def _some(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Take indexes some at a time: there may be hundreds, and one alone costs more."""
    return (items[at : at + _AT_ONCE] for at in range(0, len(items), _AT_ONCE))


def _stored(bodies: list[bytes], hours: Sequence[int], column: str) -> pl.DataFrame:
    """Read a column of index objects, of these hours alone."""
    return _within(parquet.from_bytes(bodies, [column, dedupe.HOUR]), hours, column)


def _told(some: Sequence[Index], hours: Sequence[int], column: str) -> pl.DataFrame:
    """Return a column of indexes, of these hours alone."""
    whole = pl.concat(one.ids.select(column, dedupe.HOUR) for one in some)
    return _within(whole, hours, column)


def _within(index: pl.DataFrame, hours: Sequence[int], column: str) -> pl.DataFrame:
    return index.filter(pl.col(dedupe.HOUR).is_in(hours)).select(column)


@dataclass(slots=True)
class Staging:
    """Writes a batch's objects to staging and keeps what they are."""

    store: Store
    prefix: str
    outputs: list[Output] = field(default_factory=list)

    def rejects(self, name: str, unified: str, rows: pl.DataFrame) -> None:
        """Write rejects as JSON lines, if there are any."""
        if rows.height:
            lines = (
                orjson.dumps({"file": file, "row": row, "reason": reason})
                for file, row, reason in rows.iter_rows()
            )
            body = b"\n".join([*lines, b""])
            self.put("rejects", name, unified, body, rows.height)

    def put(  # noqa: PLR0913 (it names one object in full)
        self,
        kind: Literal["feed", "index", "rejects"],
        name: str,
        unified: str,
        body: bytes,
        rows: int,
        span: tuple[Any, Any] = (None, None),
    ) -> None:
        """Write one object; *unified* is empty for the event type's own feed."""
        key = f"{self.prefix}-{name}.{kind}"
        self.store.put(key, body)
        self.outputs.append(
            Output(
                kind=kind,
                staged=key,
                rows=rows,
                bytes=len(body),
                sha256=hashlib.sha256(body).hexdigest(),
                feed=unified,
                first_event=span[0],
                last_event=span[1],
            )
        )


def _manifest(
    job: Job,
    kept: Kept,
    contract: Contract,
    outputs: Sequence[Output],
    shares: tuple[Share, ...],
) -> Manifest:
    read = kept.read
    per_hour = kept.index.ids.group_by(dedupe.HOUR).len().sort(dedupe.HOUR)
    return Manifest(
        event_type=job.event_type,
        feed=contract.feed,
        contract_version=contract.version,
        planned_at=job.planned_at,
        inputs=read.inputs,
        outputs=tuple(outputs),
        rows_in=sum(one.rows for one in read.inputs),
        rows_out=kept.rows.height,
        duplicates=kept.duplicates,
        rejects=read.rejects.height,
        hours=dict(per_hour.iter_rows()),
        raw=job.raw,
        shares=shares,
        joins=job.joins,
    )
