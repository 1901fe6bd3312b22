"""What Amperity's documentation demands of a file that it pulls, as one check.

Source: Amperity docs, "About Apache Parquet", "Feeds", "Semantic tags", "Couriers",
"Spark SQL"; what they leave open about encodings is what Spark reads. Nothing here
knows how the product writes: the files are read with pyarrow alone.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RESERVED = frozenset(
    """
    alter and as between by case cast constraint create cross cube current_date
    current_time current_timestamp current_user deallocate delete describe distinct
    drop else end escape except execute exists extract false for from full group
    grouping having in inner insert intersect into is join left like localtime
    localtimestamp natural normalize not null on or order outer prepare recursive
    right rollup select table then true uescape union unnest using values when where
    with
    """.split()  # noqa: SIM905 (a line for each word else)
)
EVENT_WORDS = {"Sent", "Open", "Click", "Unsubscribe", "Optin", "Bounce", "Converted"}
_OBJECT = re.compile(
    r"(?P<feed>[a-z][a-z0-9_]*)/(?P<day>\d{4}/\d\d/\d\d)/(?P=feed)-[^/]+\.parquet"
)
"""What a courier of a feed finds: ``'<feed>/'yyyy'/'MM'/'dd'/<feed>-*.parquet'``."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]*")
"""``_pk``, ``_uuid_pk`` and ``_updated`` are Amperity's own."""
_DATA_PAGE_V1 = 0
"""PageType in parquet.thrift; 3 is a version 2 page."""


_KINDS = {
    ("BOOLEAN", "None"): "boolean",
    ("INT64", "None"): "integer",
    ("INT64", "Int"): "integer",
    ("DOUBLE", "None"): "float",
    ("BYTE_ARRAY", "String"): "string",
    ("INT32", "Date"): "date",
    ("INT64", "Timestamp"): "datetime",
    ("FIXED_LEN_BYTE_ARRAY", "Decimal"): "decimal",
}
"""Amperity's types by Parquet's physical and logical one: no other is taken."""
_ONLY = {
    "Int": {"isSigned": (True,)},
    "Timestamp": {"timeUnit": ("microseconds",), "isAdjustedToUTC": (True,)},
    "Decimal": {"precision": (38,), "scale": range(38)},
}
"""What logical types may say of themselves."""


@dataclass(frozen=True, slots=True)
class Table:
    """What the operator tells Amperity of a feed when it is set up."""

    key: tuple[str, ...] = ("event_id",)
    last_updated: str = "feed_updated_at"
    tagged: Mapping[str, str] = field(default_factory=dict)
    """Type by column, for tags that are required and so may not be null."""


RAW = Table(("id",), "ingested_at")
UNIFIED = {
    "email_events": Table(
        tagged={
            "brand": "string",
            "email": "string",
            "event_datetime": "datetime",
            "event_type": "string",
            "send_id": "string",
        }
    ),
    "message_events": Table(),
    "behavior_events": Table(),
    "purchases": Table(),
    "canvas_campaign_events": Table(),
    "profile_lifecycle": Table(),
    "email_opt_status": Table(
        ("email", "brand", "email_program"),
        "state_version",
        {"email": "string", "is_email_opted_in": "boolean"},
    ),
    "sms_opt_status": Table(
        ("phone", "brand", "sms_program"),
        "state_version",
        {"phone": "string", "is_sms_opted_in": "boolean"},
    ),
}


def broken(objects: Mapping[str, bytes]) -> list[str]:
    """Return every rule that an object of a feed breaks.

    Args:
        objects: All published objects by key below the feeds, all of one version of
            each feed's contract.
    """
    found = []
    columns: dict[str, set[str]] = defaultdict(set)
    for key, body in objects.items():
        match = _OBJECT.fullmatch(key)
        if match is None:
            found.append(f"{key}: no courier finds it")
            continue
        table = UNIFIED.get(match["feed"], RAW)
        found += [f"{key}: {told}" for told in broken_in_one(body, table)]
        columns[match["feed"]].add(pq.read_schema(io.BytesIO(body)).to_string())
    return found + [
        f"{feed}: its objects have {len(schemas)} schemas"
        for feed, schemas in columns.items()
        if len(schemas) > 1
    ]


