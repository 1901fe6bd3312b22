"""S3 for tests: moto's server, and a proxy before it that can misbehave."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Application = Callable[[dict[str, Any], object], Iterable[bytes]]

_SLOW_DOWN = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message>\
<RequestId>4442587FB7D0A2F9</RequestId></Error>"""
_INTERNAL_ERROR = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>InternalError</Code><Message>We encountered an internal error. Please try \
again.</Message><RequestId>4442587FB7D0A2F9</RequestId></Error>"""
_HOP_BY_HOP = frozenset(
    {"connection", "expect", "host", "keep-alive", "transfer-encoding"}
)
"""Headers that belong to one connection, lower case (RFC 9110, section 7.6.1)."""


class Fault(Enum):
    """A way in which a request can go wrong."""

    REFUSED = "500 before the request was forwarded"
    SLOW_DOWN = "503 SlowDown, not forwarded"
    ANSWER_LOST = "500 after the request was forwarded and applied"
    RESET = "forwarded and applied, then the connection was reset"
    CUT_SHORT = "the answer broke off midway, its Content-Length kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asked of the proxy; header names are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def writes(self) -> bool:
        """True if it may change what the bucket holds."""
        return self.method in {"PUT", "POST", "DELETE"}

    @property
    def copies(self) -> bool:
        """True if it asks for a copy on the server's side."""
        return "x-amz-copy-source" in self.headers


@dataclass(slots=True)
class Proxy:
    """A running proxy, and what went through it."""

    endpoint: str
    injected: Counter[Fault] = field(default_factory=Counter)
    untouched: int = 0


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {self.reason}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


@contextmanager
def moto_server() -> Iterator[str]:
    """Run an S3 on a free port; yields its endpoint. Buckets outlive the server."""

    class Quiet(MotoRequestHandler):
        disable_nagle_algorithm = True

        def log(self, *_: object) -> None:
            """Say nothing of each request."""

    backend = DomainDispatcherApplication(create_backend_app)
    app = _with_atomic_conditions(backend)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    with _served(server.serve_forever, server.shutdown):
        yield f"http://127.0.0.1:{server.server_port}"


@contextmanager
def faulty(upstream: str, share: float, seed: int = 0) -> Iterator[Proxy]:
    """Run a proxy that spoils *share* of the requests, each fault equally often."""
    rng, one_by_one = random.Random(seed), Lock()

    def decide(_: Request) -> Fault | None:
        with one_by_one:
            return rng.choice(list(Fault)) if rng.random() < share else None

    with proxied(upstream, decide) as proxy:
        yield proxy


@contextmanager
def proxied(
    upstream: str, decide: Callable[[Request], Fault | None]
) -> Iterator[Proxy]:
    """Run a proxy that asks *decide* of each request what shall go wrong with it.

    *decide* runs in the request's own thread before anything is forwarded: it may
    wait, or stop or kill the client.
    """
    server = _ProxyServer(upstream, decide)
    with server, _served(server.serve_forever, server.shutdown):
        yield server.proxy


class _ProxyServer(ThreadingHTTPServer):
    # A client opens as many connections at once as it has requests in flight; those
    # that do not fit the queue wait a second for the kernel's next try.
    request_queue_size = 512
    daemon_threads = True
    block_on_close = False

    def __init__(
        self, upstream: str, decide: Callable[[Request], Fault | None]
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.upstream, self.decide = urlsplit(upstream).netloc, decide
        self.proxy = Proxy(f"http://127.0.0.1:{self.server_port}")
        self._counting = Lock()

    def count(self, fault: Fault | None) -> None:
        with self._counting:
            if fault:
                self.proxy.injected[fault] += 1
            else:
                self.proxy.untouched += 1

    def handle_error(self, *_: object) -> None:
        """Clients are killed here on purpose; their broken connections are no news."""


class _Forward(BaseHTTPRequestHandler):
    """One connection of a client, and its own one to the upstream."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _ProxyServer

    def setup(self) -> None:
        super().setup()
        self.upstream = HTTPConnection(self.server.upstream)

    def finish(self) -> None:
        super().finish()
        self.upstream.close()

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(method=self.command, path=self.path, headers=headers)
        if "transfer-encoding" in headers:
            self.send(_error(411, "Length Required", b""))
            return
        fault = self.server.decide(request)
        self.server.count(fault)
        if fault is Fault.REFUSED:
            self.send(_error(500, "Internal Server Error", _INTERNAL_ERROR))
        elif fault is Fault.SLOW_DOWN:
            self.send(_error(503, "Slow Down", _SLOW_DOWN))
        else:
            self.send_spoilt(fault, self.forward(request, body))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 (http.server)

    def forward(self, request: Request, body: bytes) -> _Answer:
        headers = dict(_end_to_end(request.headers.items()))
        self.upstream.request(request.method, request.path, body or None, headers)
        got = self.upstream.getresponse()
        content = got.read()
        headers_back = _end_to_end(got.getheaders())
        if not got.headers.get("Content-Length"):
            headers_back.append(("Content-Length", str(len(content))))
        return _Answer(got.status, got.reason, headers_back, content)

    def send_spoilt(self, fault: Fault | None, answer: _Answer) -> None:
        if fault is Fault.ANSWER_LOST:
            self.send(_error(500, "Internal Server Error", _INTERNAL_ERROR))
        elif fault is Fault.RESET:
            self.reset()
        elif fault is Fault.CUT_SHORT:
            self.cut_short(answer)
        else:
            self.send(answer)

    def send(self, answer: _Answer) -> None:
        body = b"" if self.command == "HEAD" else answer.body
        self.wfile.write(answer.head() + body)

    def cut_short(self, answer: _Answer) -> None:
        head, body = answer.head(), answer.body
        # An answer without a body can only break off in its headers.
        end = len(head) + len(body) // 2 if len(body) > 1 else len(head) // 2
        self.wfile.write((head + body)[:end])
        self.close_connection = True

    def reset(self) -> None:
        # Waiting 0 s for unsent data makes the kernel send RST instead of FIN; the
        # server's own shutdown would send FIN first, so close underneath it.
        self.connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        os.close(self.connection.detach())
        self.close_connection = True


@contextmanager
def _served(
    serve: Callable[[float], None], shutdown: Callable[[], None]
) -> Iterator[None]:
    # Looks every 50 ms whether it shall stop; the default is half a second.
    thread = Thread(target=serve, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        shutdown()
        thread.join()


def _with_atomic_conditions(app: Application) -> Application:
    """Make conditional writes atomic, as S3's are.

    moto looks whether the key is there and then writes, and between the two another
    thread may write the same key: both would be told that they created it.
    """
    one_by_one = Lock()

    def answer(environ: dict[str, Any], start_response: object) -> Iterable[bytes]:
        if {"HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"}.isdisjoint(environ):
            return app(environ, start_response)
        with one_by_one:
            return list(app(environ, start_response))

    return answer


def _end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP]


def _error(status: int, reason: str, body: bytes) -> _Answer:
    headers = [
        ("Content-Type", "application/xml"),
        ("Content-Length", str(len(body))),
    ]
    return _Answer(status, reason, headers, body)
