"""Which file column becomes what in Braze: decided from names and types alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from currents_ingest.audiences.braze import ALIAS, PRIMARY, facts
from currents_ingest.errors import MappingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import polars as pl

    from currents_ingest.audience_config import Audience
    from currents_ingest.audiences.braze import ProfileField

_OF_EVENTS = {
    "event_name": "name",
    "event_time": "time",
    "event_datetime": "time",
    "purchase_time": "time",
}
"""What columns of events and purchases mean, unless the settings say otherwise."""
_NESTED = ("products", "metadata")
"""Properties of e-commerce events that are objects.

Source: Braze docs, "Recommended events".
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One file column that is sent."""

    source: str
    """Its name in the file; a constant's name."""
    name: str
    """Braze's name for it."""
    kind: str
    """Which of ``cells.READERS`` reads it, or ``typed`` where the file has types."""
    operation: str = ""
    removes: bool = False
    """An empty cell removes the attribute."""
    constant: str | None = None
    field: ProfileField | None = None
    """Of every profile; None: a custom attribute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What becomes of a file's columns."""

    identity: tuple[Column, ...]
    """One column; two for an alias: name, then label."""
    columns: tuple[Column, ...]
    warnings: tuple[str, ...] = ()


def layout(
    name: str, audience: Audience, schema: Mapping[str, pl.DataType], *, typed: bool
) -> Layout:
    """Decide what becomes of each column.

    Args:
        name: The audience's, for messages.
        audience: Its settings.
        schema: The file's columns and their types, in file order.
        typed: The file has types of its own (Parquet, JSON); text is text then.

    Raises:
        MappingError: With every problem at once.
    """
    names, problems = _renamed(audience, schema)
    found = [
        _column(audience, source, braze, typed=typed)
        for source, braze in names.items()
        if braze
    ]
    wanted = ALIAS if audience.identifier == "user_alias" else (audience.identifier,)
    by_name = {one.name: one for one in found}
    if audience.alias_label and "alias_label" not in by_name:
        label = Column(
            source="", name="alias_label", kind="string", constant=audience.alias_label
        )
        by_name["alias_label"] = label
    identity = tuple(by_name[one] for one in wanted if one in by_name)
    columns = tuple(one for one in found if one.name not in wanted)
    missing = [one for one in wanted if one not in by_name]
    problems += _lacking(missing, audience, schema)
    problems += _refused(columns, audience)
    if problems:
        raise MappingError(name, tuple(problems))
    return Layout(
        identity=identity, columns=columns, warnings=tuple(_look_alikes(columns))
    )


def _renamed(
    audience: Audience, schema: Mapping[str, pl.DataType]
) -> tuple[dict[str, str], list[str]]:
    """Return Braze's name by file column (empty: left out), and problems."""
    low = {one.lower(): one for one in schema}
    chosen = {
        low.get(source.lower(), source): braze
        for source, braze in audience.columns.items()
    }
    named = {
        "columns": audience.columns.keys() - audience.constants.keys(),
        "types": audience.types,
        "remove_when_empty": audience.remove_when_empty,
    }
    problems = [
        f"{setting}: the file has no column {source!r}"
        for setting, sources in named.items()
        for source in sources
        if source.lower() not in low
    ]
    if audience.dedupe and audience.dedupe not in schema:
        problems.append(f"dedupe: the file has no column {audience.dedupe!r}")
    problems += [
        f"operations: the file has no column {source!r} (of exactly this name)"
        for source in audience.operations
        if source not in schema
    ]
    problems += [
        f"constants: the file has a column {source!r} of its own"
        for source in audience.constants
        if source in schema
    ]
    constants = {one: audience.columns.get(one, one) for one in audience.constants}
    default = {one: _default(one, schema) for one in schema}
    if audience.kind != "attributes":
        default |= {
            one: meant
            for one, meant in _OF_EVENTS.items()
            if one in schema and meant not in schema
        }
    if audience.dedupe:
        default[audience.dedupe] = ""
    names = default | chosen | constants
    sent = [one for one in names.values() if one]
    twice = sorted({one for one in sent if sent.count(one) > 1})
    problems += [f"several columns would become {one!r}" for one in twice]
    return names, problems


