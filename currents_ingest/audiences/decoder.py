"""Parquet to frames in a process of its own.

At some damaged or hostile files Polars does not raise but asks for exabytes, and the
process is ended. So that is a child's fate: it decodes whatever it is sent, one file
after the other, and has a limit of memory.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from contextlib import suppress
from typing import IO, TYPE_CHECKING, cast

import polars as pl

from currents_ingest.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEMORY = 12 << 30
"""Bytes of addresses that the child may use; it holds a file of up to 1 GiB."""
_LENGTH = struct.Struct(">Q")
_END, _DAMAGED = 0, (1 << 64) - 1
"""Lengths that no frame has."""


class Decoder:
    """A child that decodes Parquet; it is started when there is something to do."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End the child; nothing is lost with it."""
        child, self._child = self._child, None
        if child:
            child.kill()
            with suppress(BrokenPipeError), child:  # closes the pipes and waits
                pass

    def frames(self, raw: bytes, rows: int, where: str) -> Iterator[pl.DataFrame]:
        """Yield a file's rows; first a frame without rows, for the columns.

        Args:
            raw: A whole file.
            rows: The most in one frame, more or less.
            where: The file's name, for errors.

        Raises:
            ExportError: It is damaged, or needs more memory than the child may have.
        """
        try:
            yield from self._asked(raw, rows)
        except (OSError, EOFError, pl.exceptions.PolarsError) as error:
            raise ExportError(
                where, "is damaged, so its Parquet cannot be read; export it again"
            ) from error
        except GeneratorExit:
            self.close()  # what it would still send is of no use
            raise

    def _asked(self, raw: bytes, rows: int) -> Iterator[pl.DataFrame]:
        into, out = self._pipes()
        try:
            into.write(_LENGTH.pack(rows) + _LENGTH.pack(len(raw)))
            into.write(raw)
            into.flush()
            while (size := _length(out)) not in {_END, _DAMAGED}:
                yield pl.read_ipc_stream(io.BytesIO(_exactly(out, size)))
        except (OSError, EOFError):
            self.close()
            raise
        if size == _DAMAGED:
            raise EOFError

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._child is None:
            self._child = subprocess.Popen(  # noqa: S603 (ourselves)
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return cast("IO[bytes]", self._child.stdin), cast(
            "IO[bytes]", self._child.stdout
        )


def serve(into: IO[bytes], out: IO[bytes]) -> None:
    """Decode files until there are no more: the child's whole life.

    A request is how many rows shall be in a frame, the file's length and the file. The
    answer is frames as Arrow IPC streams, each after its length, and then an end or
    the word that the file is damaged. All numbers are eight bytes, big-endian.
    """
    while head := into.read(2 * _LENGTH.size):
        rows, size = struct.unpack(">QQ", head)
        raw, end = into.read(size), _END
        try:
            for frame in _frames(raw, rows):
                body = io.BytesIO()
                frame.write_ipc_stream(body)
                out.write(_LENGTH.pack(body.tell()) + body.getvalue())
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
            end = _DAMAGED
        out.write(_LENGTH.pack(end))
        out.flush()


def _frames(raw: bytes, rows: int) -> Iterator[pl.DataFrame]:
    lazy = pl.scan_parquet(raw)
    yield pl.DataFrame(schema=lazy.collect_schema())
    yield from lazy.collect_batches(chunk_size=rows, maintain_order=True)


def _length(out: IO[bytes]) -> int:
    return int.from_bytes(_exactly(out, _LENGTH.size))


def _exactly(out: IO[bytes], size: int) -> bytes:
    found = out.read(size)
    if len(found) != size:
        raise EOFError
    return found


def limit_memory(most: int = _MEMORY) -> None:
    """Let this process ask for no more bytes of addresses than *most*."""
    with suppress(ImportError, ValueError):  # Windows and macOS have no such limit
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":  # pragma: no cover (the child's)
    limit_memory()
    serve(sys.stdin.buffer, sys.stdout.buffer)
