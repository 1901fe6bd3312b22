"""One member's bytes to chunks of rows, whatever their format."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import polars as pl

from currents_ingest.audiences import delimited, documents
from currents_ingest.audiences.encodings import utf8
from currents_ingest.audiences.shapes import FORMATS, ROW, BadRow, Chunk, Dialect
from currents_ingest.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from currents_ingest.audiences.decoder import Decoder
    from currents_ingest.audiences.kinds import Kind
    from currents_ingest.audiences.unpacking import Member

__all__ = ["ROW", "BadRow", "Chunk", "Dialect", "Reading", "chunks", "json_schema"]

T = TypeVar("T")

_LARGEST_PARQUET = 1 << 30
"""Bytes; a Parquet file begins at its end, so it is held whole."""
_BINARY = {b"PAR1": "Parquet", b"PARE": "encrypted Parquet", b"Obj\x01": "Avro"}
_BINARY |= {b"ORC": "ORC", b"%PDF": "PDF", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
_BINARY |= {b"\xfd7zXZ": "xz", b"\xff\x06\x00\x00sNaPpY": "Snappy"}

_MARKS = b"\xef\xbb\xbf\xff\xfe\0"
"""The bytes of all byte order marks."""
_JSON = {b"{", b'{"', b"{}", b"[", b"[{", b"[]"}
"""What a JSON object, or an array of them, begins with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is the same for all members of one delivery."""

    dialect: Dialect
    rows: int
    """The most in one chunk."""
    schema: Mapping[str, Kind] = field(repr=False)
    """What ``json_schema`` found; of use for JSON alone."""
    decoder: Decoder = field(repr=False)
    """Of use for Parquet alone."""


def chunks(member: Member, reading: Reading) -> Iterator[Chunk]:
    """Yield the rows of a member that was not read yet.

    Raises:
        ExportError: It is damaged, or not of the format that it should be.
    """
    dialect, rows = reading.dialect, reading.rows
    found = _format(member, dialect)
    if found == "parquet":
        yield from _parquet(member, reading)
        return
    blocks = _ahead(utf8(member.source, dialect.encoding, member.name))
    if found == "json":
        yield from _json(member.name, blocks, reading.schema, rows)
        return
    for frame, bad in delimited.tables(blocks, dialect, member.name):
        yield from _sliced(Chunk(part=member.name, frame=frame, bad=bad), rows)


def json_schema(members: Iterable[Member], dialect: Dialect) -> dict[str, Kind]:
    """Return the types of all columns; reads on only while what it finds is JSON."""
    schema: dict[str, Kind] = {}
    for member in members:
        if member.source.peek(1) and _format(member, dialect) != "json":
            break
        blocks = _ahead(utf8(member.source, dialect.encoding, member.name))
        for found in documents.objects(blocks, member.name):
            documents.learn(schema, found, member.name)
    return schema


def _format(member: Member, dialect: Dialect) -> str:
    """Return ``parquet``, ``json`` or ``csv``; the latter two as was said, or as seen.

    Raises:
        ExportError: The first bytes are those of another format than was said.
    """
    if dialect.format not in {"", *FORMATS}:
        raise ExportError(member.name, f"the format is one of {', '.join(FORMATS)}")
    head = member.source.peek(512)
    magic = next((one for mark, one in _BINARY.items() if head.startswith(mark)), "")
    if magic == "Parquet" and dialect.format in {"", "parquet"}:
        return "parquet"
    if magic or (head and dialect.format == "parquet"):
        said = dialect.format or f"one of {', '.join(FORMATS)}"
        raise ExportError(member.name, f"is {magic or 'something else'}, not {said}")
    if dialect.format:
        return "json" if dialect.format in {"json", "ndjson"} else "csv"
    start = [*head.lstrip(_MARKS).replace(b"\0", b"").split(None, 1), b""][0]
    return "json" if start[:2] in _JSON else "csv"


def _json(
    name: str, blocks: Iterator[bytes], schema: Mapping[str, Kind], rows: int
) -> Iterator[Chunk]:
    for found in documents.objects(blocks, name):
        table = documents.typed(found, schema, name)
        chunk = Chunk(
            part=name, frame=table.frame, bad=table.bad, typed=True, nulls=table.nulls
        )
        yield from _sliced(chunk, rows)


def _parquet(member: Member, reading: Reading) -> Iterator[Chunk]:
    raw = member.source.read(_LARGEST_PARQUET + 1)
    if len(raw) > _LARGEST_PARQUET:
        raise ExportError(
            member.name,
            f"is a Parquet file of more than {_LARGEST_PARQUET >> 30} GiB; export it "
            "in smaller parts",
        )
    at = 1
    for frame in reading.decoder.frames(raw, reading.rows, member.name):
        if ROW in frame.columns:
            raise ExportError(
                member.name, f"has a column {ROW}, a name that is taken; rename it"
            )
        member.spend(frame.height * frame.width)
        numbers = pl.int_range(at, at + pl.len(), dtype=pl.UInt32).alias(ROW)
        numbered = frame.select(numbers, pl.all())
        chunk = Chunk(part=member.name, frame=numbered, typed=True)
        yield from _sliced(chunk, reading.rows)
        at += frame.height


def _sliced(chunk: Chunk, rows: int) -> Iterator[Chunk]:
    """Cut a chunk to size; what is bad comes with the first piece."""
    bad = chunk.bad
    for at in range(0, max(chunk.frame.height, 1), rows):
        yield Chunk(
            part=chunk.part,
            frame=chunk.frame.slice(at, rows),
            bad=bad,
            typed=chunk.typed,
            nulls={name: said.slice(at, rows) for name, said in chunk.nulls.items()},
        )
        bad = ()


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Make the next item while the last is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
