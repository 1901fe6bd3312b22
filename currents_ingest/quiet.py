"""Objects without rows for feeds that have nothing today, so no courier misses one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from currents_ingest import merging
from currents_ingest.ledger import STAGING
from currents_ingest.manifest import Entry
from currents_ingest.selection import in_force

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from currents_ingest.contracts import Contract
    from currents_ingest.session import Session
    from currents_ingest.unified import UnifiedContract


def fill(session: Session, now: datetime) -> Entry | None:
    """Deliver an empty object to each feed that has published, but not today."""

    def draft() -> Entry | None:
        quiet = list(_quiet(session, now))
        deliveries = [
            merging.empty(
                contract, session.ledger.store, f"{STAGING}/{session.token}/quiet", now
            )
            for contract in quiet
        ]
        if not deliveries:
            return None
        return Entry(at=now, run=session.token, deliveries=tuple(deliveries))

    return session.decide(draft)


def _quiet(session: Session, now: datetime) -> Iterator[Contract | UnifiedContract]:
    cache = session.ledger.cache
    today = cache.delivered(int(now.timestamp()) // 86400)
    for contract in cache.contracts():
        if contract.feed not in today and session.selection.writes_raw(contract.feed):
            yield contract
    pinned = cache.unified()
    for unified in in_force(session.selection, pinned).values():
        if unified.feed in pinned and unified.feed not in today:
            yield unified
