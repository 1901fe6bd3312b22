"""What we ask of a bucket; S3, GCS, Azure, folder and memory alike.

obstore does the work: one native client for all of them. Keys are relative to the URL
that the store was opened with.
"""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore import exceptions as oe
from obstore.store import LocalStore, MemoryStore, S3Store

from currents_ingest import repeating
from currents_ingest.backends import open_backend, pages_by_boto3
from currents_ingest.errors import (
    AlreadyThereError,
    ChangedError,
    CurrentsError,
    NotThereError,
    RefusedError,
    StoreError,
)
from currents_ingest.repeating import refused, repeated, worth_repeating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from obstore import GetOptions
    from obstore.store import ObjectStore

Buffer = bytes | obstore.Bytes
"""What was read; memoryview takes both."""
T = TypeVar("T")

_UNFINISHED = re.compile(r"#\d+$")
_PAGE = 1000
"""Keys a list request; S3's own limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """One line of a listing."""

    key: str
    etag: str
    size: int
    modified: datetime | None = None
    """None where the object comes from the ledger and not from a listing."""


class Store:
    """A folder of a bucket."""

    def __init__(self, url: str, store: ObjectStore, concurrency: int = 128) -> None:
        self.url = url.rstrip("/")
        self._store = store
        self._concurrency = concurrency
        self._sorted = not isinstance(store, LocalStore | MemoryStore)

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[str, int]]:
        """Cross to another process by URL; it opens the store with its own rights."""
        store = self._store
        url = str(store.prefix) if isinstance(store, LocalStore) else self.url
        return _opened, (url, self._concurrency)

    @staticmethod
    def open(url: str, *, concurrency: int = 128) -> Store:
        """Open a folder by URL or path; touches nothing yet.

        ``memory://name`` is one store per name within the process.

        Raises:
            StoreError: The URL cannot be understood.
            RefusedError: There are no credentials.
        """
        try:
            return Store(url, open_backend(url), concurrency)
        except (oe.BaseError, ValueError, OSError) as error:
            kind = RefusedError if refused(error) else StoreError
            raise kind("open", url, _first_line(error)) from error

    def listing(
        self, prefix: str = "", *, after: str = ""
    ) -> Iterator[list[StoredObject]]:
        """Yield pages of what lies below the folder *prefix*, in key order.

        Args:
            prefix: A folder, ``""`` for all.
            after: Only keys greater than this one; the store skips the others
                without listing them.
        """
        pages = self._pages(prefix, after)
        if self._sorted:
            yield from pages
        elif everything := sorted((one for p in pages for one in p), key=_key):
            yield from (
                everything[at : at + _PAGE] for at in range(0, len(everything), _PAGE)
            )

    def scan(self, prefix: str = "") -> Iterator[list[StoredObject]]:
        """Yield pages of what lies below a folder in the order the store has them.

        Unlike ``listing`` it never holds more than a page.
        """
        return self._pages(prefix, "")

    def folders(self, prefix: str = "") -> list[str]:
        """Return the folders directly below *prefix*, sorted, without ``/``."""
        listed = self._sync(
            "list", prefix, lambda: obstore.list_with_delimiter(self._store, prefix)
        )
        return sorted(listed["common_prefixes"])

    def get(self, key: str) -> bytes:
        """Read one object whole."""
        return self._sync(
            "read", key, lambda: bytes(obstore.get(self._store, key).bytes())
        )

    def read(self, objects: Sequence[StoredObject]) -> list[Buffer | CurrentsError]:
        """Read many objects at once, each exactly as it was listed.

        Returns:
            For each object its bytes, or what went wrong with it:
            NotThereError, ChangedError or StoreError.
        """

        def one(position: int) -> Buffer:
            listed = objects[position]
            options: GetOptions = {"if_match": listed.etag} if listed.etag else {}
            found = obstore.get(self._store, listed.key, options=options or None)
            if found.meta["size"] != listed.size:
                raise ChangedError(listed.key)
            body = found.bytes()
            if len(body) != listed.size:
                raise OSError(f"{len(body)} of {listed.size} bytes came")
            return body

        return self._many([listed.key for listed in objects], one)

    def heads(
        self, objects: Sequence[StoredObject], size: int
    ) -> list[bytes | CurrentsError]:
        """Read the first bytes of many objects at once, as they are now.

        Args:
            objects: Not empty ones, as listed.
            size: How many bytes of each, fewer where there are fewer.
        """

        def one(position: int) -> bytes:
            listed = objects[position]
            end = min(size, listed.size)
            return bytes(obstore.get_range(self._store, listed.key, start=0, end=end))

        return self._many([listed.key for listed in objects], one)

    def gather(self, keys: Sequence[str]) -> list[bytes]:
        """Read many objects at once; raises for the first that cannot be read."""
        return list(map(_raising, self._gather(keys)))

    def find(self, keys: Sequence[str]) -> list[bytes | None]:
        """Read many objects at once; None for those that are not there."""
        return [
            None if isinstance(one, NotThereError) else _raising(one)
            for one in self._gather(keys)
        ]

    def _gather(self, keys: Sequence[str]) -> list[bytes | CurrentsError]:
        def one(position: int) -> bytes:
            return bytes(obstore.get(self._store, keys[position]).bytes())

        return self._many(keys, one)

    def put(self, key: str, body: bytes) -> None:
        """Write an object, replacing what was there."""
        self._sync("write", key, lambda: obstore.put(self._store, key, body))

    def create(self, key: str, body: bytes) -> None:
        """Write an object that must be new.

        A request that was repeated after it had succeeded is told from a rival's
        by what the object holds.

        Raises:
            AlreadyThereError: Another body lies there.
        """
        try:
            self._sync(
                "create",
                key,
                lambda: obstore.put(self._store, key, body, mode="create"),
            )
        except AlreadyThereError:
            if self.get(key) != body:
                raise

    def copy(self, source: str, target: str) -> None:
        """Copy an object that never changes, on the server's side."""
        self._sync("copy", source, lambda: self._copy(source, target))

    def copy_many(self, pairs: Sequence[tuple[str, str]]) -> list[CurrentsError | None]:
        """Copy objects at once; say what went wrong with each."""
        sources = [source for source, _ in pairs]
        return self._many(sources, lambda at: self._copy(*pairs[at]), "copy")

    def _copy(self, source: str, target: str) -> None:
        """Link in a folder, which leaves nothing behind if we are killed meanwhile."""
        if isinstance(self._store, LocalStore):
            root = Path(self._store.prefix or "")
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            try:
                return os.link(root / source, root / target)
            except FileExistsError:
                return None  # someone else has just linked the same
            except PermissionError:
                pass  # a file system without links
        return obstore.copy(self._store, source, target)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; one that is not there is no error."""
        wanted = list(keys)
        for at in range(0, len(wanted), _PAGE):
            self._delete(wanted[at : at + _PAGE])

    def _delete(self, keys: list[str]) -> None:
        remove = partial(obstore.delete, self._store, keys)
        try:
            self._sync("delete", keys[0], remove)
        except NotThereError:  # says nothing of the others
            half = len(keys) // 2
            if half:
                self._delete(keys[:half])
                self._delete(keys[half:])

    def remove_unfinished(self, prefix: str) -> None:
        """Remove what killed processes left of writes to a folder's files.

        Only for who is alone: a write in progress looks the same. Object stores have
        no such leftovers, and no listing shows them.
        """
        if isinstance(self._store, LocalStore):
            for path in Path(self._store.prefix or "", prefix).rglob("*#*"):
                if _UNFINISHED.search(path.name):
                    path.unlink(missing_ok=True)

    def stat(self, key: str) -> StoredObject | None:
        """Return what a listing would say of one object."""
        try:
            meta = self._sync("look at", key, lambda: obstore.head(self._store, key))
        except NotThereError:
            return None
        return _listed(meta)

    def _pages(self, prefix: str, after: str) -> Iterator[list[StoredObject]]:
        """List in pages; one that breaks off is taken up after its last key."""
        last, failures = after, 0
        while True:
            try:
                for page in obstore.list(
                    self._store, prefix or None, offset=last or None, chunk_size=_PAGE
                ):
                    found = [_listed(meta) for meta in page]
                    yield found
                    last, failures = found[-1].key if found else last, 0
            except oe.InvalidPathError:
                yield from self._pages_of_odd_keys(prefix, last)
            except (oe.BaseError, OSError) as error:
                failures += 1
                if not self._sorted or not worth_repeating(error):
                    raise self._error("list", prefix, error) from error
                if failures == repeating.ATTEMPTS:
                    raise self._error("list", prefix, error) from error
                time.sleep(0.1 * 2**failures)
                continue
            return

    def _pages_of_odd_keys(
        self, prefix: str, after: str
    ) -> Iterator[list[StoredObject]]:
        """List with boto3: obstore stops at keys such as ``a//b`` or ``a/../b``."""
        if not isinstance(self._store, S3Store):
            cause = "a name in it is no valid object key"
            raise StoreError("list", f"{self.url}/{prefix}", cause)
        for page in pages_by_boto3(self.url, prefix, after):
            yield [StoredObject(**one) for one in page]

    def _many(
        self, keys: Sequence[str], call: Callable[[int], T], action: str = "read"
    ) -> list[T | CurrentsError]:
        """Call for each position of *keys*, so many at a time."""
        found: list[Any] = [None] * len(keys)
        positions = iter(range(len(keys)))

        def work() -> None:
            for position in positions:
                try:
                    found[position] = repeated(partial(call, position))
                except CurrentsError as error:
                    found[position] = error
                except (oe.BaseError, OSError) as error:
                    found[position] = self._error(action, keys[position], error)

        pool = _pool(self._concurrency)
        workers = min(self._concurrency, len(keys))
        for one in [pool.submit(work) for _ in range(workers)]:
            one.result()
        return found

    def _sync(self, action: str, key: str, call: Callable[[], T]) -> T:
        try:
            return repeated(call)
        except (oe.BaseError, OSError) as error:
            raise self._error(action, key, error) from error

    def _error(self, action: str, key: str, error: Exception) -> CurrentsError:
        if isinstance(error, FileNotFoundError | oe.NotFoundError):
            return NotThereError(key)
        if isinstance(error, oe.AlreadyExistsError):
            return AlreadyThereError(key)
        if isinstance(error, oe.PreconditionError):
            return ChangedError(key)
        kind = RefusedError if refused(error) else StoreError
        return kind(action, f"{self.url}/{key}", _first_line(error))


@cache
def _opened(url: str, concurrency: int) -> Store:
    return Store.open(url, concurrency=concurrency)


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    """Return threads that all stores share: requests in flight are theirs together.

    A thread that waits for obstore costs less than half of what a coroutine does,
    whose every answer has to wake the event loop.
    """
    return ThreadPoolExecutor(size, thread_name_prefix="request")


def _listed(meta: Any) -> StoredObject:
    return StoredObject(
        key=meta["path"],
        etag=meta["e_tag"] or "",
        size=meta["size"],
        modified=meta["last_modified"],
    )


def _key(listed: StoredObject) -> str:
    return listed.key


def _raising(found: T | CurrentsError) -> T:
    if isinstance(found, CurrentsError):
        raise found
    return found


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
