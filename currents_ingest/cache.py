"""A SQLite file that indexes the ledger; deleted or missing, it is rebuilt from it.

It never knows anything that the bucket does not. Rows of days that only checkpoints
cover are fetched when they are first asked for.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import suppress
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from currents_ingest.cache_entries import (
    seconds,
    take_in,
)
from currents_ingest.cache_tables import prepare, reset
from currents_ingest.contracts import Contract
from currents_ingest.errors import CacheBrokenError
from currents_ingest.manifest import Drift, SetAside
from currents_ingest.unified import UnifiedContract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from currents_ingest.manifest import Entry
    from currents_ingest.store import StoredObject


STATE_META = ("reconciled", "waiting_from", "waiting_to", "started")
"""Values of meta that a checkpoint holds."""
STATE_TABLES = (
    "contracts",
    "unified",
    "shares",
    "delivered",
    "unjoined",
    "totals",
    "schemas",
    "pace",
)
"""Tables that a checkpoint holds whole."""


Write = TypeVar("Write", bound="Callable[..., None]")


def _surviving(write: Write) -> Write:
    """Write in one transaction; if the file fails, go on in memory."""

    @wraps(write)
    def wrapped(self: Cache, *args: Any) -> None:
        def once() -> None:
            with self._lock, self._db:
                self._db.execute("begin immediate")
                write(self, *args)

        try:
            once()
        except sqlite3.DatabaseError:
            self._move_to_memory()
            once()

    return cast("Write", wrapped)


class Cache:
    """What the ledger says, ready to be asked.

    Safe to use from several threads. Times are whole seconds since 1970, days are
    counted since 1970.
    """

    def __init__(
        self, connection: sqlite3.Connection, path: Path | None = None
    ) -> None:
        self._db = connection
        self._path = path
        self._lock = threading.RLock()

    @staticmethod
    def open(path: Path, url: str) -> Cache:
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
    def look(path: Path, url: str) -> Cache:
        """Open a copy in memory, so that looking leaves the file as it is."""
        memory = sqlite3.connect(":memory:", check_same_thread=False)
        with suppress(sqlite3.DatabaseError):
            file = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            file.backup(memory)
            file.close()
        prepare(memory, url)
        return Cache(memory)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def meta(self, name: str) -> str | None:
        """Return a remembered value."""
        found = self._rows("select value from meta where name = ?", name)
        return str(found[0][0]) if found else None

    @_surviving
    def remember(self, name: str, value: str) -> None:
        """Keep a value that can be found out again."""
        self._set(name, value)

    @property
    def head(self) -> int:
        """Number of the last entry applied."""
        return int(self.meta("head") or 0)

    @property
    def base(self) -> int:
        """Number of the checkpoint that this cache began from; 0: the beginning."""
        return int(self.meta("base") or 0)

    def forget(self, url: str) -> None:
        """Empty the cache."""
        with self._lock:
            reset(self._db, url)

    @_surviving
    def apply(self, entry: Entry, digest: str) -> None:
        """Take in the next entry; one that is in already changes nothing."""
        if entry.number != self.head + 1:
            return
        take_in(self._db, entry)
        if entry.reconciled:
            self._set("reconciled", str(seconds(entry.reconciled)))
        self._set("head", str(entry.number))
        self._set("digest", digest)

    def unseen(self, listed: Sequence[StoredObject]) -> list[StoredObject]:
        """Return those that the ledger does not hold with the same ETag and size."""
        keys = json.dumps([one.key for one in listed])
        held = set(
            self._rows(
                "select key, etag, size from files where key in "
                "(select value from json_each(?))",
                keys,
            )
        )
        return [one for one in listed if (one.key, one.etag, one.size) not in held]

    def watermark(self, event_type: str) -> datetime | None:
        """Return the newest queued hour committed of an event type."""
        found = self._rows(
            "select watermark from totals where event_type = ?", event_type
        )
        return _time(found[0][0]) if found else None

    def reconciled(self) -> datetime | None:
        """Return when the last full listing began."""
        found = self.meta("reconciled")
        return _time(int(found)) if found else None

    def waiting(self) -> tuple[int, int] | None:
        """Return the first and the last delivery day that no workflow ran over."""
        first, last = self.meta("waiting_from"), self.meta("waiting_to")
        return (int(first), int(last)) if first and last else None

    def unjoined(self, until: datetime) -> list[dict[str, Any]]:
        """Return batches, committed until then, whose rows wait to be joined."""
        return self.table("unjoined", "committed_at <= ?", seconds(until))

    def started(self) -> datetime | None:
        """Return when a workflow was last started."""
        found = self.meta("started")
        return _time(int(found)) if found else None

    def contract(self, feed: str) -> Contract | None:
        """Return the pinned contract of a feed."""
        found = self._rows("select body from contracts where feed = ?", feed)
        return Contract.model_validate_json(found[0][0]) if found else None

    def drift(self) -> list[tuple[Drift, datetime]]:
        """Return every schema that drifted, and when it was first met."""
        found = self._rows("select body, seen from schemas order by event_type, seen")
        return [
            (Drift.model_validate_json(body), datetime.fromisoformat(seen))
            for body, seen in found
        ]

    def contracts(self) -> list[Contract]:
        """Return every pinned contract, by feed."""
        found = self._rows("select body from contracts order by feed")
        return [Contract.model_validate_json(body) for (body,) in found]

    def unified(self) -> dict[str, UnifiedContract]:
        """Return the pinned contracts of unified feeds, by feed."""
        found = self._rows("select feed, body from unified order by feed")
        return {feed: UnifiedContract.model_validate_json(body) for feed, body in found}

    def delivered(self, day: int) -> set[str]:
        """Return the feeds with an object of a day (since 1970) or a later one."""
        found = self._rows("select feed from delivered where day >= ?", day)
        return {feed for (feed,) in found}

    def index_objects(
        self, event_type: str, hours: Sequence[int], since: datetime, until: datetime
    ) -> list[str]:
        """Return the index objects that hold these event hours and queued times."""
        found = self._rows(
            "select distinct object from hours where event_type = ? and hour in "
            "(select value from json_each(?)) and queued_to >= ? and queued_from <= ?",
            event_type,
            json.dumps(list(hours)),
            seconds(since),
            seconds(until),
        )
        return sorted(object_ for (object_,) in found)

    def files(self, state: str) -> list[SetAside]:
        """Return the files in quarantine, released from it or discarded, by key."""
        found = self._rows(
            "select key, etag, size, event_type, hour, reason from files "
            "where state = ? and state <> 'done' order by key, etag",
            state,
        )
        return [
            SetAside(
                key=key,
                etag=etag,
                size=size,
                event_type=event_type,
                hour=_time(hour) if hour is not None else None,
                reason=reason or "",
            )
            for key, etag, size, event_type, hour, reason in found
        ]

    def table(
        self, name: str, where: str = "true", *values: Any
    ) -> list[dict[str, Any]]:
        """Return a table's rows by column name, in a fixed order."""
        query = f"select * from {name} where {where} order by 1, 2"  # noqa: S608 (our names)
        names, rows = self._select(query, values)
        return [dict(zip(names, row, strict=True)) for row in rows]

    @_surviving
    def restore(self, number: int, state: dict[str, Any]) -> None:
        """Begin from a checkpoint's state instead of the first entry."""
        for name in STATE_TABLES:
            self._insert(name, state.get(name, []))
        self._insert("files", state["files"])
        self._insert("segments", state["segments"])
        for name, value in state["meta"].items():
            self._set(name, value)
        self._set("base", str(number))
        self._set("head", str(number))

    def unloaded(self, kind: str, days: Iterable[int]) -> list[str]:
        """Return the checkpoint segments of these days that are not in yet.

        Hours lie under the last day that their batch was queued: one that began within
        these days may have ended on any later one.
        """
        wanted = sorted(days)
        found = self._rows(
            "select object from segments where kind = ? and (day in "
            "(select value from json_each(?)) or (kind = 'hours' and day > ?)) "
            "order by object",
            kind,
            json.dumps(wanted),
            wanted[-1] if wanted else 10**9,
        )
        return [object_ for (object_,) in found]

    @_surviving
    def load(self, kind: str, segment: str, rows: list[dict[str, Any]]) -> None:
        """Take in a checkpoint segment; what newer entries said stays."""
        self._insert(kind, rows)
        self._db.execute("delete from segments where object = ?", (segment,))

    def _insert(self, name: str, rows: list[dict[str, Any]]) -> None:
        if rows:
            marks = ", ".join(f":{column}" for column in rows[0])
            self._db.executemany(
                f"insert or ignore into {name} ({', '.join(rows[0])}) values ({marks})",  # noqa: S608 (our names)
                rows,
            )

    def _move_to_memory(self) -> None:
        """Go on without the file: it was deleted, is full, or may not be written."""
        memory = sqlite3.connect(":memory:", check_same_thread=False)
        memory.isolation_level = None
        try:
            self._db.backup(memory)
        except sqlite3.DatabaseError as error:
            raise self._broken() from error
        self._db = memory

    def _broken(self) -> CacheBrokenError:
        if self._path:
            with suppress(OSError):
                self._path.unlink()
        return CacheBrokenError(str(self._path))

    def _set(self, name: str, value: str) -> None:
        self._db.execute("insert or replace into meta values (?, ?)", (name, value))

    def _rows(self, query: str, *values: Any) -> list[Any]:
        return self._select(query, values)[1]

    def _select(self, query: str, values: Sequence[Any]) -> tuple[list[str], list[Any]]:
        """Return column names and rows; no other thread writes meanwhile."""
        with self._lock:
            try:
                cursor = self._db.execute(query, values)
                rows = cursor.fetchall()
            except sqlite3.DatabaseError as error:
                raise self._broken() from error
        return [column[0] for column in cursor.description], rows


def _opened(path: Path | None, url: str) -> Cache:
    if path and str(path) != ":memory:":
        path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(
        str(path or ":memory:"), timeout=30, check_same_thread=False
    )
    prepare(connection, url)
    return Cache(connection, path)


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
