"""Read any export: one object or a folder of parts, from wherever fsspec reaches.

``find`` says which objects are one complete delivery, ``read`` gives their rows. It is
the only module here that knows fsspec. Credentials come the backends' usual way, or
from the URL, of which they are then hidden.
"""

from __future__ import annotations

import re
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from fsspec import get_filesystem_class  # type: ignore[import-untyped]
from fsspec.core import has_magic, url_to_fs  # type: ignore[import-untyped]

from currents_ingest.audiences.completeness import markers_of, refuse_incomplete
from currents_ingest.audiences.decoder import Decoder
from currents_ingest.audiences.deliveries import Delivery, Part, newest_write
from currents_ingest.audiences.remote import RemoteFile, shown, told
from currents_ingest.audiences.shapes import ROW, BadRow, Chunk, Dialect
from currents_ingest.audiences.tables import Reading, chunks, json_schema
from currents_ingest.audiences.unpacking import Budget, members
from currents_ingest.errors import ExportError, ExportNotReadyError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from fsspec import AbstractFileSystem

    from currents_ingest.audiences.unpacking import Member

__all__ = [
    "ROW",
    "BadRow",
    "Chunk",
    "Delivery",
    "Dialect",
    "Part",
    "find",
    "read",
]

_TIMES = ("LastModified", "mtime", "last_modified", "modified", "created")
_WEB = ("http:", "https:")
"""Where a folder is a page, and no listing."""
_ETAGS = ("ETag", "etag", "md5Hash")


def find(
    url: str,
    *,
    settle: timedelta,
    now: datetime,
    done: Literal["auto", "required"] = "auto",
) -> Delivery:
    """Return the newest complete delivery at *url*.

    Args:
        url: A path or fsspec URL of one object, a folder or a pattern.
        settle: How old every part must be where no ``.DONE`` marker says that the
            delivery is complete; a longer pause also parts one delivery from the next.
        now: The time it is.
        done: ``required`` where only a marker counts.

    Raises:
        ExportNotReadyError: There is no part yet, or it is still being written.
        ExportError: Two deliveries cannot be told apart, or the place not be reached.
    """
    where = shown(url)
    with told(where), _opened(url) as (files, path):
        parts, root = _parts(files, path, where)
        if not parts:
            raise ExportNotReadyError(where, "there is no export yet")
        kept = newest_write(where, parts, root, settle)
        refuse_incomplete(
            where,
            kept,
            _markers(files, kept),
            settle=None if done == "required" else settle,
            now=now,
        )
    return Delivery(url=where, parts=kept, address=url)


def read(
    delivery: Delivery, dialect: Dialect, *, max_unpacked: int, rows: int = 100_000
) -> Iterator[Chunk]:
    """Yield a delivery's rows, part after part, in bounded memory.

    Args:
        delivery: As it was found.
        dialect: What is known of its files.
        max_unpacked: Bytes that all parts together may unpack to.
        rows: The most in one chunk.

    Raises:
        ExportNotReadyError: A part has changed since it was found.
        ExportError: A part cannot be read, or more comes out than may.
    """
    with _opened(delivery.address or delivery.url) as (files, _):
        with closing(_members(files, delivery, Budget(max_unpacked))) as first:
            schema = json_schema(first, dialect)
        with closing(Decoder()) as decoder:
            reading = Reading(
                dialect=dialect, rows=rows, schema=schema, decoder=decoder
            )
            for member in _members(files, delivery, Budget(max_unpacked)):
                yield from chunks(member, reading)


def _members(
    files: AbstractFileSystem, delivery: Delivery, budget: Budget
) -> Generator[Member]:
    """Yield what all parts hold, each part unchanged from before to after."""
    for part in delivery.parts:
        name = _relative(part, delivery)
        _refuse_changed(files, part, name)
        with closing(RemoteFile(files, part, name)) as file:
            for member in members(name, file, budget):
                if not _is_hidden(member.name.partition("!")[2]):
                    yield member
        _refuse_changed(files, part, name)


def _relative(part: Part, delivery: Delivery) -> str:
    """Name a part; all of a delivery lie in one folder, unless it was put together."""
    folders = {one.key.rpartition("/")[0] for one in delivery.parts}
    folder = folders.pop() if len(folders) == 1 else ""
    return part.key.removeprefix(folder + "/")


