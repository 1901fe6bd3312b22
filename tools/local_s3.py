"""A read-only look-alike of S3 with made-up Currents files, for benchmarks alone.

Usage: ``python tools/local_s3.py --files 100000``. Listens on 127.0.0.1 and prints its
port. It answers what obstore and s3fs ask for when they read: ListObjectsV2, GET with
and without a range, HEAD, and If-Match. Several processes share the port, and each
holds a few hundred bodies only: which one an object has follows from its number.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import multiprocessing
import re
import signal
import socket
import sys
import tempfile
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

from currents_ingest.simulate import Simulation, simulate

if TYPE_CHECKING:
    from collections.abc import Callable

BUCKET = "bench"
EVENTS = ("Open", "Click", "Send", "Delivery", "Bounce", "Unsubscribe")
BODIES = 50
"""Different bodies of each event type."""
START = datetime(2026, 1, 1, tzinfo=UTC)
_STEM = "dataexport.prod-01.S3.integration.0123456789abcdef01234567"
_A_DAY = 500
"""Files of an event type in a day."""
_WRITTEN = "2026-09-15T12:00:00.000Z"
_WRITTEN_HTTP = "Tue, 15 Sep 2026 12:00:00 GMT"
_MOST_KEYS = 1000
_RANGE = re.compile(rb"bytes=(\d*)-(\d*)")


@dataclass(frozen=True, slots=True)
class Body:
    """What some objects hold."""

    content: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Bucket:
    """All objects: keys in order, and the body of each by its place."""

    keys: list[str]
    bodies: list[Body]

    def find(self, key: str) -> Body:
        """Return an object's body; raises KeyError."""
        at = bisect_left(self.keys, key)
        if at == len(self.keys) or self.keys[at] != key:
            raise KeyError(key)
        return self.bodies[at]


