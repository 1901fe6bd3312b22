"""A run that may write, and one that only looks: stores, ledger, registry, lease."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog
from structlog.contextvars import bound_contextvars

from currents_ingest import discover, lease
from currents_ingest.amperity_api import Client
from currents_ingest.engine import Threads
from currents_ingest.errors import LedgerConflictError
from currents_ingest.ledger import Ledger
from currents_ingest.pipeline import Run
from currents_ingest.selection import in_force, select
from currents_ingest.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from currents_ingest.config import Limits, Settings
    from currents_ingest.engine import Engine
    from currents_ingest.lease import Lease
    from currents_ingest.manifest import Entry
    from currents_ingest.selection import Selection

log = structlog.get_logger()

TRIES = 1000
"""How often a run plans anew after another one committed first."""
_STAGING_KEPT = timedelta(days=1)
"""How long staged objects of other runs are left alone where no lease is held."""


@dataclass(frozen=True, slots=True)
class Session:
    """Stores, ledger and lease of a run that may write."""

    settings: Settings
    source: Store
    ledger: Ledger
    selection: Selection
    lease: Lease | None
    token: str
    engine: Engine

    def run(self, attempt: int, stop: Callable[[], bool]) -> Run:
        """Return a run over new files; *attempt* counts how often it planned anew.

        Raises:
            SettingsError: A contract changed without a new version.
        """
        pinned = in_force(self.selection, self.ledger.cache.unified())
        return Run(
            source=self.source,
            ledger=self.ledger,
            settings=self.settings,
            engine=self.engine,
            token=self.token,
            attempt=attempt,
            lease=self.lease,
            make_job=lambda found: discover.job(
                found,
                self.ledger.cache,
                self.selection,
                pinned,
                datetime.now(UTC),
                self.engine.largest,
            ),
            stop=stop,
        )

    def decide(self, draft: Callable[[], Entry | None]) -> Entry | None:
        """Commit a decision, after whatever others commit meanwhile.

        Args:
            draft: Makes the entry from what the ledger says by then; None: there is
                nothing to decide any more.
        """
        for _ in range(TRIES):
            if (entry := draft()) is None:
                return None
            if self.lease:
                self.lease.check()
            try:
                return self.ledger.commit(entry)
            except LedgerConflictError:
                self.ledger.catch_up()
        raise LedgerConflictError(self.ledger.cache.head + 1)


@contextmanager
def begin(
    settings: Settings, engine: Callable[[Limits], Engine] = Threads
) -> Iterator[Session]:
    """Open everything for a run that may write, and hold the lease.

    Args:
        settings: Where from, where to.
        engine: Makes the engine for the pure part of batches.

    Raises:
        LeaseHeldError: Another run is at work; nothing was done.
        SettingsError: A setting or a contract cannot be used.
        StoreError: A bucket could not be reached.
    """
    asked = settings.amperity
    if asked.tenant and (asked.workflow or asked.reconcile):
        Client(asked)  # a token that is not there is told before any work
    token = secrets.token_hex(8)
    source, feeds = _stores(settings)
    holder = f"{socket.gethostname()}, process {os.getpid()}"
    chosen = select(settings)
    daily = settings.feeds.daily_copy
    opened = Ledger.open(feeds, settings.ledger.cache, daily_copy=daily)
    with closing(opened) as ledger, bound_contextvars(run=token):
        if not ledger.probe(token):
            log.warning(
                "the store ignores If-None-Match; only the lease keeps two runs apart",
                feeds=settings.feeds.url,
            )
        with lease.hold(feeds, holder, settings.ledger.lease) as held:
            ledger.catch_up()
            # With the lease, whoever staged before us is dead or has lost it.
            ledger.sweep(token, timedelta(0) if held else _STAGING_KEPT)
            with closing(engine(settings.limits)) as ready:
                yield Session(settings, source, ledger, chosen, held, token, ready)


@contextmanager
def looking(settings: Settings) -> Iterator[tuple[Store, Ledger]]:
    """Open source and ledger for a look that changes nothing."""
    source, feeds = _stores(settings)
    with closing(Ledger.look(feeds, settings.ledger.cache)) as ledger:
        yield source, ledger


@contextmanager
def looking_at_feeds(settings: Settings) -> Iterator[Ledger]:
    """Open the ledger alone for a look that changes nothing."""
    feeds = Store.open(settings.feeds.url, concurrency=settings.limits.concurrency)
    with closing(Ledger.look(feeds, settings.ledger.cache)) as ledger:
        yield ledger


def _stores(settings: Settings) -> tuple[Store, Store]:
    concurrency = settings.limits.concurrency
    return (
        Store.open(settings.source.url, concurrency=concurrency),
        Store.open(settings.feeds.url, concurrency=concurrency),
    )
