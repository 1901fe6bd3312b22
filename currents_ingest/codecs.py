"""How blocks of Avro containers unpack, within a limit. Currents itself uses no codec.

Source: Avro 1.12 specification, "Required Codecs" and "Optional Codecs".
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import cramjam

from currents_ingest.errors import CorruptObjectError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_UNPACKED = 64 << 20
"""Bytes that one file's compressed blocks may unpack to, and those of one batch."""


def _deflate(block: memoryview, room: int) -> bytes:
    unpacker = zlib.decompressobj(-15)
    try:
        found = unpacker.decompress(block, room + 1)
    except zlib.error as error:
        raise CorruptObjectError("a deflate block does not unpack") from error
    _check_room(len(found), room)
    if not unpacker.eof:
        raise CorruptObjectError("a deflate block is cut short")
    return found


def _snappy(block: memoryview, room: int) -> bytes:
    packed = bytes(block[:-4])  # the last four bytes are a checksum
    try:
        _check_room(cramjam.snappy.decompress_raw_len(packed), room)
        found = bytes(cramjam.snappy.decompress_raw(packed))
    except cramjam.DecompressionError as error:
        raise CorruptObjectError("a snappy block does not unpack") from error
    if zlib.crc32(found).to_bytes(4, "big") != bytes(block[-4:]):
        raise CorruptObjectError("a snappy block's checksum does not fit its content")
    return found


def _check_room(size: int, room: int) -> None:
    if size > room:
        raise CorruptObjectError(
            f"the file's blocks unpack to more than {MAX_UNPACKED >> 20} MiB"
        )


UNPACK: dict[str, Callable[[memoryview, int], memoryview | bytes]] = {
    "null": lambda block, _room: block,
    "deflate": _deflate,
    "snappy": _snappy,
}
"""By codec: a block and the bytes that it may unpack to, to its content."""
