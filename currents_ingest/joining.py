"""Rows that lack what an earlier event of another type has: conversions and sends.

Both come from what the raw feeds published, once the other event has had time to
come. The ledger remembers which batches wait, so a run that ends early loses nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any

import polars as pl
import structlog

from currents_ingest import merging, parquet
from currents_ingest.ledger import STAGING
from currents_ingest.manifest import Entry, Joined
from currents_ingest.selection import in_force
from currents_ingest.unify import not_empty, unify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from currents_ingest.manifest import Delivery
    from currents_ingest.session import Session
    from currents_ingest.store import Store
    from currents_ingest.unified import Join, UnifiedContract
    from currents_ingest.unify import Unified

SETTLE = timedelta(hours=1)
"""How long a batch waits for the other events to come; once one has waited twice as
long, all that have are joined together, for the others are read once for all."""
_BYTES_AT_ONCE = 8 << 20
"""Bytes of raw objects whose rows are joined together."""
_READ_AT_ONCE = 8
"""Objects of the other event type in memory."""
TIME = "event_datetime"

log = structlog.get_logger()

Waiting = dict[str, Any]
"""A row of the cache's table ``unjoined``."""


def join_what_waits(session: Session, now: datetime) -> int:
    """Deliver the rows that wait and can be joined; return how many.

    Raises:
        StoreError: A bucket could not be reached; what was committed stays.
    """
    cache, total = session.ledger.cache, 0
    if not cache.unjoined(now - 2 * SETTLE):
        return 0
    contracts = in_force(session.selection, cache.unified())
    for number, chunk in enumerate(_chunks(session, contracts, now)):
        contract = contracts[chunk[0]["feed"]]
        prefix = f"{STAGING}/{session.token}/joined-{number:06}"
        found = _found(session, contract, chunk)
        deliveries = merging.late(found, contract, session.ledger.store, prefix, now)
        if session.decide(_draft(session, contract, chunk, deliveries, now)):
            total += sum(each.joined for each in deliveries)
        else:
            merging.unstage(session.ledger.store, deliveries)
    return total


def _chunks(
    session: Session, contracts: Mapping[str, UnifiedContract], now: datetime
) -> Iterator[list[Waiting]]:
    """Return batches of one feed and event type that are made and wanted now."""
    waiting = sorted(session.ledger.cache.unjoined(now - SETTLE), key=_kind)
    for (feed, event_type), same in groupby(waiting, key=_kind):
        options = session.selection.decided(feed).options
        wanted = feed in contracts and contracts[feed].joins_of(event_type, options)
        held: list[Waiting] = []
        size = 0
        for one in same if wanted else ():
            found = session.ledger.store.stat(feed_key(one["object"]))
            if held and size + (found.size if found else 0) > _BYTES_AT_ONCE:
                yield held
                held, size = [], 0
            held.append(one)
            size += found.size if found else 0
        if held:
            yield held


def _kind(one: Waiting) -> tuple[str, str]:
    return one["feed"], one["event_type"]


def _draft(
    session: Session,
    contract: UnifiedContract,
    chunk: Sequence[Waiting],
    deliveries: tuple[Delivery, ...],
    now: datetime,
) -> Callable[[], Entry | None]:
    """Return a draft that gives way if another run has joined one of the batches."""
    done = tuple(Joined(feed=one["feed"], index=one["object"]) for one in chunk)

    def draft() -> Entry | None:
        cache = session.ledger.cache
        held = {(one["feed"], one["object"]) for one in cache.unjoined(now)}
        pinned = cache.unified().get(contract.feed)
        if {(one.feed, one.index) for one in done} - held or pinned not in (
            None,
            contract,
        ):
            return None
        return Entry(
            at=now,
            run=session.token,
            deliveries=deliveries,
            joined=done,
            unified=() if pinned or not deliveries else (contract,),
        )

    return draft


