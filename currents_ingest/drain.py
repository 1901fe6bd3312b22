"""Take what a queue tells of; delete a message once the ledger holds its files.

A message only says where to look: what is new is still what the ledger does not hold.
So one that comes twice, late or never does no harm, and what a queue never told of is
found by the listing that reconciles.
"""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import chain
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from currents_ingest import discover, keys, notices
from currents_ingest.backends import QUEUE_BATCH, QUEUE_REQUESTS, Queue
from currents_ingest.errors import ChangedError, NotThereError, StoreError
from currents_ingest.store import StoredObject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from currents_ingest.config import Source
    from currents_ingest.discover import Found
    from currents_ingest.ledger import Ledger
    from currents_ingest.notices import Notice
    from currents_ingest.pipeline import Committed
    from currents_ingest.session import Session

log = structlog.get_logger()

Identity = tuple[str, str, int]
"""Key, ETag and size."""
HIDDEN = 300
"""Seconds after which others receive what a killed process had in hand; renewed while
it is in work."""
WAIT = 1
"""Seconds that a receive waits. With 0 SQS asks only some of its servers, so that an
empty answer would not mean an empty queue."""
ROUND = 10_000
"""Messages, or files in them, that are sorted by event type at a time."""


@dataclass(slots=True)
class _Message:
    """What is in hand; ended once no file is open."""

    handle: str
    open: dict[Identity, tuple[str, StoredObject]]
    """Files that the ledger does not hold, each with its event type."""


