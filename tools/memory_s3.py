"""A look-alike of S3 that holds its objects in memory, for benchmarks alone.

Usage: ``python -m tools.memory_s3 [FOLDER ...]``. Listens on 127.0.0.1, prints where.
Every folder's files become objects of the bucket ``bench`` under their relative
paths. It answers what obstore, boto3 and DataFusion ask for: ListObjectsV2, GET with
and without a range, HEAD, PUT (whole, in parts, copies, If-Match, If-None-Match),
DELETE of one and of many. ``GET /stats`` tells how many requests of each kind came
since it was last asked, and how many bytes went out, as JSON. Nobody's signature is
checked.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import re
import signal
import socket
import sys
from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape, unescape

from tools.local_s3 import (
    BUCKET,
    Body,
    list_objects,
    of_object,
    response,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9a-fA-F]+)(?:;[^\r]*)?\r\n")
_KEY = re.compile(r"<Key>(.*?)</Key>")
_XML = "Content-Type: application/xml\r\n"


_numbers = count(1)


def body_of(content: bytes) -> Body:
    """Return an object with its ETag, which is a number of ours."""
    return Body(content, f'"{next(_numbers):032x}"')


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body whole."""

    method: str
    key: str
    query: str
    headers: dict[bytes, bytes]
    body: bytes


@dataclass(slots=True)
class Objects:
    """What a bucket holds."""

    keys: list[str] = field(default_factory=list)
    """In order."""
    held: dict[str, Body] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)

    @staticmethod
    def of(objects: Mapping[str, Body]) -> Objects:
        """Make a bucket."""
        return Objects(sorted(objects), dict(objects))

    def put(self, key: str, content: bytes) -> Body:
        """Keep an object; its ETag is a number of ours."""
        body = body_of(content)
        if key not in self.held:
            insort(self.keys, key)
        self.held[key] = body
        return body

    def remove(self, key: str) -> None:
        """Forget an object."""
        if self.held.pop(key, None):
            del self.keys[bisect_left(self.keys, key)]

    def answer(self, request: Request) -> bytes:
        """Answer a request."""
        if not request.key:
            return self._of_bucket(request)
        match request.method:
            case "GET" | "HEAD":
                return self._get(request)
            case "PUT":
                return self._put(request)
            case "POST":
                return self._upload(request)
            case _:
                self.remove(request.key)
                return response(204, b"", "DELETE", "")

    def _of_bucket(self, request: Request) -> bytes:
        if request.method == "POST":  # of many
            keys = _KEY.findall(request.body.decode())
            for key in keys:
                self.remove(unescape(key))
            gone = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            text = f"<DeleteResult>{gone}</DeleteResult>"
            return response(200, text.encode(), "POST", _XML)
        listed = list_objects(self.keys, self.held.__getitem__, request.query)
        return response(200, listed.encode(), request.method, _XML)

    def _get(self, request: Request) -> bytes:
        if (body := self.held.get(request.key)) is None:
            return _failed(404, "NoSuchKey", request.method)
        return of_object(body, request.method, request.headers)

    def _put(self, request: Request) -> bytes:
        given = {name: one[0] for name, one in parse_qs(request.query).items()}
        if upload := given.get("uploadId"):
            self.uploads[upload][int(given["partNumber"])] = request.body
            return response(200, b"", "PUT", f'ETag: "{given["partNumber"]}"\r\n')
        there = self.held.get(request.key)
        if request.headers.get(b"if-none-match") == b"*" and there:
            return _failed(412, "PreconditionFailed", "PUT")
        wanted = request.headers.get(b"if-match", b"").decode()
        if wanted and wanted != (there.etag if there else ""):
            return _failed(412, "PreconditionFailed", "PUT")
        content = request.body
        if source := request.headers.get(b"x-amz-copy-source"):
            key = unquote(source.decode()).removeprefix("/").partition("/")[2]
            if key not in self.held:
                return _failed(404, "NoSuchKey", "PUT")
            content = self.held[key].content
        etag = self.put(request.key, content).etag
        text = f"<CopyObjectResult><ETag>{escape(etag)}</ETag></CopyObjectResult>"
        made = text.encode() if source else b""
        return response(200, made, "PUT", f"ETag: {etag}\r\n" + (_XML if made else ""))

    def _upload(self, request: Request) -> bytes:
        """Begin an object of several parts, or put it together."""
        if request.query.startswith("uploads"):
            name = f"upload-{next(_numbers)}"
            self.uploads[name] = {}
            text = (
                f"<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>k</Key>"
                f"<UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
            )
            return response(200, text.encode(), "POST", _XML)
        parts = self.uploads.pop(parse_qs(request.query)["uploadId"][0])
        body = self.put(request.key, b"".join(parts[n] for n in sorted(parts)))
        text = (
            f"<CompleteMultipartUploadResult><Location>l</Location>"
            f"<Bucket>{BUCKET}</Bucket><Key>k</Key><ETag>{escape(body.etag)}</ETag>"
            "</CompleteMultipartUploadResult>"
        )
        return response(200, text.encode(), "POST", _XML)


