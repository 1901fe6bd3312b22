"""The feeds we publish, as data: columns, types, key.

A raw feed holds one event type. Its contract is every field of every known version
of that event type under Braze's own name, then the columns in ``ADDED``.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from currents_ingest.resolution import reads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from currents_ingest.schemas import Field, WriterSchema

ColumnType = Literal[
    "string", "json", "boolean", "int64", "double", "decimal(38,6)", "timestamp"
]
"""``json`` is text that holds an array or an object."""


@cache
def _reads(plain: str, kind: ColumnType) -> bool:
    """Tell whether Avro reads a plain type, null beside it or not, as a column's."""
    return reads(plain, ["null", AVRO_TYPES[kind]])


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Frozen):
    """One column; every one but the key may be null."""

    name: str
    type: ColumnType
    field: str = ""
    """The writer's field, where the column is not named like it: see grown."""

    @property
    def source(self) -> str:
        """Return the name of the field whose values it takes."""
        return self.field or self.name

    def takes(self, field: Field) -> bool:
        """Tell whether a field's values can go into the column.

        By Avro's rules, and two of ours: a ``json`` column takes any array and object,
        and what has no plain type (bytes, enums, unions of several) goes nowhere else.
        """
        if self.type == "json" or field.type == "complex":
            return self.type == "json" and field.type in ("array", "complex")
        return _reads(field.type, self.type)


class Contract(_Frozen):
    """What readers of a feed may rely on; pinned when the feed first publishes."""

    feed: str
    version: int = 1
    event_type: str
    columns: tuple[Column, ...]
    key: str = "id"
    last_updated: str = "ingested_at"

    @property
    def types(self) -> dict[str, ColumnType]:
        """Return column types by name, in order."""
        return {column.name: column.type for column in self.columns}

    @property
    def own(self) -> tuple[Column, ...]:
        """Return the columns that come from Braze, without those in ``ADDED``."""
        return tuple(one for one in self.columns if one.name not in _ADDED_NAMES)

    def placed(self, writer: WriterSchema) -> dict[str, Field]:
        """Return the writer's field for each column that gets one, by column name."""
        fields = {each.name: each for each in writer.fields}
        found: dict[str, Field] = {}
        for column in self.own:
            field = fields.get(column.source)
            if field and column.takes(field):
                found[column.name] = field
                del fields[field.name]  # one column is enough
        return found

    def grown(self, schemas: Iterable[WriterSchema]) -> Contract:
        """Return the next version, with a column for each field that has none.

        Columns are only added: Amperity takes a file into a feed only if its types
        are the feed's. A field ``n`` that became text beside an integer column ``n``
        gets a column ``n_string``, and a field ``n_string`` that comes later a column
        ``n_string_2``. A field whose name Amperity could not take, that differs from
        another only in case, or that has the name of an added column, is left to
        ``unmapped_fields``. With nothing to add it is the same contract.
        """
        own = list(self.own)
        folded = {each.name.lower() for each in (*own, *ADDED)}
        for field in (field for writer in schemas for field in writer.fields):
            homes = [column for column in own if column.source == field.name]
            if any(column.takes(field) for column in homes) or field.name in _NEEDED:
                continue
            kind = column_type(field)
            wanted = f"{field.name}_{kind.split('(')[0]}" if homes else field.name
            name = next(one for one in _numbered(wanted) if one.lower() not in folded)
            lent = any(one.field and one.name == field.name for one in own)
            free = name == wanted or homes or lent
            if not (free and NAME.fullmatch(name)):
                continue
            folded.add(name.lower())
            source = field.name if name != field.name else ""
            own.append(Column(name=name, type=kind, field=source))
        if len(own) == len(self.own):
            return self
        columns = (*own, *ADDED)
        return self.model_copy(update={"columns": columns, "version": self.version + 1})


def _numbered(name: str) -> Iterator[str]:
    """Yield a name, then ``name_2`` and so on."""
    yield name
    yield from (f"{name}_{number}" for number in count(2))


UNMAPPED = "unmapped_fields"
"""JSON of the fields that have no column."""
ADDED = (
    Column(name="event_datetime", type="timestamp"),
    Column(name="currents_event_type", type="string"),
    Column(name="currents_schema", type="string"),
    Column(name="currents_file", type="string"),
    Column(name="currents_row", type="int64"),
    Column(name="currents_queued_at", type="timestamp"),
    Column(name="ingested_at", type="timestamp"),
    Column(name=UNMAPPED, type="json"),
)

_ADDED_NAMES = frozenset(column.name for column in ADDED)

NEEDED = (Column(name="id", type="string"), Column(name="time", type="int64"))
"""What an event cannot be delivered without."""
_NEEDED = frozenset(column.name for column in NEEDED)

MONEY = frozenset({"price"})
"""Float fields that are amounts: kept as decimals of the float's shortest text."""

_TYPES: dict[str, ColumnType] = {
    "string": "string",
    "boolean": "boolean",
    "int": "int64",
    "long": "int64",
    "float": "double",
    "double": "double",
    "array": "json",
    "complex": "json",
}

AVRO_TYPES: dict[ColumnType, str] = {
    "string": "string",
    "boolean": "boolean",
    "int64": "long",
    "double": "double",
    "decimal(38,6)": "double",
}
"""What a column reads as, by Avro's rules; json takes what has no plain type."""

# Avro 1.12, "Schema Resolution": int and long promote to float and double, not back.
_PROMOTES: dict[tuple[ColumnType, ColumnType], ColumnType] = {
    ("int64", "double"): "double",
}
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
"""Amperity takes letters, digits and underscores; a leading underscore is reserved."""


def feed_name(event_type: str) -> str:
    """Return ``messages_email_open`` for ``users.messages.email.Open``."""
    plain = event_type.removeprefix("users.")
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", plain)
    return re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", words).replace(".", "_").lower()


def column_type(field: Field) -> ColumnType:
    """Return the type that a writer's field has in a feed."""
    if field.name in MONEY and field.type in ("float", "double", "int", "long"):
        return "decimal(38,6)"
    return _TYPES[field.type]


def raw_contract(event_type: str, schemas: Iterable[WriterSchema]) -> Contract:
    """Make the contract of an event type's raw feed from all its known schemas.

    Each field has the widest of its types; see ``Contract.grown`` for those that no
    type holds and for names that cannot be columns.
    """
    written = list(schemas)
    types: dict[str, ColumnType] = {}
    for field in (field for writer in written for field in writer.fields):
        kind = column_type(field)
        held = types.get(field.name, kind)
        types[field.name] = _PROMOTES.get((held, kind), held)
    folded = set(_ADDED_NAMES)
    own = []
    for name, kind in types.items():
        if NAME.fullmatch(name) and name.lower() not in folded:
            folded.add(name.lower())
            own.append(Column(name=name, type=kind))
    bare = Contract(
        feed=feed_name(event_type), event_type=event_type, columns=(*own, *ADDED)
    )
    return bare.grown(written).model_copy(update={"version": 1})
