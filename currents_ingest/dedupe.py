"""Drop rows whose event id was already delivered.

The index holds the ids of each batch with their event hours. A redelivered event has
the same ``time``, so only the hours present in a batch need to be looked up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterable

ID, HOUR = "id", "event_hour"
NOTHING = pl.DataFrame(schema={ID: pl.String, HOUR: pl.Int32})
"""The index of a batch without rows."""


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """Rows that are new, and how many were not."""

    rows: pl.DataFrame
    index: pl.DataFrame
    """Columns ``id`` and ``event_hour`` (hours since 1970, UTC), by hour."""
    duplicates: int


def hours_of(rows: pl.DataFrame) -> pl.Series:
    """Return the event hours of conformed rows, in the rows' order."""
    hour = pl.col("event_datetime").dt.epoch("s") // 3600
    return rows.select(hour.cast(pl.Int32).alias(HOUR)).to_series()


def index_of(rows: pl.DataFrame) -> pl.DataFrame:
    """Return ids and event hours of conformed rows, in the rows' order.

    The ids are copies: as they come from the decoder, they would keep all columns of
    their rows in memory for as long as later batches are held against them.
    """
    return rows.select(pl.format("{}", pl.col(ID)).alias(ID), hours_of(rows))


def first_of_each(rows: pl.DataFrame) -> pl.DataFrame:
    """Keep the first row of each id; the rows' order says which is first."""
    first = rows[ID].is_first_distinct()
    return rows if first.all() else rows.filter(first)


def without(rows: pl.DataFrame, delivered: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Keep the rows whose id none of the index frames has, in order.

    Hardly any row comes twice: what is delivered is looked up among these rows, which
    are fewer, and the rows stay as they are unless something was found.
    """
    own = rows.select(ID)
    found = (frame.select(ID).join(own, on=ID, how="semi") for frame in delivered)
    twice = pl.concat([own.head(0), *(one for one in found if one.height)])
    if twice.is_empty():
        return rows
    return rows.join(twice, on=ID, how="anti", maintain_order="left")


def deduplicate(rows: pl.DataFrame, delivered: Iterable[pl.DataFrame]) -> Deduplicated:
    """Drop rows delivered twice, within these rows and against *delivered*."""
    fresh = without(first_of_each(rows), delivered)
    index = index_of(fresh).sort(HOUR, maintain_order=True)
    return Deduplicated(fresh, index, rows.height - fresh.height)