@dataclass(slots=True)
class Drain:
    """One poll's messages, from their receipt to their end."""

    queue: Queue
    source: Source
    ledger: Ledger
    stop: Callable[[], bool]
    pool: ThreadPoolExecutor
    stopped: bool = False
    """It was asked to stop before the queue was empty."""
    fates: Counter[str] = field(default_factory=Counter)
    """Messages by what became of them: done, foreign or unknown."""
    reasons: Counter[str] = field(default_factory=Counter)
    """What was in them beside new files of ours."""
    held: dict[str, _Message] = field(default_factory=dict)
    """By receipt handle."""
    left: list[str] = field(default_factory=list)
    """Handles of what earlier runs of this poll could not end."""
    _more: bool = True
    """The queue may hold others."""
    _taken: dict[str, Identity] = field(default_factory=dict)
    """Files in work by key; a key's other versions wait for the next poll."""

    def found(self) -> Iterator[Found]:
        """Yield pages of files that the ledger does not hold; two rounds at most.

        Called anew after another process's commit, it begins with what is in hand.

        Raises:
            StoreError: Nothing can be received.
        """
        self._taken.clear()
        yield from self._pages(self.held.values())
        while self._more and len(self.held) <= ROUND:
            yield from self._pages(self._round())

    def goes_on(self) -> bool:
        """Tell whether the next run has something to do; what this one left is left.

        Where a round's worth waits or was not given, the next poll sees further.
        """
        self.left += self.held
        self.held.clear()
        return self._more and len(self.left) < ROUND

    def settle(self, committed: Committed) -> Committed:
        """Delete the messages whose files are done; return what else was not read.

        A file that is gone or was written again has nothing to wait for: there is a
        message of its own about what lies there now.
        """
        done: set[Identity] = set()
        if entry := committed.entry:
            done |= {one.identity for batch in entry.batches for one in batch.inputs}
            done |= {one.identity for one in entry.set_aside}
        unread = []
        for key, error in committed.unread:
            gone = isinstance(error, NotThereError | ChangedError)
            if gone and key in self._taken:
                done.add(self._taken[key])
                self.reasons["gone or changed"] += 1
            else:
                unread.append((key, error))
        self._finish(done)
        return replace(committed, unread=tuple(unread))

    def hide(self, seconds: int) -> None:
        """Hide all that is in hand for so long from now on; 0 gives it back."""
        self._all([*self.left, *self.held], lambda some: self.queue.hide(some, seconds))

    def told(self) -> dict[str, int]:
        """Return messages by what became of them."""
        ended = {name: self.fates[name] for name in ("done", "foreign", "unknown")}
        return ended | {"returned": len(self.left) + len(self.held)}

    def _round(self) -> list[_Message]:
        """Receive until enough is in hand, or the queue is empty."""
        news: list[_Message] = []
        size, at_once = 0, 1
        while size < ROUND:
            if self.stop():
                self.stopped, self._more = True, False
                break
            asked = self.pool.map(lambda _: self._received(), range(at_once))
            wave = list(chain.from_iterable(asked))
            if not wave:
                self._more = False
                break
            at_once = QUEUE_REQUESTS
            made = [one for handle, body in wave if (one := self._sorted(handle, body))]
            ours = [one for one in made if one.open]
            self.held |= {one.handle: one for one in ours}
            self._delete([one.handle for one in made if not one.open])
            news += ours
            size += sum(len(one.open) for one in ours)
        return news

    def _received(self) -> list[tuple[str, str]]:
        return self.queue.receive(hidden=HIDDEN, wait=WAIT)

    def _sorted(self, handle: str, body: str) -> _Message | None:
        """Return a message with what is ours in it; None if nothing is understood."""
        told = notices.read(body)
        found = [one if isinstance(one, str) else self._file(one) for one in told]
        self.reasons.update(one for one in found if isinstance(one, str))
        if all(one == "not understood" for one in found):
            self.fates["unknown"] += 1
            return None
        files = [one for one in found if not isinstance(one, str)]
        self.fates["foreign"] += not files
        return _Message(handle, {_identity(one): (of, one) for of, one in files})

    def _file(self, notice: Notice) -> tuple[str, StoredObject] | str:
        """Return event type and file as a listing would; or why none would have it."""
        root = urlsplit(self.source.url)
        top = f"{root.path.strip('/')}/".lstrip("/")
        if notice.bucket != root.netloc:
            return "other bucket"
        key = notice.key.removeprefix(top)
        first, second, *_ = [*key.split("/"), "", ""]
        folder = second if first.startswith("dataexport.") else first
        event_type = keys.event_type_of(folder)
        inside = notice.key.startswith(top) and f"{folder}/" in key
        if not (event_type and inside):
            return "other folder"
        if not any(fnmatchcase(event_type, glob) for glob in self.source.events):
            return "other event type"
        return event_type, StoredObject(
            key=key, etag=notice.etag, size=notice.size, modified=notice.at
        )

    def _pages(self, messages: Iterable[_Message]) -> Iterator[Found]:
        """Hold messages against the ledger; end those with nothing new in them."""
        pages: dict[str, dict[str, StoredObject]] = {}
        for message in messages:
            for event_type, one in message.open.values():
                if one.key not in self._taken:
                    pages.setdefault(event_type, {}).setdefault(one.key, one)
        found, done = [], set[Identity]()
        for event_type, page in sorted(pages.items()):
            files = [one for _, one in sorted(page.items())]
            done |= {_identity(one) for one in files}
            if new := discover.found_in(self.ledger, event_type, files):
                fresh = {_identity(one.listed) for one in new.files}
                fresh |= {one.identity for one in new.foreign}
                done -= fresh
                self._taken |= {identity[0]: identity for identity in fresh}
                found.append(new)
        self._finish(done)
        yield from found

    def _finish(self, done: set[Identity]) -> None:
        """Close files; delete the messages that have no other."""
        if not done:
            return
        for identity in done:
            if self._taken.get(identity[0]) == identity:
                del self._taken[identity[0]]
        for message in self.held.values():
            for identity in [one for one in message.open if one in done]:
                del message.open[identity]
        ended = [handle for handle, one in self.held.items() if not one.open]
        for handle in ended:
            del self.held[handle]
        self.fates["done"] += len(ended)
        self._delete(ended)

    def _delete(self, handles: list[str]) -> None:
        if left := self._all(handles, self.queue.delete):
            log.warning("messages were not deleted; they come again", messages=left)

    def _all(self, handles: list[str], call: Callable[[list[str]], int]) -> int:
        """Call with ten at a time, many at once; return how many failed."""

        def told(some: list[str]) -> int:
            try:
                return call(some)
            except StoreError as error:  # they come again, and nothing is lost
                log.warning("the queue refused", told=error.told())
                return len(some)

        starts = range(0, len(handles), QUEUE_BATCH)
        return sum(self.pool.map(told, [handles[n : n + QUEUE_BATCH] for n in starts]))


@contextmanager
def draining(session: Session, stop: Callable[[], bool]) -> Iterator[Drain]:
    """Open the queue of the settings; give back what is in hand at the end."""
    source, ended = session.settings.source, threading.Event()
    with ThreadPoolExecutor(QUEUE_REQUESTS, thread_name_prefix="queue") as pool:
        drain = Drain(Queue.open(source.queue), source, session.ledger, stop, pool)

        def keep() -> None:
            while not ended.wait(HIDDEN / 3):
                drain.hide(HIDDEN)

        keeper = threading.Thread(target=keep, name="queue-keeper", daemon=True)
        keeper.start()
        try:
            yield drain
        finally:
            ended.set()
            keeper.join()
            drain.hide(0)
            _report(drain)


def _report(drain: Drain) -> None:
    log.info("queue drained", **drain.told(), beside=dict(drain.reasons))
    if unknown := drain.fates["unknown"]:
        log.warning("messages that are not S3's; left to the queue", messages=unknown)


def _identity(one: StoredObject) -> Identity:
    return one.key, one.etag, one.size
