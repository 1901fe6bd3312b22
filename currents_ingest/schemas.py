"""Writer schemas: what Braze wrote, by event type, version and fingerprint.

``schemas/<event type>/<NNN>.avsc`` holds every version we know. Two schemas are the
same version when their names, types, order and defaults agree; documentation and
other attributes do not count.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastavro.schema import (
    SchemaParseException,
    UnknownType,
    fingerprint,
    parse_schema,
    to_parsing_canonical_form,
)

from currents_ingest.errors import CorruptObjectError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import date

Json = Any
"""A decoded Avro schema: foreign until it is a WriterSchema."""

SHIPPED = "shipped"
FEEDS, BRAZE = "feeds", "braze"
"""Folder of contracts among those of event types."""
_LONGEST_NAME = 255
_NO_BYTES = (
    "the schema has a type whose values take no bytes, outside a union: nothing would "
    "tell how many there are"
)
_COMMON_SIZE = 1 << 16
"""Bytes of schema text up to which it is kept parsed; Braze's largest has 4,000."""
PRIMITIVES = frozenset({"string", "int", "long", "float", "double", "boolean"})


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record: ``type`` is the plain type, without null."""

    name: str
    type: str
    """``string``, ``int``, ..., ``array``; ``complex`` for anything else, a union of
    one type among it."""
    nullable: bool
    schema: Json = field(hash=False, repr=False)
    """The Avro type as written, in canonical form."""
    default: str | None = None
    """Its default as JSON; None if it has none."""

    @property
    def plain(self) -> str:
        """Return the type without null, with what an array holds and all else."""
        kind, _ = _plain(self.schema)
        return kind if isinstance(kind, str) else json.dumps(kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterSchema:
    """The schema in a file's header, read once."""

    name: str
    """Full name, such as ``dataexport.S3.inner.users.messages.email.Open``."""
    fields: tuple[Field, ...]
    canonical: str = field(repr=False)
    """Parsing Canonical Form: enough to decode, nothing else."""
    text: str = field(repr=False)
    """The same with the record's defaults: two schemas with one are the same."""
    form: Json = field(hash=False, compare=False, repr=False)
    """The schema with full names and with defaults, for schema resolution."""

    @property
    def fingerprint(self) -> str:
        """Return the Rabin fingerprint of the text: what it is called elsewhere."""
        return _fingerprint(self.text)

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
    origin: str = SHIPPED
    """``shipped``, or the folder of the user's own that has it."""

    def since(self) -> str:
        """Return the Currents version that brought it, or the day it was seen."""
        return self.currents_version or self.first_seen or "?"


@dataclass(frozen=True, slots=True)
class Registry:
    """Every writer schema that is known here: the package's own and the user's."""

    own: Mapping[str, tuple[SchemaVersion, ...]] = field(default_factory=dict)
    """The user's, by event type; numbers go on after the shipped ones."""
    shipped: bool = True
    """The package's own count, too."""

    def event_types(self) -> tuple[str, ...]:
        """Return all event types, sorted."""
        return tuple(sorted({*self.own, *(_shipped() if self.shipped else ())}))

    def versions(self, event_type: str) -> tuple[SchemaVersion, ...]:
        """Return an event type's versions, oldest first; none if it is unknown."""
        shipped = versions(event_type) if self.shipped else ()
        return shipped + self.own.get(event_type, ())

    def writers(self, event_type: str) -> list[WriterSchema]:
        """Return the schemas alone."""
        return [version.writer for version in self.versions(event_type)]

    def version(self, event_type: str, fingerprint: str) -> SchemaVersion | None:
        """Return the version of an event type that has a fingerprint."""
        held = self.versions(event_type)
        return _last_that(held, lambda one: one.writer.fingerprint == fingerprint)

    def find(self, fingerprint: str) -> tuple[SchemaVersion, ...]:
        """Return the versions that have a fingerprint (of one event type, usually)."""
        return tuple(
            version
            for event_type in self.event_types()
            for version in self.versions(event_type)
            if version.writer.fingerprint == fingerprint.lower()
        )

    def of_release(self, event_type: str, release: int) -> SchemaVersion | None:
        """Return the version in force in a Currents release, None if it is older."""
        return _last_that(
            self.versions(event_type),
            lambda one: _release(one.currents_version) <= release,
        )

    def on(self, event_type: str, day: date) -> SchemaVersion | None:
        """Return the version in force on a day, as far as samples tell."""
        return _last_that(
            self.versions(event_type),
            lambda one: (one.first_seen or "") <= day.isoformat(),
        )


def _last_that(
    versions: tuple[SchemaVersion, ...], holds: Callable[[SchemaVersion], bool]
) -> SchemaVersion | None:
    return next((one for one in reversed(versions) if holds(one)), None)


def _release(text: str | None) -> int:
    """Return 12 for ``v12``; what came before releases were numbered is 0."""
    return int((text or "v0").removeprefix("v"))


def schemas_root() -> Path:
    """Return the folder of shipped schemas: in the wheel, or in a checkout."""
    packed = Path(__file__).parent / "_schemas"
    return packed if packed.is_dir() else Path(__file__).parents[1] / "schemas"


def parse(text: str | bytes) -> WriterSchema:
    """Read the schema of a file's header.

    Raises:
        CorruptObjectError: It is no JSON, no Avro schema or no record; or one that
            no decoder could be trusted with.
    """
    return (_parse if len(text) <= _COMMON_SIZE else _parse.__wrapped__)(text)


