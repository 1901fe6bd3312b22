"""An export, whole: found, read, mapped and checked before anything is sent."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from currents_ingest.audiences import columns, events, exports
from currents_ingest.audiences.blocks import Blocks
from currents_ingest.audiences.mapping import PART, REJECTS, map_people
from currents_ingest.audiences.requests import marked
from currents_ingest.audiences.tables import ROW, Dialect
from currents_ingest.errors import GuardError, MappingError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from currents_ingest.audience_config import Audience
    from currents_ingest.audiences.columns import Layout
    from currents_ingest.audiences.exports import Delivery
    from currents_ingest.audiences.mapping import Mapped
    from currents_ingest.audiences.tables import Chunk

_CHUNK = 100_000
"""Rows that are mapped at once."""


@dataclass(frozen=True, slots=True)
class Target:
    """An audience by its name."""

    name: str
    audience: Audience


@dataclass(slots=True)
class Gathered:
    """What a delivery holds."""

    delivery: Delivery
    rows: Blocks
    layout: Layout | None = None
    read: int = 0
    """Rows of the file, the rejected ones included."""
    parts: list[str] = field(default_factory=list)
    """Names of parts, by their number."""
    rejects: list[pl.DataFrame] = field(default_factory=list)
    """REJECTS."""

    @property
    def rejected(self) -> int:
        """Return how many rows were rejected."""
        return sum(map(len, self.rejects))

    def reasons(self) -> dict[str, int]:
        """Return how many rows were rejected for what, the most first."""
        if not self.rejects:
            return {}
        counts = pl.concat(self.rejects)["reason"].value_counts(sort=True)
        return dict(counts.iter_rows())


def find(target: Target, now: datetime) -> Delivery:
    """Find the delivery that is to be sent; raises as exports.find does."""
    one = target.audience
    return exports.find(one.source, settle=one.settle, now=now)


@contextmanager
def gathered(target: Target, delivery: Delivery, memory: int) -> Iterator[Gathered]:
    """Read a delivery to its end, and keep its rows for the block.

    Args:
        target: Whose it is.
        delivery: What to read.
        memory: Bytes of compressed rows to hold before a file takes them.

    Raises:
        ExportError: It cannot be read.
        MappingError: Its columns do not fit.
    """
    with closing(Blocks(memory)) as rows:
        found = Gathered(delivery=delivery, rows=rows)
        _read(found, target)
        yield found


def _read(found: Gathered, target: Target) -> None:
    audience = target.audience
    schema: dict[str, pl.DataType] = {}
    chunks = exports.read(
        found.delivery,
        _dialect(audience),
        max_unpacked=audience.max_unpacked,
        rows=_CHUNK,
    )
    for chunk in chunks:
        if chunk.part not in found.parts:
            found.parts.append(chunk.part)
        told = {name: kind for name, kind in chunk.frame.schema.items() if name != ROW}
        if found.layout is None or told != schema:
            _same_columns(target, schema, told)
            found.layout, schema = _layout(target, chunk, told), told
        _take(found, target, chunk)


def guard(target: Target, gathered: Gathered, last: int | None) -> None:
    """Refuse an export that looks wrong as a whole.

    Args:
        target: Whose it is.
        gathered: What it holds.
        last: Rows that were accepted of the export before; None: there was none.

    Raises:
        GuardError: Too many rejects, or too few people.
    """
    audience = target.audience
    force = "If it is right, say --force."
    share = gathered.rejected / gathered.read if gathered.read else 0.0
    if share > audience.max_reject_share:
        told = "; ".join(
            f"{reason} ({count:,})"
            for reason, count in list(gathered.reasons().items())[:5]
        )
        raise GuardError(
            target.name,
            f"{gathered.rejected:,} of {gathered.read:,} rows are rejected, more than "
            f"max_reject_share: {told}",
            "Mend the export or the settings; `audience preview` tells more.",
        )
    if audience.kind != "attributes":
        return
    people = gathered.rows.rows
    if not people:
        raise GuardError(target.name, "the export names nobody", force)
    if last and people < last * (1 - audience.max_shrink):
        raise GuardError(
            target.name,
            f"the export has {people:,} people, and the one before had {last:,}",
            force,
        )


def _take(found: Gathered, target: Target, chunk: Chunk) -> None:
    part = found.parts.index(chunk.part)
    frame = chunk.frame.with_columns(pl.lit(part, pl.UInt32).alias(PART))
    mapped = _mapped(found, target, frame)
    found.read += len(frame) + len(chunk.bad)
    found.rows.add(mapped.rows)
    if len(mapped.rejects):
        found.rejects.append(mapped.rejects.cast(REJECTS))  # type: ignore[arg-type]
    if chunk.bad:
        told = [(part, one.row, one.reason) for one in chunk.bad]
        found.rejects.append(pl.DataFrame(told, REJECTS, orient="row"))


def _mapped(found: Gathered, target: Target, frame: pl.DataFrame) -> Mapped:
    assert found.layout is not None  # noqa: S101 (made with the first chunk)
    audience = target.audience
    if audience.kind == "attributes":
        mapped = map_people(frame, found.layout, audience)
        return type(mapped)(
            rows=marked(mapped.rows, audience, found.delivery.id),
            rejects=mapped.rejects,
        )
    return events.map_events(frame, found.layout, audience, found.delivery.id)


def _layout(target: Target, chunk: Chunk, schema: dict[str, pl.DataType]) -> Layout:
    layout = columns.layout(target.name, target.audience, schema, typed=chunk.typed)
    if target.audience.kind != "attributes":
        events.check(target.name, layout, target.audience)
    return layout


def _same_columns(
    target: Target, before: dict[str, pl.DataType], now: dict[str, pl.DataType]
) -> None:
    if before and set(before) != set(now):
        told = ", ".join(sorted(set(before) ^ set(now)))
        problem = f"its parts do not have the same columns; some lack: {told}"
        raise MappingError(target.name, (problem,))


def _dialect(audience: Audience) -> Dialect:
    return Dialect(
        format=audience.format,
        delimiter=audience.delimiter,
        quote=audience.quote,
        escape=audience.escape,
        header=audience.header,
        names=audience.names,
        encoding=audience.encoding,
    )
