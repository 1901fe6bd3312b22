"""What a URL or path that a person names stands for: a folder, or one object."""

from __future__ import annotations

from urllib.parse import urlsplit

from currents_ingest.backends import local_path
from currents_ingest.errors import NotThereError
from currents_ingest.store import Store


def place(url: str, *, concurrency: int = 128) -> tuple[Store, str | None]:
    """Open what a URL or path names: a folder, or an object in one.

    Returns:
        The folder, and the object's key in it or None.

    Raises:
        NotThereError: There is no such path. An empty folder of a bucket cannot be
            told from one that is not there, so that is none.
        StoreError: The URL cannot be understood or reached.
    """
    if (path := local_path(url)) is not None:
        if not path.exists():
            raise NotThereError(str(path))
        if path.is_dir():
            return Store.open(str(path), concurrency=concurrency), None
        return Store.open(str(path.parent), concurrency=concurrency), path.name
    above, _, name = url.rstrip("/").rpartition("/")
    if not urlsplit(above).netloc or url.endswith("/"):  # a whole bucket, or a folder
        return Store.open(url, concurrency=concurrency), None
    store = Store.open(above, concurrency=concurrency)
    if store.stat(name):
        return store, name
    return Store.open(url, concurrency=concurrency), None
