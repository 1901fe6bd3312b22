"""Prove from the bucket alone that nothing is lost, doubled or changed.

Everything is read anew: source listing, ledger entries, feed objects. The cache is
not asked.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import TYPE_CHECKING

import polars as pl

from currents_ingest import conform, dedupe, discover, keys, parquet
from currents_ingest.errors import LedgerBrokenError, NotThereError
from currents_ingest.ledger import FOLDER, STAGING, entry_key, read_entry
from currents_ingest.store import Store
from currents_ingest.unified import UnifiedContract

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date

    from currents_ingest.config import Settings
    from currents_ingest.contracts import Contract
    from currents_ingest.manifest import Delivery, Entry, Manifest, Output, Refill

_KEYS_AT_ONCE = 5_000_000
Identity = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as it has to be."""

    about: str
    """An object's key, or what else it is about."""
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was checked and what was found."""

    entries: int
    batches: int
    objects: int
    rows: int
    source_files: int
    committed: int
    quarantined: int
    discarded: int
    pending: int
    """Files that wait for the next poll: no difference."""
    differences: tuple[Difference, ...]


def verify(
    settings: Settings, since: date | None = None, until: date | None = None
) -> Verified:
    """Check promises 1, 2 and 9 from the bucket; changes nothing.

    Args:
        settings: Where from, where to.
        since: First delivery day whose objects are read; others are only listed.
        until: First delivery day whose objects are not read any more.
    """
    source = Store.open(settings.source.url, concurrency=settings.limits.concurrency)
    feeds = Store.open(settings.feeds.url, concurrency=settings.limits.concurrency)
    entries, found = _entries(feeds)
    batches = [batch for entry in entries for batch in entry.batches]
    listed = {one.key: one.size for page in feeds.listing() for one in page}
    refills = [refill for entry in entries for refill in entry.refills]
    deliveries = [delivery for entry in entries for delivery in entry.deliveries]
    found += _published([*batches, *deliveries, *refills], listed)
    found += _balances(batches)
    found += _shared(entries)
    chosen = [one for one in batches if _within(one, since, until)]
    for feed in sorted({one.feed for one in chosen}):
        pinned = _contracts(entries, feed)
        found += _objects(feeds, pinned, [one for one in chosen if one.feed == feed])
    contracts: dict[tuple[str, int], Contract | UnifiedContract] = {}
    for entry in entries:
        contracts |= {(one.feed, one.version): one for one in entry.pinned}
        contracts |= {(one.feed, one.version): one for one in entry.unified}
    for batch in chosen:
        for share in batch.shares:
            contract = contracts.get((share.feed, share.contract_version))
            own = [one for one in batch.outputs if one.feed == share.feed]
            found += _keyed_objects(feeds, contract, own)
    for delivery in deliveries:
        if _within(delivery, since, until):
            contract = contracts.get((delivery.feed, delivery.contract_version))
            found += _keyed_objects(feeds, contract, delivery.outputs)
    for refill in refills:
        if _within(refill, since, until):
            pinned = _contracts(entries, refill.feed)
            found += _refill_objects(feeds, pinned.get(refill.contract_version), refill)
    found += _refilled_twice(refills)
    found += _filled_twice(entries)
    found += _keys_twice(feeds, entries, contracts)
    states, twice = _states(entries)
    found += twice
    pending, total = _pending(source, settings, states)
    counts = Counter(states.values())
    return Verified(
        entries=len(entries),
        batches=len(batches),
        objects=sum(len(entry.outputs) for entry in entries),
        rows=sum(one.rows_out for one in batches),
        source_files=total,
        committed=counts["committed"],
        quarantined=counts["quarantined"],
        discarded=counts["discarded"],
        pending=pending,
        differences=tuple(found),
    )


def _entries(feeds: Store) -> tuple[list[Entry], list[Difference]]:
    """Read every entry; numbers must run from 1 without a gap."""
    folder = f"{FOLDER}/"
    names = sorted(
        one.key
        for page in feeds.listing(FOLDER)
        for one in page
        if "/" not in one.key.removeprefix(folder)
    )
    expected = [entry_key(number) for number in range(1, len(names) + 1)]
    found = [
        Difference(key, "is missing from the ledger")
        for key in expected
        if key not in names
    ]
    entries = []
    for key, body in zip(names, feeds.gather(names), strict=True):
        try:
            entries.append(read_entry(key, body))
        except LedgerBrokenError as error:
            found.append(Difference(key, str(error)))
    return entries, found


def _published(
    done: Sequence[Manifest | Delivery | Refill], listed: dict[str, int]
) -> Iterator[Difference]:
    """Compare the objects that entries name with those that are there."""
    outputs = [output for one in done for output in one.outputs]
    named = {output.key: output for output in outputs}
    named |= {output.also: output for output in outputs if output.also}
    for key, output in named.items():
        if key not in listed:
            waits = output.staged in listed
            what = "not published yet; the next poll does it" if waits else "is missing"
            yield Difference(key, what)
        elif listed[key] != output.bytes:
            yield Difference(key, f"has {listed[key]} bytes and not {output.bytes}")
    ours = ("_ledger/", f"{STAGING}/", "_audiences/")
    for key in listed.keys() - named.keys():
        if not key.startswith(ours):
            yield Difference(key, "is in no ledger entry; who put it there?")


def _balances(batches: list[Manifest]) -> Iterator[Difference]:
    for batch in batches:
        where = f"{batch.feed} of {batch.planned_at:%Y-%m-%d %H:%M:%S}"
        out = batch.rows_out + batch.duplicates + batch.rejects
        if batch.rows_in != out or batch.rows_in != sum(i.rows for i in batch.inputs):
            yield Difference(where, f"{batch.rows_in} rows went in, {out} came out")
        wanted = {
            ("feed", ""): batch.rows_out * batch.raw,
            ("index", ""): batch.rows_out,
            ("rejects", ""): batch.rejects,
        }
        for one in batch.shares:
            wanted[("rejects", one.feed)] = one.rejects
            out = one.rows + one.rejects + one.passed_over + one.superseded
            if out != batch.rows_out:
                told = f"of {batch.rows_out} rows {one.feed} tells of {out}"
                yield Difference(where, told)
        held: Counter[tuple[str, str]] = Counter()
        for output in batch.outputs:
            if output.kind != "feed" or not output.feed:
                held[(output.kind, output.feed)] += output.rows
        for at in wanted.keys() | held.keys():
            if held[at] != wanted.get(at, 0):
                name = " of ".join(filter(None, at))
                told = f"its {name} has {held[at]} rows and not {wanted.get(at, 0)}"
                yield Difference(where, told)


def _shared(entries: list[Entry]) -> Iterator[Difference]:
    """Compare what batches say they gave to unified feeds with the objects' rows."""
    for entry in entries:
        balance: Counter[str] = Counter()
        for batch in entry.batches:
            for share in batch.shares:
                balance[share.feed] += share.rows
        for delivery in entry.deliveries:
            balance[delivery.feed] += delivery.joined - delivery.superseded
        for output in entry.outputs:
            if output.feed and output.kind == "feed":
                balance[output.feed] -= output.rows
        for feed, rows in sorted(balance.items()):
            if rows:
                what = "missing" if rows > 0 else "too many"
                told = f"{abs(rows)} rows of {feed} are {what}"
                yield Difference(entry_key(entry.number), told)


