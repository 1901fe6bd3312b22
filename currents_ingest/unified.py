"""Contracts of unified feeds: several event types in one table, in Amperity's words.

``schemas/feeds/<feed>.toml`` holds one, and a user's folder may hold more. A contract
is read and checked whole before any work; ``unify`` turns rows into its columns.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from currents_ingest.amperity import COLUMN_TYPES, AmperityType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from currents_ingest.contracts import ColumnType

Value = str | bool | int | float


def _several(given: object) -> object:
    return given if isinstance(given, list | tuple) else (given,)


Texts = Annotated[tuple[str, ...], BeforeValidator(_several)]
Test = dict[str, Texts]
"""Texts that a field may have, by field, all of which must hold: without regard to
case; ``*`` is any value and ``""`` none. A name that begins with @ is an option."""
Tests = Annotated[tuple[Test, ...], BeforeValidator(_several)]
"""Tests of which one has to hold."""
Choice = Annotated[tuple[str, ...], BeforeValidator(_several)]
"""A field, or several whose texts are joined by a colon if each has a value."""


PSEUDO: Mapping[str, AmperityType] = {
    "@brand": "string",
    "@region": "string",
    "@send_day": "string",
    "@event_name": "string",
    "@state_order": "datetime",
}
"""Names that a column may take besides fields; see UnifiedColumn."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Join(_Frozen):
    """What rows of an event type lack and an earlier event has."""

    event: str
    """The other event type, such as that of the send which was converted."""
    on: Annotated[tuple[str, ...], BeforeValidator(_several)]
    """Fields that both have; of several events the last one before counts."""
    take: Annotated[tuple[str, ...], BeforeValidator(_several)]
    """Its fields that the row gets; its own stay where the other has none."""
    days: int = Field(30, ge=1, le=90)
    """How long before it may have been. Rows without one are left out."""


class Source(_Frozen):
    """An event type, or several by glob, whose rows go into the feed."""

    event: str
    but: Texts = ()
    """Those that are left out, by glob."""
    when: Tests = ()
    """Without, every row does."""
    unless: Tests = ()
    set: dict[str, Value] = {}
    """Constants by column, for these rows."""
    join: Join | None = None

    def is_of(self, event_type: str) -> bool:
        """Tell whether an event type is the source's."""
        return fnmatchcase(event_type, self.event) and not any(
            fnmatchcase(event_type, one) for one in self.but
        )


class Option(_Frozen):
    """Something that the user decides in ``[feeds.options.<feed>]``."""

    default: str
    values: tuple[str, ...]
    description: str


class UnifiedColumn(_Frozen):
    """One column: where its values come from and what becomes of them, in order.

    ``from``, then ``pick``, ``trim``, ``lower``, ``values``, ``sha256``, ``type``.
    """

    name: str
    type: AmperityType = "string"
    sources: Annotated[tuple[Choice, ...], BeforeValidator(_several)] = Field(
        (), alias="from"
    )
    """Fields; the first that has a value counts. Besides Braze's fields and the raw
    feeds' own columns there are ``@brand``, ``@region``, ``@send_day`` (yyyyMMdd),
    ``@event_name`` (``Open``) and ``@state_order``, which orders the events of a key;
    one in half a million of those of one second has another's."""
    which: dict[str, str] = {}
    """Instead of from: the text of the first of these fields that has a value."""
    constant: Value | None = None
    """What it has where nothing else gives a value."""
    pick: str | None = None
    """JSON path into a text that holds JSON, such as ``$.order.total``."""
    trim: bool = False
    lower: bool = False
    values: dict[str, Value] = {}
    """What stands for each text; others stay empty."""
    sha256: bool = False
    """Hexadecimal SHA-256 of the trimmed, lower-case text, as ad platforms want it."""
    unit: Literal["s", "ms"] | None = None
    """What a datetime counts since 1970, if it comes from an integer."""
    required: bool = False
    """A row without it is rejected."""
    tag: str | None = None
    description: str = ""


class UnifiedContract(_Frozen):
    """What readers of a unified feed may rely on."""

    feed: str
    version: int = Field(1, ge=1)
    description: str
    key: Annotated[tuple[str, ...], BeforeValidator(_several)]
    last_updated: str
    latest: bool = False
    """Only the newest row of each key counts: a table of states, not of events."""
    prefer: dict[str, Value] = {}
    """Of states of one second, the one with this value wins."""
    options: dict[str, Option] = {}
    sources: tuple[Source, ...] = Field(min_length=1)
    columns: tuple[UnifiedColumn, ...] = Field(min_length=1)

    @property
    def types(self) -> dict[str, ColumnType]:
        """Return column types by name, in order."""
        return {one.name: COLUMN_TYPES[one.type] for one in self.columns}

    def plain(self) -> dict[str, Any]:
        """Return all that decides about rows: descriptions may change at any time."""
        text = {"description"}
        every = {"__all__": text}
        return self.model_dump(
            exclude={"description": True, "columns": every, "options": every}
        )

    def sources_of(self, event_type: str) -> tuple[Source, ...]:
        """Return the sources that an event type's rows are held against, in order."""
        return tuple(one for one in self._of(event_type) if one.join is None)

    def joins_of(
        self, event_type: str, options: Mapping[str, str]
    ) -> tuple[Source, ...]:
        """Return the sources whose rows wait for a join, if the options want them."""
        decided = {f"@{name}": one.default for name, one in self.options.items()}
        decided |= {f"@{name}": value for name, value in options.items()}
        return tuple(
            source
            for source in self._of(event_type)
            if source.join
            and all(
                decided.get(name, "") in texts
                for test in source.when
                for name, texts in test.items()
                if name in decided
            )
        )

    def _of(self, event_type: str) -> tuple[Source, ...]:
        return tuple(one for one in self.sources if one.is_of(event_type))
