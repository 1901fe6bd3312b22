"""Prove from the bucket alone that nothing is lost, doubled or changed.

Everything is read anew: source listing, ledger entries, feed objects. The cache is
not asked.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, time
from hashlib import blake2b
from typing import TYPE_CHECKING

from currents_ingest import discover, keys
from currents_ingest.errors import LedgerBrokenError
from currents_ingest.ledger import FOLDER, STAGING, entry_key, read_entry
from currents_ingest.store import Store
from currents_ingest.verify_objects import (
    Difference,
    body_of,
    feed_object,
    keyed_objects,
    keys_twice,
    raw_objects,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date

    from currents_ingest.config import Settings
    from currents_ingest.contracts import Contract
    from currents_ingest.manifest import Delivery, Entry, Manifest, Refill
    from currents_ingest.unified import UnifiedContract

Identity = tuple[str, str, int]
_AT_ONCE = 16
"""Entries; one may name a million files."""


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
    entries, states, found = _entries(feeds)
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
        found += raw_objects(feeds, pinned, [one for one in chosen if one.feed == feed])
    contracts: dict[tuple[str, int], Contract | UnifiedContract] = {}
    for entry in entries:
        contracts |= {(one.feed, one.version): one for one in entry.pinned}
        contracts |= {(one.feed, one.version): one for one in entry.unified}
    for batch in chosen:
        for share in batch.shares:
            contract = contracts.get((share.feed, share.contract_version))
            own = [one for one in batch.outputs if one.feed == share.feed]
            found += keyed_objects(feeds, contract, own)
    for delivery in deliveries:
        if _within(delivery, since, until):
            contract = contracts.get((delivery.feed, delivery.contract_version))
            found += keyed_objects(feeds, contract, delivery.outputs)
    for refill in refills:
        if _within(refill, since, until):
            pinned = _contracts(entries, refill.feed)
            found += _refill_objects(feeds, pinned.get(refill.contract_version), refill)
    found += _refilled_twice(refills)
    found += _filled_twice(entries)
    found += keys_twice(feeds, entries, contracts)
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


def _entries(
    feeds: Store,
) -> tuple[list[Entry], dict[bytes, str], list[Difference]]:
    """Read every entry; numbers must run from 1 without a gap.

    Returns:
        The entries without their files, which would not fit into memory; what became
        of each file; and what is wrong.
    """
    folder = f"{FOLDER}/"
    names = sorted(
        one.key
        for page in feeds.listing(FOLDER)
        for one in page
        if "/" not in one.key.removeprefix(folder)
    )
    expected = [entry_key(number) for number in range(1, len(names) + 1)]
    held = set(names)
    found = [
        Difference(key, "is missing from the ledger")
        for key in expected
        if key not in held
    ]
    entries: list[Entry] = []
    states: dict[bytes, str] = {}
    for at in range(0, len(names), _AT_ONCE):
        some = names[at : at + _AT_ONCE]
        for key, body in zip(some, feeds.gather(some), strict=True):
            try:
                entry = read_entry(key, body)
            except LedgerBrokenError as error:
                found.append(Difference(key, str(error)))
                continue
            found += _followed(entry, states)
            alone = (one.model_copy(update={"inputs": ()}) for one in entry.batches)
            entries.append(entry.model_copy(update={"batches": tuple(alone)}))
    return entries, states, found


def _followed(entry: Entry, states: dict[bytes, str]) -> Iterator[Difference]:
    """Follow every file through an entry; committed twice is a difference."""
    for batch in entry.batches:
        if batch.rows_in != (rows := sum(one.rows for one in batch.inputs)):
            yield Difference(
                _place(batch), f"its files have {rows} rows, {batch.rows_in} went in"
            )
        for one in batch.inputs:
            name = _digest(one.identity)
            if states.get(name) == "committed":
                yield Difference(one.key, "was committed twice")
            states[name] = "committed"
    for state, files in (
        ("quarantined", entry.set_aside),
        ("released", entry.released),
        ("discarded", entry.discarded),
    ):
        states |= {_digest(one.identity): state for one in files}


def _digest(identity: Identity) -> bytes:
    """Return what stands for a file: millions of them have to fit into memory."""
    text = "\0".join(map(str, identity)).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=16).digest()


def _place(batch: Manifest) -> str:
    return f"{batch.feed} of {batch.planned_at:%Y-%m-%d %H:%M:%S}"


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
        where = _place(batch)
        out = batch.rows_out + batch.duplicates + batch.rejects
        if batch.rows_in != out:
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


def _pending(
    source: Store, settings: Settings, states: dict[bytes, str]
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
                states.get(_digest((one.key, one.etag, one.size)), "released")
                == "released"
                for one in files
            )
    return pending, total


def _refill_objects(
    feeds: Store, contract: Contract | None, refill: Refill
) -> Iterator[Difference]:
    """Read a refill's objects: checksum, columns, rows, and ids only once."""
    for output in refill.outputs:
        body, wrong = body_of(feeds, output)
        yield from wrong
        if body is not None:
            yield from feed_object(contract, output, body)


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
