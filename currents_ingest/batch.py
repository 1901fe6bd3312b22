"""The work of one batch: read, deduplicate, write to staging.

It leaves no trace but staging objects, so it may be done twice, on another thread or
machine, or be thrown away.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import orjson
import polars as pl

from currents_ingest import conform, dedupe, parquet, reading, unify
from currents_ingest.manifest import Manifest, Output, Share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from currents_ingest.contracts import Contract
    from currents_ingest.reading import Job, Read
    from currents_ingest.store import Store
    from currents_ingest.unified import UnifiedContract


SMALL = 4 << 20
"""Bytes of Parquet up to which rows for a unified feed wait to be merged."""


@dataclass(slots=True)
class Turn:
    """What a batch in work tells later ones of its event type, once it knows it."""

    contract: Contract | None = None
    index: pl.DataFrame = field(default_factory=lambda: dedupe.NOTHING)
    """Ids and event hours of the rows that it delivers."""
    _known: threading.Event = field(default_factory=threading.Event)

    def tell(self, contract: Contract | None, index: pl.DataFrame) -> None:
        """Say it; the first time counts."""
        if not self._known.is_set():
            self.contract, self.index = contract, index
            self._known.set()

    def wait(self) -> Turn:
        """Wait until it is known."""
        self._known.wait()
        return self


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


def work(  # noqa: PLR0913 (all that a batch depends on)
    job: Job,
    source: Store,
    feeds: Store,
    staging: str,
    history: Callable[[Sequence[int]], Sequence[str]],
    earlier: Sequence[Turn],
    own: Turn,
) -> Done:
    """Do one batch up to its staging objects.

    Args:
        job: The batch.
        source: Where its files are.
        feeds: Where staging and the id index are.
        staging: Key prefix of this attempt's staging objects, used by no other.
        history: From event hours to the index objects that may hold their ids.
        earlier: Batches of this event type that history may not show yet.
        own: Told what this batch delivers before it is written.

    Raises:
        StoreError: Staging or the index cannot be reached.
    """
    read = reading.read(job, source, lambda: _adopted(earlier))
    if read.contract is None or not read.inputs:
        return Done(read=_lightly(read), manifest=None)
    hours = dedupe.index_of(read.rows)[dedupe.HOUR].unique().sort().to_list()
    delivered = _delivered(feeds, history(hours), hours)
    delivered += [turn.wait().index for turn in earlier]
    result = dedupe.deduplicate(read.rows, delivered)
    own.tell(read.contract, result.index)
    staged = Staging(feeds, staging)
    if count := result.rows.height:
        name = read.contract.feed
        if job.raw:
            times = result.rows["event_datetime"]
            body = parquet.to_bytes(conform.hidden(result.rows, job.privacy))
            staged.put("feed", name, "", body, count, (times.min(), times.max()))
        staged.put("index", name, "", parquet.index_to_bytes(result.index), count)
    staged.rejects(read.contract.feed, "", read.rejects)
    parts: list[Part] = []
    shares = tuple(_shared(job, result.rows, staged, parts))
    manifest = _manifest(job, read, read.contract, result, staged.outputs, shares)
    contracts = tuple(contract for contract, _ in job.unified)
    return Done(
        read=_lightly(read), manifest=manifest, unified=contracts, parts=tuple(parts)
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


def _adopted(earlier: Sequence[Turn]) -> Contract | None:
    contracts = [turn.wait().contract for turn in earlier]
    return next((one for one in contracts if one), None)


def _lightly(read: Read) -> Read:
    """Let go of the rows, which wait for their commit in staging."""
    return replace(read, rows=pl.DataFrame(), rejects=pl.DataFrame())


def _delivered(
    feeds: Store, objects: Sequence[str], hours: Sequence[int]
) -> list[pl.DataFrame]:
    return [
        parquet.from_bytes(body).filter(pl.col(dedupe.HOUR).is_in(hours))
        for body in feeds.gather(objects)
    ]


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


def _manifest(  # noqa: PLR0913 (all that became of it)
    job: Job,
    read: Read,
    contract: Contract,
    result: dedupe.Deduplicated,
    outputs: Sequence[Output],
    shares: tuple[Share, ...],
) -> Manifest:
    per_hour = result.index.group_by(dedupe.HOUR).len().sort(dedupe.HOUR)
    return Manifest(
        event_type=job.event_type,
        feed=contract.feed,
        contract_version=contract.version,
        planned_at=job.planned_at,
        inputs=read.inputs,
        outputs=tuple(outputs),
        rows_in=sum(one.rows for one in read.inputs),
        rows_out=result.rows.height,
        duplicates=result.duplicates,
        rejects=read.rejects.height,
        hours=dict(per_hour.iter_rows()),
        raw=job.raw,
        shares=shares,
        joins=job.joins,
    )
