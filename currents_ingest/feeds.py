"""Feeds and their contracts: list, show, let them grow, and refill what was before."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from currents_ingest import parquet, refilling
from currents_ingest.contracts import Column, Contract, raw_contract
from currents_ingest.errors import NotThereError, SettingsError
from currents_ingest.ledger import STAGING
from currents_ingest.manifest import Entry, Output, Refill, refill_feed
from currents_ingest.selection import select
from currents_ingest.session import begin, looking_at_feeds
from currents_ingest.unified import UnifiedContract

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from currents_ingest.config import Settings
    from currents_ingest.ledger import Ledger
    from currents_ingest.schemas import Registry
    from currents_ingest.selection import Selection
    from currents_ingest.session import Session
    from currents_ingest.store import Store

_OBJECTS_PER_ENTRY = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """A feed's contract as it is, and what the registry could add."""

    contract: Contract | UnifiedContract
    pinned: bool
    """It has published; otherwise this is the contract that it would begin with."""
    included: bool
    """The settings ask for it."""
    new: tuple[Column, ...]
    """Columns that an upgrade would add."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """What an upgrade did, or would do."""

    feed: str
    before: int
    after: int
    """Contract versions; equal if the registry has nothing to add."""
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refilled:
    """What a refill did, or would do."""

    feed: str
    """The folder that the refilled rows go to."""
    version: int
    objects: int
    """Objects of older contract versions that were read."""
    rows: int
    """Rows that held values of new columns."""


def feeds(settings: Settings) -> list[Feed]:
    """Return every feed that has published or could, by name; changes nothing."""
    selection = select(settings)
    with looking_at_feeds(settings) as ledger:
        found = {one.feed: one for one in ledger.cache.contracts()}
        unified = ledger.cache.unified()
    pinned = {*found, *unified}
    for event_type in selection.registry.event_types():
        writers = selection.registry.writers(event_type)
        contract = raw_contract(event_type, writers)
        found.setdefault(contract.feed, contract)
    made = {one.feed for one in selection.included()}
    raw = [
        Feed(
            contract=one,
            pinned=one.feed in pinned,
            included=selection.writes_raw(one.feed),
            new=_new(one, selection.registry),
        )
        for one in found.values()
    ]
    more = [
        Feed(
            contract=one,
            pinned=one.feed in pinned,
            included=one.feed in made,
            new=_added(one, selection.contracts.get(one.feed, one)),
        )
        for one in {**selection.contracts, **unified}.values()
    ]
    return sorted([*raw, *more], key=lambda feed: feed.contract.feed)


def show(settings: Settings, feed: str) -> Feed:
    """Return one feed; changes nothing.

    Raises:
        NotThereError: Neither ledger nor registry knows it.
    """
    for one in feeds(settings):
        if one.contract.feed == feed:
            return one
    raise NotThereError(f"{feed} among the feeds; `feeds list` shows them")


def preview(settings: Settings, feed: str) -> Upgrade:
    """Say what an upgrade would do; changes nothing."""
    selection = select(settings)
    with looking_at_feeds(settings) as ledger:
        before, after = _versions(ledger, selection, feed)
        return _upgrade(before, after)


def upgrade(settings: Settings, feed: str) -> Upgrade:
    """Start a feed's next contract version: of an event type, or of a unified feed.

    The first has a column for every known field, the second is what its file says.
    Columns are only added, so what reads the feed goes on reading it once it knows
    the new ones. What was delivered stays as it is; see refill.

    Raises:
        NotThereError: The feed has not published.
        SettingsError: The next version of a unified contract takes something away.
        LeaseHeldError: Another run is at work; nothing was done.
    """
    with begin(settings) as session:
        made: list[Upgrade] = []

        def draft() -> Entry | None:
            before, after = _versions(session.ledger, session.selection, feed)
            made.append(_upgrade(before, after))
            if after == before:
                return None
            now = datetime.now(UTC)
            if isinstance(after, UnifiedContract):
                return Entry(at=now, run=session.token, unified=(after,))
            return Entry(at=now, run=session.token, pinned=(after,))

        session.decide(draft)
        return made[-1]


def refill(settings: Settings, feed: str) -> Refilled:
    """Write rows delivered before the feed grew once more, with its new columns.

    They go to a folder of their own, ``<feed>_refill``, whole and with a newer
    ``ingested_at``: published objects never change, and the feed itself holds an id
    once. Only rows whose ``unmapped_fields`` hold a value of a new column are
    written. Done again, or after a kill, it goes on where it stopped.

    Raises:
        NotThereError: The feed has not published.
        LeaseHeldError: Another run is at work; nothing was done.
    """
    with begin(settings) as session:
        contract = _pinned(session.ledger, feed)
        waiting = iter(_sources(session.ledger, contract))
        objects = rows = 0
        for number in range(10**9):
            if not (part := tuple(islice(waiting, _OBJECTS_PER_ENTRY))):
                break
            prefix = f"{STAGING}/{session.token}/refill-{number:06}"
            done = _refilled(session.ledger.store, contract, part, prefix)
            if _commit(session, contract, done):
                objects += len(part)
                rows += sum(one.rows for one in done.outputs)
        return Refilled(
            feed=refill_feed(feed), version=contract.version, objects=objects, rows=rows
        )


def preview_refill(settings: Settings, feed: str) -> Refilled:
    """Say what a refill would do; changes nothing."""
    now = datetime.now(UTC)
    with looking_at_feeds(settings) as ledger:
        contract = _pinned(ledger, feed)
        sources = _sources(ledger, contract)
        rows = sum(
            refilling.refilled(_read(ledger.store, key), contract, now).height
            for key in sources
        )
    return Refilled(
        feed=refill_feed(feed),
        version=contract.version,
        objects=len(sources),
        rows=rows,
    )


def _versions(
    ledger: Ledger, selection: Selection, feed: str
) -> tuple[Contract, Contract] | tuple[UnifiedContract, UnifiedContract]:
    """Return a feed's contract in force, and the one that an upgrade brings."""
    if (unified := ledger.cache.unified().get(feed)) is None:
        contract = _pinned(ledger, feed)
        return contract, _grown(contract, selection.registry)
    after = selection.contracts.get(feed, unified)
    if after.version <= unified.version:
        return unified, unified
    lost = sorted(set(unified.types.items()) - set(after.types.items()))
    same = (unified.key, unified.last_updated) == (after.key, after.last_updated)
    if lost or not same:
        names = ", ".join(name for name, _ in lost) or "its key or last-updated column"
        problem = (
            f"version {after.version} of {feed} changes {names}: readers rely on what "
            "was published, so columns can only be added. Give the feed another name"
        )
        raise SettingsError((problem,))
    return unified, after


