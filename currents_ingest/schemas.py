"""Writer schemas: what Braze wrote, by event type, version and fingerprint.

``schemas/<event type>/<NNN>.avsc`` holds every version we know. Two schemas are the
same version when their names, types, order and defaults agree; documentation and
other attributes do not count.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from fastavro.schema import (
    SchemaParseException,
    UnknownType,
    fingerprint,
    parse_schema,
    to_parsing_canonical_form,
)

from currents_ingest.errors import CorruptObjectError

Json = Any
"""A decoded Avro schema: foreign until it is a WriterSchema."""

PRIMITIVES = frozenset({"string", "int", "long", "float", "double", "boolean"})


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record: ``type`` is the plain type, without null."""

    name: str
    type: str
    """``string``, ``int``, ..., ``array``; ``complex`` for anything else."""
    nullable: bool
    schema: Json = field(hash=False, repr=False)
    """The Avro type as written, in canonical form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterSchema:
    """The schema in a file's header, read once."""

    name: str
    """Full name, such as ``dataexport.S3.inner.users.messages.email.Open``."""
    fields: tuple[Field, ...]
    fingerprint: str
    canonical: str = field(repr=False)
    """Parsing Canonical Form: enough to decode, nothing else."""

    @property
    def flat(self) -> bool:
        """True if Arrow can decode it: no records, maps, enums, bytes or unions."""
        return all(each.type != "complex" for each in self.fields)

    def is_of(self, event_type: str) -> bool:
        """Tell whether the record's name agrees with the key's event type.

        Source: every release of Braze's samples writes
        ``dataexport.S3.inner.<event type>``.
        """
        return self.name == event_type or self.name.endswith(f".{event_type}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaVersion:
    """One file of ``schemas/``."""

    event_type: str
    number: int
    currents_version: str | None
    first_seen: str | None
    """ISO date of Braze's sample or release that first had it."""
    writer: WriterSchema


def schemas_root() -> Path:
    """Return the folder of shipped schemas: in the wheel, or in a checkout."""
    packed = Path(__file__).parent / "_schemas"
    return packed if packed.is_dir() else Path(__file__).parents[1] / "schemas"


@lru_cache(maxsize=4096)
def parse(text: str | bytes) -> WriterSchema:
    """Read the schema of a file's header.

    Raises:
        CorruptObjectError: It is no JSON, no Avro schema or no record.
    """
    try:
        return read(json.loads(text))
    except CorruptObjectError:
        raise
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        SchemaParseException,
        UnknownType,
    ) as error:
        raise CorruptObjectError(
            f"the schema in the header is no Avro schema ({type(error).__name__})"
        ) from error


def read(schema: Json) -> WriterSchema:
    """Turn a decoded schema into a WriterSchema; raises as fastavro does."""
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise CorruptObjectError("the schema in the header is not that of a record")
    parse_schema(schema, _force=True, _write_hint=False)
    canonical = to_parsing_canonical_form(schema)
    form = json.loads(canonical)
    if _has_empty_items(form):
        raise CorruptObjectError(
            "the schema has an array of values that take no bytes, so its length "
            "could not be trusted"
        )
    return WriterSchema(
        name=form["name"],
        fields=tuple(_field(each) for each in form["fields"]),
        fingerprint=fingerprint(_with_defaults(schema, form), "CRC-64-AVRO"),
        canonical=canonical,
    )


@cache
def versions(event_type: str) -> tuple[SchemaVersion, ...]:
    """Return the shipped versions of an event type, oldest first; none if unknown."""
    folder = schemas_root() / event_type
    return tuple(map(_version, sorted(folder.glob("*.avsc"))))


def known() -> dict[str, tuple[SchemaVersion, ...]]:
    """Return every shipped version by event type."""
    folders = sorted(schemas_root().iterdir())
    return {folder.name: versions(folder.name) for folder in folders}


def _version(path: Path) -> SchemaVersion:
    schema = json.loads(path.read_text("utf-8"))
    return SchemaVersion(
        event_type=path.parent.name,
        number=int(path.stem),
        currents_version=schema.get("currents_version"),
        first_seen=schema.get("first_seen"),
        writer=read(schema),
    )


def _with_defaults(schema: Json, form: Json) -> str:
    """Return the canonical form with the record's defaults put back.

    Avro's own form drops them, but Braze gave 24 fields a default without another
    change, and such a version must be told from its predecessor.
    """
    fields = [
        each | ({"default": written["default"]} if "default" in written else {})
        for each, written in zip(form["fields"], schema["fields"], strict=True)
    ]
    return json.dumps(form | {"fields": fields}, separators=(",", ":"), sort_keys=True)


def _has_empty_items(form: Json) -> bool:
    """Find arrays of null or of records without fields, at any depth."""
    if isinstance(form, list):
        return any(map(_has_empty_items, form))
    if not isinstance(form, dict):
        return False
    if form.get("type") == "array" and _takes_no_bytes(form["items"]):
        return True
    return any(map(_has_empty_items, form.values()))


def _takes_no_bytes(kind: Json) -> bool:
    if not isinstance(kind, dict):
        return bool(kind == "null")
    if kind["type"] == "record":
        return all(_takes_no_bytes(each["type"]) for each in kind["fields"])
    return bool(kind["type"] == "null" or kind.get("size") == 0)


def _field(form: Json) -> Field:
    kind, nullable = _plain(form["type"])
    if isinstance(kind, dict) and kind.get("type") == "array":
        item, _ = _plain(kind["items"])
        plain = isinstance(item, str) and item in PRIMITIVES
        name = "array" if plain else "complex"
    else:
        name = kind if isinstance(kind, str) and kind in PRIMITIVES else "complex"
    return Field(form["name"], name, nullable, form["type"])


def _plain(kind: Json) -> tuple[Json, bool]:
    """Take null off a union of null and one type."""
    if isinstance(kind, list) and len(kind) == 2 and "null" in kind:
        return kind[1 - kind.index("null")], True
    return kind, kind == "null" or (isinstance(kind, list) and "null" in kind)
