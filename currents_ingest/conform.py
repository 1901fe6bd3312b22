"""Writer columns to contract columns, as expressions; rows that do not fit, aside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl

from currents_ingest.avro import BAD_TEXT
from currents_ingest.compatibility import Verdict, compare, unmapped
from currents_ingest.contracts import UNMAPPED
from currents_ingest.errors import BreakingDriftError
from currents_ingest.hashing import digest, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from currents_ingest.contracts import ColumnType, Contract
    from currents_ingest.privacy import Choice
    from currents_ingest.schemas import Field, WriterSchema

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)
"""Event times outside are mistakes (milliseconds taken for seconds, say): rejected.
Imported history may be old and test events lie in the future, so it is a wide range."""

FILE, ROW, QUEUED = "currents_file", "currents_row", "currents_queued_at"
REASON = "reason"

POLARS_TYPES: dict[ColumnType, Any] = {
    "string": pl.String,
    "json": pl.String,
    "boolean": pl.Boolean,
    "int64": pl.Int64,
    "double": pl.Float64,
    "decimal(38,6)": pl.Decimal(38, 6),
    "timestamp": pl.Datetime("us", "UTC"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a stretch of rows came from."""

    file: str
    """Key relative to the source URL."""
    rows: int
    queued_at: datetime


@dataclass(frozen=True, slots=True)
class Conformed:
    """What became of a decoded frame."""

    rows: pl.DataFrame
    """Contract columns, in the order of the decoded rows."""
    rejects: pl.DataFrame
    """Columns ``currents_file``, ``currents_row``, ``reason``."""


def conform(
    frame: pl.DataFrame,
    writer: WriterSchema,
    contract: Contract,
    origins: Sequence[Origin],
    ingested_at: datetime,
) -> Conformed:
    """Turn decoded rows into the contract's columns.

    Args:
        frame: As ``avro.decode`` gives it: rows of the files in *origins*, in order.
        writer: The files' common schema.
        contract: The feed's pinned contract.
        origins: The files, with their rows; the sum is the frame's height.
        ingested_at: The batch's planned time.

    Raises:
        BreakingDriftError: The writer schema does not fit the contract.
    """
    found = compare(writer, contract)
    if found.verdict is Verdict.BREAKING:
        raise BreakingDriftError(contract.feed, found.differences)
    constants = [
        pl.lit(contract.event_type).alias("currents_event_type"),
        pl.lit(writer.fingerprint).alias("currents_schema"),
        pl.lit(ingested_at).cast(POLARS_TYPES["timestamp"]).alias("ingested_at"),
    ]
    fields = {field.name: field for field in writer.fields}
    places = contract.placed(writer)
    columns = [
        _value(column.type, places.get(column.name)).alias(column.name)
        for column in contract.own
    ]
    checked = frame.select(
        *columns,
        _event_datetime(fields).alias("event_datetime"),
        *constants,
        *_provenance(origins),
        _unmapped(unmapped(writer, contract)).alias(UNMAPPED),
        _reason(frame, fields, contract, places).alias(REASON),
    )
    order = list(contract.types)
    if checked[REASON].null_count() == checked.height:
        return Conformed(
            checked.select(order), checked.head(0).select(FILE, ROW, REASON)
        )
    bad = pl.col(REASON).is_not_null()
    return Conformed(
        checked.filter(~bad).select(order),
        checked.filter(bad).select(FILE, ROW, REASON),
    )


def _provenance(origins: Sequence[Origin]) -> Iterator[pl.Series]:
    """Yield each file's key, row numbers and queued hour along its rows."""
    files = pl.DataFrame(
        {
            FILE: [origin.file for origin in origins],
            QUEUED: [origin.queued_at for origin in origins],
            ROW: [origin.rows for origin in origins],
        },
        schema={FILE: pl.String, QUEUED: POLARS_TYPES["timestamp"], ROW: pl.Int64},
    )
    rows = files.select(
        pl.int_range(pl.len()).repeat_by(ROW).explode().alias(FILE),
        pl.int_ranges(0, ROW).explode().alias(ROW),
    )
    # Gathered and not repeated: the text of a key is there once, whatever its rows.
    each = files[rows[FILE]]
    yield from (each[FILE], rows[ROW], each[QUEUED])


def _value(kind: ColumnType, field: Field | None) -> pl.Expr:
    if field is None:
        return pl.lit(None, dtype=POLARS_TYPES[kind])
    name = field.name
    if kind == "decimal(38,6)" or (kind == "double" and field.type == "float"):
        # A 32-bit 3.14 is 3.140000104904175 when widened; its shortest text is 3.14.
        return pl.col(name).cast(pl.String).cast(POLARS_TYPES[kind], strict=False)
    return pl.col(name).cast(POLARS_TYPES[kind])