def broken_in_one(body: bytes, table: Table) -> Iterator[str]:
    """Yield the rules that one object breaks."""
    file = pq.ParquetFile(io.BytesIO(body))
    leaves = [file.schema.column(n) for n in range(len(file.schema))]
    yield from _broken_names([each.name for each in file.schema_arrow])
    for leaf in leaves:
        if kind(leaf) is None:
            yield f"{leaf.path} is {leaf.physical_type}, {leaf.logical_type}"
    yield from _broken_chunks(body, file.metadata)
    if file.metadata.num_rows == 0:
        yield "it has no rows"
    kinds = {leaf.path: kind(leaf) for leaf in leaves}
    yield from _broken_rows(file.read(), kinds, table)


def kind(leaf: pq.ColumnSchema) -> str | None:
    """Return Amperity's type of a column, or None if it has none."""
    logical = json.loads(leaf.logical_type.to_json())
    name = logical["Type"]
    if leaf.max_repetition_level or leaf.max_definition_level > 1 or "." in leaf.path:
        return None  # nested: only with the Spark load type, and never a key or a tag
    if (leaf.physical_type, name) not in _KINDS:
        return None
    fits = all(
        logical[rule] in allowed for rule, allowed in _ONLY.get(name, {}).items()
    )
    return _KINDS[leaf.physical_type, name] if fits else None


def _broken_names(names: list[str]) -> Iterator[str]:
    for name in names:
        if not _NAME.fullmatch(name):
            yield f"{name} is no column name"
        if name.lower() in RESERVED:
            yield f"{name} is a reserved word"
    for name, times in Counter(name.lower() for name in names).items():
        if times > 1:
            yield f"{name} is there {times} times"


def _broken_chunks(body: bytes, metadata: pq.FileMetaData) -> Iterator[str]:
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            if chunk.compression != "SNAPPY":
                yield f"{chunk.path_in_schema} is compressed with {chunk.compression}"
            if _page_type(body, chunk.data_page_offset) != _DATA_PAGE_V1:
                yield f"{chunk.path_in_schema} has no data page of version 1"


def _page_type(body: bytes, at: int) -> int:
    """Return the type of the page there: the first field of its Thrift header."""
    if body[at] != 0x15:  # field 1, of type i32, in the compact protocol
        message = f"no page header at byte {at}"
        raise ValueError(message)
    return body[at + 1] >> 1


def _broken_rows(
    rows: pa.Table, kinds: Mapping[str, str | None], table: Table
) -> Iterator[str]:
    rows.validate(full=True)  # also that every text is UTF-8
    for name in {*table.key, table.last_updated, *table.tagged}:
        if name not in kinds:
            yield f"{name} is missing"
        elif rows[name].null_count:
            yield f"{name} has {rows[name].null_count} nulls"
    if kinds.get(table.last_updated) not in ("datetime", "integer"):
        told = kinds.get(table.last_updated)
        yield f"{table.last_updated} is a {told}, which cannot be last-updated"
    for name, wanted in table.tagged.items():
        if kinds.get(name) != wanted:
            yield f"{name} is a {kinds.get(name)}, and its tag wants a {wanted}"
    if set(table.key) <= kinds.keys():
        columns = (rows[name].to_pylist() for name in table.key)
        keys = Counter(zip(*columns, strict=True))
        if twice := sum(times > 1 for times in keys.values()):
            yield f"{twice} keys are there more than once"
    if table is UNIFIED["email_events"]:
        words = set(rows["event_type"].to_pylist()) - EVENT_WORDS
        yield from (f"{word} is no event type of Amperity's" for word in words)
