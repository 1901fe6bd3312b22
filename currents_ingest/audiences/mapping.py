"""Rows of an export to people with cells: JSON texts by Braze's attribute names.

What does not fit is a reject with its row and reason, and never holds a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl

from currents_ingest.audiences import cells
from currents_ingest.audiences.braze import facts
from currents_ingest.audiences.tables import ROW

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from currents_ingest.audience_config import Audience
    from currents_ingest.audiences.columns import Column, Layout

ID, PERSON, PART = "__id__", "__person__", "__part__"
"""What a row is known by; whom it is about; which part of the delivery it is in."""
OURS = (ID, PERSON, PART, ROW)
WHAT, GONE, AT = "__what__", "__gone__", "__at__"
"""Why a row is sent; that the snapshot forgets it; which step said so."""
OBJECT = "__object__"
"""The whole object as JSON."""
COHORT = "__cohort__"
"""What the export calls the cohort that the row is about."""
STATE, REASON = "__state__", "__why__"
"""What became of a row that was not taken, and why."""
RESERVED = frozenset(
    {*OURS, WHAT, GONE, AT, OBJECT, COHORT, STATE, REASON, "__known__", "__reason__"}
)
"""Column names that are not cells; no attribute may be called so."""
SEPARATOR = "\x1f"
"""Between the name and the label of an alias, in a person's key."""
REJECTS = pl.Schema({PART: pl.UInt32, ROW: pl.UInt32, "reason": pl.String})


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """What became of a chunk's rows."""

    rows: pl.DataFrame
    """OURS, then a column of cells for each name; null leaves the attribute alone."""
    rejects: pl.DataFrame
    """REJECTS."""
    there: pl.DataFrame
    """ID of rejected rows that name somebody."""
    skipped: int = 0
    """Rows that are nobody's, or in no cohort."""


def map_people(frame: pl.DataFrame, layout: Layout, audience: Audience) -> Mapped:
    """Map rows of profile attributes.

    Args:
        frame: A chunk's, with PART and ROW.
        layout: What becomes of its columns.
        audience: Its settings.
    """
    read = [_Read.of(one, frame, audience) for one in layout.columns]
    found = frame.select(
        identity(
            layout.identity, audience.identifier, frame.schema, audience.phone_region
        ).alias(ID),
        PART,
        ROW,
        *(one.cell.alias(one.column.name) for one in read),
        *(one.there.alias(_there(at)) for at, one in enumerate(read)),
    )
    nobody = f"no {audience.identifier}, or none that Braze takes"
    reasons = [pl.when(pl.col(ID).is_null()).then(pl.lit(nobody))]
    reasons += [
        pl.when(pl.col(_there(at)) & pl.col(one.column.name).is_null()).then(
            pl.lit(f"{one.column.source}: not {wanted(one.column)}")
        )
        for at, one in enumerate(read)
    ]
    whole = found.select(
        ID,
        pl.col(ID).alias(PERSON),
        PART,
        ROW,
        *(one.column.name for one in read),
        *([pl.lit("true").alias(audience.membership)] if audience.membership else ()),
        pl.coalesce(reasons).alias("__reason__"),
    )
    return split(whole)


def _there(at: int) -> str:
    return f"__there__{at}"


def split(found: pl.DataFrame) -> Mapped:
    """Part rows that have a reason against them from the others."""
    if found["__reason__"].null_count() == len(found):
        rows = found.drop("__reason__")
        none = rows.clear().select(ID)
        return Mapped(rows=rows, rejects=pl.DataFrame(schema=REJECTS), there=none)
    fits = pl.col("__reason__").is_null()
    return Mapped(
        rows=found.filter(fits).drop("__reason__"),
        rejects=found.filter(~fits).select(
            PART, ROW, pl.col("__reason__").alias("reason")
        ),
        there=found.filter(~fits).select(ID).drop_nulls(),
    )


def identity(
    columns: Sequence[Column],
    identifier: str,
    schema: Mapping[str, Any],
    region: str = "",
) -> pl.Expr:
    """Return a person's key; null where the row names nobody, or nobody that can be."""
    limits = facts().limits
    named = [said(one, schema) for one in columns]
    if identifier == "email":
        return bare(cells.email(named[0])).str.to_lowercase()
    if identifier == "phone":
        return bare(cells.phone(named[0], region))
    most = limits["external_id_bytes"] if len(named) == 1 else limits["alias_bytes"]
    fit = [
        pl.when((text.str.len_bytes() <= most) & ~text.str.contains(SEPARATOR)).then(
            text
        )
        for text in named
    ]
    return pl.concat_str(fit, separator=SEPARATOR)


def said(column: Column, schema: Mapping[str, Any]) -> pl.Expr:
    """Return texts without blanks around them; null where they say nothing."""
    text = cells.stripped(text_of(column, schema))
    return pl.when(text.str.to_lowercase() != cells.NULL).then(text)


def fragment(identifier: str, person: pl.Expr) -> pl.Expr:
    """Write the identifier of an object as JSON, from a person's key."""
    if identifier != "user_alias":
        return pl.concat_str(pl.lit(f'"{identifier}":'), cells.quoted(person))
    parts = person.str.split_exact(SEPARATOR, 1)
    return pl.concat_str(
        pl.lit('"user_alias":{"alias_name":'),
        cells.quoted(parts.struct.field("field_0")),
        pl.lit(',"alias_label":'),
        cells.quoted(parts.struct.field("field_1")),
        pl.lit("}"),
    )


