"""Least IAM policies: for Amperity's role on one feed, and for our own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from currents_ingest.manifest import refill_feed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from currents_ingest.config import Settings

_BUCKET = "arn:aws:s3:::{}"
_REMOVED = (
    "_staging/*",
    "_ledger/lease/*",
    "_ledger/probe/*",
    "_ledger/checkpoints/*",
)
"""What a run removes below the feeds URL; nothing else is ever deleted."""
_REMOVED_OF_AUDIENCES = ("_audiences/*",)
"""Snapshots that newer ones replace, and leases."""
_WRITES = ("s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload")
_QUEUE = (
    "sqs:ReceiveMessage",
    "sqs:DeleteMessage",
    "sqs:ChangeMessageVisibility",
    "sqs:GetQueueAttributes",
)
_TRUST = {
    "Effect": "Allow",
    "Principal": {"AWS": "<Amperity Role ARN, from Amperity>"},
    "Action": "sts:AssumeRole",
    "Condition": {"StringEquals": {"sts:ExternalId": "<External ID, from Amperity>"}},
}


def bucket_of(settings: Settings) -> str:
    """Return the S3 bucket of the feeds; empty if they are elsewhere."""
    parts = urlsplit(settings.feeds.url)
    return parts.netloc if parts.scheme == "s3" else ""


def of(settings: Settings, feed: str) -> dict[str, str]:
    """Return policies as JSON by whose they are; none where the feeds are not in S3.

    Source of what Amperity needs: Amperity docs, "Amazon S3" (role to role); reading
    takes ListBucket and GetObject.
    """
    if not (bucket := bucket_of(settings)):
        return {}
    top = below(settings.feeds.url)
    folders = [f"{top}{feed}/*", f"{top}{refill_feed(feed)}/*"]
    if settings.feeds.daily_copy:
        folders.append(f"{top}{feed}_????-??-??.parquet/*")
    return {
        "trust policy of the role that Amperity assumes": _policy(_TRUST),
        "permissions of that role": _policy(
            _list(bucket, folders), _objects(bucket, folders, "s3:GetObject")
        ),
        "permissions of the role that currents-ingest runs under": own(settings),
    }


def own(settings: Settings) -> str:
    """Return the policy of our own role."""
    source = urlsplit(settings.source.url)
    statements = []
    if source.scheme == "s3":
        inside = [f"{below(settings.source.url)}*"]
        statements.append(_list(source.netloc, inside))
        statements.append(_objects(source.netloc, inside, "s3:GetObject"))
    if queue := settings.source.queue:
        arn = queue_arn(queue)
        statements.append({"Effect": "Allow", "Action": [*_QUEUE], "Resource": arn})
    if bucket := bucket_of(settings):
        top = below(settings.feeds.url)
        names = _REMOVED + (_REMOVED_OF_AUDIENCES if settings.audiences else ())
        inside, removed = [f"{top}*"], [f"{top}{name}" for name in names]
        statements += [
            _list(bucket, inside),
            _objects(bucket, inside, *_WRITES),
            _objects(bucket, removed, "s3:DeleteObject"),
        ]
    for bucket, folders in _read_alone(settings).items():
        statements.append(_list(bucket, folders))
        statements.append(_objects(bucket, folders, "s3:GetObject"))
    return _policy(*statements)


def _read_alone(settings: Settings) -> dict[str, list[str]]:
    """Return where exports, schemas and contracts lie in S3, by bucket."""
    found: dict[str, list[str]] = {}
    urls = [*settings.schemas.urls, *settings.feeds.contracts]
    for url in (*urls, *(one.source for one in settings.audiences.values())):
        parts = urlsplit(url)
        if parts.scheme == "s3":
            fixed = parts.path.strip("/").partition("*")[0]
            found.setdefault(parts.netloc, []).append(f"{fixed}*")
    return found


def queue_arn(url: str) -> str:
    """Return the ARN of ``sqs://<region>/<account>/<name>``."""
    return "arn:aws:sqs:" + url.removeprefix("sqs://").replace("/", ":")


def below(url: str) -> str:
    """Return what every key below a URL begins with."""
    prefix = urlsplit(url).path.strip("/")
    return f"{prefix}/" if prefix else ""


def _list(bucket: str, folders: list[str]) -> dict[str, Any]:
    statement: dict[str, Any] = {
        "Effect": "Allow",
        "Action": "s3:ListBucket",
        "Resource": _BUCKET.format(bucket),
    }
    if folders != ["*"]:
        statement["Condition"] = {"StringLike": {"s3:prefix": folders}}
    return statement


def _objects(bucket: str, folders: Iterable[str], *actions: str) -> dict[str, Any]:
    return {
        "Effect": "Allow",
        "Action": list(actions),
        "Resource": [f"{_BUCKET.format(bucket)}/{folder}" for folder in folders],
    }


def _policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2)
