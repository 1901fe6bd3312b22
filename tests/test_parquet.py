from __future__ import annotations

import io
from datetime import UTC, datetime
from decimal import Decimal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from currents_ingest import conform, parquet

FRAME = pl.DataFrame(
    {
        "string": ["é", None],
        "json": ['{"a":1}', None],
        "boolean": [True, None],
        "int64": [2**62, None],
        "double": [0.1, None],
        "decimal(38,6)": [Decimal("12.34"), None],
        "timestamp": [datetime(2026, 9, 15, 1, 2, 3, 456789, tzinfo=UTC), None],
    },
    schema=dict(conform.POLARS_TYPES),
)


def test_every_column_type_is_one_that_amperity_reads():
    schema = pq.read_schema(io.BytesIO(parquet.to_bytes(FRAME)))
    assert [(field.name, field.type) for field in schema] == [
        ("string", pa.large_string()),
        ("json", pa.large_string()),
        ("boolean", pa.bool_()),
        ("int64", pa.int64()),
        ("double", pa.float64()),
        ("decimal(38,6)", pa.decimal128(38, 6)),
        ("timestamp", pa.timestamp("us", tz="UTC")),
    ]


def test_pages_are_version_1_and_snappy():
    body = parquet.to_bytes(FRAME)
    group = pq.ParquetFile(io.BytesIO(body)).metadata.row_group(0)
    for number in range(group.num_columns):
        column = group.column(number)
        assert column.compression == "SNAPPY"
        # A page header is Thrift compact; its first field (0x15: id 1, i32) is the
        # page type: 0 is DATA_PAGE, 3 would be DATA_PAGE_V2.
        start = column.data_page_offset
        assert body[start : start + 2] == b"\x15\x00"


def test_equal_frames_give_equal_bytes():
    large = pl.concat([FRAME] * 5000)
    assert parquet.to_bytes(large) == parquet.to_bytes(large.clone())


def test_what_is_written_reads_back():
    assert parquet.from_bytes(parquet.to_bytes(FRAME)).equals(FRAME)
    assert parquet.from_bytes(parquet.index_to_bytes(FRAME), ["int64"]).columns == [
        "int64"
    ]
