"""An export, whole: found, read, mapped and checked before anything is sent."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import polars as pl

from currents_ingest.audiences import cohorts, columns, events, exports
from currents_ingest.audiences.blocks import Blocks
from currents_ingest.audiences.mapping import PART, REJECTS, map_people
from currents_ingest.audiences.requests import marked
from currents_ingest.audiences.tables import ROW, Dialect
from currents_ingest.errors import MappingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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
    mirrored: bool = False
    """People who are not in it have left."""
    layout: Layout | None = None
    read: int = 0
    """Rows of the file, the rejected ones included."""
    parts: list[str] = field(default_factory=list)
    """Names of parts, by their number."""
    rejects: list[pl.DataFrame] = field(default_factory=list)
    """REJECTS."""
    there: list[pl.DataFrame] = field(default_factory=list)
    """ID of people whose rows were rejected: they did not leave."""
    nameless: int = 0
    """Rejected rows that name nobody: anybody may be meant."""
    skipped: int = 0
    """Rows that are nobody's, or in no cohort."""
    cohorts: set[str] = field(default_factory=set)
    """Those that its files are named after."""
    stopped: bool = False
    """We were asked to stop before all of it was read."""

    @property
    def rejected(self) -> int:
        """Return how many rows were rejected."""
        return sum(map(len, self.rejects))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what a person should know of it."""
        found = list(self.layout.warnings) if self.layout else []
        if self.mirrored and self.nameless:
            found.append(
                f"{self.nameless:,} rejected rows name nobody, so nobody is told to "
                "have left this time"
            )
        return tuple(found)

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
def gathered(
    target: Target,
    delivery: Delivery,
    memory: int,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Gathered]:
    """Read a delivery to its end, and keep its rows for the block.

    Args:
        target: Whose it is.
        delivery: What to read.
        memory: Bytes of compressed rows to hold before a file takes them.
        stop: Asked between chunks; True ends the reading, and what was read is of no
            use then.

    Raises:
        ExportError: It cannot be read.
        MappingError: Its columns do not fit.
    """
    with closing(Blocks(memory)) as rows:
        mirrored = target.audience.mode == "mirror"
        found = Gathered(delivery=delivery, rows=rows, mirrored=mirrored)
        _read(found, target, stop)
        if target.audience.cohort_file:
            found.cohorts = {_named(target, one.key) for one in delivery.parts}
        yield found


def _named(target: Target, part: str) -> str:
    """Return what a file's name calls its cohort."""
    if key := cohorts.of_file(target.audience, part):
        return key
    told = f"cohort_file: {part!r} is not named like {target.audience.cohort_file!r}"
    raise MappingError(target.name, (told,))


def _read(found: Gathered, target: Target, stop: Callable[[], bool]) -> None:
    audience = target.audience
    schema: dict[str, pl.DataType] = {}
    chunks = exports.read(
        found.delivery,
        _dialect(audience),
        max_unpacked=audience.max_unpacked,
        rows=_CHUNK,
    )
    for chunk in chunks:
        if stop():
            found.stopped = True
            return
        if chunk.part not in found.parts:
            found.parts.append(chunk.part)
        told = {name: kind for name, kind in chunk.frame.schema.items() if name != ROW}
        if found.layout is None or told != schema:
            _same_columns(target, schema, told)
            found.layout, schema = _layout(target, chunk, told), told
        _take(found, target, chunk)


def unbearable(target: Target, found: Gathered) -> str:
    """Return why nothing of an export may be sent; empty: it may."""
    share = found.rejected / found.read if found.read else 0.0
    if share <= target.audience.max_reject_share:
        return ""
    told = "; ".join(
        f"{reason} ({count:,})" for reason, count in list(found.reasons().items())[:5]
    )
    return (
        f"{found.rejected:,} of {found.read:,} rows are rejected, more than "
        f"max_reject_share: {told}"
    )


def suspicious(target: Target, found: Gathered, last: int | None) -> str:
    """Return why a person should look at an export first; empty: nobody need to.

    Args:
        target: Whose it is.
        found: What it holds.
        last: Rows that were accepted of the export before; None: there was none.
    """
    people = found.rows.rows
    if not target.audience.of_people:
        return ""
    if not people:
        return "the export names nobody"
    if last and people < last * (1 - target.audience.max_shrink):
        return f"the export has {people:,} people, and the one before had {last:,}"
    return ""


def _take(found: Gathered, target: Target, chunk: Chunk) -> None:
    part = found.parts.index(chunk.part)
    frame = chunk.frame.with_columns(pl.lit(part, pl.UInt32).alias(PART))
    mapped = _mapped(found, target, frame)
    found.read += len(frame) + len(chunk.bad)
    found.skipped += mapped.skipped
    found.rows.add(mapped.rows)
    found.nameless += len(mapped.rejects) - len(mapped.there) + len(chunk.bad)
    if len(mapped.rejects):
        found.rejects.append(mapped.rejects.cast(REJECTS))
        found.there.append(mapped.there)
    if chunk.bad:
        told = [(part, one.row, one.reason) for one in chunk.bad]
        found.rejects.append(pl.DataFrame(told, REJECTS, orient="row"))


def _mapped(found: Gathered, target: Target, frame: pl.DataFrame) -> Mapped:
    assert found.layout is not None  # noqa: S101 (made with the first chunk)
    audience = target.audience
    if audience.kind == "attributes":
        mapped = map_people(frame, found.layout, audience)
        rows = marked(mapped.rows, audience, found.delivery.id)
        return replace(mapped, rows=rows)
    if audience.kind == "cohort":
        part = found.parts[-1]
        if audience.cohort_file:
            found.cohorts.add(_named(target, part))
        return cohorts.map_members(frame, found.layout, audience, part)
    return events.map_events(frame, found.layout, audience, found.delivery.id)


def _layout(target: Target, chunk: Chunk, schema: dict[str, pl.DataType]) -> Layout:
    if target.audience.kind == "cohort":
        return columns.member_layout(target.name, target.audience, schema)
    layout = columns.layout(target.name, target.audience, schema, typed=chunk.typed)
    if not target.audience.of_people:
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
