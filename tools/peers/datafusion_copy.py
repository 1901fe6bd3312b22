"""DataFusion: each event type's folder as an Avro table, copied to Parquet.

Usage: ``python datafusion_copy.py SOURCE TARGET``.
"""

from __future__ import annotations

import os
import sys
from urllib.parse import urlsplit

import boto3
from datafusion import SessionConfig, SessionContext
from datafusion.object_store import AmazonS3


def main() -> None:
    """Copy every event type."""
    source, target = sys.argv[1:]
    place = urlsplit(source)
    config = SessionConfig().set(
        "datafusion.execution.listing_table_ignore_subdirectory", "false"
    )
    context = SessionContext(config)
    store = AmazonS3(
        place.netloc,
        region=os.environ["AWS_DEFAULT_REGION"],
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        allow_http=True,
    )
    context.register_object_store("s3://", store, place.netloc)
    for folder in folders(place.netloc, place.path.strip("/") + "/"):
        name = folder.rstrip("/").rsplit("event_type=", 1)[1]
        frame = context.read_avro(f"s3://{place.netloc}/{folder}")
        frame.write_parquet(f"{target}/{name}/", compression="snappy")


def folders(bucket: str, prefix: str) -> list[str]:
    """Return the ``event_type=`` folders."""
    client = boto3.client("s3")

    def below(at: str) -> list[str]:
        page = client.list_objects_v2(Bucket=bucket, Prefix=at, Delimiter="/")
        return [one["Prefix"] for one in page.get("CommonPrefixes", ())]

    return [folder for top in below(prefix) for folder in below(top)]


if __name__ == "__main__":
    main()
