"""The work of one batch: read, deduplicate, write to staging.

It leaves no trace but staging objects, so it may be done twice, on another thread or
machine, or be thrown away.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import orjson
import polars as pl

from currents_ingest import dedupe, parquet, reading
from currents_ingest.manifest import Manifest, Output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from currents_ingest.contracts import Contract
    from currents_ingest.reading import Job, Read
    from currents_ingest.store import Store


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
class Done:
    """What became of a batch; nothing of it counts before it is in the ledger."""

    read: Read
    manifest: Manifest | None


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
    outputs = _staged(feeds, staging, read.contract.feed, result, read.rejects)
    manifest = _manifest(job, read, read.contract, result, outputs)
    return Done(read=_lightly(read), manifest=manifest)


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


def _manifest(
    job: Job,
    read: Read,
    contract: Contract,
    result: dedupe.Deduplicated,
    outputs: tuple[Output, ...],
) -> Manifest:
    per_hour = result.index.group_by(dedupe.HOUR).len().sort(dedupe.HOUR)
    return Manifest(
        event_type=job.event_type,
        feed=contract.feed,
        contract_version=contract.version,
        planned_at=job.planned_at,
        inputs=read.inputs,
        outputs=outputs,
        rows_in=sum(one.rows for one in read.inputs),
        rows_out=result.rows.height,
        duplicates=result.duplicates,
        rejects=read.rejects.height,
        hours=dict(per_hour.iter_rows()),
    )
