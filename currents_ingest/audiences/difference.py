"""What Braze has to be told: the export against what it has acknowledged.

Pure functions of two frames, range by range; cells are JSON texts, null says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from currents_ingest.audiences.braze import facts
from currents_ingest.audiences.cells import NULL
from currents_ingest.audiences.columns import unsafe
from currents_ingest.audiences.mapping import (
    ID,
    OURS,
    PART,
    PERSON,
    RESERVED,
    WHAT,
)
from currents_ingest.audiences.tables import ROW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from currents_ingest.audience_config import Audience


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What one range of ids comes to."""

    send: pl.DataFrame
    """OURS, WHAT, and the cells to send; sorted by ID."""
    people: int
    """Distinct ids of the export."""
    repeated: int
    """Rows that a later one of the same id took the place of."""
    known: int
    """People that the snapshot has, too."""
    silent: int
    """People of whom the export says nothing but who they are."""


def difference(
    old: pl.DataFrame | None,
    new: pl.DataFrame | None,
    audience: Audience,
    there: pl.DataFrame | None = None,
) -> Difference:
    """Compare cell by cell.

    Args:
        old: The snapshot's rows: ID and cells; null where nothing was ever sent.
        new: The export's rows: OURS and cells; the last of an id counts.
        audience: ``changed`` and ``mode`` say what is sent of whom.
        there: ID of people who did not leave, though their rows were rejected.
    """
    rows = latest(new)
    cells = cells_of(rows)
    joined = _beside(rows, old, cells)
    told = _told(joined, cells, audience)
    kept = (
        told.filter(pl.any_horizontal(pl.col(cells).is_not_null()))
        if cells
        else told.clear()
    )
    left = (
        leavers(old, _all(rows, there), audience) if audience.mode == "mirror" else None
    )
    send = kept if left is None else pl.concat([kept, left], how="diagonal")
    silent = rows.filter(pl.all_horizontal(pl.col(cells).is_null())) if cells else rows
    return Difference(
        send=send.sort(ID),
        people=len(rows),
        repeated=(0 if new is None else len(new)) - len(rows),
        known=int(joined["__known__"].sum()),
        silent=len(silent),
    )


def unsent(old: pl.DataFrame | None, new: pl.DataFrame | None) -> Difference:
    """Return the events that were not sent before, each id once."""
    rows = latest(new)
    send = rows if old is None else rows.join(old.select(ID), on=ID, how="anti")
    return Difference(
        send=send.with_columns(pl.lit("new").alias(WHAT)).sort(PERSON, PART, ROW),
        people=len(rows),
        repeated=(0 if new is None else len(new)) - len(rows),
        known=len(rows) - len(send),
        silent=0,
    )


def latest(new: pl.DataFrame | None) -> pl.DataFrame:
    """Return each id once, as the last row of the file has it."""
    if new is None:
        schema = {ID: pl.String, PERSON: pl.String, PART: pl.UInt32, ROW: pl.UInt32}
        return pl.DataFrame(schema=schema)
    if new[ID].is_unique().all():
        return new
    return new.sort(PART, ROW).unique(ID, keep="last", maintain_order=True)


def leavers(
    old: pl.DataFrame | None, rows: pl.DataFrame, audience: Audience
) -> pl.DataFrame | None:
    """Return what to tell of people who are in the snapshot and not in the export.

    Their membership becomes false. Without a membership attribute, the custom
    attributes that were sent are removed; profile fields such as email stay, for
    someone who left an audience still has them.
    """
    if old is None:
        return None
    gone = old.join(rows.select(ID), on=ID, how="anti")
    if audience.membership:
        cells = [audience.membership]
        if audience.membership not in gone.columns:
            return None
        told = gone.filter(pl.col(audience.membership) != "false").select(
            ID, pl.lit("false").alias(audience.membership)
        )
    else:
        cells = [one for one in cells_of(gone) if one not in facts().fields]
        removed = [
            pl.when(pl.col(one) != NULL).then(pl.lit(NULL)).alias(one) for one in cells
        ]
        told = gone.select(ID, *removed)
    if not cells:
        return None
    there = told.filter(pl.any_horizontal(pl.col(cells).is_not_null()))
    return there.with_columns(pl.col(ID).alias(PERSON), pl.lit("left").alias(WHAT))


def cells_of(frame: pl.DataFrame) -> list[str]:
    """Return the names of the columns that hold cells."""
    return [one for one in frame.columns if one not in RESERVED]


def _beside(
    rows: pl.DataFrame, old: pl.DataFrame | None, cells: Sequence[str]
) -> pl.DataFrame:
    """Put the snapshot's cells beside the export's, as ``<name>__old``."""
    if old is None:
        return rows.with_columns(pl.lit(value=False).alias("__known__"))
    both = [one for one in cells if one in old.columns]
    before = old.select(
        ID,
        pl.lit(value=True).alias("__known__"),
        *(pl.col(one).alias(_old(one)) for one in both),
    )
    joined = rows.join(before, on=ID, how="left")
    return joined.with_columns(pl.col("__known__").fill_null(value=False))


def _all(rows: pl.DataFrame, there: pl.DataFrame | None) -> pl.DataFrame:
    ids = rows.select(ID)
    return ids if there is None else pl.concat([ids, there.select(ID)])


def _told(
    joined: pl.DataFrame, cells: Sequence[str], audience: Audience
) -> pl.DataFrame:
    """Keep the cells to send; one that must not arrive twice only if it changed."""
    changed = {
        one: pl.col(one).is_not_null() & pl.col(one).ne_missing(pl.col(_old(one)))
        if _old(one) in joined.columns
        else pl.col(one).is_not_null()
        for one in cells
    }
    if audience.changed == "rows" and cells:
        some = pl.any_horizontal(changed.values())
        once = unsafe(audience)
        changed = {one: yes if one in once else some for one, yes in changed.items()}
    what = pl.when("__known__").then(pl.lit("changed")).otherwise(pl.lit("new"))
    return joined.select(
        *OURS,
        what.alias(WHAT),
        *(pl.when(yes).then(pl.col(one)).alias(one) for one, yes in changed.items()),
    )


def _old(name: str) -> str:
    return f"__old__{name}"