@contextmanager
def _opened(url: str) -> Iterator[tuple[AbstractFileSystem, str]]:
    """Give the file system and the path in it; closes what it connected."""
    is_sftp = url.startswith(("sftp://", "ssh://"))
    with told(shown(url)):
        files, path = (
            _sftp(url) if is_sftp else url_to_fs(url, skip_instance_cache=True)
        )
    try:
        yield files, path
    finally:
        if is_sftp:
            files.client.close()


def _sftp(url: str) -> tuple[AbstractFileSystem, str]:
    """Connect as fsspec does, but leave nothing open where the login is refused.

    User and password may be percent-encoded.
    """
    kind = get_filesystem_class("sftp")

    class Closing(kind):  # type: ignore[misc, valid-type]
        def _connect(self) -> None:
            try:
                super()._connect()
            except BaseException:
                self.client.close()
                raise

    said = urlsplit(url)
    login = {"username": said.username, "password": said.password}
    given = {name: unquote(value) for name, value in login.items() if value}
    host, port = said.hostname or "", said.port or 22
    return Closing(host, port=port, skip_instance_cache=True, **given), said.path


def _parts(files: AbstractFileSystem, path: str, where: str) -> tuple[list[Part], str]:
    """List the data objects at a path, and what their keys have in common."""
    try:
        info = files.info(path)
    except FileNotFoundError:
        info = {}
    inside = _below(files, path)
    if info.get("type") == "file" and (info["size"] or not inside):
        if inside:
            raise ExportError(
                where, "is an object and a folder as well; remove the older of the two"
            )
        return [_part(info)], info["name"]
    if not info and not inside and has_magic(path):
        found = files.glob(path, detail=True).values()
        root = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
        listed = [_part(one) for one in found if one["type"] == "file"]
    else:
        root, listed = path.rstrip("/"), inside
    data = [
        one for one in listed if one.size and not _is_hidden(one.key.removeprefix(root))
    ]
    if any("=" in folder for one in data for folder in _folders(one.key, root)):
        raise ExportError(
            where,
            "holds partition folders (name=value), whose columns are not read; export "
            "without partitions",
        )
    return data, root


def _below(files: AbstractFileSystem, path: str) -> list[Part]:
    folder = path.rstrip("/") + "/"
    if has_magic(path) or folder.startswith(_WEB):
        return []
    try:
        found = files.find(folder, detail=True).values()
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [_part(one) for one in found if one["name"].startswith(folder)]


def _folders(key: str, root: str) -> list[str]:
    return key.removeprefix(root).split("/")[:-1]


def _is_hidden(relative: str) -> bool:
    """Tell markers and what Spark hides: names that begin with a dot or underscore."""
    names = relative.split("/")
    return _is_marker(relative) or any(
        name.startswith((".", "_")) and name not in {".", ".."} for name in names
    )


def _is_marker(key: str) -> bool:
    return key.upper().endswith(".DONE")


def _markers(files: AbstractFileSystem, parts: Sequence[Part]) -> list[Part]:
    folder = parts[0].key.rpartition("/")[0]
    listed = [*_listed(files, folder), *_listed(files, folder.rpartition("/")[0])]
    objects = [one for one in listed if not _is_marker(one.key)]
    markers = [one for one in listed if _is_marker(one.key)]
    return markers_of(parts, objects, markers)


def _listed(files: AbstractFileSystem, folder: str) -> list[Part]:
    if not folder or folder.startswith(_WEB):
        return []
    try:
        found = files.ls(folder, detail=True)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return [_part(one) for one in found if one["type"] == "file"]


def _part(info: dict[str, Any]) -> Part:
    modified = _time(next((info[name] for name in _TIMES if info.get(name)), None))
    etag = next((str(info[name]) for name in _ETAGS if info.get(name)), "")
    size = int(info.get("size") or 0)
    return Part(
        key=shown(info["name"]),
        size=size,
        etag=etag or f"{modified and modified.isoformat()}+{size}",
        modified=modified,
        path=info["name"],
    )


def _time(said: object) -> datetime | None:
    if isinstance(said, int | float):
        return datetime.fromtimestamp(said, UTC)
    if isinstance(said, datetime):
        return said if said.tzinfo else said.replace(tzinfo=UTC)
    return None


def _refuse_changed(files: AbstractFileSystem, part: Part, name: str) -> None:
    with told(name):
        files.invalidate_cache()
        now = _part(files.info(part.path or part.key))
    if (now.etag, now.size) != (part.etag, part.size):
        raise ExportNotReadyError(name, "has been written again since it was found")