def _objects(
    feeds: Store, pinned: dict[int, Contract], batches: list[Manifest]
) -> Iterator[Difference]:
    """Read every object of a feed: checksum, columns, rows, and ids only once."""
    by_hour: dict[int, list[Output]] = defaultdict(list)
    for batch in batches:
        ids = None
        own = [one for one in batch.outputs if not one.feed]
        for output in sorted(own, key=lambda one: one.kind != "index"):
            body, wrong = _body(feeds, output)
            yield from wrong
            if body is None or output.kind == "rejects":
                continue
            if output.kind == "index":
                ids = parquet.from_bytes(body)
                for hour in batch.hours:
                    by_hour[hour].append(output)
            else:
                contract = pinned.get(batch.contract_version)
                wrong = list(_feed_object(contract, output, body))
                yield from wrong or _against_index(output, body, ids)
    yield from _doubled(feeds, by_hour)


def _keyed_objects(
    feeds: Store,
    contract: Contract | UnifiedContract | None,
    outputs: Iterable[Output],
) -> Iterator[Difference]:
    """Read objects without an index: checksum, columns, rows, keys only once."""
    for output in outputs:
        body, wrong = _body(feeds, output)
        yield from wrong
        if body is not None and output.kind == "feed":
            key = contract.key if contract else ()
            columns = (key,) if isinstance(key, str) else key
            yield from _feed_object(contract, output, body, columns)


