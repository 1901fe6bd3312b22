"""The registry: the package's schemas and any number of folders of the user's own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from currents_ingest import keys, schemas
from currents_ingest.avro import read_head
from currents_ingest.errors import (
    AlreadyThereError,
    CorruptObjectError,
    ForeignKeyError,
    SettingsError,
    located,
)
from currents_ingest.places import place
from currents_ingest.schemas import Registry, SchemaVersion
from currents_ingest.store import Store

if TYPE_CHECKING:
    from datetime import date

    from currents_ingest.config import Schemas
    from currents_ingest.schemas import Json

_FILE = re.compile(r"(?P<event_type>[^/]+)/(?P<number>\d{1,9})\.avsc")
_RECORD_PREFIX = re.compile(r"dataexport\.[^.]+\.inner\.")
"""What Braze puts before the event type in a record's name; the middle is S3 in every
sample, whatever it is for other stores."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What became of a schema seen in the wild."""

    version: SchemaVersion
    written: str | None
    """URL of the new file; None if the schema was known."""


def open_registry(settings: Schemas) -> Registry:
    """Read the user's folders; the shipped schemas are read when they are asked for.

    A user's schema that is shipped, too, counts once; numbers go on after the shipped
    ones, in the order of the folders and their files.

    Raises:
        SettingsError: A file in a folder is no schema of its event type.
        StoreError: A folder cannot be reached.
    """
    found: dict[str, list[SchemaVersion]] = {}
    bare = Registry(shipped=settings.shipped)
    for version in (one for url in settings.urls for one in _read(url)):
        held = [*bare.versions(version.event_type), *found.get(version.event_type, ())]
        if version.writer.fingerprint not in {one.writer.fingerprint for one in held}:
            number = max(version.number, held[-1].number + 1 if held else 1)
            found.setdefault(version.event_type, []).append(
                schemas.renumbered(version, number)
            )
    own = {name: tuple(held) for name, held in found.items()}
    return Registry(own, settings.shipped)


def learn(registry: Registry, url: str, target: str | None, day: date) -> Learned:
    """Add the schema of a Currents file, or of an ``.avsc`` file, to a folder.

    Args:
        registry: What is known.
        url: The file.
        target: Folder to write to; None if the user has none.
        day: When it was first seen, where its key does not say.

    Raises:
        CorruptObjectError: The file holds no schema, or one of no event type.
        NotThereError: There is no such file.
        SettingsError: The schema is new and there is no folder.
    """
    with located(url):
        store, key = place(url)
        if key is None:
            raise CorruptObjectError("it is a folder; name one file")
        text = _schema_text(store.get(key))
        writer = schemas.parse(text)
        event_type = event_type_of(writer.name)
        if not keys.EVENT_TYPE.fullmatch(event_type):
            name = writer.name[:200]
            raise CorruptObjectError(f"its record's name {name} is no event type")
    for version in registry.versions(event_type):
        if version.writer.fingerprint == writer.fingerprint:
            return Learned(version, None)
    if target is None:
        problem = "schemas.urls names no folder of yours; set it, or say --to FOLDER"
        raise SettingsError((problem,))
    release, seen = _origin(f"{store.url}/{key}")
    held = registry.versions(event_type)
    schema = json.loads(text)
    body = schema_file(
        schema,
        schema.get("currents_version", release),
        schema.get("first_seen", seen or day.isoformat()),
    )
    folder = Store.open(target)
    for number in range(held[-1].number + 1 if held else 1, 10**9):
        name = f"{event_type}/{number:03}.avsc"
        try:
            folder.create(name, body)
        except AlreadyThereError:
            continue  # another one's, not in the registry yet
        version = schemas.version_of(event_type, number, body, folder.url)
        return Learned(version, f"{folder.url}/{name}")
    raise AlreadyThereError(target)


def event_type_of(record_name: str) -> str:
    """Return the event type that a record's name tells."""
    return _RECORD_PREFIX.sub("", record_name, count=1)


def _read(url: str) -> list[SchemaVersion]:
    store = Store.open(url)
    listed = sorted(one.key for page in store.listing() for one in page)
    matches = [match for match in map(_FILE.fullmatch, listed) if match]
    bodies = store.gather([match[0] for match in matches])
    found = []
    for match, body in zip(matches, bodies, strict=True):
        try:
            version = schemas.version_of(
                match["event_type"], int(match["number"]), body, store.url
            )
        except CorruptObjectError as error:
            problem = f"schemas.urls: {url}/{match[0]} is no schema: {error}"
            raise SettingsError((problem,)) from None
        found.append(version)
    return found


def _schema_text(body: bytes) -> bytes:
    if body.lstrip()[:1] == b"{":
        return body
    return read_head(body).text


def _origin(path: str) -> tuple[str | None, str | None]:
    """Return the Currents version and the queued day that a key tells."""
    try:
        key = keys.parse(keys.path_of(path))
    except ForeignKeyError:
        return None, None
    return key.release and f"v{key.release}", key.hour.date().isoformat()


def schema_file(schema: Json, release: str | None, seen: str | None) -> bytes:
    """Return a schema as it lies in a folder: a line a field, without documentation."""
    kept = {"name", "type", "default", "aliases"}
    fields = [
        {name: value for name, value in each.items() if name in kept}
        for each in schema["fields"]
    ]
    whole = {
        "type": "record",
        **{name: schema[name] for name in ("name", "namespace") if name in schema},
        "currents_version": release,
        "first_seen": seen,
    }
    head = json.dumps(whole, indent=2)[:-2]
    lines = ",\n".join(f"    {json.dumps(each)}" for each in fields)
    return f'{head},\n  "fields": [\n{lines}\n  ]\n}}\n'.encode()
