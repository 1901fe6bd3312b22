"""Small parts of unified feeds to few objects; empty objects for quiet days."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import polars as pl

from currents_ingest import parquet
from currents_ingest.batch import Part, Staging
from currents_ingest.conform import POLARS_TYPES
from currents_ingest.manifest import Delivery
from currents_ingest.unified import UnifiedContract
from currents_ingest.unify import newest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from currents_ingest.contracts import Contract
    from currents_ingest.store import Store
    from currents_ingest.unify import Unified

AT_ONCE = 32 << 20
"""Bytes of parts that become one object: they are unpacked for it."""


def merge(
    parts: Iterable[Part], store: Store, staging: str, now: datetime
) -> Iterator[Delivery]:
    """Write the parts of each feed to staging as few objects.

    Args:
        parts: In the order of their batches.
        store: Where staging is.
        staging: Key prefix, used by no other.
        now: When the rows are delivered.
    """
    ordered = sorted(parts, key=lambda part: part.contract.feed)
    for feed, group in groupby(ordered, key=lambda part: part.contract.feed):
        for number, some in enumerate(_bounded(list(group))):
            contract = some[0].contract
            rows = parquet.from_bytes([part.body for part in some])
            kept = newest(rows, contract) if contract.latest else rows
            staged = Staging(store, f"{staging}-{number:03}")
            span = min(part.span[0] for part in some), max(p.span[1] for p in some)
            body = parquet.to_bytes(kept)
            staged.put("feed", feed, feed, body, kept.height, span)
            made = delivery(contract, now, staged)
            superseded = rows.height - kept.height
            yield made.model_copy(update={"superseded": superseded})


def late(
    found: Iterable[Unified],
    contract: UnifiedContract,
    store: Store,
    staging: str,
    now: datetime,
) -> tuple[Delivery, ...]:
    """Write rows, and rejects, that come to a unified feed after their batches.

    Args:
        found: What was made of raw rows.
        contract: The feed's contract.
        store: Where staging is.
        staging: Key prefix, used by no other.
        now: When the rows are delivered.
    """
    parts, staged = [], Staging(store, f"{staging}-all")
    rejects = []
    for one in found:
        rejects.append(one.rejects)
        if one.rows.height:
            body = parquet.to_bytes(one.rows)
            parts.append(Part(contract=contract, body=body, span=one.span))
    made = [
        each.model_copy(update={"joined": rows_of([each]) + each.superseded})
        for each in merge(parts, store, staging, now)
    ]
    if rejects:
        staged.rejects(contract.feed, contract.feed, pl.concat(rejects))
    if staged.outputs:
        made.append(delivery(contract, now, staged))
    return tuple(made)


def rows_of(deliveries: Iterable[Delivery], kind: str = "feed") -> int:
    """Return how many rows deliveries hold, or rejects."""
    outputs = (one for each in deliveries for one in each.outputs)
    return sum(one.rows for one in outputs if one.kind == kind)


def unstage(store: Store, deliveries: Iterable[Delivery]) -> None:
    """Remove what was staged for deliveries that another run's came before."""
    store.delete(one.staged for each in deliveries for one in each.outputs)


def _bounded(parts: Sequence[Part]) -> Iterator[list[Part]]:
    held: list[Part] = []
    size = 0
    for part in parts:
        if held and size + len(part.body) > AT_ONCE:
            yield held
            held, size = [], 0
        held.append(part)
        size += len(part.body)
    yield held


def empty(
    contract: Contract | UnifiedContract, store: Store, staging: str, now: datetime
) -> Delivery:
    """Write an object without rows to staging."""
    types = {name: POLARS_TYPES[kind] for name, kind in contract.types.items()}
    staged = Staging(store, staging)
    body = parquet.to_bytes(pl.DataFrame(schema=types))
    unified = contract.feed if isinstance(contract, UnifiedContract) else ""
    staged.put("feed", contract.feed, unified, body, 0)
    return delivery(contract, now, staged)


def delivery(
    contract: Contract | UnifiedContract, now: datetime, staged: Staging
) -> Delivery:
    """Return what was staged as one delivery."""
    return Delivery(
        feed=contract.feed,
        contract_version=contract.version,
        planned_at=now,
        outputs=tuple(staged.outputs),
    )
