"""Rows sorted by their id, compressed, more of them than memory would hold as frames.

Frames come in any order; they are sorted in runs and cut into blocks that know their
first and last id, so that the rows of a range of ids can be had without unpacking all.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from typing import IO, TYPE_CHECKING

import polars as pl

from currents_ingest.audiences.mapping import ID

if TYPE_CHECKING:
    from collections.abc import Iterator

_RUN = 128 * 2**20
"""Bytes of frames that are sorted together: the more, the less a range unpacks."""
_ROWS = 16_384
"""Rows of a block."""
_SAMPLE = 256
"""Of so many rows one id is kept, to find where ranges should end."""
RANGE = 250_000
"""Rows that are worked on at once."""

Range = tuple[str | None, str | None]
"""After which id and up to which one; None: no limit."""


@dataclass(frozen=True, slots=True)
class _Block:
    first: str
    last: str
    at: int
    size: int


@dataclass(slots=True)
class Blocks:
    """A growing collection of rows; what does not fit in *memory* goes to a file."""

    memory: int
    """Compressed bytes to hold before a temporary file takes them."""
    rows: int = 0
    _blocks: list[_Block] = field(default_factory=list)
    _samples: list[str] = field(default_factory=list)
    _run: list[pl.DataFrame] = field(default_factory=list)
    _run_size: int = 0
    _file: IO[bytes] | None = None
    _end: int = 0

    def add(self, frame: pl.DataFrame) -> None:
        """Add rows with a column ID, in any order."""
        if frame.is_empty():
            return
        self._run.append(frame)
        self.rows += len(frame)
        self._run_size += int(frame.estimated_size())
        if self._run_size >= _RUN:
            self._cut()

    def between(self, span: Range) -> pl.DataFrame | None:
        """Return the rows of a range; None where there are none."""
        self._cut()
        after, upto = span
        asked = in_range(span)
        found = [
            self._read(one).filter(asked)
            for one in self._blocks
            if (after is None or one.last > after)
            and (upto is None or one.first <= upto)
        ]
        found = [one for one in found if len(one)]
        return pl.concat(found, how="diagonal") if found else None

    def ranges(self) -> Iterator[Range]:
        """Yield ranges that cover every id, in order."""
        self._cut()
        every = RANGE // _SAMPLE
        borders = sorted({*sorted(self._samples)[every::every]})
        ends: list[str | None] = [None, *borders, None]
        yield from pairwise(ends)

    def close(self) -> None:
        """Give the file back."""
        if self._file:
            self._file.close()

    def _cut(self) -> None:
        """Sort what came since, and cut it into blocks."""
        if not self._run:
            return
        whole = pl.concat(self._run, how="diagonal").sort(ID)
        self._run, self._run_size = [], 0
        self._samples += whole[ID].gather_every(_SAMPLE).to_list()
        for part in whole.iter_slices(_ROWS):
            body = BytesIO()
            part.write_parquet(body, compression="zstd", compression_level=1)
            ids, size = part[ID], body.tell()
            self._blocks.append(_Block(ids[0], ids[-1], self._end, size))
            self._append(body)

    def _append(self, body: BytesIO) -> None:
        if self._file is None:
            self._file = tempfile.SpooledTemporaryFile(max_size=self.memory)  # noqa: SIM115 (close does)
        self._file.seek(self._end)
        self._end += self._file.write(body.getbuffer())

    def _read(self, block: _Block) -> pl.DataFrame:
        assert self._file is not None  # noqa: S101 (there is a block)
        self._file.seek(block.at)
        return pl.read_parquet(BytesIO(self._file.read(block.size)))


def in_range(span: Range) -> pl.Expr:
    """Tell whether an id lies in a range."""
    after, upto = span
    within = pl.lit(value=True)
    if after is not None:
        within &= pl.col(ID) > after
    if upto is not None:
        within &= pl.col(ID) <= upto
    return within
