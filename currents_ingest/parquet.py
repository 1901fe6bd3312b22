"""Frame to Parquet bytes that Amperity reads.

Amperity takes Snappy or GZip, data page v1, and no nested, binary, unsigned, INT96 or
nanosecond columns; contracts allow no such column, so only the writer's options are
left to choose here. Source: Amperity docs, "About Apache Parquet".
"""

from __future__ import annotations

import io

import polars as pl

ROW_GROUP = 131_072
"""Rows; small enough that one row group's buffers stay far below the memory limit."""

_STATISTICS = {"null_count": True, "min": False, "max": False, "distinct_count": False}
"""Least and greatest values would take a third of the time that writing takes; who
reads a feed reads whole objects, and the ledger says which event times each holds."""


def to_bytes(frame: pl.DataFrame) -> bytes:
    """Write a feed object; equal frames give equal bytes."""
    out = io.BytesIO()
    frame.write_parquet(
        out, compression="snappy", row_group_size=ROW_GROUP, statistics=_STATISTICS
    )
    return out.getvalue()


def index_to_bytes(frame: pl.DataFrame) -> bytes:
    """Write an id index or a checkpoint; nobody else reads them, so it may be zstd."""
    out = io.BytesIO()
    frame.write_parquet(out, compression="zstd", compression_level=1)
    return out.getvalue()


def from_bytes(
    body: bytes | list[bytes], columns: list[str] | None = None
) -> pl.DataFrame:
    """Read an object of ours back, or several, one below the other.

    Small ones cost less in one call: 0.9 ms for four where each alone takes 0.7.
    """
    return pl.read_parquet(body, columns=columns)


def schema_of(body: bytes) -> pl.Schema:
    """Return an object's columns and types, in order."""
    return pl.Schema(pl.read_parquet_schema(io.BytesIO(body)))
