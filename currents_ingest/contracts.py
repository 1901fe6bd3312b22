"""The feeds we publish, as data: columns, types, key.

A raw feed holds one event type. Its contract is every field of every known version
of that event type under Braze's own name, then the columns in ``ADDED``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from currents_ingest.schemas import Field, WriterSchema

ColumnType = Literal[
    "string", "json", "boolean", "int64", "double", "decimal(38,6)", "timestamp"
]
"""``json`` is text that holds an array or an object."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Frozen):
    """One column; every one but the key may be null."""

    name: str
    type: ColumnType


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


ADDED = (
    Column(name="event_datetime", type="timestamp"),
    Column(name="currents_event_type", type="string"),
    Column(name="currents_schema", type="string"),
    Column(name="currents_file", type="string"),
    Column(name="currents_row", type="int64"),
    Column(name="currents_queued_at", type="timestamp"),
    Column(name="ingested_at", type="timestamp"),
    Column(name="unmapped_fields", type="json"),
)

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

# Avro 1.12, "Schema Resolution": int and long promote to float and double, not back.
_PROMOTES: dict[tuple[ColumnType, ColumnType], ColumnType] = {
    ("int64", "double"): "double",
    ("double", "int64"): "double",
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
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

    A field whose name Amperity could not take, that differs from another only in
    case, or that has the name of an added column, is left to ``unmapped_fields``.
    """
    types: dict[str, ColumnType] = {}
    folded = {column.name for column in ADDED}
    for schema in schemas:
        for field in schema.fields:
            kind, held = column_type(field), types.get(field.name)
            if held is not None:
                types[field.name] = _PROMOTES.get((held, kind), held)
            elif field.name.lower() not in folded and _NAME.fullmatch(field.name):
                types[field.name] = kind
                folded.add(field.name.lower())
    return Contract(
        feed=feed_name(event_type),
        event_type=event_type,
        columns=(*(Column(name=n, type=t) for n, t in types.items()), *ADDED),
    )