def _default(column: str, schema: Iterable[str]) -> str:
    """Return Braze's name for a column that the settings do not name."""
    known = facts()
    low = column.lower()
    if low in known.left_out:
        return ""
    for name in (*PRIMARY, *ALIAS, *known.fields):
        if column == name:
            return name
    if (braze := known.names.get(column)) and braze not in schema:
        return braze
    return column


def _column(audience: Audience, source: str, braze: str, *, typed: bool) -> Column:
    field = facts().fields.get(braze) if audience.kind == "attributes" else None
    low = source.lower()
    types = {one.lower(): kind for one, kind in audience.types.items()}
    operations = {one.lower(): what for one, what in audience.operations.items()}
    default = "worded" if typed else "inferred"
    if audience.kind != "attributes" and braze.rpartition(".")[2] in _NESTED:
        default = "object"
    return Column(
        source=source,
        name=braze,
        kind=types.get(low) or (field.kind if field else default),
        operation=operations.get(low, ""),
        removes=low in {one.lower() for one in audience.remove_when_empty},
        constant=audience.constants.get(source),
        field=field,
    )


def _lacking(
    missing: Sequence[str], audience: Audience, schema: Iterable[str]
) -> list[str]:
    if not missing:
        return []
    has = ", ".join(list(schema)[:20])
    return [
        f"there is no column {one!r}, which names a person "
        f"(identifier = {audience.identifier!r}); say columns = "
        f'{{ COLUMN = "{one}" }}. The file has: {has}'
        for one in missing
    ]


def _refused(columns: Sequence[Column], audience: Audience) -> list[str]:
    """Name columns that must not be sent as they are."""
    known = facts()
    problems = []
    for one in columns:
        leave = f"leave it out with columns = {{ {one.source!r} = '' }}"
        if one.name in (*PRIMARY, *ALIAS):
            why = "names a person, too, and an object may have one primary identifier"
            problems.append(f"column {one.source!r} {why}; {leave}")
        elif audience.identifier == "phone" and one.name == "email":
            why = "would name the person in place of the phone number"
            problems.append(f"column {one.source!r} {why}; {leave}")
        elif audience.kind == "attributes":
            problems += _refused_attribute(one, audience, leave)
    if audience.membership in {one.name for one in columns}:
        problems.append(f"membership: the file has {audience.membership!r} already")
    if audience.membership in known.fields:
        problems.append(f"membership: {audience.membership!r} is a profile field")
    return problems


def _refused_attribute(one: Column, audience: Audience, leave: str) -> list[str]:
    known = facts()
    field = known.fields.get(one.name)
    if field and field.subscription and one.name not in audience.allow:
        why = "changes who may be sent what, and Braze should stay its source"
        return [f"column {one.source!r} {why}; {leave}, or say allow = [{one.name!r}]"]
    if one.name in known.rejected:
        return [f"column {one.source!r}: Braze does not take {one.name!r}; {leave}"]
    if one.operation and field:
        return [f"operations: {one.name!r} is a profile field, which is only set"]
    if len(one.name) > known.limits["name_chars"] or one.name.startswith("$"):
        why = "is no name for an attribute (255 characters, no $ at its beginning)"
        return [f"column {one.source!r}: {one.name!r} {why}"]
    return []


def _look_alikes(columns: Iterable[Column]) -> Iterable[str]:
    known = facts()
    for one in columns:
        if one.field or one.name.startswith("properties"):
            continue
        low = one.name.lower().replace(" ", "_").replace("-", "_")
        meant = low if low in known.fields else known.look_alikes.get(low)
        if meant:
            yield (
                f"{one.name!r} would be a custom attribute; Braze's own field is "
                f"{meant!r}: say columns = {{ {one.source!r} = {meant!r} }} if it is "
                "meant"
            )