@lru_cache(maxsize=1024)
def _parse(text: str | bytes) -> WriterSchema:
    try:
        schema = read(json.loads(text))
        _check(json.loads(schema.canonical))
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
    return schema


def read(schema: Json) -> WriterSchema:
    """Turn a decoded schema into a WriterSchema; raises as fastavro does."""
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise CorruptObjectError("the schema in the header is not that of a record")
    parsed = parse_schema(schema, _force=True, _write_hint=False)
    canonical = to_parsing_canonical_form(schema)
    form = json.loads(canonical.encode())  # escapes may stand for what is no text
    text = _with_defaults(schema, form)
    return WriterSchema(
        name=form["name"],
        fields=tuple(map(_field, form["fields"], schema["fields"])),
        canonical=canonical,
        text=text,
        form=parsed,
    )


@lru_cache(maxsize=1024)
def _fingerprint(text: str) -> str:
    """Take the fingerprint when it is asked for: it costs more than all the reading."""
    return fingerprint(text, "CRC-64-AVRO")


@lru_cache(1024)
def versions(event_type: str) -> tuple[SchemaVersion, ...]:
    """Return the shipped versions of an event type, oldest first; none if unknown."""
    if event_type not in _shipped():  # it may be a stranger's word, and no path
        return ()
    folder = schemas_root() / event_type
    return tuple(map(_version, sorted(folder.glob("*.avsc"))))


@cache
def _shipped() -> frozenset[str]:
    return frozenset(path.name for path in schemas_root().iterdir()) - {FEEDS, BRAZE}


@cache
def known() -> dict[str, tuple[SchemaVersion, ...]]:
    """Return every shipped version by event type."""
    return {name: versions(name) for name in sorted(_shipped())}


def _version(path: Path) -> SchemaVersion:
    return version_of(path.parent.name, int(path.stem), path.read_bytes(), SHIPPED)


def version_of(event_type: str, number: int, body: bytes, origin: str) -> SchemaVersion:
    """Read one file of a schema folder.

    Raises:
        CorruptObjectError: It holds no schema of the event type.
    """
    writer = parse(body)
    if not writer.is_of(event_type):
        raise CorruptObjectError(f"its record is named {writer.name[:200]}")
    about = json.loads(body)
    return SchemaVersion(
        event_type=event_type,
        number=number,
        currents_version=about.get("currents_version"),
        first_seen=about.get("first_seen"),
        writer=writer,
        origin=origin,
    )


def renumbered(version: SchemaVersion, number: int) -> SchemaVersion:
    """Return a version under another number."""
    return replace(version, number=number)


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


def _check(form: Json) -> None:
    """Refuse what the specification forbids or no decoder could be trusted with."""
    names = [each["name"] for each in form["fields"]]
    if any(re.fullmatch(r"\^.*\$|\*", name, re.DOTALL) for name in names):
        raise CorruptObjectError(
            "a field's name is * or begins with ^ and ends with $, which no Avro name "
            "does, and would be taken for a pattern"
        )
    if len(set(names)) < len(names):
        raise CorruptObjectError("the schema has two fields of the same name")
    if max(map(len, (*names, form["name"])), default=0) > _LONGEST_NAME:
        raise CorruptObjectError(
            f"the schema has a name of more than {_LONGEST_NAME} characters"
        )
    _takes_no_bytes(form, frozenset(), set())


def _takes_no_bytes(kind: Json, inside: frozenset[str], empty: set[str]) -> bool:
    """Tell whether a type's values take no bytes, so that any number fits a file.

    Args:
        kind: A type with full names.
        inside: Names of the types that it stands in.
        empty: Names of such types defined before it; those inside it are added.

    Raises:
        CorruptObjectError: One inside it does and is no branch of a union; or one
            holds itself, whose values fastavro reads until its stack overflows.
    """
    if isinstance(kind, list):  # a branch's number takes a byte
        for branch in kind:
            _takes_no_bytes(branch, inside, empty)
        return False
    if isinstance(kind, str):
        if kind in inside:
            raise CorruptObjectError(
                "the schema has a type that holds itself, which no event needs, and "
                "whose values could be nested without end"
            )
        return kind == "null" or kind in empty
    name = kind.get("name", "")
    inner = [each["type"] for each in kind.get("fields", ())]
    inner += [kind[part] for part in ("items", "values") if part in kind]
    for one in inner:
        if _takes_no_bytes(one, inside | {name}, empty):
            raise CorruptObjectError(_NO_BYTES)
    if kind.get("size") == 0 or (kind["type"] == "record" and not kind["fields"]):
        empty.add(name)
        return True
    return False


def _field(form: Json, written: Json) -> Field:
    kind, nullable = _plain(form["type"])
    if isinstance(kind, dict) and kind.get("type") == "array":
        item, _ = _plain(kind["items"])
        plain = isinstance(item, str) and item in PRIMITIVES
        name = "array" if plain else "complex"
    else:
        name = kind if isinstance(kind, str) and kind in PRIMITIVES else "complex"
    default = json.dumps(written["default"]) if "default" in written else None
    return Field(form["name"], name, nullable, form["type"], default)


def _plain(kind: Json) -> tuple[Json, bool]:
    """Take null off a union of null and one type."""
    if isinstance(kind, list) and len(kind) == 2 and "null" in kind:
        return kind[1 - kind.index("null")], True
    return kind, isinstance(kind, list) and "null" in kind
