"""Delimited text one record at a time, by Python's csv module: slow, and exact.

It is what ``delimited`` falls back on to tell which rows are bad.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from currents_ingest.audiences.shapes import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONGEST = 1 << 20
"""Bytes of the longest cell."""

# The module refuses cells of more than 128 KiB unless told otherwise, for the whole
# process. Our own limit is LONGEST, and no record is ever longer than two blocks.
csv.field_size_limit(4 * BLOCK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """The characters that part cells; each one character, or ``""`` for none."""

    delimiter: str
    quote: str
    escape: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row, or a line that is none."""

    start: int
    end: int
    """Bytes of the data that it covers; the next record starts at the end."""
    cells: list[str]
    reason: str = ""
    """Why the cells cannot be told; ``""`` if they can."""
    whole: bool = True
    """False if what follows the data may change what it is."""


def records(data: bytes, at: int, marks: Marks) -> Iterator[Record]:
    """Yield the records of *data* from the byte *at*, where one must start.

    Blank lines are no records. A record whose quotes do not add up covers one line
    only, so that a stray quote does not swallow what follows. Bytes that are not UTF-8
    come as lone surrogates.

    Args:
        data: UTF-8 that ends with a line's end.
        at: Counted in bytes.
        marks: How cells are told apart.
    """
    stream, start = io.BytesIO(data), at
    while start < len(data):
        stream.seek(start)
        try:
            for cells in _reader(stream, marks):
                end = stream.tell()
                _refuse_long(cells, end - start)
                if cells:
                    yield Record(start=start, end=end, cells=cells)
                start = end
        except csv.Error as error:
            end = data.find(b"\n", start) + 1 or len(data)
            yield Record(
                start=start,
                end=end,
                cells=[],
                reason=_reason(error),
                whole=stream.tell() < len(data),
            )
            start = end


def _reader(stream: io.BytesIO, marks: Marks) -> Iterator[list[str]]:
    lines: Iterator[str] = (line.decode("utf-8", "surrogateescape") for line in stream)
    if marks.escape:
        lines = map(_unescaping(marks), lines)
    return csv.reader(
        lines,
        strict=True,
        delimiter=marks.delimiter,
        quotechar=marks.quote or None,
        quoting=csv.QUOTE_MINIMAL if marks.quote else csv.QUOTE_NONE,
        escapechar=marks.escape or None,
    )


def _unescaping(marks: Marks) -> Callable[[str], str]:
    """Return what makes csv read escapes as Commons CSV, which writes them, does.

    An escaped ``n`` or ``r`` is a line's end, an escaped mark is itself, and before
    anything else the escape character is text; csv alone would drop it.

    Source: Apache Commons CSV 1.12, ``Lexer.readEscape`` and
    ``CSVFormat.printWithEscapes``.
    """
    escape = marks.escape
    kept = {escape, marks.quote, marks.delimiter, "\n", "\r"}
    named = {"n": "\n", "r": "\r"}

    def meant(found: re.Match[str]) -> str:
        following = found[1]
        if following in named:
            return escape + named[following]
        return found[0] if following in kept else escape + found[0]

    pattern = re.compile(re.escape(escape) + "(.)", re.DOTALL)
    return lambda line: pattern.sub(meant, line)


def _refuse_long(cells: list[str], size: int) -> None:
    """Raise as csv does if a cell is too long in a record of *size* bytes."""
    if size > LONGEST and any(
        len(cell.encode("utf-8", "surrogateescape")) > LONGEST for cell in cells
    ):
        raise csv.Error("field larger than field limit")


def _reason(error: csv.Error) -> str:
    """Say what csv found, without the text it quotes."""
    said = str(error)
    if "new-line" in said:
        return "a carriage return outside quotes"
    if "limit" in said:
        return f"a cell of more than {LONGEST >> 20} MiB, as after a stray quote"
    if "end of data" in said:
        return "a quote that is not closed"
    return "text after a closing quote"
