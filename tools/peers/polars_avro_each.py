"""polars-avro file by file: obstore to fetch, one decode and one Parquet file each.

Usage: ``python polars_avro_each.py SOURCE TARGET``. On a thread for each core.
"""

from __future__ import annotations

import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import obstore
import polars_avro
from obstore.store import S3Store


def main() -> None:
    """Convert every file."""
    source, target = (opened(url) for url in sys.argv[1:])

    def convert(key: str) -> None:
        body = bytes(obstore.get(source, key).bytes())
        out = io.BytesIO()
        polars_avro.read_avro(io.BytesIO(body)).write_parquet(out, compression="snappy")
        obstore.put(target, f"{key}.parquet", out.getvalue())

    keys = [one["path"] for page in obstore.list(source) for one in page]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(convert, keys))


def opened(url: str) -> S3Store:
    """Open a folder."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    return S3Store.from_url(url, endpoint=endpoint, client_options={"allow_http": True})


if __name__ == "__main__":
    main()
