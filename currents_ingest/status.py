"""What was delivered, what is newest, what waits for someone; a look only."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from currents_ingest import lease
from currents_ingest.cache import ASIDE
from currents_ingest.ledger import Ledger
from currents_ingest.store import Store

if TYPE_CHECKING:
    from currents_ingest.cache import Cache
    from currents_ingest.config import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedStatus:
    """One event type since its first batch."""

    event_type: str
    feed: str
    files: int
    rows_in: int
    rows_out: int
    duplicates: int
    rejects: int
    bytes: int
    newest_hour: datetime
    """Newest queued hour that was committed."""
    committed_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A writer schema that no shipped version has."""

    event_type: str
    fingerprint: str
    seen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The state of one feeds folder."""

    entries: int
    feeds: tuple[FeedStatus, ...]
    quarantined: int
    drift: tuple[Drift, ...]
    lease: str | None
    """Who is at work, and since when."""
    reconciled_at: datetime | None


def status(settings: Settings) -> Status:
    """Read the ledger and say how things stand; changes nothing."""
    feeds = Store.open(settings.feeds.url, concurrency=settings.limits.concurrency)
    with closing(Ledger.look(feeds, settings.ledger.cache)) as ledger:
        return _of(ledger.cache, lease.holder(feeds))


def _of(cache: Cache, holder: str | None) -> Status:
    return Status(
        entries=cache.head,
        feeds=tuple(
            FeedStatus(
                newest_hour=datetime.fromtimestamp(row.pop("watermark"), UTC), **row
            )
            for row in cache.table("totals")
        ),
        quarantined=len(cache.files(ASIDE)),
        drift=tuple(
            Drift(**{name: row[name] for name in ("event_type", "fingerprint", "seen")})
            for row in cache.table("schemas")
        ),
        lease=holder,
        reconciled_at=cache.reconciled(),
    )
