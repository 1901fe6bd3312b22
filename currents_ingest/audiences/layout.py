"""How a delimited file is laid out: its marks, its columns, where its rows begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from currents_ingest.audiences.records import Marks, Record, records
from currents_ingest.audiences.shapes import MOST_COLUMNS, ROW
from currents_ingest.errors import ExportError

if TYPE_CHECKING:
    from currents_ingest.audiences.shapes import Dialect

_BY_FORMAT = {"tsv": "\t", "psv": "|"}
_COMMON = ",\t|;"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What must be known before the first row can be read."""

    marks: Marks
    names: tuple[str, ...]
    start: int
    """Bytes before the first row."""


def layout(first: bytes, dialect: Dialect, where: str) -> Layout:
    """Return how a file is laid out, from its first bytes.

    The delimiter is the dialect's, else the format's, else the one of ``, tab | ;``
    that parts the header into most cells, or, in a file without a header, that parts
    the first row into as many cells as there are names.

    Raises:
        ExportError: No delimiter can be told, or the columns cannot be used.
    """
    delimiter = dialect.delimiter or _BY_FORMAT.get(dialect.format, "")
    heads = {
        one: _first_record(first, _marks(one, dialect, where))
        for one in ([delimiter] if delimiter else _COMMON)
    }
    if dialect.header:
        found = _most_cells(heads, where)
        names, start = tuple(_cells(heads[found], where)), heads[found].end
    else:
        names, start = dialect.names, 0
        found = delimiter or _right_width(heads, names, where)
    _refuse_names(names, where)
    return Layout(marks=_marks(found, dialect, where), names=names, start=start)


def _marks(delimiter: str, dialect: Dialect, where: str) -> Marks:
    escape = "" if dialect.escape == dialect.quote else dialect.escape
    signs = [sign for sign in (delimiter, dialect.quote, escape) if sign]
    if any(len(sign) != 1 or sign in "\r\n" for sign in signs):
        raise ExportError(where, "delimiter, quote and escape are one character each")
    if len(set(signs)) < len(signs):
        raise ExportError(where, "delimiter, quote and escape must differ")
    return Marks(delimiter=delimiter, quote=dialect.quote, escape=escape)


def _first_record(first: bytes, marks: Marks) -> Record:
    data = first if first.endswith(b"\n") else first + b"\n"
    return next(records(data, 0, marks))


def _most_cells(heads: dict[str, Record], where: str) -> str:
    widths = {one: len(head.cells) for one, head in heads.items()}
    most = max(widths.values())
    best = [one for one, width in widths.items() if width == most]
    if len(best) > 1 and most > 1:
        raise ExportError(
            where, f"the header has {most} cells by more than one delimiter; set it"
        )
    return best[0] if most > 1 else next(iter(heads))


def _cells(head: Record, where: str) -> list[str]:
    if head.reason:
        raise ExportError(
            where,
            f"the header cannot be read ({head.reason}); set the quote character, and "
            "see that lines end in LF or CRLF",
        )
    return head.cells


def _right_width(heads: dict[str, Record], names: tuple[str, ...], where: str) -> str:
    fitting = [one for one, head in heads.items() if len(head.cells) == len(names)]
    if len(fitting) != 1 and len(names) > 1:
        raise ExportError(
            where,
            f"no delimiter parts the first row into {len(names)} cells, as many as "
            "there are names; set the delimiter, or mend the names",
        )
    return fitting[0] if fitting else ","


def _refuse_names(names: tuple[str, ...], where: str) -> None:
    if not names:
        raise ExportError(where, "has no header; give the names of its columns")
    if ROW in names:
        raise ExportError(where, f"has a column {ROW}, a name that is taken; rename it")
    if len(set(names)) < len(names):
        twice = len(names) - len(set(names))
        raise ExportError(
            where, f"names {twice} of its columns twice; give each a name of its own"
        )
    if len(names) > MOST_COLUMNS:
        raise ExportError(
            where, f"has more than {MOST_COLUMNS:,} columns; it is not one table"
        )
    try:
        text = "".join(names).encode()
    except UnicodeEncodeError:
        raise ExportError(
            where, "the header is not valid UTF-8; set the encoding"
        ) from None
    if b"\0" in text:
        raise ExportError(
            where,
            "the header holds zero bytes: if it is UTF-16 without a byte order mark, "
            "set the encoding; if it is no text, set the format",
        )
