"""Avro object containers: header, block walk, splice, decode to columns.

Many small files of one schema are joined into one container and decoded in one call.
Every block is walked first, so a torn file is found before anything is decoded, and
the rows of each file are known from its block headers.

Source: Avro 1.12 specification, "Object Container Files" and "Binary Encoding".
"""

from __future__ import annotations

import io
import json
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import fastavro
import polars as pl

from currents_ingest import schemas
from currents_ingest.codecs import MAX_UNPACKED, UNPACK
from currents_ingest.errors import CorruptObjectError, HeaderCutError

try:
    # The public reader lets Polars choose the batch size; see decode_flat for why
    # it has to be ours.
    from polars_avro._avro_rs import AvroSource
except ImportError:  # a platform without the wheel
    AvroSource = None  # type: ignore[assignment, misc]  # decode looks for it

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from currents_ingest.schemas import WriterSchema

MAGIC = b"Obj\x01"
EMPTY = "the object is empty; Currents writes no empty file"
_SYNC = 16
MAX_SCHEMA = 1 << 20
"""Bytes of schema we are willing to read; Braze's largest has about 4,000."""


@dataclass(frozen=True, slots=True)
class Container:
    """One walked file: its schema and its rows' bytes, still encoded."""

    schema: WriterSchema
    blocks: tuple[memoryview | bytes, ...]
    rows: int
    size: int
    """The rows' bytes, unpacked."""


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before a file's first block."""

    text: bytes
    """The schema as written."""
    schema: WriterSchema
    codec: str
    least: int
    """Bytes that a row takes at least, as far as it is known."""


def read_head(body: bytes) -> Head:
    """Read a file's header from its first bytes; what follows may be missing.

    Raises:
        HeaderCutError: The header goes on after *body*.
        CorruptObjectError: It is no Avro header, or of a codec that cannot be read.
    """
    return _head(_header(memoryview(body))[0])


def walk(body: bytes | memoryview) -> Container:
    """Check a whole file from header to last sync marker, and take it apart.

    Raises:
        CorruptObjectError: It is empty, cut, has a foreign sync marker, an impossible
            count or size, an unknown codec, or unpacks to too much. Says at which
            byte.
    """
    view = memoryview(body)
    head, at = _known_head(view)
    sync, at = bytes(view[at : at + _SYNC]), at + _SYNC
    blocks, rows = _blocks(view, at, sync, head.codec)
    size = sum(map(len, blocks))
    if rows == 0:
        raise CorruptObjectError(
            "the file has a header but no rows; Currents writes no empty file, "
            "so its end was lost"
        )
    if rows * head.least > size:
        raise CorruptObjectError(
            f"the block headers promise {rows} rows, more than the bytes can hold"
        )
    return Container(head.schema, blocks, rows, size)


_START, _LARGEST_HEAD, _MOST_HEADS = 256, 1 << 16, 1000
_heads: dict[bytes, tuple[bytes, Head]] = {}
"""Headers met, whole and read, by how they start: most files share a few."""


def _known_head(view: memoryview) -> tuple[Head, int]:
    """Read a header; return it, and where its sync marker is."""
    start = bytes(view[:_START])
    known, head = _heads.get(start, (b"", None))
    if head and bytes(view[: len(known) + _SYNC])[:-_SYNC] == known:
        return head, len(known)
    metadata, at = _header(view)
    head = _head(metadata)
    if at <= _LARGEST_HEAD and len(_heads) < _MOST_HEADS:
        _heads[start] = bytes(view[:at]), head
    return head, at


def decode(containers: Sequence[Container]) -> pl.DataFrame:
    """Decode files of one writer schema, rows in the files' order.

    Columns are the schema's fields, of the matching Polars type; whatever is no plain
    value and no array of them comes as JSON text.

    Raises:
        CorruptObjectError: A value does not decode, or the rows are not as many as
            the blocks promise; which file it is, is found by decoding fewer.
    """
    schema = containers[0].schema
    if not schema.flat or AvroSource is None:
        return pl.concat([decode_any(container) for container in containers])
    return decode_flat(containers)


