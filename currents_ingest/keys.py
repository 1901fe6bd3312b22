"""The grammar of a Currents object key.

Three layouts are in use; all end alike and differ after ``date=``::

    dataexport.<cluster>.<type>.integration.<id>/event_type=<event type>/
        date=<YYYY-MM-DD-HH>/version=<n>/<environment>/<name>+<partition>+<offset>.avro
        date=<YYYY-MM-DD-HH>/<schema id>/<zone>/<name>+<partition>+<offset>.avro
    2017: dataexport.<type>.integration.<id>/...+<partition>+<offset, ten digits>.avro

Source: Braze docs, "Event delivery semantics" (both editions); file names of 2017 in
Braze's public samples. Braze says that naming may change, so only what the work needs
is required: the event type, the hour and the ending.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal
from urllib.parse import urlsplit

from currents_ingest.errors import ForeignKeyError

Layout = Literal["2017", "old", "new", "other"]
EVENT_TYPE = re.compile(r"(?!.{129})[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)*")
"""No more than 128 characters: it becomes a folder, which may have 255."""
_FILE = re.compile(r"(?P<stem>.+)\+(?P<partition>\d+)\+(?P<offset>\d+)\.avro")
_EMPTY = re.compile(r"(^|/)\.{0,2}/")
"""A segment that is empty, ``.`` or ``..``."""
_OLDEST = re.compile(r"dataexport\.[^.]+\.integration\.")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_EVENT_SEGMENT, _DATE_SEGMENT = "event_type=", "date="
_HOUR = "%Y-%m-%d-%H"


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentsKey:
    """What an object key tells us before we open the file."""

    key: str
    event_type: str
    hour: datetime
    """UTC hour in which Braze queued the events; not the events' own time."""
    partition: int
    offset: int
    layout: Layout = "other"
    schema_segment: str = ""
    """What follows the hour: ``version=12`` or a schema id; Braze moves it on with
    each change of the schema."""

    @property
    def release(self) -> str:
        """Return the Currents version without its ``v``; empty in older layouts."""
        new = self.layout == "new"
        return self.schema_segment.removeprefix("version=") if new else ""

    @property
    def order(self) -> tuple[datetime, int, int, str]:
        """Sort key: the order in which Braze wrote, as far as it can be known."""
        return self.hour, self.partition, self.offset, self.key


def parse(key: str) -> CurrentsKey:
    """Read a key relative to the source folder.

    Raises:
        ForeignKeyError: It is not a Currents file's; the message says why.
    """
    path, _, name = key.rpartition("/")
    if name in ("", ".", "..") or (path and _EMPTY.search(f"{path}/")):
        raise ForeignKeyError(
            "the key has an empty, '.' or '..' segment, so it is not read"
        )
    if _CONTROL.search(key):  # which no request of ours may ask for
        raise ForeignKeyError("the key has a control character, so it is not read")
    if not name.endswith(".avro"):
        raise ForeignKeyError("the name does not end in .avro")
    folder = _folder(path)
    file = _FILE.fullmatch(name)
    return CurrentsKey(
        key=key,
        event_type=folder.event_type,
        hour=folder.hour,
        partition=int(file["partition"]) if file else 0,
        offset=int(file["offset"]) if file else 0,
        layout=_layout(folder, name) if file else "other",
        schema_segment=folder.schema_segment,
    )


@dataclass(frozen=True, slots=True)
class _Folder:
    """What the segments before a file's name tell."""

    event_type: str
    hour: datetime
    schema_segment: str
    layout: Layout
    """As far as the file's name does not tell more."""


@lru_cache(4096)
def _folder(path: str) -> _Folder:
    segments = path.split("/")
    event_type = _value(segments, _EVENT_SEGMENT)
    if not EVENT_TYPE.fullmatch(event_type):
        raise ForeignKeyError("what follows event_type= is no event type")
    hour = _hour(_value(segments, _DATE_SEGMENT))
    at = next(n for n, one in enumerate(segments) if one.startswith(_DATE_SEGMENT))
    segment = segments[at + 1] if len(segments) > at + 1 else ""
    layout: Layout = "other"
    if len(segments) > at + 2:  # Braze writes two segments after the hour
        if re.fullmatch(r"version=\d+", segment):
            layout = "new"
        elif segment.isdecimal():
            layout = "old"
    return _Folder(event_type, hour, segment, layout)


def path_of(url: str) -> str:
    """Return a URL's or a path's segments as a key, for what it tells of the file."""
    parts = urlsplit(url)
    path = parts.path if len(parts.scheme) > 1 else url.replace("\\", "/")
    return "/".join(one for one in path.split("/") if one not in ("", ".", ".."))


def is_folder_marker(key: str, size: int) -> bool:
    """Tell the empty object that consoles leave for a folder from a file."""
    last = key.rstrip("/").rsplit("/", 1)[-1]
    return size == 0 and (key.endswith("/") or "." not in last or "=" in last)


def event_type_of(folder: str) -> str:
    """Return what follows ``event_type=`` in a folder's last segment, else ''."""
    last = folder.rstrip("/").rsplit("/", 1)[-1]
    return last.removeprefix(_EVENT_SEGMENT) if last.startswith(_EVENT_SEGMENT) else ""


def hour_prefix(folder: str, hour: datetime) -> str:
    """Return the key at which *hour* begins in an ``event_type=`` folder."""
    return f"{folder.rstrip('/')}/{_DATE_SEGMENT}{hour.strftime(_HOUR)}"


def _layout(folder: _Folder, name: str) -> Layout:
    return "2017" if folder.layout == "old" and _OLDEST.match(name) else folder.layout


def _value(segments: list[str], name: str) -> str:
    for segment in segments:
        if segment.startswith(name):
            return segment.removeprefix(name)
    raise ForeignKeyError(f"the key has no {name} segment")


def _hour(text: str) -> datetime:
    try:
        return datetime.strptime(text, _HOUR).replace(tzinfo=UTC)
    except ValueError:
        raise ForeignKeyError("what follows date= is no hour (YYYY-MM-DD-HH)") from None
