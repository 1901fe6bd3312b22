"""What was delivered, what is newest, what waits for someone; a look only."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from currents_ingest import lease
from currents_ingest.cache_entries import ASIDE
from currents_ingest.compatibility import Comparison, Verdict, judge
from currents_ingest.contracts import feed_name
from currents_ingest.errors import AmperityError
from currents_ingest.ledger import Ledger
from currents_ingest.reconcile import reconcile
from currents_ingest.registry import open_registry
from currents_ingest.schemas import parse
from currents_ingest.store import Store

if TYPE_CHECKING:
    from currents_ingest.cache import Cache
    from currents_ingest.config import Settings
    from currents_ingest.reconcile import Reconciled
    from currents_ingest.schemas import Registry


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
class UnifiedStatus:
    """One unified feed since its first object."""

    feed: str
    objects: int
    rows: int
    rejects: int
    bytes: int
    committed_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drifted:
    """A writer schema that its feed's contract does not know whole today."""

    event_type: str
    fingerprint: str
    verdict: Verdict
    differences: tuple[str, ...]
    seen: datetime
    """When a poll first met it."""
    key: str
    """A file that has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The state of one feeds folder."""

    entries: int
    feeds: tuple[FeedStatus, ...]
    unified: tuple[UnifiedStatus, ...]
    quarantined: int
    drift: tuple[Drifted, ...]
    lease: str | None
    """Who is at work, and since when."""
    reconciled_at: datetime | None
    started_at: datetime | None
    """When Amperity's workflow was last started."""
    amperity: Reconciled | None = None
    """What Amperity read in the last seven days, if the settings ask for it."""
    amperity_error: str = ""
    """Why that is not known."""


def status(settings: Settings) -> Status:
    """Read the ledger and say how things stand; changes nothing."""
    feeds = Store.open(settings.feeds.url, concurrency=settings.limits.concurrency)
    registry = open_registry(settings.schemas)
    with closing(Ledger.look(feeds, settings.ledger.cache)) as ledger:
        found = _of(ledger.cache, registry, lease.holder(feeds))
        if not (settings.amperity.tenant and settings.amperity.reconcile):
            return found
        try:
            read = reconcile(settings.amperity, ledger, datetime.now(UTC))
        except AmperityError as error:
            return replace(found, amperity_error=str(error))
        return replace(found, amperity=read)


def _of(cache: Cache, registry: Registry, holder: str | None) -> Status:
    return Status(
        entries=cache.head,
        feeds=tuple(
            FeedStatus(
                newest_hour=datetime.fromtimestamp(row.pop("watermark"), UTC), **row
            )
            for row in cache.table("totals")
        ),
        unified=tuple(UnifiedStatus(**row) for row in cache.table("shares")),
        quarantined=len(cache.files(ASIDE)),
        drift=drifted(cache, registry),
        lease=holder,
        reconciled_at=cache.reconciled(),
        started_at=cache.started(),
    )


def drifted(cache: Cache, registry: Registry) -> tuple[Drifted, ...]:
    """Hold every schema that once drifted against today's contracts and registry."""
    found = []
    for drift, seen in cache.drift():
        event_type, fingerprint = drift.event_type, drift.fingerprint
        contract = cache.contract(feed_name(event_type))
        now = Comparison(drift.verdict, drift.differences)
        if contract and contract.event_type == event_type:
            writers = registry.writers(event_type)
            now = judge(parse(drift.avro), contract, writers)
        if now.verdict is not Verdict.KNOWN:
            found.append(
                Drifted(
                    event_type=event_type,
                    fingerprint=fingerprint,
                    verdict=now.verdict,
                    differences=now.differences,
                    seen=seen,
                    key=drift.key,
                )
            )
    return tuple(found)
