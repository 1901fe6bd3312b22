"""A SQLite file that may fail: work goes on in memory, or the file is removed."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from currents_ingest.cache_tables import prepare, reset
from currents_ingest.errors import CacheBrokenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


class File:
    """A database that several threads use, and other processes beside them."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path | None = None
    ) -> None:
        self.db = connection
        self.lock = threading.RLock()
        self._path = path

    @staticmethod
    def open(path: Path, url: str) -> File:
        """Open the cache of the ledger at *url*; start anew if it is another's.

        A file that cannot be used is replaced; where none can be written, the cache
        is kept in memory.
        """
        for _ in range(2):
            try:
                return _opened(path, url)
            except (sqlite3.OperationalError, OSError):  # locked, full, read-only
                break
            except sqlite3.DatabaseError:  # damaged
                with suppress(OSError):
                    path.unlink()
        return _opened(None, url)

    @staticmethod
    def look(path: Path, url: str) -> File:
        """Open a copy in memory, so that looking leaves the file as it is."""
        memory = sqlite3.connect(":memory:", check_same_thread=False)
        with suppress(sqlite3.DatabaseError):
            file = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            file.backup(memory)
            file.close()
        prepare(memory, url)
        return File(memory)

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    def forget(self, url: str) -> None:
        """Empty the cache."""
        with self.lock:
            reset(self.db, url)

    def write(self, change: Callable[[], None]) -> None:
        """Write in one transaction; if the file fails, go on in memory."""

        def once() -> None:
            with self.lock, self.db:
                self.db.execute("begin immediate")
                change()

        try:
            once()
        except sqlite3.DatabaseError:
            self._move_to_memory()
            once()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See one state of the file for the block, whoever else writes to it."""
        with self.lock, self._told():
            self.db.execute("begin")
            try:
                yield
            finally:
                self.db.execute("commit")

    def select(
        self, query: str, values: Sequence[Any]
    ) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return column names and rows; no other thread writes meanwhile."""
        with self.lock, self._told():
            cursor = self.db.execute(query, values)
            rows = cursor.fetchall()
        return [column[0] for column in cursor.description], rows

    def stream(
        self, query: str, values: Sequence[Any], at_once: int
    ) -> Iterator[dict[str, Any]]:
        """Yield rows by column name, so many at a time; the query has to sort them."""
        with self.lock, self._told():
            cursor = self.db.execute(query, values)
        names = [column[0] for column in cursor.description]
        while True:
            with self.lock, self._told():
                rows = cursor.fetchmany(at_once)
            yield from (dict(zip(names, row, strict=True)) for row in rows)
            if len(rows) < at_once:
                return

    def _move_to_memory(self) -> None:
        """Go on without the file: it was deleted, is full, or may not be written."""
        memory = sqlite3.connect(":memory:", check_same_thread=False)
        memory.isolation_level = None
        with self._told():
            self.db.backup(memory)
        self.db = memory

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Remove a file that is damaged, and say so."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if self._path:
                with suppress(OSError):
                    self._path.unlink()
            raise CacheBrokenError(str(self._path)) from error


def _opened(path: Path | None, url: str) -> File:
    if path and str(path) != ":memory:":
        path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(
        str(path or ":memory:"), timeout=30, check_same_thread=False
    )
    prepare(connection, url)
    return File(connection, path)