def _event_datetime(fields: dict[str, Field]) -> pl.Expr:
    seconds = pl.col("time").cast(pl.Int64)
    exact = "time_ms" in fields and fields["time_ms"].type in ("int", "long")
    millis = pl.col("time_ms").cast(pl.Int64) if exact else pl.lit(None, pl.Int64)
    earliest, latest = (int(edge.timestamp()) for edge in (EARLIEST, LATEST))
    micros = pl.coalesce(
        _within(millis, earliest * 10**3, latest * 10**3) * 1000,
        _within(seconds, earliest, latest) * 10**6,
    )
    return micros.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _within(number: pl.Expr, low: int, high: int) -> pl.Expr:
    return pl.when(number.is_between(low, high, closed="left")).then(number)


def _reason(
    frame: pl.DataFrame,
    fields: dict[str, Field],
    contract: Contract,
    places: dict[str, Field],
) -> pl.Expr:
    """Say why a row cannot be delivered; null if it can."""
    reasons: list[pl.Expr] = []
    if BAD_TEXT in frame.columns:
        text = pl.format("the text in field {} is not UTF-8", pl.col(BAD_TEXT))
        reasons.append(pl.when(pl.col(BAD_TEXT).is_not_null()).then(text))
    identity = pl.col(contract.key)
    reasons += [
        _when(identity.is_null() | (identity == ""), "id is missing"),
        _when(pl.col("time").is_null(), "time is missing"),
        _when(
            _event_datetime({"time": fields["time"]}).is_null(),
            "time is not between 1970 and 2100, as seconds",
        ),
    ]
    types = contract.types
    for name, field in places.items():
        if (kind := types[name]) == "decimal(38,6)":
            given = pl.col(field.name).is_not_null()
            lost = _value(kind, field).is_null() & given
            reasons.append(_when(lost, f"{name} does not fit a DECIMAL(38,6)"))
    return pl.coalesce(*reasons)


def _when(condition: pl.Expr, reason: str) -> pl.Expr:
    return pl.when(condition).then(pl.lit(reason))


def _unmapped(fields: Sequence[Field]) -> pl.Expr:
    """Write fields that the contract does not know as one JSON object a row.

    Null fields are left out; a row without any has null.
    """
    pieces = [
        pl.concat_str(pl.lit(f"{json.dumps(field.name)}:"), _json_value(field))
        for field in fields
    ]
    if not pieces:
        return pl.lit(None, dtype=pl.String)
    joined = pl.concat_str(pieces, separator=",", ignore_nulls=True)
    return pl.when(joined != "").then(pl.concat_str(pl.lit("{"), joined, pl.lit("}")))


def _json_value(field: Field) -> pl.Expr:
    """Write a field's value as JSON text, null staying null."""
    column = pl.col(field.name)
    if field.type in ("array", "complex"):  # decoded as JSON text already
        return column
    if field.type == "float":
        column = column.cast(pl.String).cast(pl.Float64, strict=False)
    whole = pl.struct(column.alias("v")).struct.json_encode()
    text = whole.str.slice(len('{"v":')).str.head(-1)
    return pl.when(pl.col(field.name).is_not_null()).then(text)


def hidden(rows: pl.DataFrame, privacy: Mapping[str, Choice]) -> pl.DataFrame:
    """Return a raw feed's rows with personal fields as the choices leave them."""
    chosen = {name: choice for name, choice in privacy.items() if choice != "keep"}
    if not chosen:
        return rows
    columns = [
        guarded(pl.col(name), choice).alias(name)
        for name, choice in chosen.items()
        if name in rows.columns
    ]
    texts, names = rows[UNMAPPED], [f"{json.dumps(name)}:" for name in chosen]
    if (at := texts.str.contains_any(names).arg_true()).len():
        found = [_hidden_within(text, chosen) for text in texts[at]]
        columns.append(pl.lit(texts.clone().scatter(at, found)))
    return rows.with_columns(columns)


def _hidden_within(text: str, chosen: Mapping[str, Choice]) -> str | None:
    """Treat fields that have no column likewise."""
    fields = orjson.loads(text)
    for name in fields.keys() & chosen.keys():
        value = fields.pop(name)
        if chosen[name] == "hash":
            plain = value if isinstance(value, str) else orjson.dumps(value).decode()
            fields[name] = digest(plain)
    return orjson.dumps(fields).decode() if fields else None


def guarded(value: pl.Expr, choice: Choice) -> pl.Expr:
    """Return a field's values as the choice leaves them."""
    if choice == "keep":
        return value
    if choice == "hash":
        return sha256(value)
    return pl.when(pl.lit(value=False)).then(value)  # null, of the same type
