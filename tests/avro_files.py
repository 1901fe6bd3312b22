"""Small Avro files for tests, written by fastavro or byte by byte."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro

SYNC = bytes(range(16))
OPEN = "users.messages.email.Open"
KEY = (
    "dataexport.prod-01.S3.integration.0123456789abcdef01234567/event_type={event}/"
    "date={hour}/version=12/us-01/"
    "dataexport.prod-01.S3.integration.0123456789abcdef01234567+{partition}+{offset}.avro"
)


def record(event_type: str = OPEN, **fields: Any) -> dict[str, Any]:
    """Return a record schema with the fields every event has, and these."""
    namespace, _, name = f"dataexport.S3.inner.{event_type}".rpartition(".")
    columns = {"id": "string", "time": "int", **fields}
    return {
        "type": "record",
        "name": name,
        "namespace": namespace,
        "fields": [
            {"name": field, "type": kind}
            for field, kind in columns.items()
            if kind is not None
        ],
    }


def container(
    schema: dict[str, Any], rows: list[dict[str, Any]], **options: Any
) -> bytes:
    """Write an Avro file with fastavro."""
    out = io.BytesIO()
    parsed = fastavro.parse_schema(json.loads(json.dumps(schema)))
    fastavro.writer(out, parsed, rows, sync_marker=SYNC, **options)
    return out.getvalue()


def key(
    event: str = OPEN, hour: str = "2026-09-15-10", partition: int = 0, offset: int = 1
) -> str:
    """Return a key in the newest layout."""
    return KEY.format(event=event, hour=hour, partition=partition, offset=offset)


def number(value: int) -> bytes:
    """Encode a long as Avro does, negative ones included."""
    zigzag = (value << 1) ^ (value >> 63)
    out = bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)


def by_hand(
    schema: dict[str, Any] | bytes,
    data: bytes,
    count: int,
    *,
    size: int | None = None,
    codec: bytes | None = None,
    sync: bytes = SYNC,
) -> bytes:
    """Build a file of one block whose parts may contradict each other."""
    text = schema if isinstance(schema, bytes) else json.dumps(schema).encode()
    metadata = {b"avro.schema": text} | ({b"avro.codec": codec} if codec else {})
    head = b"Obj\x01" + number(len(metadata))
    for name, value in metadata.items():
        head += number(len(name)) + name + number(len(value)) + value
    block = number(count) + number(len(data) if size is None else size) + data
    return head + number(0) + SYNC + block + sync


def encoded(schema: dict[str, Any], rows: list[dict[str, Any]]) -> bytes:
    """Encode rows without a container."""
    out = io.BytesIO()
    parsed = fastavro.parse_schema(json.loads(json.dumps(schema)))
    for row in rows:
        fastavro.schemaless_writer(out, parsed, row)
    return out.getvalue()
