"""Rows of an export to events and purchases: one JSON object each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import polars as pl

from currents_ingest.audiences import cells, people
from currents_ingest.audiences.braze import facts
from currents_ingest.audiences.mapping import (
    ID,
    OBJECT,
    PART,
    PERSON,
    Mapped,
    fragment,
    identity,
    read_column,
    split,
    text_of,
    wanted,
)
from currents_ingest.audiences.tables import ROW
from currents_ingest.errors import MappingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from currents_ingest.audience_config import Audience
    from currents_ingest.audiences.columns import Column, Layout

_NEEDED = {
    "events": ("name", "time"),
    "purchases": ("product_id", "currency", "price", "time"),
}
_OWN = {
    "events": ("name", "time", "app_id", "properties"),
    "purchases": (
        "product_id",
        "currency",
        "price",
        "quantity",
        "time",
        "app_id",
        "properties",
    ),
}
_KINDS = {"price": "decimal", "quantity": "integer"}
_PROPERTY = "properties."


def check(name: str, layout: Layout, audience: Audience) -> None:
    """See that what an event or purchase needs is there, and no name is reserved.

    Raises:
        MappingError: With every problem.
    """
    own = _OWN[audience.kind]
    has = {one.name for one in layout.columns}
    problems = [
        f"there is no column {one!r}; say columns = {{ COLUMN = {one!r} }} or "
        f"constants = {{ {one} = ... }}"
        for one in _NEEDED[audience.kind]
        if one not in has
    ]
    properties = [_property(one) for one in layout.columns if one.name not in own]
    if "properties" in has and properties:
        told = ", ".join(properties)
        problems.append(
            f"the file has a column 'properties' and others besides ({told}): leave "
            "one or the other out"
        )
    twice = sorted({one for one in properties if properties.count(one) > 1})
    problems += [f"several columns would become property {one!r}" for one in twice]
    problems += [
        f"{one!r} is no name for a property (at most 255 characters, no $ at its "
        "beginning, none that Braze reserves)"
        for one in properties
        if one in facts().reserved[audience.kind]
        or not 0 < len(one) <= facts().limits["name_chars"]
        or one.startswith("$")
    ]
    if problems:
        raise MappingError(name, tuple(problems))


def map_events(
    frame: pl.DataFrame, layout: Layout, audience: Audience, delivery: str
) -> Mapped:
    """Map rows of events or purchases, each known by the column ``dedupe``.

    Without one, a row is known by its delivery, part and number. A purchase of more
    than a hundred becomes several, for Braze takes a hundred at most.

    Args:
        frame: A chunk's, with PART and ROW.
        layout: What becomes of its columns.
        audience: Its settings.
        delivery: Names the delivery.
    """
    schema, own = frame.schema, _OWN[audience.kind]
    by_name = {one.name: one for one in layout.columns}
    person = identity(
        layout.identity, audience.identifier, schema, audience.phone_region
    )
    parts = {
        name: _own_cell(one, schema) for name, one in by_name.items() if name in own
    }
    others = [one for one in layout.columns if one.name not in own]
    read = {one.name: read_column(one, frame) for one in others}
    reasons = [
        _reason(
            person.is_null(), f"no {audience.identifier}, or none that Braze takes"
        ),
        *_own_reasons(audience, by_name, schema, parts),
        *(
            _reason(present & value.is_null(), f"{one.source}: not {wanted(one)}")
            for one, (present, value) in zip(others, read.values(), strict=True)
        ),
    ]
    if "properties" not in parts and others:
        values = {_property(one): _said(read[one.name][1]) for one in others}
        parts["properties"] = _object(values)
    found = frame.select(
        _key(audience, delivery).alias(ID),
        person.alias(PERSON),
        PART,
        ROW,
        *(value.alias(name) for name, value in parts.items()),
        pl.coalesce(reasons).alias("__reason__"),
    )
    found = _in_hundreds(found) if "quantity" in parts else found
    return split(_whole(found, audience, tuple(parts)))


def _whole(
    found: pl.DataFrame, audience: Audience, parts: Sequence[str]
) -> pl.DataFrame:
    """Put the objects together, and hold them against the limits of the whole."""
    extra = {}
    if audience.update_existing_only is not None:
        told = "true" if audience.update_existing_only else "false"
        extra["_update_existing_only"] = pl.lit(told)
    inner = [
        fragment(audience.identifier, pl.col(PERSON)),
        *_pairs({name: pl.col(name) for name in parts} | extra),
    ]
    whole = pl.concat_str(
        pl.lit("{"), pl.concat_str(inner, separator=",", ignore_nulls=True), pl.lit("}")
    )
    kind = audience.kind.removesuffix("s")
    most = facts().limits[f"{kind}_properties_bytes"]
    size = pl.col("properties").str.len_bytes() if "properties" in parts else pl.lit(0)
    reasons = [
        pl.col("__reason__"),
        _reason(pl.col(ID).is_null(), f"no {audience.dedupe}"),
        _reason(size > most, f"properties: more than {most:,} bytes"),
    ]
    if audience.kind == "events":
        properties = pl.col("properties") if "properties" in parts else pl.lit("{}")
        reasons.append(_commerce(pl.col("name"), properties))
    return found.select(
        ID,
        PERSON,
        PART,
        ROW,
        whole.alias(OBJECT),
        pl.coalesce(reasons).alias("__reason__"),
    )


def _own_cell(column: Column, schema: Mapping[str, Any]) -> pl.Expr:
    """Read a part that every event or purchase has."""
    text = cells.stripped(text_of(column, schema))
    limits = facts().limits
    if column.name == "time":
        return cells.quoted(cells.iso(_instant(text)))
    if column.name == "properties":
        return cells.properties(text)
    if column.name == "currency":
        code = text.str.to_uppercase()
        return cells.quoted(pl.when(code.is_in(sorted(people.currencies()))).then(code))
    if column.name in _KINDS:
        return cells.READERS[_KINDS[column.name]](text)
    most = limits["product_id_chars" if column.name == "product_id" else "name_chars"]
    return cells.string(text, most)


def _own_reasons(
    audience: Audience,
    by_name: Mapping[str, Column],
    schema: Mapping[str, Any],
    parts: Mapping[str, pl.Expr],
) -> list[pl.Expr]:
    reasons = []
    for name, value in parts.items():
        one = by_name[name]
        there = cells.stripped(text_of(one, schema)).is_not_null()
        if name in _NEEDED[audience.kind]:
            there = pl.lit(value=True)
        reasons.append(
            _reason(there & value.is_null(), f"{one.source}: {_WANTED[name]}")
        )
    if "quantity" in parts:
        count = parts["quantity"].cast(pl.Int64, strict=False)
        told = f"{by_name['quantity'].source}: not between 1 and 10,000"
        reasons.append(_reason(~count.is_between(1, 10_000), told))
    return reasons


_WANTED = {
    "name": "no name of at most 255 characters",
    "time": "no time, as in 2026-01-31T12:00:00Z",
    "app_id": "no text of at most 255 characters",
    "properties": "no JSON object",
    "product_id": "no text of at most 255 characters",
    "currency": "no currency (ISO 4217)",
    "price": "no number",
    "quantity": "no whole number",
}


def _instant(text: pl.Expr) -> pl.Expr:
    """Read times; whole numbers are seconds since 1970, or milliseconds if as large."""
    count = text.cast(pl.Int64, strict=False)
    ms = pl.when(count >= 100_000_000_000).then(count).otherwise(count * 1000)
    epoch = pl.from_epoch(ms, time_unit="ms").dt.replace_time_zone("UTC")
    return (
        pl.when(count.is_not_null() & text.str.contains("^[0-9]{9,13}$"))
        .then(epoch.dt.cast_time_unit("us"))
        .otherwise(cells.instants(text))
    )


def _in_hundreds(found: pl.DataFrame) -> pl.DataFrame:
    """Make several purchases of one whose quantity Braze would not take."""
    most = facts().limits["quantity"]
    count = pl.col("quantity").cast(pl.Int64, strict=False)
    if found.select((count > most).any()).item() is not True:
        return found
    good = pl.col("__reason__").is_null() & count.is_not_null()
    pieces = pl.int_ranges(0, pl.when(good).then((count - 1) // most + 1).otherwise(1))
    several = found.with_columns(pieces.alias("__piece__")).explode("__piece__")
    piece = pl.col("__piece__")
    rest = (count - piece * most).clip(upper_bound=most).cast(pl.String)
    key = pl.when(piece > 0).then(pl.format("{}#{}", pl.col(ID), piece + 1))
    return several.with_columns(
        key.otherwise(pl.col(ID)).alias(ID), rest.alias("quantity")
    ).drop("__piece__")


def _key(audience: Audience, delivery: str) -> pl.Expr:
    if audience.dedupe:
        return cells.stripped(pl.col(audience.dedupe).cast(pl.String))
    return pl.format("{}:{}:{}", pl.lit(delivery), pl.col(PART), pl.col(ROW))


def _property(column: Column) -> str:
    return column.name.removeprefix(_PROPERTY)


def _pairs(values: Mapping[str, pl.Expr]) -> list[pl.Expr]:
    """Write names before cells; null where there is no cell."""
    return [
        pl.concat_str(pl.lit(orjson.dumps(name).decode() + ":"), value)
        for name, value in values.items()
    ]


def _said(cell: pl.Expr) -> pl.Expr:
    """Leave out a property that is null: there is nothing to remove from an event."""
    return pl.when(cell != cells.NULL).then(cell)


def _object(values: Mapping[str, pl.Expr]) -> pl.Expr:
    """Write an object of those cells that are there."""
    inner = pl.concat_str(_pairs(values), separator=",", ignore_nulls=True)
    return pl.concat_str(pl.lit("{"), inner, pl.lit("}"))


def _reason(wrong: pl.Expr, told: str) -> pl.Expr:
    return pl.when(wrong).then(pl.lit(told))


def _commerce(name: pl.Expr, properties: pl.Expr) -> pl.Expr:
    """Return what is wrong with events of e-commerce, which Braze drops silently.

    A near miss of such a name becomes an ordinary event there, so it is one, too.
    """
    low = name.str.to_lowercase()
    both = pl.struct(name.alias("name"), properties.alias("properties"))
    asked = pl.when(low.str.starts_with('"ecommerce')).then(both)

    def all_of(series: pl.Series) -> pl.Series:
        told = [None if one is None else _lacks(**one) for one in series]
        return pl.Series(series.name, told, pl.String)

    return asked.map_batches(all_of, return_dtype=pl.String, is_elementwise=True)


def _lacks(name: str, properties: str | None) -> str | None:
    known = facts().ecommerce
    if (bare := orjson.loads(name)) not in known:
        return "name: begins as an e-commerce event's and is none of Braze's six"
    has = orjson.loads(properties or "{}")
    missing = [one for one in known[bare] if has.get(one) is None]
    return f"properties: {bare} needs {', '.join(missing)}" if missing else None