def _failed(status: int, code: str, method: str) -> bytes:
    text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return response(status, text.encode(), method, _XML)


class Connection(asyncio.Protocol):
    """Answers the requests of one connection, one after the other."""

    def __init__(self, buckets: Mapping[str, Objects], stats: Counter[str]) -> None:
        self._buckets, self._stats = buckets, stats
        self._received = bytearray()
        self._wanted = 0
        """Bytes of head and body of the request on its way, as far as known."""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer what came whole."""
        self._received += data
        while len(self._received) >= max(self._wanted, 1):
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._received[:end])
            length = _LENGTH.search(head)
            self._wanted = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < self._wanted:
                if b"100-continue" in head and self._transport:
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body = bytes(self._received[end + 4 : self._wanted])
            del self._received[: self._wanted]
            self._wanted = 0
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        first, _, lines = head.partition(b"\r\n")
        method, target, _ = first.decode("ascii").split(" ")
        path, _, query = target.partition("?")
        if path == "/stats":
            found = response(200, json.dumps(self._stats).encode(), "GET", "")
            self._stats.clear()
        else:
            name, _, key = unquote(path).removeprefix("/").partition("/")
            headers = _headers(lines)
            if b"aws-chunked" in headers.get(b"content-encoding", b""):
                body = b"".join(_unchunked(body))
            request = Request(method, key, query, headers, body)
            self._stats[_kind(request)] += 1
            bucket = self._buckets.get(name)
            found = (
                bucket.answer(request)
                if bucket
                else _failed(404, "NoSuchBucket", method)
            )
            self._stats["bytes"] += len(found)
        if self._transport:
            self._transport.write(found)


def _kind(request: Request) -> str:
    if request.key:
        return request.method
    return "DELETE" if request.method == "POST" else "LIST"


def _headers(lines: bytes) -> dict[bytes, bytes]:
    pairs = (line.partition(b":") for line in lines.split(b"\r\n"))
    return {name.lower(): value.strip() for name, _, value in pairs}


def _unchunked(body: bytes) -> Iterable[bytes]:
    at = 0
    while found := _CHUNK.match(body, at):
        size = int(found[1], 16)
        if not size:
            return
        yield body[found.end() : found.end() + size]
        at = found.end() + size + 2


def loaded(folders: Iterable[Path]) -> Objects:
    """Read folders into memory."""
    objects = Objects()
    for folder in folders:
        for path in sorted(one for one in folder.rglob("*") if one.is_file()):
            objects.put(path.relative_to(folder).as_posix(), path.read_bytes())
    return objects


def serve(buckets: Mapping[str, Objects], port: int = 0) -> None:
    """Serve until the process is ended; print the endpoint once it is open."""
    listening = socket.create_server(("127.0.0.1", port), backlog=1024)
    stats: Counter[str] = Counter()

    async def forever() -> None:
        loop = asyncio.get_running_loop()
        make = partial(Connection, buckets, stats)
        server = await loop.create_server(make, sock=listening)
        await server.serve_forever()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gc.freeze()
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    asyncio.run(forever())


def main() -> int:
    """Serve folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--port", type=int, default=0)
    chosen = parser.parse_args()
    serve({BUCKET: loaded(chosen.folders)}, chosen.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
