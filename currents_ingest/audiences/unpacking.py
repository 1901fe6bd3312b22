"""Bytes to members: gzip, zip and tar, told by their first bytes, read as a stream.

Names never decide anything and are never used as paths. What may be packed how deep:
one gzip, or an archive that may lie in one gzip and whose members may each be one.
"""

from __future__ import annotations

import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from currents_ingest.audiences.tarring import is_tar, tarred
from currents_ingest.errors import CurrentsError, ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_GZIP = b"\x1f\x8b"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_PIECE = 1 << 20
"""Bytes that are unpacked at once; no answer of a decompressor is larger."""
_TOO_MUCH = 16 << 20
"""Bytes of a zip's directory, of some 300,000 members, that are not read."""


class File(Protocol):
    """All we ask of an object's bytes."""

    def read(self, size: int, /) -> bytes:
        """Return up to *size* bytes, fewer only at the end."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a byte."""

    def tell(self) -> int:
        """Return the byte it is at."""


class Budget:
    """How many bytes may still come out of one delivery's files."""

    def __init__(self, limit: int) -> None:
        self.limit = self.left = limit

    def spend(self, size: int) -> None:
        """Count *size* bytes.

        Raises:
            ExportError: More than the limit has come out.
        """
        self.left -= size
        if self.left < 0:
            raise ExportError(
                "the delivery",
                f"unpacks to more than {self.limit:,} bytes; raise the limit if the "
                "export is meant to be so large",
            )


class Source:
    """A stream whose first bytes can be looked at before they are read."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read, self._ahead, self._ended = read, b"", False

    def peek(self, size: int) -> bytes:
        """Return the next bytes, fewer than *size* only at the end."""
        pieces = [self._ahead]
        lacking = size - len(self._ahead)
        while lacking > 0 and not self._ended:
            piece = self._read(lacking)
            self._ended = not piece
            pieces.append(piece)
            lacking -= len(piece)
        self._ahead = b"".join(pieces)
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        """Return and use up the next bytes, fewer than *size* only at the end."""
        found = self.peek(size)
        self._ahead = self._ahead[len(found) :]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file, unpacked."""

    name: str
    source: Source = field(repr=False)
    spend: Callable[[int], None] = field(repr=False)
    """Counts bytes that are unpacked further on."""


def members(name: str, file: File, budget: Budget) -> Iterator[Member]:
    """Yield what one object holds; each member must be used before the next.

    Args:
        name: The object's name, which members' names begin with.
        file: Read from its beginning; a zip is sought in.
        budget: Counts every byte that the members give.

    Raises:
        ExportError: Encrypted, damaged, cut short, nested too deep, or packed in a
            way that is not read here; or the budget is spent.
    """
    with _told(name):
        outer = Source(file.read)
        refuse_encrypted(outer.peek(64), name)
        if outer.peek(4) in _ZIP:
            yield from _unpacked(_zipped(name, file), budget)
        else:
            yield from _streamed(name, outer, budget)


def _streamed(name: str, outer: Source, budget: Budget) -> Iterator[Member]:
    source = _gunzipped(outer) if outer.peek(2) == _GZIP else outer
    head = source.peek(512)
    if is_tar(head):
        inside = tarred(source.read)
        named = ((f"{name}!{path}", Source(read)) for path, read in inside)
        yield from _unpacked(named, budget)
        return
    refuse_encrypted(head, name)
    if source is not outer and _is_packed(head):
        raise ExportError(name, "is packed more than once; export it packed once")
    yield _counted(name, source, budget)


def _unpacked(inside: Iterator[tuple[str, Source]], budget: Budget) -> Iterator[Member]:
    """Yield an archive's files, of which each may be gzip."""
    for name, packed in inside:
        with _told(name):
            refuse_encrypted(packed.peek(64), name)
            source = _gunzipped(packed) if packed.peek(2) == _GZIP else packed
            refuse_encrypted(source.peek(64), name)
            if _is_packed(source.peek(512)):
                raise ExportError(name, "is an archive in an archive; pack it once")
            yield _counted(name, source, budget)


