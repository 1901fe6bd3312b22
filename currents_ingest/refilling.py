"""Rows of an older contract version as rows of a newer one.

What the older one had no column for waits, as JSON, in ``unmapped_fields``.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl

from currents_ingest.conform import POLARS_TYPES
from currents_ingest.contracts import UNMAPPED

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from currents_ingest.contracts import ColumnType, Contract


_FITS: dict[ColumnType, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "json": lambda _: True,
    "boolean": lambda value: isinstance(value, bool),
    "int64": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "double": lambda value: isinstance(value, int | float),
    "decimal(38,6)": lambda value: isinstance(value, int | float),
}
_WRITTEN: dict[ColumnType, Callable[[Any], Any]] = {
    "json": lambda value: orjson.dumps(value).decode(),
    "double": float,
    "decimal(38,6)": lambda value: round(Decimal(str(value)), 6),
}


def refilled(rows: pl.DataFrame, contract: Contract, now: datetime) -> pl.DataFrame:
    """Return the rows that hold values of columns which they do not have yet.

    Args:
        rows: A feed object of an older version of the contract.
        contract: The newer version.
        now: What ``ingested_at`` becomes.

    Returns:
        Those rows whole, in the newer version's columns; in the older one's order.
    """
    new = [column for column in contract.own if column.name not in rows.columns]
    held = rows.filter(pl.col(UNMAPPED).is_not_null())
    values: dict[str, list[Any]] = {column.name: [] for column in new}
    left: list[str | None] = []
    moved: list[bool] = []
    for text in held[UNMAPPED]:
        fields = orjson.loads(text)
        count = len(fields)
        for column in new:
            fits = column.source in fields and _FITS[column.type](fields[column.source])
            value = fields.pop(column.source) if fits else None
            write = _WRITTEN.get(column.type)
            values[column.name].append(
                write(value) if write and value is not None else value
            )
        left.append(orjson.dumps(fields).decode() if fields else None)
        moved.append(len(fields) < count)
    added = [
        pl.Series(column.name, values[column.name], POLARS_TYPES[column.type])
        for column in new
    ]
    return (
        held.with_columns(
            *added,
            pl.Series(UNMAPPED, left, pl.String),
            pl.lit(now).cast(POLARS_TYPES["timestamp"]).alias(contract.last_updated),
        )
        .select(list(contract.types))
        .filter(pl.Series(moved, dtype=pl.Boolean))
    )
