"""The plain script: boto3 to fetch, fastavro row by row, pyarrow to Parquet.

Usage: ``python fastavro_boto3.py SOURCE TARGET [--processes N]``. With several
processes each converts some of every event type's files.
"""

from __future__ import annotations

import argparse
import io
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from typing import Any
from urllib.parse import urlsplit

import boto3
import fastavro
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_AT_ONCE = 50_000


def main() -> None:
    """Convert every event type."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--processes", type=int, default=1)
    chosen = parser.parse_args()
    by_type = listed(chosen.source)
    if chosen.processes == 1:
        for event_type, keys in by_type.items():
            convert(chosen.source, chosen.target, event_type, keys, 0)
        return
    shares = [
        (event_type, keys[number :: chosen.processes], number)
        for event_type, keys in by_type.items()
        for number in range(min(chosen.processes, len(keys)))
    ]
    with ProcessPoolExecutor(chosen.processes) as pool:
        places = repeat(chosen.source), repeat(chosen.target)
        list(pool.map(convert, *places, *zip(*shares, strict=True)))


def listed(source: str) -> dict[str, list[str]]:
    """Return the keys of every event type."""
    parts = urlsplit(source)
    pages = boto3.client("s3").get_paginator("list_objects_v2")
    by_type: dict[str, list[str]] = {}
    for page in pages.paginate(Bucket=parts.netloc, Prefix=parts.path.strip("/") + "/"):
        for one in page.get("Contents", ()):
            name = next(p for p in one["Key"].split("/") if p.startswith("event_type="))
            by_type.setdefault(name.removeprefix("event_type="), []).append(one["Key"])
    return by_type


def convert(
    source: str, target: str, event_type: str, keys: list[str], number: int
) -> None:
    """Write the rows of many files to one."""
    client = boto3.client("s3")
    place, out = urlsplit(source), io.BytesIO()
    writer: Any = None
    rows: list[Any] = []
    for key in keys:
        body = client.get_object(Bucket=place.netloc, Key=key)["Body"].read()
        rows += fastavro.reader(io.BytesIO(body))
        if len(rows) >= ROWS_AT_ONCE or key == keys[-1]:
            table = pa.Table.from_pylist(rows, schema=writer and writer.schema)
            writer = writer or pq.ParquetWriter(out, table.schema)
            writer.write_table(table)
            rows = []
    writer.close()
    to = urlsplit(target)
    name = f"{to.path.strip('/')}/{event_type}-{number}.parquet"
    client.put_object(Bucket=to.netloc, Key=name, Body=out.getvalue())


if __name__ == "__main__":
    main()
