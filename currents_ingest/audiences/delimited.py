"""CSV, TSV and PSV to frames: Polars parses, a regular expression says what it may.

One grammar decides: RFC 4180, with lines that end in LF or CRLF. Rows that a pattern of
that grammar matches, each with as many cells as there are columns, go to Polars; where
it stops, ``records`` goes on row by row, tells which rows are bad, and hands back.
"""

from __future__ import annotations

import re
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import polars as pl

from currents_ingest.audiences.layout import layout
from currents_ingest.audiences.records import LONGEST, Marks, Record, records
from currents_ingest.audiences.shapes import BLOCK, ROW, BadRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from currents_ingest.audiences.shapes import Dialect

    Table = tuple[pl.DataFrame, tuple[BadRow, ...]]

_STRETCH = 1 << 16
"""Bytes that are read row by row before Polars gets another chance."""
_BOM = b"\xef\xbb\xbf"
_WITHOUT_EMPTY = pl.when(pl.all() != "").then(pl.all())


def tables(blocks: Iterable[bytes], dialect: Dialect, where: str) -> Iterator[Table]:
    """Yield a file's rows, a frame for each block, all columns text.

    Args:
        blocks: The file in UTF-8 without a byte order mark, cut anywhere.
        dialect: What is known; the delimiter is found out where it is not.
        where: The file's name, for errors.

    Yields:
        A frame with ``ROW`` first, and the rows left out of it. An empty cell is null.
        A header without rows gives one empty frame, an empty file none.

    Raises:
        ExportError: The header is missing, damaged or names a column twice.
    """
    coming = iter(blocks)
    first = next((block for block in coming if block.strip(b"\r\n")), b"")
    if not first:
        return
    found = layout(first, dialect, where)
    with ThreadPoolExecutor(1) as pool:
        reader = _Reader(found.marks, found.names, pool)
        any_yet = False
        for block, final in _flagged(chain([first[found.start :]], coming)):
            for table in reader.take(block, final=final):
                any_yet = True
                yield table
        if not any_yet:
            yield reader.frame([], []), ()