def make_bucket(files: int) -> Bucket:
    """Make up so many objects; equal numbers give equal buckets."""
    pools = _pools()
    each = -(-files // len(EVENTS))
    objects = [
        (_key(f"users.messages.email.{event}", number), pool[number % len(pool)])
        for event, pool in zip(EVENTS, pools, strict=True)
        for number in range(each)
    ][:files]
    objects.sort(key=lambda one: one[0])
    return Bucket([key for key, _ in objects], [body for _, body in objects])


def _key(event_type: str, number: int) -> str:
    hour = START + timedelta(hours=number * 24 // _A_DAY)
    return (
        f"currents/{_STEM}/event_type={event_type}/date={hour:%Y-%m-%d-%H}/version=12/"
        f"us-01/{_STEM}+{number % 3}+{number * 40}.avro"
    )


def _pools() -> list[list[Body]]:
    names = tuple(f"users.messages.email.{event}" for event in EVENTS)
    simulation = Simulation(
        events=names, versions="all", layout="new", hours=BODIES, files_per_hour=1
    )
    with tempfile.TemporaryDirectory(prefix="local-s3-") as folder:
        simulate(folder, simulation)
        return [
            [
                _body(path.read_bytes())
                for path in sorted(Path(folder).glob(f"**/event_type={name}/**/*.avro"))
            ]
            for name in names
        ]


def _body(content: bytes) -> Body:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return Body(content, f'"{digest}"')


class Connection(asyncio.Protocol):
    """Answers the requests of one connection, one after the other."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer what came whole; nobody who only reads sends a body."""
        received = self._received + data
        while (end := received.find(b"\r\n\r\n")) >= 0:
            if self._transport:
                self._transport.write(answer(self._bucket, received[:end]))
            received = received[end + 4 :]
        self._received = received


def answer(bucket: Bucket, request: bytes) -> bytes:
    """Answer a request, given up to its empty line."""
    first, _, rest = request.partition(b"\r\n")
    method, target, _ = first.decode("ascii").split(" ")
    path, _, query = target.partition("?")
    name, _, key = unquote(path).removeprefix("/").partition("/")
    if name != BUCKET or method not in ("GET", "HEAD"):
        return _failed(404, "NoSuchBucket", method)
    if not key:
        listed = list_objects(bucket.keys, bucket.find, query).encode()
        return response(200, listed, method, "Content-Type: application/xml\r\n")
    try:
        body = bucket.find(key)
    except KeyError:
        return _failed(404, "NoSuchKey", method)
    return of_object(body, method, _wanted(rest))


def _wanted(lines: bytes) -> dict[bytes, bytes]:
    """Return the two headers that matter, by their name in lower case."""
    found: dict[bytes, bytes] = {}
    for line in lines.split(b"\r\n"):
        if line[:2] in (b"ra", b"Ra", b"if", b"If"):
            name, _, value = line.partition(b":")
            found[name.lower()] = value.strip()
    return found


def of_object(body: Body, method: str, headers: dict[bytes, bytes]) -> bytes:
    """Answer a GET or HEAD, with If-Match and a range if they are asked for."""
    match = headers.get(b"if-match")
    if match and match != b"*" and match.decode().strip('"') != body.etag.strip('"'):
        return _failed(412, "PreconditionFailed", method)
    size = len(body.content)
    about = f"ETag: {body.etag}\r\nLast-Modified: {_WRITTEN_HTTP}\r\n"
    about += "Accept-Ranges: bytes\r\nContent-Type: binary/octet-stream\r\n"
    asked = _RANGE.fullmatch(headers.get(b"range", b""))
    if not asked:
        return response(200, body.content, method, about)
    low, high = asked.groups()
    start = int(low) if low else max(0, size - int(high))
    end = min(size, int(high) + 1) if low and high else size
    if start >= end:
        return _failed(416, "InvalidRange", method)
    about += f"Content-Range: bytes {start}-{end - 1}/{size}\r\n"
    return response(206, body.content[start:end], method, about)


def list_objects(keys: list[str], find: Callable[[str], Body], query: str) -> str:
    """Return a page of ListObjectsV2 as XML.

    Args:
        keys: All keys, in order.
        find: Gives the object of a key.
        query: As asked for.
    """
    given = {name: values[0] for name, values in parse_qs(query).items()}
    prefix, delimiter = given.get("prefix", ""), given.get("delimiter", "")
    after = given.get("continuation-token") or given.get("start-after", "")
    most = min(int(given.get("max-keys", _MOST_KEYS)), _MOST_KEYS)
    encoded = given.get("encoding-type") == "url"
    written = quoted if encoded else escape
    parts: list[str] = []
    at, last = (
        max(bisect_left(keys, prefix), bisect_right(keys, after)),
        "",
    )
    if delimiter and after.endswith(delimiter):  # a folder: go on after all in it
        at = max(at, bisect_left(keys, after + "\U0010ffff"))
    while at < len(keys) and keys[at].startswith(prefix):
        if len(parts) == most:
            break
        key = keys[at]
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        if cut >= 0:
            last = key[: cut + len(delimiter)]
            at = bisect_left(keys, last + "\U0010ffff")
            parts.append(_folder(written(last)))
        else:
            last, at = key, at + 1
            parts.append(_contents(written(key), find(key)))
    more = at < len(keys) and keys[at].startswith(prefix)
    token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><Prefix>{written(prefix)}</Prefix>"
        f"<KeyCount>{len(parts)}</KeyCount><MaxKeys>{most}</MaxKeys>"
        f"<Delimiter>{written(delimiter)}</Delimiter>"
        f"{'<EncodingType>url</EncodingType>' if encoded else ''}"
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"
        f"{token if more else ''}{''.join(parts)}</ListBucketResult>"
    )


def quoted(text: str) -> str:
    """Write a key as encoding-type=url asks."""
    return escape(text.replace("%", "%25").replace("+", "%2B").replace("=", "%3D"))


def _folder(name: str) -> str:
    return f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"


def _contents(name: str, body: Body) -> str:
    return (
        f"<Contents><Key>{name}</Key><LastModified>{_WRITTEN}</LastModified>"
        f"<ETag>{escape(body.etag)}</ETag><Size>{len(body.content)}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )


_REASONS = {
    200: "OK",
    204: "No Content",
    206: "Partial Content",
    404: "Not Found",
    412: "Precondition Failed",
    416: "Range Not Satisfiable",
}


def response(status: int, body: bytes, method: str, about: str) -> bytes:
    """Write a response; *about* holds more header lines."""
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Length: {len(body)}\r\n"
    whole = f"{head}{about}\r\n".encode("ascii")
    return whole if method == "HEAD" else whole + body


def _failed(status: int, code: str, method: str) -> bytes:
    text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return response(status, text.encode(), method, "Content-Type: application/xml\r\n")


def serve(bucket: Bucket, listening: socket.socket) -> None:
    """Serve until the process is ended."""

    async def forever() -> None:
        make: Callable[[], Connection] = partial(Connection, bucket)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(make, sock=listening, backlog=1024)
        await server.serve_forever()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gc.freeze()
    asyncio.run(forever())


def _listen(port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind(("127.0.0.1", port))
    return listening


def main() -> int:
    """Serve, and print the port once it is open."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    chosen = parser.parse_args()
    bucket = make_bucket(chosen.files)
    first = _listen(chosen.port)
    port = first.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    others = [
        fork.Process(target=serve, args=(bucket, _listen(port)), daemon=True)
        for _ in range(chosen.processes - 1)
    ]
    for one in others:
        one.start()
    print(port, flush=True)
    serve(bucket, first)
    return 0


if __name__ == "__main__":
    sys.exit(main())