def _body(feeds: Store, output: Output) -> tuple[bytes | None, list[Difference]]:
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


def _feed_object(
    contract: Contract | UnifiedContract | None,
    output: Output,
    body: bytes,
    key: Sequence[str] = (dedupe.ID,),
) -> Iterator[Difference]:
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
    if ids is None or not index.equals(ids):
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


def _states(entries: list[Entry]) -> tuple[dict[Identity, str], list[Difference]]:
    """Follow every file through the ledger; committed twice is a difference."""
    states: dict[Identity, str] = {}
    found: list[Difference] = []
    for entry in entries:
        for one in (i for batch in entry.batches for i in batch.inputs):
            if states.get(one.identity) == "committed":
                found.append(Difference(one.key, "was committed twice"))
            states[one.identity] = "committed"
        for state, files in (
            ("quarantined", entry.set_aside),
            ("released", entry.released),
            ("discarded", entry.discarded),
        ):
            states |= {one.identity: state for one in files}
    return states, found


def _pending(
    source: Store, settings: Settings, states: dict[Identity, str]
) -> tuple[int, int]:
    """Count listed files that the ledger does not hold, and all listed files."""
    pending = total = 0
    for _, folder in discover.event_folders(source, settings.source.events):
        for page in source.listing(folder):
            files = [
                one for one in page if not keys.is_folder_marker(one.key, one.size)
            ]
            total += len(files)
            pending += sum(
                states.get((one.key, one.etag, one.size), "released") == "released"
                for one in files
            )
    return pending, total


def _refill_objects(
    feeds: Store, contract: Contract | None, refill: Refill
) -> Iterator[Difference]:
    """Read a refill's objects: checksum, columns, rows, and ids only once."""
    for output in refill.outputs:
        body, wrong = _body(feeds, output)
        yield from wrong
        if body is not None:
            yield from _feed_object(contract, output, body)


def _refilled_twice(refills: Iterable[Refill]) -> Iterator[Difference]:
    """An object is read once for each contract version, so its ids come once, too."""
    counts = Counter(
        (one.feed, one.contract_version, source)
        for one in refills
        for source in one.sources
    )
    for (_, version, source), times in sorted(counts.items()):
        if times > 1:
            yield Difference(source, f"was refilled twice for version {version}")


def _filled_twice(entries: Iterable[Entry]) -> Iterator[Difference]:
    """A batch is joined once for a feed, and an object fills it once."""
    counts: Counter[tuple[str, str]] = Counter()
    for entry in entries:
        counts.update((one.feed, one.index) for one in entry.joined)
        for one in entry.backfilled:
            counts.update((one.feed, source) for source in one.sources)
    for (feed, key), times in sorted(counts.items()):
        if times > 1:
            yield Difference(key, f"went into {feed} twice")


def _keys_twice(
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


def _contracts(entries: Iterable[Entry], feed: str) -> dict[int, Contract]:
    """Return the contracts that the ledger pinned for a feed, by version."""
    return {
        one.version: one
        for entry in entries
        for one in entry.pinned
        if one.feed == feed
    }


def _within(
    batch: Manifest | Delivery | Refill, since: date | None, until: date | None
) -> bool:
    first = datetime.combine(since, time(), UTC) if since else None
    last = datetime.combine(until, time(), UTC) if until else None
    return (first is None or batch.planned_at >= first) and (
        last is None or batch.planned_at < last
    )
