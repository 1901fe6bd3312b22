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

OURS = "__"
"""How names begin that are ours; no attribute's may."""
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
    """Which of ``cells.READERS`` reads it."""
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
    otherwise: tuple[tuple[Column, ...], ...] = ()
    """Of cohorts: what names whom ``identity`` does not."""


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
        _column(audience, source, braze, schema, typed=typed)
        for source, braze in names.items()
        if braze
    ]
    wanted = names_of(audience.identifier)
    by_name = _by_name(found, audience)
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


def member_layout(
    name: str, audience: Audience, schema: Mapping[str, pl.DataType]
) -> Layout:
    """Find what names members and cohorts; all other columns are left alone.

    Raises:
        MappingError: With every problem at once.
    """
    chosen = {meant(one, schema): braze for one, braze in audience.columns.items()}
    problems = [
        f"columns: the file has no column {source!r}"
        for source in chosen
        if source not in schema
    ]
    found = [
        Column(source=one, name=chosen.get(one, one), kind="string") for one in schema
    ]
    by_name = _by_name(found, audience)
    kinds = list(map(names_of, (audience.identifier, *audience.otherwise)))
    wanted = [one for kind in kinds for one in kind]
    names = [one.name for one in found]
    problems += [
        f"several columns would become {one!r}"
        for one in wanted
        if names.count(one) > 1
    ]
    missing = [one for one in wanted if one not in by_name]
    problems += _lacking(missing, audience, schema)
    cohort = meant(audience.cohort_column, schema)
    if cohort and cohort not in schema:
        problems.append(f"cohort_column: the file has no column {cohort!r}")
    if problems:
        raise MappingError(name, tuple(problems))
    identity, *otherwise = (tuple(by_name[one] for one in kind) for kind in kinds)
    columns = tuple(one for one in found if one.source == cohort)
    return Layout(identity=identity, columns=columns, otherwise=tuple(otherwise))


def names_of(identifier: str) -> tuple[str, ...]:
    """Return the columns that an identifier takes."""
    return ALIAS if identifier == "user_alias" else (identifier,)


def _by_name(found: Iterable[Column], audience: Audience) -> dict[str, Column]:
    by_name = {one.name: one for one in found}
    if audience.alias_label and "alias_label" not in by_name:
        by_name["alias_label"] = Column(
            source="", name="alias_label", kind="string", constant=audience.alias_label
        )
    return by_name


def _renamed(
    audience: Audience, schema: Mapping[str, pl.DataType]
) -> tuple[dict[str, str], list[str]]:
    """Return Braze's name by file column (empty: left out), and problems."""
    chosen = {
        meant(source, schema): braze for source, braze in audience.columns.items()
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
        if meant(source, schema) not in schema
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


def meant(source: str, schema: Iterable[str]) -> str:
    """Return the file column that a setting names: exactly, or but for its case."""
    if source in schema:
        return source
    alike = [one for one in schema if one.lower() == source.lower()]
    return alike[0] if len(alike) == 1 else source


def _default(column: str, schema: Iterable[str]) -> str:
    """Return Braze's name for a column that the settings do not name."""
    known = facts()
    low = column.lower()
    if low in known.left_out:
        return ""
    if (braze := known.names.get(column)) and braze not in schema:
        return braze
    return column


def _column(
    audience: Audience, source: str, braze: str, schema: Iterable[str], *, typed: bool
) -> Column:
    field = facts().fields.get(braze) if audience.kind == "attributes" else None
    types = {meant(one, schema): kind for one, kind in audience.types.items()}
    removing = {meant(one, schema) for one in audience.remove_when_empty}
    default = "worded" if typed else "inferred"
    if audience.kind != "attributes" and braze.rpartition(".")[2] in _NESTED:
        default = "object"
    return Column(
        source=source,
        name=braze,
        kind=types.get(source) or (field.kind if field else default),
        operation=audience.operations.get(source, ""),
        removes=source in removing,
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
    if audience.membership:
        problems += _refused_membership(columns, audience.membership)
    return problems


def _refused_membership(columns: Sequence[Column], name: str) -> list[str]:
    if name in {one.name for one in columns}:
        return [f"membership: the file has {name!r} already"]
    if name in facts().fields or not _is_attribute(name):
        return [f"membership: {name!r} is no name for a custom attribute"]
    return []


def _is_attribute(name: str) -> bool:
    """Tell whether a custom attribute may be called so."""
    known = facts()
    taken = {*PRIMARY, *ALIAS, *known.rejected, *known.controls}
    plain = 0 < len(name) <= known.limits["name_chars"] and not name.startswith("$")
    return plain and name not in taken and not name.startswith(OURS)


def _refused_attribute(one: Column, audience: Audience, leave: str) -> list[str]:
    known = facts()
    field = known.fields.get(one.name)
    if field and field.subscription and one.name not in audience.allow:
        why = "changes who may be sent what, and Braze should stay its source"
        return [f"column {one.source!r} {why}; {leave}, or say allow = [{one.name!r}]"]
    if one.operation and field:
        return [f"operations: {one.name!r} is a profile field, which is only set"]
    if not field and not _is_attribute(one.name):
        why = "is no name that a custom attribute may have"
        return [f"column {one.source!r}: {one.name!r} {why}; {leave}"]
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


def changing(audience: Audience, *operations: str) -> list[str]:
    """Return the attributes that certain operations change, sorted."""
    names = {source.lower(): name for source, name in audience.columns.items()}
    return sorted(
        names.get(source.lower(), source)
        for source, what in audience.operations.items()
        if what in operations
    )


def unsafe(audience: Audience) -> list[str]:
    """Return the attributes whose update must not arrive twice."""
    return changing(audience, "inc", "add")