def _found(
    session: Session, contract: UnifiedContract, batches: Sequence[Waiting]
) -> Iterator[Unified]:
    """Join batches of one event type."""
    event_type = batches[0]["event_type"]
    decided = session.selection.decided(contract.feed)
    keys = [feed_key(one["object"]) for one in batches]
    frames = [parquet.from_bytes(body) for body in _bodies(session.ledger.store, keys)]
    if not frames:
        return
    rows = pl.concat(frames, how="diagonal")
    for source in contract.joins_of(event_type, decided.options):
        if source.join:
            others = _others(session, source.join, rows, batches)
            yield unify(joined(rows, others, source.join), contract, [source], decided)


def _bodies(store: Store, keys: Sequence[str]) -> Iterator[bytes]:
    """Read a few objects at a time; one that someone removed is told and left out."""
    for at in range(0, len(keys), _READ_AT_ONCE):
        some = keys[at : at + _READ_AT_ONCE]
        for key, body in zip(some, store.find(some), strict=True):
            if body is None:
                log.warning(
                    "a raw object is gone, so nothing is joined with it", key=key
                )
            else:
                yield body


def feed_key(index: str) -> str:
    """Return the feed object of a batch from its id index's key."""
    _, feed, name = index.split("/")
    day = name.removeprefix(f"{feed}-")
    return f"{feed}/{day[:4]}/{day[4:6]}/{day[6:8]}/{name}"


def _others(
    session: Session, join: Join, rows: pl.DataFrame, batches: Sequence[Waiting]
) -> pl.DataFrame:
    """Read the other events that the rows may be joined with."""
    ledger, store = session.ledger, session.ledger.store
    first = min(one["first"] for one in batches) - join.days * 24
    last = max(one["last"] for one in batches)
    horizon = session.settings.feeds.dedupe_horizon
    since = datetime.fromtimestamp(first * 3600, UTC)
    until = datetime.fromtimestamp((last + 1) * 3600, UTC) + horizon
    hours = range(first, last + 1)
    objects = ledger.cache.index_objects(join.event, hours, since, until)
    people = rows.select(join.on)
    found = [
        other.join(people, on=join.on, how="semi")
        for other in _read(store, [feed_key(one) for one in objects], join)
    ]
    return pl.concat(found) if found else pl.DataFrame()


def _read(store: Store, keys: Sequence[str], join: Join) -> Iterator[pl.DataFrame]:
    """Read the columns that count, a few objects at a time."""
    wanted = list(dict.fromkeys([*join.on, *join.take, TIME, "id"]))
    for body in _bodies(store, keys):
        held = parquet.schema_of(body)
        rows = parquet.from_bytes(body, [name for name in wanted if name in held])
        lacks = [name for name in wanted if name not in held]
        nulls = [pl.lit(None, pl.String).alias(name) for name in lacks]
        yield rows.with_columns(nulls).select(wanted)


def joined(rows: pl.DataFrame, others: pl.DataFrame, join: Join) -> pl.DataFrame:
    """Give each row what the last other event before it has; others leave it out.

    Args:
        rows: Of the event type that lacks something, as its raw feed has them.
        others: Of the other event type: the fields of the join, id and event_datetime.
        join: What they have in common and what is taken.
    """
    on, theirs = list(join.on), {name: f"{name} of the other" for name in join.take}
    named = [not_empty(pl.col(name)).is_not_null() for name in on]
    rows = rows.filter(named)
    if not others.height:
        return rows.head(0)
    others = others.filter(named)
    last = others.sort(TIME, "id").select(
        *on, TIME, *(pl.col(name).alias(new) for name, new in theirs.items())
    )
    matched = rows.sort(TIME, "id").join_asof(
        last.with_columns(found=pl.lit(value=True)),
        on=TIME,
        by=on,
        strategy="backward",
        tolerance=timedelta(days=join.days),
    )
    taken = [
        pl.coalesce(new, name).alias(name)
        if name in rows.columns
        else pl.col(new).alias(name)
        for name, new in theirs.items()
    ]
    return matched.filter("found").with_columns(taken).drop("found", *theirs.values())