def _added(before: UnifiedContract, after: UnifiedContract) -> tuple[Column, ...]:
    return tuple(
        Column(name=name, type=kind)
        for name, kind in after.types.items()
        if name not in before.types
    )


def _pinned(ledger: Ledger, feed: str) -> Contract:
    if (contract := ledger.cache.contract(feed)) is None:
        raise NotThereError(f"{feed} among the feeds that have published")
    return contract


def _grown(contract: Contract, registry: Registry) -> Contract:
    return contract.grown(registry.writers(contract.event_type))


def _new(contract: Contract, registry: Registry) -> tuple[Column, ...]:
    return _upgrade(contract, _grown(contract, registry)).columns


def _upgrade(
    before: Contract | UnifiedContract, after: Contract | UnifiedContract
) -> Upgrade:
    if isinstance(before, UnifiedContract) and isinstance(after, UnifiedContract):
        columns = _added(before, after)
    elif isinstance(before, Contract) and isinstance(after, Contract):
        columns = tuple(one for one in after.columns if one not in before.columns)
    return Upgrade(
        feed=before.feed, before=before.version, after=after.version, columns=columns
    )


def _sources(ledger: Ledger, contract: Contract) -> list[str]:
    """Return objects of older contract versions that this one's refill has not read."""
    found: dict[str, None] = {}
    done: set[str] = set()
    for entry in ledger.entries():
        for batch in entry.batches:
            if (
                batch.feed == contract.feed
                and batch.contract_version < contract.version
            ):
                own = (one for one in batch.outputs if not one.feed)
                found |= dict.fromkeys(one.key for one in own if one.kind == "feed")
        for one in entry.refills:
            if (one.feed, one.contract_version) == (contract.feed, contract.version):
                done.update(one.sources)
    return [key for key in found if key not in done]


def _read(store: Store, key: str) -> pl.DataFrame:
    return parquet.from_bytes(store.get(key))


def _refilled(
    store: Store, contract: Contract, sources: Sequence[str], prefix: str
) -> Refill:
    now, outputs = datetime.now(UTC), []
    for number, key in enumerate(sources):
        rows = refilling.refilled(_read(store, key), contract, now)
        if not rows.height:
            continue
        body, staged = parquet.to_bytes(rows), f"{prefix}-{number:03}.feed"
        store.put(staged, body)
        outputs.append(
            Output(
                kind="feed",
                staged=staged,
                rows=rows.height,
                bytes=len(body),
                sha256=hashlib.sha256(body).hexdigest(),
                first_event=_time(rows["event_datetime"].min()),
                last_event=_time(rows["event_datetime"].max()),
            )
        )
    return Refill(
        feed=contract.feed,
        contract_version=contract.version,
        planned_at=now,
        sources=tuple(sources),
        outputs=tuple(outputs),
    )


def _time(value: object) -> datetime | None:
    return value if isinstance(value, datetime) else None


def _commit(session: Session, contract: Contract, done: Refill) -> bool:
    """Commit a refill's part; False if another run's came first."""

    def draft() -> Entry | None:
        if set(done.sources) - set(_sources(session.ledger, contract)):
            return None  # a rival's refill was first
        return Entry(at=datetime.now(UTC), run=session.token, refills=(done,))

    if session.decide(draft):
        return True
    session.ledger.store.delete(one.staged for one in done.outputs)
    return False
