"""What is done, so what is left to do: numbered entries beside the feeds.

An entry is created only if its number is free; that is the commit. Its outputs then
move from staging to their final keys; whoever reads an entry whose outputs are still
staged moves them. Entries are never changed or removed.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from itertools import chain, repeat, takewhile
from typing import TYPE_CHECKING, Any

import structlog
from pydantic import ValidationError

from currents_ingest import parquet
from currents_ingest.cache import STATE_META, STATE_TABLES, Cache
from currents_ingest.errors import (
    AlreadyThereError,
    FatalError,
    LedgerBrokenError,
    LedgerConflictError,
    NotThereError,
)
from currents_ingest.manifest import FORMAT, Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import timedelta
    from pathlib import Path

    from currents_ingest.store import Store

log = structlog.get_logger()

FOLDER, STAGING = "_ledger", "_staging"
_STATES, _DAYS = f"{FOLDER}/checkpoints/state", f"{FOLDER}/checkpoints/days"
PROBE = f"{FOLDER}/probe"
CHECKPOINT_EVERY = 64
"""Entries between checkpoints: a start on an empty disk reads so many at most."""
_AHEAD = (1, 4, 16, 64)
"""Entries asked for at once: one when nothing is new, more and more when much is."""
_AT_ONCE = 500
_ENTRY = re.compile(rf"{FOLDER}/\d{{10}}\.json")


def entry_key(number: int) -> str:
    """Return where an entry lies below the feeds URL."""
    return f"{FOLDER}/{number:010}.json"


class Ledger:
    """The ledger of one feeds folder, with its cache."""

    def __init__(self, store: Store, cache: Cache, *, daily_copy: bool = False) -> None:
        self.store = store
        self.cache = cache
        self._daily_copy = daily_copy
        self.head = cache.head
        """Last entry that this process has taken in; another one that uses the same
        cache may be ahead, and then our next commit has to lose."""

    @staticmethod
    def open(store: Store, path: Path, *, daily_copy: bool = False) -> Ledger:
        """Open the ledger and its cache; reads nothing from the bucket yet.

        Args:
            store: The feeds folder.
            path: The cache.
            daily_copy: What is committed is copied to the day's directories, too.
        """
        return Ledger(store, Cache.open(path, store.url), daily_copy=daily_copy)

    @staticmethod
    def look(store: Store, path: Path) -> Ledger:
        """Open it for looking only: neither bucket nor cache file will change."""
        ledger = Ledger(store, Cache.look(path, store.url))
        for entries in ledger._news():
            for entry, digest in entries:
                ledger.cache.apply(entry, digest)
        return ledger

    def close(self) -> None:
        """Close the cache."""
        self.cache.close()

    def probe(self, token: str) -> bool:
        """Find out, once per cache, whether the store honours If-None-Match.

        Some look-alikes of S3 accept the condition and ignore it; then the lease
        alone keeps two runs apart.
        """
        if (held := self.cache.meta("conditional")) is None:
            key = f"{PROBE}/{token}"
            self.store.create(key, b"first")
            try:
                self.store.create(key, b"second")
                held = "no"
            except AlreadyThereError:
                held = "yes"
            self.store.delete([key])
            self.cache.remember("conditional", held)
        return held == "yes"

    def catch_up(self) -> int:
        """Take in what was committed since, finishing what was left half published.

        Returns:
            How many entries were new to this process's cache.
        """
        count = 0
        for entries in self._news():
            # Listed after the entries were read: they were staged before that.
            staged = {one.key for page in self.store.listing(STAGING) for one in page}
            for entry, digest in entries:
                self.publish(entry, staged)
                self.cache.apply(entry, digest)
            count += len(entries)
        self.head = self.cache.head
        return count

    def commit(self, draft: Entry) -> Entry:
        """Create the entry after those that this process has taken in, and publish.

        Raises:
            LedgerConflictError: Another process was first; nothing was published.
        """
        entry = draft.numbered(self.head + 1, daily=self._daily_copy)
        body = entry.to_json()
        try:
            self.store.create(entry_key(entry.number), body)
        except AlreadyThereError:
            raise LedgerConflictError(entry.number) from None
        self.publish(entry, {output.staged for output in entry.outputs})
        self.cache.apply(entry, _digest(body))
        self.head = entry.number
        return entry

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """Read the entries that the cache knows, in order, from the bucket."""
        for first in range(after + 1, self.cache.head + 1, _AT_ONCE):
            last = min(first + _AT_ONCE - 1, self.cache.head)
            keys = [entry_key(number) for number in range(first, last + 1)]
            for key, body in zip(keys, self.store.gather(keys), strict=True):
                yield read_entry(key, body)

    def _news(self) -> Iterator[list[tuple[Entry, str]]]:
        """Yield the entries after those in the cache, each with its digest.

        Raises:
            LedgerBrokenError: One is missing, though later ones are there.
        """
        self._check_cache()
        if self.cache.head == 0:
            self._restore()
        number = self.cache.head + 1
        for size in chain(_AHEAD, repeat(_AHEAD[-1])):
            keys = [entry_key(n) for n in range(number, number + size)]
            bodies = list(takewhile(_is_there, self.store.find(keys)))
            if bodies:
                yield [
                    (read_entry(key, body), _digest(body))
                    for key, body in zip(keys, bodies, strict=False)
                    if body is not None
                ]
            number += len(bodies)
            if len(bodies) < size and not self._goes_on_after(number):
                return

    def _goes_on_after(self, number: int) -> bool:
        """Tell whether an entry came while we looked; a gap is an error."""
        page = next(self.store.listing(FOLDER, after=entry_key(number)), [])
        if not any(_ENTRY.fullmatch(one.key) for one in page):
            return False
        if self.store.stat(entry_key(number)) is None:
            reason = "it is missing, though later ones are there"
            raise LedgerBrokenError(entry_key(number), reason)
        return True

    def publish(self, entry: Entry, staged: set[str]) -> None:
        """Copy staged outputs to their final keys, then remove them from staging."""
        waiting = [output for output in entry.outputs if output.staged in staged]
        extra = [(one.staged, one.also) for one in waiting if one.also]
        pairs = [*extra, *((one.staged, one.key) for one in waiting)]
        for (_, key), error in zip(pairs, self.store.copy_many(pairs), strict=True):
            if isinstance(error, NotThereError):  # someone else has just finished it
                if self.store.stat(key) is None:
                    raise FatalError(_lost(entry, key)) from None
            elif error:
                raise error
        self.store.delete(output.staged for output in waiting)

    def fold(self, run: str, now: datetime) -> bool:
        """Write a checkpoint if enough entries came since the last one."""
        last = self._last_checkpoint()
        head = self.cache.head
        if head - last < CHECKPOINT_EVERY:
            return False
        old = self._state(last)["segments"] if last else []
        segments = [*old, *self._write_segments(last, head)]
        state = {
            **{name: self.cache.table(name) for name in STATE_TABLES},
            "files": self.cache.table("files", "state <> 'done'"),
            "segments": segments,
            "meta": {name: self.cache.meta(name) for name in STATE_META},
            "digest": _digest(self.store.get(entry_key(head))),
            "format": FORMAT,
            "run": run,
            "at": now.isoformat(),
        }
        try:
            self.store.create(f"{_STATES}/{head:010}.json", json.dumps(state).encode())
        except AlreadyThereError:
            return False  # a rival's holds the same
        log.info("checkpoint written", entry=head, segments=len(segments))
        return True

    def sweep(self, run: str, kept: timedelta) -> None:
        """Remove what other runs left in staging longer than *kept* ago.

        The entry that says so comes first: a run that was only asleep finds its
        number taken and stages its work anew.
        """
        if not kept:
            self.store.remove_unfinished(STAGING)
            self.store.remove_unfinished(FOLDER)
        now = datetime.now(UTC)
        old = [
            one.key
            for page in self.store.listing(STAGING)
            for one in page
            if one.modified and now - one.modified >= kept and f"/{run}/" not in one.key
        ]
        if old:
            self.commit(Entry(at=now, run=run, swept=True))
            self.store.delete(old)
            log.info("staging swept", objects=len(old))

    def need(self, kind: str, days: Iterable[int]) -> None:
        """See that the cache knows these days (since 1970) of an old ledger."""
        if self.cache.base == 0:
            return
        missing = self.cache.unloaded(kind, days)
        for segment, body in zip(missing, self.store.gather(missing), strict=True):
            self.cache.load(kind, segment, parquet.from_bytes(body).to_dicts())

    def need_all(self) -> None:
        """See that the cache knows every day."""
        for kind in ("files", "hours"):
            days = {row["day"] for row in self.cache.table("segments")}
            self.need(kind, days)

    def _check_cache(self) -> None:
        """Start the cache anew if its last entry is not the bucket's."""
        head = self.cache.head
        if head:
            body = self.store.find([entry_key(head)])[0]
            if body is None or _digest(body) != self.cache.meta("digest"):
                log.warning("cache does not fit the ledger; rebuilding it", entry=head)
                self.cache.forget(self.store.url)

    def _restore(self) -> None:
        if last := self._last_checkpoint():
            state = self._state(last)
            state["meta"] = {
                name: value
                for name, value in {**state["meta"], "digest": state["digest"]}.items()
                if value is not None
            }
            self.cache.restore(last, state)

    def _last_checkpoint(self) -> int:
        found = [one.key for page in self.store.listing(_STATES) for one in page]
        return int(found[-1].rsplit("/", 1)[-1].removesuffix(".json")) if found else 0

    def _state(self, number: int) -> dict[str, Any]:
        key = f"{_STATES}/{number:010}.json"
        state: dict[str, Any] = json.loads(self.store.get(key))
        if state["format"] != FORMAT:
            raise LedgerBrokenError(key, "it was written by a newer version")
        return state

    def _write_segments(self, last: int, head: int) -> list[dict[str, Any]]:
        """Write what entries after *last* added, an object for each queued day."""
        segments = []
        for kind, column in (("files", "hour"), ("hours", "queued_to")):
            span = "entry > ? and entry <= ?"
            also = " and state = 'done'" if kind == "files" else ""
            by_day: dict[int, list[dict[str, Any]]] = {}
            for row in self.cache.table(kind, span + also, last, head):
                by_day.setdefault(row[column] // 86400, []).append(row)
            for day, rows in sorted(by_day.items()):
                name = f"{_DAYS}/{_date(day)}/{kind}-{head:010}.parquet"
                self.store.put(name, parquet.rows_to_bytes(rows))
                segments.append({"object": name, "day": day, "kind": kind})
        return segments


def _is_there(body: bytes | None) -> bool:
    return body is not None


def read_entry(key: str, body: bytes) -> Entry:
    """Read an entry from its object.

    Raises:
        LedgerBrokenError: It is none, a newer version's, or another number's.
    """
    try:
        entry = Entry.model_validate_json(body)
    except ValidationError as error:
        kind = error.errors()[0]["type"]
        raise LedgerBrokenError(key, f"it is no ledger entry ({kind})") from None
    if entry.format != FORMAT:
        raise LedgerBrokenError(key, "it was written by a newer version")
    if entry_key(entry.number) != key:
        raise LedgerBrokenError(key, f"it says that its number is {entry.number}")
    return entry


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _date(day: int) -> str:
    return datetime.fromtimestamp(day * 86400, UTC).date().isoformat()


def _lost(entry: Entry, key: str) -> str:
    return (
        f"{key} was committed by ledger entry {entry.number}, but is neither published "
        "nor staged any more. Someone removed it; restore it from an older object "
        "version, or from the staging folder, and run again."
    )
