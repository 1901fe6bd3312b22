"""Objects read anew: checksum, columns, rows, and keys only once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import polars as pl

from currents_ingest import conform, dedupe, parquet
from currents_ingest.errors import NotThereError
from currents_ingest.unified import UnifiedContract

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from currents_ingest.contracts import Contract
    from currents_ingest.manifest import Entry, Manifest, Output
    from currents_ingest.store import Store

_KEYS_AT_ONCE = 5_000_000


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as it has to be."""

    about: str
    """An object's key, or what else it is about."""
    what: str


def raw_objects(
    feeds: Store, pinned: dict[int, Contract], batches: list[Manifest]
) -> Iterator[Difference]:
    """Read every object of a feed: checksum, columns, rows, and ids only once."""
    by_hour: dict[int, list[Output]] = defaultdict(list)
    for batch in batches:
        ids = None
        own = [one for one in batch.outputs if not one.feed]
        for output in sorted(own, key=lambda one: one.kind != "index"):
            body, wrong = body_of(feeds, output)
            yield from wrong
            if body is None or output.kind == "rejects":
                continue
            if output.kind == "index":
                ids = parquet.from_bytes(body)
                for hour in batch.hours:
                    by_hour[hour].append(output)
            else:
                contract = pinned.get(batch.contract_version)
                wrong = list(feed_object(contract, output, body))
                yield from wrong or _against_index(output, body, ids)
    yield from _doubled(feeds, by_hour)


def keyed_objects(
    feeds: Store,
    contract: Contract | UnifiedContract | None,
    outputs: Iterable[Output],
) -> Iterator[Difference]:
    """Read objects without an index: checksum, columns, rows, keys only once."""
    for output in outputs:
        body, wrong = body_of(feeds, output)
        yield from wrong
        if body is not None and output.kind == "feed":
            key = contract.key if contract else ()
            columns = (key,) if isinstance(key, str) else key
            yield from feed_object(contract, output, body, columns)


def body_of(feeds: Store, output: Output) -> tuple[bytes | None, list[Difference]]:
    """Read an object; None if it is not there, which is told elsewhere, or damaged."""
    try:
        body = feeds.get(output.key)
    except NotThereError:
        return None, []
    if hashlib.sha256(body).hexdigest() != output.sha256:
        told = "is not what was published: checksum"
        return None, [Difference(output.key, told)]
    lines = body.count(b"\n") if output.kind == "rejects" else output.rows
    if output.also and feeds.find([output.also])[0] not in (None, body):
        told = "is not what was published: checksum"
        return body, [Difference(output.also, told)]
    if lines != output.rows:
        told = f"has {lines} lines, not {output.rows}"
        return body, [Difference(output.key, told)]
    return body, []


def feed_object(
    contract: Contract | UnifiedContract | None,
    output: Output,
    body: bytes,
    key: Sequence[str] = (dedupe.ID,),
) -> Iterator[Difference]:
    """Hold an object against its contract: columns, rows, each key once."""
    schema = parquet.schema_of(body)
    types = contract.types if contract else {}
    wanted = [(name, conform.POLARS_TYPES[kind]) for name, kind in types.items()]
    if list(schema.items()) != wanted:
        yield Difference(output.key, "its columns are not those of the contract")
        return
    rows = parquet.from_bytes(body, list(key))
    if rows.height != output.rows:
        yield Difference(output.key, f"has {rows.height} rows and not {output.rows}")
    if doubled := rows.height - rows.n_unique():
        yield Difference(output.key, f"holds {doubled} keys twice")


def _against_index(
    output: Output, body: bytes, ids: pl.DataFrame | None
) -> Iterator[Difference]:
    rows = parquet.from_bytes(body, [dedupe.ID, "event_datetime"])
    index = dedupe.index_of(rows).sort(dedupe.HOUR, dedupe.ID)
    if ids is None or not index.equals(ids.sort(dedupe.HOUR, dedupe.ID)):
        yield Difference(output.key, "its ids are not those of its index")


def _doubled(feeds: Store, by_hour: dict[int, list[Output]]) -> Iterator[Difference]:
    """Find ids that two objects of a feed hold, a day of event time at a time."""
    days: dict[int, set[str]] = defaultdict(set)
    for hour, outputs in by_hour.items():
        days[hour // 24].update(one.key for one in outputs)
    for day, objects in sorted(days.items()):
        if len(objects) == 1:
            continue
        inside = pl.col(dedupe.HOUR) // 24 == day
        ids = pl.concat(
            parquet.from_bytes(feeds.get(key)).filter(inside).select(dedupe.ID)
            for key in sorted(objects)
        )
        if doubled := ids.height - ids[dedupe.ID].n_unique():
            date_ = datetime.fromtimestamp(day * 86400, UTC).date()
            feed = min(objects).split("/")[1]
            yield Difference(feed, f"{doubled} ids of {date_} are delivered twice")


def keys_twice(
    feeds: Store,
    entries: Iterable[Entry],
    contracts: dict[tuple[str, int], Contract | UnifiedContract],
) -> Iterator[Difference]:
    """Find keys that two objects of a unified feed of events hold.

    Only some of the keys are held at a time: those of one remainder of their hash.
    """
    objects: dict[str, list[Output]] = defaultdict(list)
    for entry in entries:
        for one in entry.outputs:
            if one.feed and one.kind == "feed":
                objects[one.feed].append(one)
    for (feed, _), contract in sorted(contracts.items()):
        outputs = objects.pop(feed, [])
        if isinstance(contract, UnifiedContract) and not contract.latest:
            parts = 1 + sum(one.rows for one in outputs) // _KEYS_AT_ONCE
            doubled = sum(
                _doubled_keys(feeds, outputs, contract.key, part, parts)
                for part in range(parts)
            )
            if doubled:
                yield Difference(feed, f"{doubled} keys are delivered twice")


def _doubled_keys(
    feeds: Store, outputs: Sequence[Output], key: Sequence[str], part: int, parts: int
) -> int:
    hashes = []
    for one in outputs:
        body = feeds.find([one.key])[0]
        if body is not None:
            rows = parquet.from_bytes(body, list(key)).hash_rows()
            hashes.append(rows.filter(rows % parts == part))
    whole = pl.concat(hashes) if hashes else pl.Series(dtype=pl.UInt64)
    return len(whole) - whole.n_unique()
