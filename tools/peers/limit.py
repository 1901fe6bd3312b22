"""The limit: the same bytes fetched, spliced, decoded by polars-avro, written.

Usage: ``python limit.py SOURCE TARGET``. Nothing in between: no check of what came, no
contract, no ledger, no duplicates dropped. Files of one event type and version are
joined behind the first one's header; a few such groups are in work at once, on a thread
each.
"""

from __future__ import annotations

import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING

import obstore
import polars_avro
from obstore.store import S3Store

if TYPE_CHECKING:
    from collections.abc import Iterator

BYTES_AT_ONCE = 32 << 20
IN_FLIGHT = 32
_HEAD = 1 << 16
"""No header is longer."""
THREADS = (os.cpu_count() or 2) + 1


def main() -> None:
    """Convert every event type."""
    source, target = (opened(url) for url in sys.argv[1:])
    listed = [
        (one["path"], one["size"]) for page in obstore.list(source) for one in page
    ]
    with ThreadPoolExecutor(IN_FLIGHT) as requests, ThreadPoolExecutor(THREADS) as pool:

        def convert(keys: list[str], number: int) -> None:
            bodies = list(requests.map(lambda key: read(source, key), keys))
            obstore.put(target, f"{number}.parquet", converted(bodies))

        groups = grouped(sorted(listed))
        list(pool.map(convert, groups, range(len(groups))))


def read(source: S3Store, key: str) -> memoryview:
    """Fetch one file."""
    return memoryview(obstore.get(source, key).bytes())


def grouped(listed: list[tuple[str, int]]) -> list[list[str]]:
    """Group files of an event type to so many bytes."""
    groups: list[list[str]] = []
    for _, files in groupby(listed, lambda one: one[0].split("/date=")[0]):
        held, size = list[str](), 0
        for key, length in files:
            if held and size + length > BYTES_AT_ONCE:
                groups.append(held)
                held, size = [], 0
            held.append(key)
            size += length
        groups.append(held)
    return groups


def converted(bodies: list[memoryview]) -> bytes:
    """Make one Parquet file of some files of one schema."""
    spliced = io.BytesIO(b"".join(splice(bodies)))
    bodies.clear()
    frame = polars_avro.read_avro(spliced, batch_size=1 << 20)
    out = io.BytesIO()
    frame.write_parquet(out, compression="snappy")
    return out.getvalue()


def splice(bodies: list[memoryview]) -> Iterator[memoryview]:
    """Yield one file's bytes: the first header, then every block with its marker."""
    marker = bodies[0][-16:]
    for place, body in enumerate(bodies):
        at = bytes(body[:_HEAD]).index(body[-16:]) + 16
        if not place:
            yield body[:at]
        while at < len(body):
            _, after = number_at(body, at)
            size, after = number_at(body, after)
            yield body[at : after + size]
            yield marker
            at = after + size + 16


def number_at(body: memoryview, at: int) -> tuple[int, int]:
    """Read a zig-zag number; return it and what follows."""
    found = shift = 0
    while True:
        byte = body[at]
        found |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return (found >> 1) ^ -(found & 1), at
        shift += 7


def opened(url: str) -> S3Store:
    """Open a folder."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    return S3Store.from_url(url, endpoint=endpoint, client_options={"allow_http": True})


if __name__ == "__main__":
    main()