def decode_flat(containers: Sequence[Container]) -> pl.DataFrame:
    """Decode through Arrow, in one call.

    arrow-avro never returns when a block holds more bytes than its count of rows
    takes. So all blocks become one, whose count is too high on purpose, and the
    first batch asks for just the rows that are promised: a second batch then shows
    what is left over, and missing rows are an error.
    """
    rows = sum(container.rows for container in containers)
    source = AvroSource(
        [lambda: nullcontext(cast("BinaryIO", _Pieces(splice(containers))))],
        strict=False,
        utf8_view=False,
    )
    stream = source.batch_iter(rows, None)
    failure: BaseException | None = None
    try:
        # What is left over may decode as a million batches: one of them is enough.
        batches = [pl.DataFrame(batch) for batch in islice(stream, 2)]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 (a Rust panic is no Exception)
        failure = error
    # Not earlier: Python 3.13 crashes if it is freed while its error is on the way.
    del stream
    if failure:
        reason = f"a row does not decode: {_brief(failure)}"
        raise CorruptObjectError(reason) from failure
    found = sum(batch.height for batch in batches)
    held = "more" if found > rows else found
    if held != rows:
        raise CorruptObjectError(f"the blocks promise {rows} rows and hold {held}")
    arrays = [
        field.name for field in containers[0].schema.fields if field.type == "array"
    ]
    return batches[0].with_columns(map(_array_as_json, arrays))


def _array_as_json(name: str) -> pl.Expr:
    whole = pl.struct(pl.col(name).alias("v")).struct.json_encode()
    text = whole.str.slice(len('{"v":')).str.head(-1)
    return pl.when(pl.col(name).is_not_null()).then(text).alias(name)


def splice(containers: Sequence[Container]) -> Iterator[memoryview | bytes]:
    """Join files of one writer schema into one container of one large block.

    It comes in pieces, for nobody needs the whole in one place. The block's count is
    higher than the rows it holds; decode_flat says why.
    """
    size = sum(container.size for container in containers)
    rows = sum(container.rows for container in containers)
    texts = b"avro.schema", containers[0].schema.canonical.encode()
    metadata = b"".join(_long(len(text)) + text for text in texts)
    sync = bytes(_SYNC)
    counts = _long(rows + size + 1) + _long(size)
    yield MAGIC + _long(1) + metadata + _long(0) + sync + counts
    for container in containers:
        yield from container.blocks
    yield sync


class _Pieces:
    """Pieces as a file to read from; a read may return less than was asked for.

    Small ones are joined, for each call takes Python's lock; not all, for a long one
    keeps it.
    """

    def __init__(self, pieces: Iterator[memoryview | bytes]) -> None:
        self._pieces = (memoryview(one) for one in pieces if one)
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most *size*; none at the end."""
        held, room = list[memoryview](), min(size, 1 << 20)
        while room and (piece := self._rest or next(self._pieces, self._rest)):
            held.append(piece[:room])
            self._rest = piece[room:]
            room -= len(held[-1])
        return b"".join(held)


def decode_any(container: Container) -> pl.DataFrame:
    """Decode one file row by row with fastavro: every Avro type, but slow.

    Text that is not UTF-8 does not stop it: the column ``BAD_TEXT`` names the first
    such field of a row, and its bad bytes come as question marks.
    """
    schema = container.schema
    reader = io.BytesIO(b"".join(container.blocks))
    parsed = fastavro.parse_schema(json.loads(schema.canonical))
    records: list[dict[str, Any]] = []
    try:
        for _ in range(container.rows):
            record: Any = fastavro.schemaless_reader(
                reader, parsed, None, handle_unicode_errors="surrogateescape"
            )
            records.append(record)
        frame = _frame(schema, records)
    except Exception as error:
        raise CorruptObjectError(
            f"row {len(records)} does not decode: {_brief(error)}"
        ) from error
    if left := len(reader.read()):
        raise CorruptObjectError(
            f"{left} bytes are left over after the {container.rows} rows promised"
        )
    return frame


BAD_TEXT = "currents bad text"
"""Name of a field with text that is no UTF-8, in this row; else null. Not a name that
an Avro field can have."""

_POLARS: dict[str, Any] = {
    "string": pl.String,
    "boolean": pl.Boolean,
    "int": pl.Int32,
    "long": pl.Int64,
    "float": pl.Float32,
    "double": pl.Float64,
    "array": pl.String,
    "complex": pl.String,
}


def _frame(schema: WriterSchema, records: list[dict[str, Any]]) -> pl.DataFrame:
    bad = [_bad_text(record) for record in records]
    columns = {
        field.name: pl.Series(
            field.name,
            [_plain(record[field.name], field.type) for record in records],
            dtype=_POLARS[field.type],
        )
        for field in schema.fields
    }
    frame = pl.DataFrame(columns)
    return frame.with_columns(pl.Series(BAD_TEXT, bad, dtype=pl.String))


def _plain(value: Any, kind: str) -> Any:
    if value is None or kind not in ("string", "array", "complex"):
        return value
    if kind == "string":
        return value.encode("utf-8", "replace").decode()
    text = json.dumps(
        value, ensure_ascii=False, separators=(",", ":"), default=_foreign
    )
    return text.encode("utf-8", "replace").decode()


def _foreign(value: Any) -> Any:
    """Write bytes as Avro's own JSON encoding does, and the rest as text."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _bad_text(record: dict[str, Any]) -> str | None:
    for name, value in record.items():
        text = (
            value
            if isinstance(value, str)
            else json.dumps(value, default=_foreign, ensure_ascii=False)
        )
        try:
            text.encode()
        except UnicodeEncodeError:
            return name
    return None