def _flagged(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Say of each block whether it is the last."""
    held = b""
    for block in blocks:
        if held:
            yield held, False
        held = block
    yield held, True


@dataclass(slots=True)
class _Found:
    """What one block gave so far."""

    frames: list[pl.DataFrame] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)


class _Reader:
    """One file's rows, block by block: keeps what a block's end cut off."""

    def __init__(self, marks: Marks, names: tuple[str, ...], pool: Executor) -> None:
        self._marks, self._names, self._pool = marks, names, pool
        self._pattern = rows_pattern(marks, len(names))
        self._rest, self._row, self._skipping = b"", 0, False

    def take(self, block: bytes, *, final: bool) -> Iterator[Table]:
        """Yield the rows that are whole with this block, if there are any."""
        found = _Found()
        data = self._rest + self._after_overlong(block)
        if final and data and not data.endswith(b"\n"):
            data += b"\n"
        whole = data[: data.rfind(b"\n") + 1]
        used = self._rows(whole, found, final=final)
        self._rest = data[used:]
        if len(self._rest) > BLOCK:
            self._refuse(f"a line of more than {BLOCK >> 20} MiB", found)
            self._rest, self._skipping = b"", True
        if found.frames or found.bad:
            yield pl.concat([self.frame([], []), *found.frames]), tuple(found.bad)

    def frame(self, cells: list[Sequence[str]], numbers: list[int]) -> pl.DataFrame:
        """Return rows that were read one by one."""
        columns = zip(*cells, strict=True) if cells else [()] * len(self._names)
        texts = dict(zip(self._names, columns, strict=True))
        schema = dict.fromkeys(self._names, pl.String)
        found = pl.DataFrame(texts, schema).select(_WITHOUT_EMPTY)
        return found.insert_column(0, pl.Series(ROW, numbers, pl.UInt32))

    def _after_overlong(self, block: bytes) -> bytes:
        """Drop the rest of a line that was given up."""
        if self._skipping and (end := block.find(b"\n") + 1):
            self._skipping = False
            return block[end:]
        return b"" if self._skipping else block

    def _rows(self, data: bytes, found: _Found, *, final: bool) -> int:
        """Read whole lines; return where the first row starts that is not whole."""
        used = self._all(data, found)
        while used < len(data):
            stop = self._matched(data, used)
            until = max(stop, used + _STRETCH)
            if stop > used and (frame := self._by_polars(data[used:stop])) is not None:
                self._number(frame, found)
                used, until = stop, stop + _STRETCH
            reached = self._one_by_one(data, used, until, found, final=final)
            if reached == used:
                break
            used = reached
        return used

    def _all(self, data: bytes, found: _Found) -> int:
        """Read the lines at one go if all is well with them, else none.

        Polars works without holding Python's lock, so the pattern is matched meanwhile.
        """
        if self._pattern is None:
            return 0
        end = self._pool.submit(self._matched, data, 0)
        frame = self._by_polars(data)
        if frame is None or end.result() < len(data):
            return 0
        self._number(frame, found)
        return len(data)

    def _matched(self, data: bytes, at: int) -> int:
        """Return where the rows from *at* end that the pattern matches."""
        match = self._pattern.match(data, at) if self._pattern else None
        return match.end() if match else at

    def _by_polars(self, data: bytes) -> pl.DataFrame | None:
        return by_polars(data, self._marks, self._names)

    def _number(self, frame: pl.DataFrame, found: _Found) -> None:
        numbers = pl.int_range(self._row + 1, pl.len() + self._row + 1, dtype=pl.UInt32)
        found.frames.append(frame.select(numbers.alias(ROW), pl.all()))
        self._row += frame.height

    def _one_by_one(
        self, data: bytes, at: int, until: int, found: _Found, *, final: bool
    ) -> int:
        """Read rows from *at* to the first that ends at or after *until*.

        Returns:
            Where to go on. It is before a row that the next block may make whole.
        """
        good: list[Sequence[str]] = []
        numbers: list[int] = []
        for record in records(data, at, self._marks):
            if not (record.whole or final) and len(data) - record.start <= BLOCK:
                break
            if self._is_good(record, found):
                good.append(record.cells)
                numbers.append(self._row)
            at = record.end
            if at >= until:
                break
        else:
            at = len(data)
        if good:
            found.frames.append(self.frame(good, numbers))
        return at

    def _is_good(self, record: Record, found: _Found) -> bool:
        """Number a row, and note it if it is bad."""
        reason = record.reason or _fault(record.cells, len(self._names))
        if reason:
            self._refuse(reason, found)
        else:
            self._row += 1
        return not reason

    def _refuse(self, reason: str, found: _Found) -> None:
        self._row += 1
        found.bad.append(BadRow(row=self._row, reason=reason))


def _fault(cells: list[str], width: int) -> str:
    if len(cells) != width:
        return f"{len(cells)} cells where there are {width} columns"
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return "not valid UTF-8"
    return ""


def rows_pattern(marks: Marks, width: int) -> re.Pattern[bytes] | None:
    """Return what matches rows of *width* cells that Polars reads as csv does.

    It backs up nowhere (every part is possessive), so it takes time in proportion to
    what it matches. It matches no blank line, no escape character, and no quote within
    an unquoted cell, on all of which Polars goes its own way.

    Returns:
        None if Polars cannot read the dialect: it takes marks of one byte only.
    """
    signs = [sign.encode() for sign in (marks.delimiter, marks.quote, marks.escape)]
    if any(len(sign) > 1 for sign in signs):
        return None
    comma, quote, escape = map(re.escape, signs)
    plain = b"[^%b%b%b\r\n]" % (comma, quote, escape)
    plain += b"++" if width == 1 else b"*+"
    kinds = [plain]
    if quote:
        inside = b"[^%b%b]*+" % (quote, escape)
        quoted = quote + inside + quote
        doubled = quote + inside + b"(?:%b%b)*+" % (quote * 2, inside) + quote
        kinds += [quoted, b"(?:%b|%b)" % (doubled, plain)]
    # A row's cells are mostly of one kind, which is matched twice as fast.
    rows = b"|".join(comma.join([kind] * width) + b"\r?\n" for kind in kinds)
    return re.compile(b"(?:%b)*+" % rows)


def by_polars(data: bytes, marks: Marks, names: tuple[str, ...]) -> pl.DataFrame | None:
    """Parse rows of the right width; None if one is not UTF-8 or a cell too long."""
    if data.startswith(_BOM):  # part of a cell, and Polars would drop it
        return None
    try:
        frame = pl.read_csv(
            data,
            has_header=False,
            schema=dict.fromkeys(names, pl.String),
            separator=marks.delimiter,
            quote_char=marks.quote or None,
        )
    except pl.exceptions.PolarsError:
        return None
    if len(data) > LONGEST and _longest(frame) > LONGEST:
        return None
    quoted = marks.quote.encode() * 2
    return frame.select(_WITHOUT_EMPTY) if quoted in data else frame


def _longest(frame: pl.DataFrame) -> int:
    longest = frame.select(pl.max_horizontal(pl.all().str.len_bytes().max())).item()
    return int(longest or 0)