def _counted(name: str, source: Source, budget: Budget) -> Member:
    def read(size: int) -> bytes:
        with _told(name):
            found = source.read(min(size, budget.left + 1))
        budget.spend(len(found))
        return found

    return Member(name=name, source=Source(read), spend=budget.spend)


def _is_packed(head: bytes) -> bool:
    return head[:2] == _GZIP or head[:4] in _ZIP or is_tar(head)


def _gunzipped(source: Source) -> Source:
    return Source(_Gunzip(source).read)


class _Gunzip:
    """Gzip members one after the other; zeros after the last are padding."""

    def __init__(self, source: Source) -> None:
        self._source, self._packed = source, b""
        self._inflate = zlib.decompressobj(31)

    def read(self, size: int) -> bytes:
        """Return up to *size* bytes, none at the end of the last member."""
        while True:
            self._packed = self._packed or self._source.read(_PIECE // 8)
            if self._inflate.eof:
                self._packed = self._packed.lstrip(b"\0")
                if not self._packed and not self._source.peek(1):
                    return b""
                if not self._packed:
                    continue
                self._inflate = zlib.decompressobj(31)
            if not self._packed:
                raise EOFError
            found = self._inflate.decompress(self._packed, min(size, _PIECE))
            self._packed = self._inflate.unconsumed_tail or self._inflate.unused_data
            if found:
                return found


def _zipped(name: str, file: File) -> Iterator[tuple[str, Source]]:
    file.seek(0)
    with zipfile.ZipFile(_Wary(file)) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            inner = f"{name}!{info.filename}"
            if info.flag_bits & 1:
                raise ExportError(inner, "is encrypted; export it without a password")
            if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise ExportError(inner, "is packed by a method other than deflate")
            with archive.open(info) as opened:
                yield inner, Source(opened.read)


class _Wary:
    """A file of which a zip's reader cannot take a hostile directory into memory."""

    def __init__(self, file: File) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def seekable(self) -> bool:
        """Return what zipfile asks."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Read as a file does, but never much at once."""
        found = self._file.read(min(size, _TOO_MUCH) if size >= 0 else _TOO_MUCH)
        if len(found) == _TOO_MUCH:
            raise zipfile.BadZipFile
        return found


_PGP_VERSIONS = {1: {2, 3, 6}, 3: {4, 5, 6}, 18: {1, 2}, 20: {1}}
"""First byte of a packet's body by its tag, for what an encrypted message begins with.

Source: RFC 9580, sections 5.1, 5.3, 5.13 and 5.16.
"""


def refuse_encrypted(head: bytes, name: str) -> None:
    """Raise if a file begins as an OpenPGP message does."""
    if head.lstrip().startswith(b"-----BEGIN PGP") or _is_pgp_packet(head):
        raise ExportError(
            name,
            "is encrypted with PGP, which is not read here; remove the PGP key from "
            "the destination or decrypt the file first",
        )


def _is_pgp_packet(head: bytes) -> bool:
    """Tell by tag, length and version (RFC 9580, section 4.2)."""
    if len(head) < 8 or head[0] < 0x80:
        return False
    if head[0] & 0x40:
        tag, first = head[0] & 0x3F, head[1]
        start = 2 if first < 192 else 3 if first < 224 else 6 if first == 255 else 2
    else:
        tag = head[0] >> 2 & 15
        start = 1 + (1, 2, 4, 0)[head[0] & 3]
    return head[start] in _PGP_VERSIONS.get(tag, ())


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn what a decompressor throws at foreign bytes into one of our errors."""
    try:
        yield
    except CurrentsError:
        raise
    except NotImplementedError as error:
        raise ExportError(
            name,
            "is packed in a way that is not read here, such as a link or a sparse file",
        ) from error
    except Exception as error:
        raise ExportError(
            name, "is damaged or cut short, so it cannot be unpacked; export it again"
        ) from error
