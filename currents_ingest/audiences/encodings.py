"""Text of any encoding to UTF-8, block by block."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from currents_ingest.audiences.shapes import BLOCK
from currents_ingest.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from currents_ingest.audiences.unpacking import Source

# UTF-32's little-endian mark begins with UTF-16's.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def utf8(source: Source, encoding: str, where: str) -> Iterator[bytes]:
    """Yield a text in UTF-8 without byte order mark, some ``BLOCK`` bytes at a time.

    What cannot be decoded comes out as bytes that are not valid UTF-8, so that the
    rows it is in can be told.

    Args:
        source: The text's bytes.
        encoding: Its codec; ``""`` for what its byte order mark says, else UTF-8.
        where: The file's name, for errors.

    Raises:
        ExportError: There is no such codec, or the text ends amid a character.
    """
    head = source.peek(4)
    marked = next((one for mark, one in _MARKS.items() if head.startswith(mark)), "")
    codec = _codec(encoding or marked or "utf-8", where)
    if codec.name == "utf-8" or marked == "utf-8-sig":
        source.read(3 if marked == "utf-8-sig" else 0)
        return _blocks(source)
    return _decoded(_blocks(source), codec, where)


def _codec(encoding: str, where: str) -> codecs.CodecInfo:
    try:
        found = codecs.lookup(encoding)
        found.incrementaldecoder("strict").decode(b"", final=True)
        "".encode(encoding)
    except (LookupError, TypeError, ValueError, UnicodeError) as error:
        raise ExportError(where, f"there is no text encoding {encoding!r}") from error
    return found


def _blocks(source: Source) -> Iterator[bytes]:
    while block := source.read(BLOCK):
        yield block


def _decoded(
    blocks: Iterator[bytes], codec: codecs.CodecInfo, where: str
) -> Iterator[bytes]:
    wide = codec.name.startswith(("utf-16", "utf-32"))
    lenient = "surrogatepass" if wide else "surrogateescape"
    decoder = codec.incrementaldecoder(lenient)
    try:
        for block in blocks:
            yield decoder.decode(block).encode("utf-8", lenient)
        yield decoder.decode(b"", final=True).encode("utf-8", lenient)
    except UnicodeError as error:
        raise ExportError(
            where, f"is not {codec.name}, or is cut short; set its encoding"
        ) from error