def _head(metadata: dict[str, bytes]) -> Head:
    text = metadata.get("avro.schema", b"")
    codec = metadata.get("avro.codec", b"null").decode("ascii", "replace")
    if codec not in UNPACK:
        raise CorruptObjectError(
            f"the codec {codec[:40]!r} is not supported (null, deflate and snappy are)"
        )
    schema = schemas.parse(text)
    least = max(1, len(schema.fields)) if schema.flat else 1
    return Head(text, schema, codec, least)


def _header(view: memoryview) -> tuple[dict[str, bytes], int]:
    if not view:
        raise CorruptObjectError(EMPTY)
    if bytes(view[:4]) != MAGIC:
        raise CorruptObjectError(
            "the object is no Avro file (it does not start as one)"
        )
    metadata: dict[str, bytes] = {}
    count, at = _read_header_long(view, 4)
    while count:
        if count < 0:  # a negative count is followed by the block's size
            _, at = _read_header_long(view, at)
        for _ in range(min(abs(count), 1000)):
            name, at = _read_bytes(view, at)
            value, at = _read_bytes(view, at)
            metadata[name.decode("utf-8", "replace")] = value
        count, at = _read_header_long(view, at)
    if at + _SYNC > len(view):
        raise HeaderCutError(f"the header is cut at byte {len(view)}")
    return metadata, at


def _blocks(
    view: memoryview, at: int, sync: bytes, codec: str
) -> tuple[tuple[memoryview | bytes, ...], int]:
    blocks: list[memoryview | bytes] = []
    rows, room = 0, MAX_UNPACKED
    unpack = UNPACK[codec]
    while at < len(view):
        start = at
        count, at = _read_long(view, at, "a block")
        size, at = _read_long(view, at, "a block")
        end = at + size
        if count < 0 or size < 0:
            raise CorruptObjectError(
                f"the block at byte {start} claims {count} rows in {size} bytes"
            )
        if end + _SYNC > len(view):
            raise CorruptObjectError(
                f"the block at byte {start} is cut: {end + _SYNC - len(view)} bytes of "
                "the file are missing"
            )
        if view[end : end + _SYNC] != sync:
            raise CorruptObjectError(
                f"the block at byte {start} ends with a wrong sync marker"
            )
        block = unpack(view[at:end], room)
        if codec != "null":
            room -= len(block)
        blocks.append(block)
        rows, at = rows + count, end + _SYNC
    return tuple(blocks), rows


def _read_long(view: memoryview, at: int, where: str) -> tuple[int, int]:
    """Read a zig-zag number of at most ten bytes; return it and what follows."""
    number = shift = 0
    for byte in view[at : at + 10]:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at + shift // 7
    raise CorruptObjectError(f"{where} is cut or damaged at byte {at}")


def _read_header_long(view: memoryview, at: int) -> tuple[int, int]:
    if len(view) - at < 10 and all(byte >= 0x80 for byte in view[at:]):
        raise HeaderCutError(f"the header is cut at byte {len(view)}")
    return _read_long(view, at, "the header")


def _read_bytes(view: memoryview, at: int) -> tuple[bytes, int]:
    size, at = _read_header_long(view, at)
    if not 0 <= size <= MAX_SCHEMA:
        raise CorruptObjectError(
            f"the header claims a text of {size} bytes at byte {at}"
        )
    if at + size > len(view):
        raise HeaderCutError(f"the header is cut at byte {len(view)}")
    return bytes(view[at : at + size]), at + size


def _long(number: int) -> bytes:
    """Write a number that is not negative as Avro's zig-zag varint."""
    number <<= 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _brief(error: BaseException) -> str:
    """Return the kind of a foreign error; its text may quote the data."""
    return type(error).__name__
