"""The script that the benchmark compares with: fastavro in, pyarrow out.

Usage: ``python tools/plain.py SOURCE TARGET``. One Parquet file for each event type,
every row once for each time it was delivered.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_AT_ONCE = 50_000


def main() -> None:
    """Convert every event type."""
    source, target = map(Path, sys.argv[1:])
    target.mkdir(parents=True, exist_ok=True)
    by_type: dict[str, list[Path]] = {}
    for path in sorted(source.rglob("*.avro")):
        event_type = next(p for p in path.parts if p.startswith("event_type="))
        by_type.setdefault(event_type, []).append(path)
    for event_type, paths in by_type.items():
        convert(paths, target / f"{event_type}.parquet")


def convert(paths: list[Path], target: Path) -> None:
    """Write the rows of many files to one."""
    writer: Any = None
    rows: list[Any] = []
    for path in paths:
        with path.open("rb") as file:
            rows += fastavro.reader(file)
        if len(rows) >= ROWS_AT_ONCE or path == paths[-1]:
            table = pa.Table.from_pylist(rows, schema=writer and writer.schema)
            writer = writer or pq.ParquetWriter(target, table.schema)
            writer.write_table(table)
            rows = []
    writer.close()


if __name__ == "__main__":
    main()