def bare(json: pl.Expr) -> pl.Expr:
    """Take the quotes from JSON strings that hold nothing to escape."""
    return json.str.strip_prefix('"').str.strip_suffix('"')


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """One column, read."""

    column: Column
    cell: pl.Expr
    there: pl.Expr
    """True where there is something to read."""

    @staticmethod
    def of(column: Column, frame: pl.DataFrame, audience: Audience) -> _Read:
        there, value = read_column(column, frame, audience.phone_region)
        if column.removes:
            value = pl.when(there).then(value).otherwise(pl.lit(cells.NULL))
        return _Read(column=column, cell=value, there=there)


def read_column(
    column: Column, frame: pl.DataFrame, region: str = ""
) -> tuple[pl.Expr, pl.Expr]:
    """Return where a column has something to say, and its cells.

    Blank text, null and NaN say nothing. The literal ``null`` removes: in any case
    for cells whose type is found out, else only in lower case.
    """
    schema = frame.schema
    dtype = pl.String if column.constant is not None else schema[column.source]
    found_out = column.kind in {"inferred", "worded"} and not column.operation
    if dtype != pl.String and found_out:
        plain = pl.col(column.source)
        if dtype.is_float():
            plain = plain.fill_nan(None)
        return plain.is_not_null(), _typed(plain, dtype)
    text = text_of(column, schema)
    if dtype == pl.String and column.constant is None:
        kind = column.kind if found_out else ""
        shape = cells.shape(frame[column.source], kind)
        if shape != "mixed":
            return text.is_not_null(), _of_shape(shape, text, _reader(column, region))
    kept = pl.when(text.str.strip_chars() != "").then(text)
    plain = kept.str.strip_chars()
    word = plain.str.to_lowercase() if found_out else plain
    said = pl.when(word != cells.NULL).then(kept)
    value = _reader(column, region)(said)
    return kept.is_not_null(), pl.when(word == cells.NULL).then(word).otherwise(value)


def _of_shape(shape: str, text: pl.Expr, read: Callable[[pl.Expr], pl.Expr]) -> pl.Expr:
    """Read texts that have a form in common, sparing what cannot be."""
    if shape in {"whole", "boolean"}:
        return text
    if shape == "decimal":
        return cells.floats(text.cast(pl.Float64, strict=False))
    return cells.string(text) if shape == "text" else read(text)


def text_of(column: Column, schema: Mapping[str, Any]) -> pl.Expr:
    """Return a column's values as text, whatever type the file gave them."""
    if column.constant is not None:
        return pl.lit(column.constant)
    dtype, plain = schema[column.source], pl.col(column.source)
    if dtype == pl.String:
        return plain
    if dtype.is_float():
        return bare(cells.floats(plain))
    if isinstance(dtype, pl.Datetime):
        return cells.iso(_utc(plain, dtype))
    if dtype.is_nested():
        return _dumped(plain)
    return plain.cast(pl.String)


def wanted(column: Column) -> str:
    """Say what a cell of this column should have been."""
    if column.operation == "inc":
        return "a whole number"
    return cells.WANTED[column.kind]


def _reader(column: Column, region: str) -> Callable[[pl.Expr], pl.Expr]:
    if column.operation:
        read = cells.integer if column.operation == "inc" else cells.items
        head = pl.lit(f'{{"{column.operation}":')
        return lambda text: pl.concat_str(head, read(text), pl.lit("}"))
    if column.kind == "phone":
        return partial(cells.phone, region=region)
    if column.kind == "text":
        most = column.field.max_chars if column.field else 0
        return partial(cells.string, most=most or None)
    return cells.READERS[column.kind]


def _typed(plain: pl.Expr, dtype: Any) -> pl.Expr:
    """Write values that have a type of their own."""
    if dtype == pl.Boolean or dtype.is_integer():
        return plain.cast(pl.String)
    if dtype.is_float() or dtype.is_decimal():
        return cells.floats(plain.cast(pl.Float64))
    if dtype == pl.Date:
        return cells.quoted(plain.dt.strftime("%Y-%m-%d"))
    if isinstance(dtype, pl.Datetime):
        return cells.quoted(cells.iso(_utc(plain, dtype)))
    if dtype.is_nested():
        text = _dumped(plain)
        return pl.coalesce(cells.array(text), cells.nested(text))
    return cells.string(plain.cast(pl.String, strict=False))


def _utc(plain: pl.Expr, dtype: pl.Datetime) -> pl.Expr:
    if dtype.time_zone:
        return plain.dt.convert_time_zone("UTC")
    return plain.dt.replace_time_zone("UTC")


def _dumped(plain: pl.Expr) -> pl.Expr:
    """Write lists and structs as JSON; nested times as Braze wants them."""

    def all_of(series: pl.Series) -> pl.Series:
        texts = [
            None if one is None else orjson.dumps(one, default=_time).decode()
            for one in map(_nested, series.to_list())
        ]
        return pl.Series(series.name, texts, pl.String)

    return plain.map_batches(all_of, return_dtype=pl.String, is_elementwise=True)


def _nested(value: Any) -> Any:
    """Leave out nulls, and wrap times: ``{"$time": ...}``."""
    if isinstance(value, dict):
        kept = {name: one for name, one in value.items() if one is not None}
        return {name: _nested(one) for name, one in kept.items()}
    if isinstance(value, list):
        return [_nested(one) for one in value]
    if hasattr(value, "isoformat"):
        return {"$time": value.isoformat()}
    return value


def _time(value: Any) -> Any:
    return float(value)  # a decimal
