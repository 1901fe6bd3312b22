"""The files of a simulated tree: their keys, their bytes, and how they break."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from random import Random
from typing import TYPE_CHECKING, Literal

from currents_ingest import schemas
from currents_ingest.simulate_values import encode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from currents_ingest.schemas import SchemaVersion

Layout = Literal["2017", "old", "new"]

ROOT = "currents/"
"""The connector's folder path; Braze's default."""
_KEY = (
    ROOT + "{stem}/event_type={event_type}/date={hour:%Y-%m-%d-%H}/{middle}/"
    "{stem}+{partition}+{offset}.avro"
)
_CLUSTER = "dataexport.prod-01.S3.integration.{integration}"
LAYOUTS: dict[Layout, tuple[str, str, str]] = {
    "2017": ("dataexport.S3.integration.{integration}", "{schema_id}/a", "{:010}"),
    "old": (_CLUSTER, "{schema_id}/a", "{}"),
    "new": (_CLUSTER, "version={release}/us-01", "{}"),
}
"""Folder name, what follows the date, and the offset's form; oldest layout first."""
_RELEASE = 12
"""The newest Currents version that the schemas know."""
_FIRST_RELEASE_IN_KEY = 6
"""Oldest release seen in the new layout. Source: Braze docs, delivery semantics."""

_HEADER = {"type": "map", "values": "bytes"}
_SYNC = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file to write."""

    version: SchemaVersion
    hour: datetime
    layout: Layout
    rows: int
    tests: int = 0
    """How many of the rows, from the first, are Braze's test events."""
    partition: int
    offset: int


def key(file: File, integration: str) -> str:
    """Return the key below the simulation's URL; *integration* is the connector."""
    stem, middle, offset = LAYOUTS[file.layout]
    version = file.version
    return _KEY.format(
        stem=stem.format(integration=integration),
        event_type=version.event_type,
        hour=file.hour,
        middle=middle.format(schema_id=_schema_id(version), release=_release(version)),
        partition=file.partition,
        offset=offset.format(file.offset),
    )


def _schema_id(version: SchemaVersion) -> int:
    """Return a number that counts over all event types, as Braze's did."""
    return _schemas_before()[version.event_type] + version.number


@cache
def _schemas_before() -> dict[str, int]:
    before: dict[str, int] = {}
    count = 0
    for event_type, versions in schemas.known().items():
        before[event_type] = count
        count += len(versions)
    return before


def _release(version: SchemaVersion) -> int:
    if version is schemas.known()[version.event_type][-1]:
        return _RELEASE  # unchanged since, and still written under the newest
    stated = int((version.currents_version or "v0").removeprefix("v"))
    return max(stated, _FIRST_RELEASE_IN_KEY)


@dataclass(frozen=True, slots=True)
class Container:
    """An Avro file in the parts in which it can break."""

    header: bytes
    blocks: tuple[bytes, ...]

    def joined(self) -> bytes:
        """Return the whole file."""
        return self.header + b"".join(self.blocks)


def container(
    version: SchemaVersion, rows: Sequence[bytes], per_block: int, rng: Random
) -> Container:
    """Put encoded rows into blocks. Like Braze, name no codec in the header."""
    sync = rng.randbytes(_SYNC)
    metadata = {"avro.schema": _written_schema(version)}
    return Container(
        b"Obj\x01" + encode(_HEADER, metadata) + sync,
        tuple(
            _block(len(part), b"".join(part), sync)
            for at in range(0, len(rows), per_block)
            if (part := rows[at : at + per_block])
        ),
    )


def _block(count: int, content: bytes, sync: bytes) -> bytes:
    return encode("long", count) + encode("long", len(content)) + content + sync


@lru_cache(128)
def _written_schema(version: SchemaVersion) -> bytes:
    """Return the header's schema text, with documentation as Braze's has."""
    path = schemas.schemas_root() / version.event_type / f"{version.number:03}.avsc"
    schema = json.loads(path.read_text("utf-8"))
    for ours in ("currents_version", "first_seen"):
        schema.pop(ours, None)
    for field in schema["fields"]:
        field["doc"] = f"The {field['name'].replace('_', ' ')} of the event"
    schema["doc"] = f"Made-up events of the type {version.event_type}"
    return json.dumps(schema, separators=(",", ":")).encode()


def _cut_header(whole: Container, rng: Random) -> bytes:
    return whole.header[: rng.randrange(1, len(whole.header))]


def _cut_block(whole: Container, rng: Random) -> bytes:
    """Cut inside a block; between two blocks nobody could see it."""
    *before, last = whole.blocks[: rng.randint(1, len(whole.blocks))]
    return whole.header + b"".join(before) + last[: rng.randrange(1, len(last))]


def _wrong_marker(whole: Container, _rng: Random) -> bytes:
    body = whole.joined()
    return body[:-_SYNC] + bytes(byte ^ 0xFF for byte in body[-_SYNC:])


def _absurd_count(whole: Container, _rng: Random) -> bytes:
    return whole.joined() + _block(2**40, bytes(40), whole.header[-_SYNC:])


Spoil = Callable[[Container, Random], bytes]

TORN: dict[str, Spoil] = {
    "empty": lambda _whole, _rng: b"",
    "header": _cut_header,
    "block": _cut_block,
    "rowless": lambda whole, _rng: whole.header,
    "marker": _wrong_marker,
    "count": _absurd_count,
}
"""How a file breaks, by the word that ``expected.json`` has for it."""
ENDINGS = {"ending": ".txt"}
FOREIGN: dict[str, Spoil] = {
    "text": lambda _whole, _rng: b"This is no Avro file.\n",
    "ending": lambda _whole, _rng: b"Put here by hand.\n",
    "record": lambda whole, _rng: whole.joined(),
}
"""What else lies there: text named .avro, another ending, and a whole file whose
record is another event type's than its key (the caller gives such a one)."""
