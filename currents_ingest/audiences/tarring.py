"""Tar as a stream, strictly: what is damaged or cut short is never taken for the end.

``tarfile`` ends silently at a member header that it cannot read, which would pass for
a smaller export.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Read = Callable[[int], bytes]

_SIZE = 512
_LONGEST_NAME = 1 << 16
"""Bytes of a name, or of a pax header."""


def is_tar(head: bytes) -> bool:
    """Tell from a file's first 512 bytes (POSIX.1-2024, pax, "ustar")."""
    return len(head) >= _SIZE and head[257:262] == b"ustar" and _is_sound(head)


def tarred(read: Read) -> Iterator[tuple[str, Read]]:
    """Yield the name of each file in an archive, and how to read it.

    Args:
        read: Gives the next so many bytes, fewer only at the end.

    Raises:
        EOFError: Damaged or cut short; the end is a block of zeros.
        NotImplementedError: A link, a sparse file or what else is no plain file.
    """
    said: dict[str, str] = {}
    while (head := _exactly(read, _SIZE)).strip(b"\0"):
        if not _is_sound(head):
            raise EOFError
        kind, size = head[156:157], int(said.get("size") or _number(head[124:136]))
        if kind in b"xgLK":
            said |= _extended(kind, _exactly(read, _padded(size, _LONGEST_NAME)), size)
            continue
        name, said = said.get("path") or _name(head), {}
        if kind in b"07\0":
            body = _Body(read, size)
            yield name, body.read
            body.skip()
        elif kind != b"5":
            raise NotImplementedError


class _Body:
    """One file's bytes within the archive's."""

    def __init__(self, read: Read, size: int) -> None:
        self._read, self._left, self._padding = read, size, -size % _SIZE

    def read(self, size: int) -> bytes:
        """Return up to *size* bytes, none at the file's end."""
        found = self._read(min(size, self._left))
        if not found and min(size, self._left):
            raise EOFError
        self._left -= len(found)
        return found

    def skip(self) -> None:
        """Go to the next header."""
        while self._left:
            self.read(1 << 20)
        _exactly(self._read, self._padding)


def _exactly(read: Read, size: int) -> bytes:
    found = read(size)
    if len(found) != size:
        raise EOFError
    return found


def _padded(size: int, limit: int) -> int:
    if size > limit:
        raise EOFError
    return size + -size % _SIZE


def _is_sound(head: bytes) -> bool:
    """Compare the checksum, which counts its own field as spaces."""
    try:
        said = _number(head[148:156])
    except EOFError:
        return False
    return said == sum(head[:148]) + 8 * 32 + sum(head[156:])


def _number(raw: bytes) -> int:
    """Read octal digits, or GNU's base 256 for what is too large for them."""
    if raw[0] & 0x80:
        value = int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:])
    else:
        digits = raw.strip(b" \0")
        if digits.strip(b"01234567"):
            raise EOFError
        value = int(digits or b"0", 8)
    if value >= 1 << 62:
        raise EOFError
    return value


def _name(head: bytes) -> str:
    name = head[:100].partition(b"\0")[0]
    prefix = head[345:500].partition(b"\0")[0] if head[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _extended(kind: bytes, body: bytes, size: int) -> dict[str, str]:
    """Read GNU's long name (``L``) or a pax header (``x``); others say nothing of use.

    Raises:
        NotImplementedError: The next member is a sparse file.
    """
    if kind == b"L":
        return {"path": body[:size].rstrip(b"\0").decode("utf-8", "replace")}
    if kind != b"x":
        return {}
    records = dict(_pax(body[:size]))
    if any(key.startswith("GNU.sparse") for key in records):
        raise NotImplementedError
    if not records.get("size", "0").isdecimal():
        raise EOFError
    return {key: records[key] for key in ("path", "size") if key in records}


def _pax(body: bytes) -> Iterator[tuple[str, str]]:
    """Yield the records of a pax header: length, space, key, ``=``, value, newline."""
    while body:
        digits, _, _ = body.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        if not len(digits) + 2 < length <= len(body):
            raise EOFError
        key, _, value = body[len(digits) + 1 : length - 1].partition(b"=")
        yield key.decode("utf-8", "replace"), value.decode("utf-8", "replace")
        body = body[length:]
