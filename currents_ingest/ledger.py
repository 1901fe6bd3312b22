"""What is done, so what is left to do: numbered entries beside the feeds.

An entry is created only if its number is free; that is the commit. Its outputs then
move from staging to their final keys; whoever reads an entry whose outputs are still
staged moves them. Entries are never changed or removed.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from itertools import takewhile
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from currents_ingest import checkpoints
from currents_ingest.cache import Cache
from currents_ingest.errors import (
    AlreadyThereError,
    FatalError,
    LedgerBrokenError,
    LedgerConflictError,
    NotThereError,
)
from currents_ingest.manifest import FORMAT, Entry

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from datetime import timedelta
    from pathlib import Path

    from currents_ingest.cache_days import Day
    from currents_ingest.store import Store

log = structlog.get_logger()

FOLDER, STAGING = "_ledger", "_staging"
PROBE = f"{FOLDER}/probe"
CHECKPOINT_EVERY = 64
"""Entries between checkpoints: a start on an empty disk reads so many at most."""
CHECKPOINT_FILES = 50_000
"""Files between checkpoints, of an entry or more: a load commits many at once."""
_AHEAD = 64
"""Entries asked for at once at most: one when nothing is new, more when much is."""
_BYTES_AHEAD = 32_000_000
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
        cache.fetch = self._fetch
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
        number, size = self.cache.head + 1, 1
        while True:
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
            largest = max((len(body) for body in bodies if body), default=1)
            size = max(1, min(size * 4, _AHEAD, _BYTES_AHEAD // largest))

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
        """Write a checkpoint if enough came since the last one.

        Others may commit, fold or start meanwhile: see ``checkpoints``.
        """
        if not self._much_is_unfolded():
            return False
        last = checkpoints.newest(self.store)
        if last.number < self.cache.base:
            log.warning("checkpoints were removed; making them anew")
            self.cache.forget(self.store.url)
            self.catch_up()
        elif self.cache.base < last.number <= self.cache.head:  # a rival's
            self.cache.begin_from(last.number, last.months)
        if last.number > self.cache.head or not self._much_is_unfolded():
            return False
        new = checkpoints.write(self.store, self.cache, last, run, now)
        if new is None:
            return False
        self.cache.begin_from(new.number, new.months)
        log.info("checkpoint written", entry=new.number)
        return True

    def _much_is_unfolded(self) -> bool:
        entries = self.cache.head - self.cache.base
        return entries >= CHECKPOINT_EVERY or (
            entries > 0 and self.cache.unfolded >= CHECKPOINT_FILES
        )

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

    def _fetch(self, kind: str, days: Collection[Day]) -> None:
        checkpoints.fetch(self.store, self.cache, kind, days)

    def _check_cache(self) -> None:
        """Start the cache anew if its last entry is not the bucket's, or far behind."""
        head, far = self.cache.head, None
        if head:
            keys = [entry_key(head), entry_key(head + CHECKPOINT_EVERY)]
            body, far = self.store.find(keys)
            if body is None or _digest(body) != self.cache.meta("digest"):
                log.warning("cache does not fit the ledger; rebuilding it", entry=head)
                self.cache.forget(self.store.url)
        if far or not self.cache.head:
            last = checkpoints.newest(self.store)
            if last.number > self.cache.head:
                self.cache.forget(self.store.url)
                self.cache.restore(last.number, last.holds)


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


def _lost(entry: Entry, key: str) -> str:
    return (
        f"{key} was committed by ledger entry {entry.number}, but is neither published "
        "nor staged any more. Someone removed it; restore it from an older object "
        "version, or from the staging folder, and run again."
    )
