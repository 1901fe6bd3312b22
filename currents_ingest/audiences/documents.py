"""JSON to frames: an array of objects, or one object a line.

Types are found out over the whole delivery before any row is given, so that a column
has one type however the rows fall into chunks. It takes a second look at every byte.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl

from currents_ingest.audiences.kinds import Kind, Plain, column, dtype, kind, merged
from currents_ingest.audiences.shapes import BLOCK, MOST_COLUMNS, ROW, BadRow
from currents_ingest.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_LARGEST = 1 << 30
"""Bytes of the largest array; its objects are held in memory all at once."""
_LONGEST = 8 * BLOCK
"""Bytes of the longest line."""
_AT_ONCE = 20_000
"""Objects that become columns at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """Some rows of a file, numbered, and those that are none."""

    numbers: list[int]
    rows: list[dict[str, Any]] = field(repr=False)
    bad: tuple[BadRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """Rows as columns."""

    frame: pl.DataFrame = field(repr=False)
    nulls: Mapping[str, pl.Series] = field(repr=False)
    bad: tuple[BadRow, ...]


def objects(blocks: Iterable[bytes], where: str) -> Iterator[Objects]:
    """Yield a file's rows as they are read, some thousands at a time.

    Args:
        blocks: The file in UTF-8 without a byte order mark, cut anywhere.
        where: Its name, for errors.

    Raises:
        ExportError: An array is damaged or larger than 1 GiB, or a line than 64 MiB.
    """
    coming = iter(blocks)
    first = next((block for block in coming if block.strip()), b"")
    every = chain([first], coming)
    items = _array(every, where) if _is_array(first) else _lines(every, where)
    at = 0
    for some in iter(lambda: list(islice(items, _AT_ONCE)), []):
        good = [(at + n, one) for n, one in enumerate(some, 1) if type(one) is dict]
        bad = tuple(
            BadRow(row=at + n, reason="not a JSON object")
            for n, one in enumerate(some, 1)
            if type(one) is not dict
        )
        yield Objects(
            numbers=[number for number, _ in good],
            rows=[row for _, row in good],
            bad=bad,
        )
        at += len(some)


def learn(schema: dict[str, Kind], found: Objects, where: str) -> None:
    """Widen *schema* so that some more rows fit it.

    Raises:
        ExportError: A name is taken, or there are too many.
    """
    for name in dict.fromkeys(chain.from_iterable(found.rows)):
        values = [row.get(name) for row in found.rows]
        schema[name] = merged(schema.get(name, Plain.NOTHING), kind(values))
    if ROW in schema:
        raise ExportError(where, f"has a column {ROW}, a name that is taken; rename it")
    if len(schema) > MOST_COLUMNS:
        raise ExportError(
            where, f"has more than {MOST_COLUMNS:,} keys; it is not one table"
        )


def typed(found: Objects, schema: Mapping[str, Kind], where: str) -> Typed:
    """Return rows as columns of the types that were learnt.

    What is null in the frame was null in the file where ``nulls`` says so, and else
    was not there.

    Raises:
        ExportError: A value is nested deeper than JSON can be written.
    """
    columns = [pl.Series(ROW, found.numbers, pl.UInt32)]
    nulls: dict[str, pl.Series] = {}
    for name, one in schema.items():
        values = [row.get(name) for row in found.rows]
        try:
            columns.append(pl.Series(name, column(values, one), dtype(one)))
        except orjson.JSONEncodeError:
            raise ExportError(where, "nests values deeper than 250 levels") from None
        if any(value is None for value in values):
            said = [
                value is None and name in row
                for value, row in zip(values, found.rows, strict=True)
            ]
            nulls |= {name: pl.Series(name, said, pl.Boolean)} if any(said) else {}
    return Typed(frame=pl.DataFrame(columns), nulls=nulls, bad=found.bad)


def _is_array(first: bytes) -> bool:
    return first.lstrip()[:1] == b"["


def _array(blocks: Iterable[bytes], where: str) -> Iterator[Any]:
    pieces, size = [], 0
    for block in blocks:
        pieces.append(block)
        size += len(block)
        if size > _LARGEST:
            raise ExportError(
                where,
                f"is one JSON array of more than {_LARGEST >> 30} GiB; export it as "
                "NDJSON, or in parts",
            )
    try:
        yield from orjson.loads(b"".join(pieces))
    except orjson.JSONDecodeError as error:
        raise ExportError(
            where, f"is no valid JSON from character {error.pos} on; export it again"
        ) from None  # its error holds the whole text


def _lines(blocks: Iterable[bytes], where: str) -> Iterator[Any]:
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) > _LONGEST:
            raise ExportError(
                where, f"has a line of more than {_LONGEST >> 20} MiB; it is no NDJSON"
            )
        yield from map(_loaded, filter(bytes.strip, lines))
    if rest.strip():
        yield _loaded(rest)


def _loaded(line: bytes) -> Any:
    """Return what a line holds; something that is no object where it is damaged."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
