"""A SQLite file that indexes the ledger; deleted or missing, it is rebuilt from it.

It never knows anything that the bucket does not, and it stays small: rows of days that
checkpoints cover are fetched when they are asked for, and dropped when others need the
room.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from currents_ingest import cache_days
from currents_ingest.cache_entries import (
    seconds,
    take_in,
)
from currents_ingest.cache_file import File
from currents_ingest.contracts import Contract
from currents_ingest.manifest import Drift, SetAside
from currents_ingest.unified import UnifiedContract

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from currents_ingest.cache_days import Day
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
MOST_ROWS = 500_000
"""Rows of old entries that are kept, of files and of hours each."""
_AT_ONCE = 10_000


Write = TypeVar("Write", bound="Callable[..., None]")


def _in_one_go(change: Write) -> Write:
    """Write in one transaction."""

    @wraps(change)
    def wrapped(self: Cache, *args: Any) -> None:
        self.file.write(lambda: change(self, *args))

    return cast("Write", wrapped)


class Cache:
    """What the ledger says, ready to be asked.

    Safe to use from several threads. Times are whole seconds since 1970, days are
    counted since 1970.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self._wanted: list[set[tuple[str, str, int]]] = []
        """Days that threads ask for at this moment."""
        self._used: dict[tuple[str, str, int], int] = {}
        self._asked = 0
        self._held: dict[str, int] = {}
        self.fetch: Callable[[str, Collection[Day]], None] = _nothing
        """Loads days that only checkpoints hold; the ledger gives it."""

    @staticmethod
    def open(path: Path, url: str) -> Cache:
        """Open the cache of the ledger at *url*; start anew if it is another's."""
        return Cache(File.open(path, url))

    @staticmethod
    def look(path: Path, url: str) -> Cache:
        """Open a copy in memory, so that looking leaves the file as it is."""
        return Cache(File.look(path, url))

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def meta(self, name: str) -> str | None:
        """Return a remembered value."""
        found = self._rows("select value from meta where name = ?", name)
        return str(found[0][0]) if found else None

    @_in_one_go
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
        self.file.forget(url)

    @_in_one_go
    def apply(self, entry: Entry, digest: str) -> None:
        """Take in the next entry; one that is in already changes nothing."""
        if entry.number != self.head + 1:
            return
        take_in(self.file.db, entry)
        if entry.reconciled:
            self._set("reconciled", str(seconds(entry.reconciled)))
        self._set("head", str(entry.number))
        self._set("digest", digest)
        files = sum(len(batch.inputs) for batch in entry.batches)
        self._set("unfolded", str(self.unfolded + files))

    def unseen(
        self, listed: Sequence[StoredObject], days: Collection[Day] = ()
    ) -> list[StoredObject]:
        """Return those that the ledger does not hold with the same ETag and size.

        Args:
            listed: Files.
            days: The event types and queued days of those that have them.
        """
        keys = json.dumps([one.key for one in listed])
        query = (
            "select key, etag, size from files where key in "
            "(select value from json_each(?))"
        )
        held = set(self._whole("files", days, query, keys))
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

    def pinned(self) -> set[str]:
        """Return the raw feeds whose contracts are pinned."""
        return {feed for (feed,) in self._rows("select feed from contracts")}

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
        query = (
            "select distinct object from hours where event_type = ? and hour in "
            "(select value from json_each(?)) and queued_to >= ? and queued_from <= ?"
        )
        found = self._whole(
            "hours",
            {(event_type, cache_days.filed("hours", hour)) for hour in hours},
            query,
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
        names, rows = self.file.select(query, values)
        return [dict(zip(names, row, strict=True)) for row in rows]

    @property
    def unfolded(self) -> int:
        """Count the files of entries that no checkpoint covers yet."""
        return int(self.meta("unfolded") or 0)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside days, and the last entry applied."""
        kept = f"not ({cache_days.FOLDED['files']})"
        with self.file.reading():
            return {
                **{name: self.table(name) for name in STATE_TABLES},
                "files": self.table("files", kept),
                "meta": {name: self.meta(name) for name in STATE_META},
                "head": self.head,
                "digest": self.meta("digest"),
            }

    def added(self, kind: str, after: int, until: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of some entries that checkpoints hold by day.

        They come by event type and then by ``hour``.
        """
        query = (
            f"select * from {kind} where entry > ? and entry <= ? "  # noqa: S608 (our names)
            f"and {cache_days.FOLDED[kind]} order by event_type, hour, 1, 2, 3"
        )
        return self.file.stream(query, (after, until), _AT_ONCE)

    @_in_one_go
    def restore(self, number: int, state: Mapping[str, Any]) -> None:
        """Begin from a checkpoint's state instead of the first entry."""
        for name in STATE_TABLES:
            self._insert(name, state.get(name, []))
        self._insert("files", state["files"])
        for name, value in state["meta"].items():
            if value is not None:
                self._set(name, value)
        self._set("digest", state["digest"])
        self._set("head", str(number))
        self._begin_from(number, state["months"], whole=False)

    @_in_one_go
    def begin_from(self, number: int, months: Sequence[Sequence[Any]]) -> None:
        """Leave what entries up to *number* said to the checkpoint that covers them."""
        self._begin_from(number, months, whole=self.base == 0)
        self._held.clear()
        for kind in cache_days.FOLDED:
            self._trim(kind)

    def months(self, kind: str, event_type: str) -> dict[str, int]:
        """Return how many rows checkpoints hold, at least, in each month."""
        query = "select month, rows from months where kind = ? and event_type = ?"
        return dict(self._rows(query, kind, event_type))

    @_in_one_go
    def load(
        self,
        kind: str,
        base: int,
        days: Mapping[Day, int],
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        """Take in whole days; what newer entries said stays.

        Args:
            kind: files or hours.
            base: The checkpoint's number when it was read; if it is another by now,
                nothing is taken in.
            days: How many rows each has.
            rows: All their rows.
        """
        if base != self.base:
            return
        self._insert(kind, rows)
        self.file.db.executemany(
            f"insert or replace into loaded values ('{kind}', ?, ?, ?)",  # noqa: S608 (our names)
            [(*day, count) for day, count in days.items()],
        )
        if kind in self._held:
            self._held[kind] += sum(days.values())
        self._trim(kind)

    def _whole(
        self, kind: str, days: Collection[Day], query: str, *values: Any
    ) -> list[Any]:
        """Ask for rows of days once they are all in."""
        asked = {(kind, *day) for day in days}
        with self.file.lock:
            self._wanted.append(asked)
            self._asked += 1
            self._used |= dict.fromkeys(asked, self._asked)
        try:
            while True:
                with self.file.reading():
                    missing = self._missing(kind, days)
                    if not missing:
                        return self._rows(query, *values)
                self.fetch(kind, missing)
        finally:
            with self.file.lock:
                self._wanted.remove(asked)

    def _missing(self, kind: str, days: Collection[Day]) -> list[Day]:
        return cache_days.missing(self.file.db, kind, days) if self.base else []

    def _begin_from(
        self, number: int, months: Sequence[Sequence[Any]], *, whole: bool
    ) -> None:
        cache_days.begin_from(self.file.db, number, months, whole=whole)
        self._set("base", str(number))
        found = self.file.db.execute(
            "select count(*) from files where entry > ?", (number,)
        ).fetchone()
        self._set("unfolded", str(found[0]))

    def _trim(self, kind: str) -> None:
        """Drop the days that were not asked for longest, if there are too many rows."""
        db = self.file.db
        if kind not in self._held:
            query = "select coalesce(sum(rows), 0) from loaded where kind = ?"
            self._held[kind] = db.execute(query, (kind,)).fetchone()[0]
        if self._held[kind] <= MOST_ROWS:
            return
        query = "select kind, event_type, day, rows from loaded where kind = ?"
        found = [(one[:3], one[3]) for one in db.execute(query, (kind,))]
        found.sort(key=lambda one: (self._used.get(one[0], 0), one))
        total, dropped = sum(rows for _, rows in found), []
        for day, rows in found:
            if total <= MOST_ROWS // 2:
                break
            if not any(day in asked for asked in self._wanted):
                dropped.append(day[1:])
                self._used.pop(day, None)
                total -= rows
        cache_days.drop(db, kind, self.base, dropped)
        self._held[kind] = total

    def _insert(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            marks = ", ".join(f":{column}" for column in rows[0])
            self.file.db.executemany(
                f"insert or ignore into {name} ({', '.join(rows[0])}) values ({marks})",  # noqa: S608 (our names)
                rows,
            )

    def _set(self, name: str, value: str) -> None:
        self.file.db.execute("insert or replace into meta values (?, ?)", (name, value))

    def _rows(self, query: str, *values: Any) -> list[Any]:
        return self.file.select(query, values)[1]


def _nothing(_: str, __: Collection[Day]) -> None:
    """Fetch nothing: there is no checkpoint."""


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
