"""A part's bytes from any store, with errors that are ours and tell no credentials."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from currents_ingest.audiences.shapes import BLOCK
from currents_ingest.errors import CurrentsError, ExportError, ExportNotReadyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from currents_ingest.audiences.deliveries import Part

_ASKED = 1 << 15
"""Bytes of one SFTP read, which every server grants."""


class RemoteFile:
    """A part's bytes, whose errors are ours."""

    def __init__(self, files: Any, part: Part, name: str) -> None:
        self._name, self._size, self._at = name, part.size, 0
        with told(name):
            self._file = files.open(part.path or part.key, "rb", block_size=BLOCK)
        self.close = self._file.close

    def tell(self) -> int:
        """Return the position, in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go somewhere, as any file does."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int) -> bytes:
        """Return up to *size* bytes, fewer only at the end."""
        with told(self._name):
            if hasattr(self._file, "readv"):
                found = self._pipelined(size)
            else:
                self._file.seek(self._at)
                found = self._file.read(size)
        self._at += len(found)
        return bytes(found)

    def _pipelined(self, size: int) -> bytes:
        """Read over SFTP with many requests in flight.

        Paramiko's own ``read`` asks for 32 KiB and waits; its ``prefetch`` holds all
        that has come, however slowly it is used.
        """
        end = min(self._at + size, self._size)
        asked = [(at, min(_ASKED, end - at)) for at in range(self._at, end, _ASKED)]
        return b"".join(self._file.readv(asked)) if asked else b""


def shown(url: str) -> str:
    """Return a URL without user, password and signature."""
    bare = re.sub(r"(?<=://)[^/]*@", "", url)
    return bare.partition("?")[0] if bare.startswith(("http://", "https://")) else bare


@contextmanager
def told(where: str) -> Iterator[None]:
    """Turn what a store throws into one of our errors."""
    try:
        yield
    except CurrentsError:
        raise
    except ImportError as error:
        raise ExportError(where, _missing(error)) from error
    except FileNotFoundError as error:
        raise ExportNotReadyError(where, "is no longer there") from error
    except PermissionError as error:
        raise ExportError(
            where, "the store refuses access; see to the credentials and their rights"
        ) from error
    except OSError as error:
        if type(error).__name__ == "FileExpired":
            reason = "has been written again since it was found"
        else:
            reason = f"cannot be read just now ({type(error).__name__})"
        raise ExportNotReadyError(where, reason) from error
    except Exception as error:
        raise ExportError(
            where,
            f"cannot be read ({type(error).__name__}); see to URL and credentials",
        ) from error


def _missing(error: ImportError) -> str:
    """Say what to install; fsspec names it in the error that caused its own."""
    name = error.name or getattr(error.__cause__, "name", None)
    if name == "paramiko":
        return "SFTP needs paramiko: pip install currents-ingest[sftp]"
    return f"reading it needs {name or 'a backend'} that is not installed"
