"""Rows for a unified feed from what raw feeds published before it was made.

Currents never sends anything again, so history comes from our own objects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import polars as pl

from currents_ingest import merging, parquet
from currents_ingest.conform import POLARS_TYPES
from currents_ingest.errors import SettingsError
from currents_ingest.ledger import STAGING
from currents_ingest.manifest import Backfilled, Entry
from currents_ingest.selection import in_force, select
from currents_ingest.session import begin, looking_at_feeds
from currents_ingest.unify import unify

if TYPE_CHECKING:
    from collections.abc import Callable

    from currents_ingest.config import Settings
    from currents_ingest.ledger import Ledger
    from currents_ingest.manifest import Delivery
    from currents_ingest.selection import Selection
    from currents_ingest.session import Session
    from currents_ingest.unified import UnifiedContract
    from currents_ingest.unify import Unified


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What a backfill did, or would do."""

    feed: str
    version: int
    objects: int
    """Raw objects that were read."""
    rows: int
    rejects: int


def backfill(settings: Settings, feed: str) -> Filled:
    """Deliver to a unified feed the rows that raw feeds published before it was made.

    Only batches that gave nothing to the feed are read, each once. Done again, or
    after a kill, it goes on where it stopped.

    Raises:
        SettingsError: ``feeds.include`` asks for no such unified feed.
        LeaseHeldError: Another run is at work; nothing was done.
    """
    with begin(settings) as session:
        pinned = session.ledger.cache.unified()
        contract = _contract(session.selection, pinned, feed)
        total = Filled(
            feed=feed, version=contract.version, objects=0, rows=0, rejects=0
        )
        waiting = list(_sources(session.ledger, contract).items())
        head = session.ledger.cache.head
        number = 0
        while waiting:
            part, waiting = _some(session.ledger, waiting)
            prefix = f"{STAGING}/{session.token}/backfill-{number:06}"
            found = (
                _unified(session.selection, contract, session.ledger, *one)
                for one in part
            )
            store, now = session.ledger.store, datetime.now(UTC)
            made = merging.late(found, contract, store, prefix, now)
            keys = tuple(key for key, _ in part)
            if session.decide(_draft(session, contract, keys, made, head)):
                total = replace(
                    total,
                    objects=total.objects + len(part),
                    rows=total.rows + merging.rows_of(made),
                    rejects=total.rejects + merging.rows_of(made, "rejects"),
                )
            else:
                merging.unstage(store, made)
            number += 1
        session.ledger.fold(session.token, datetime.now(UTC))
        return total


def preview(settings: Settings, feed: str) -> Filled:
    """Say what a backfill would do; changes nothing."""
    selection = select(settings)
    with looking_at_feeds(settings) as ledger:
        contract = _contract(selection, ledger.cache.unified(), feed)
        total = Filled(
            feed=feed, version=contract.version, objects=0, rows=0, rejects=0
        )
        for key, event_type in _sources(ledger, contract).items():
            one = _unified(selection, contract, ledger, key, event_type)
            total = replace(
                total,
                objects=total.objects + 1,
                rows=total.rows + one.rows.height,
                rejects=total.rejects + one.rejects.height,
            )
    return total


def _contract(
    selection: Selection, pinned: dict[str, UnifiedContract], feed: str
) -> UnifiedContract:
    try:
        return in_force(selection, pinned)[feed]
    except KeyError:
        problem = f"feeds.include asks for no unified feed {feed}"
        raise SettingsError((problem,)) from None


def _sources(ledger: Ledger, contract: UnifiedContract) -> dict[str, str]:
    """Return raw objects, with their event types, that gave the feed nothing yet."""
    found: dict[str, str] = {}
    done: set[str] = set()
    for entry in ledger.entries():
        for one in entry.backfilled:
            if one.feed == contract.feed:
                done.update(one.sources)
        for batch in entry.batches:
            gave = any(share.feed == contract.feed for share in batch.shares)
            if not gave and contract.sources_of(batch.event_type):
                own = [
                    one.key
                    for one in batch.outputs
                    if one.kind == "feed" and not one.feed
                ]
                found |= dict.fromkeys(own, batch.event_type)
    return {key: event for key, event in found.items() if key not in done}


def _some(
    ledger: Ledger, waiting: list[tuple[str, str]]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Take the objects of one entry: what may be held at once, one at least."""
    size = count = 0
    for key, _ in waiting:
        found = ledger.store.stat(key)
        size += found.size if found else 0
        if count and size > merging.AT_ONCE:
            break
        count += 1
    return waiting[:count], waiting[count:]


def _unified(
    selection: Selection,
    contract: UnifiedContract,
    ledger: Ledger,
    key: str,
    event_type: str,
) -> Unified:
    """Read one object as rows of the unified feed, delivered now."""
    rows = parquet.from_bytes(ledger.store.get(key))
    now = pl.lit(datetime.now(UTC)).cast(POLARS_TYPES["timestamp"])
    decided = selection.decided(contract.feed)
    return unify(
        rows.with_columns(now.alias("ingested_at")),
        contract,
        contract.sources_of(event_type),
        decided,
    )


def _draft(
    session: Session,
    contract: UnifiedContract,
    keys: tuple[str, ...],
    deliveries: tuple[Delivery, ...],
    head: int,
) -> Callable[[], Entry | None]:
    def draft() -> Entry | None:
        since = session.ledger.entries(after=head)
        done = [one for entry in since for one in entry.backfilled]
        if any(
            one.feed == contract.feed and set(keys) & set(one.sources) for one in done
        ):
            return None  # a rival's was first
        pinned = session.ledger.cache.unified()
        return Entry(
            at=datetime.now(UTC),
            run=session.token,
            deliveries=deliveries,
            backfilled=(Backfilled(feed=contract.feed, sources=keys),),
            unified=() if contract.feed in pinned else (contract,),
        )

    return draft
