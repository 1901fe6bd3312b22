"""What a reader of exports takes and gives: plain frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

ROW = "__row__"
"""Name of the column that we put before a file's own: the row's number."""
MOST_COLUMNS = 10_000
"""What has more is not one table."""
BLOCK = 8 << 20
"""Bytes that are read, cut and parsed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What the user says of a file; what is left empty is found out."""

    format: str = ""
    """One of ``FORMATS``."""
    delimiter: str = ""
    quote: str = '"'
    """``""`` for a file in which quotes are text."""
    escape: str = ""
    """``""`` where a quote in a quoted cell is doubled."""
    header: bool = True
    names: tuple[str, ...] = ()
    """Columns of a file without a header, in order."""
    encoding: str = ""
    """A Python codec's name; ``""`` for what the byte order mark says, else UTF-8."""


FORMATS = ("csv", "tsv", "psv", "ndjson", "json", "parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that was left out, and why; never what it holds."""

    row: int
    """1 for the first data row of the part or member; bad rows are counted too."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some rows of one part."""

    part: str
    """The part's name below the delivery's URL, ``name!member`` for an archive's."""
    frame: pl.DataFrame = field(repr=False)
    """``ROW`` (UInt32), then the file's columns in its order, under its names."""
    bad: tuple[BadRow, ...] = ()
    typed: bool = False
    """The format has types, so that text is text (Parquet, JSON)."""
    nulls: Mapping[str, pl.Series] = field(default_factory=dict, repr=False)
    """JSON only: by column, true where the file says ``null``; elsewhere null means
    that the key was missing. Columns without an explicit null are not listed."""
