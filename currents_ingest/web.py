"""What ``run`` serves: a few pages that only look, to whoever may reach the address."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog

from currents_ingest.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

log = structlog.get_logger()

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Sent with everything: the report is one page that loads nothing."""
TEXT, HTML, JSON = (
    "text/plain; charset=utf-8",
    "text/html; charset=utf-8",
    "application/json",
)
_IDLE = 30
"""Seconds after which a client that says nothing is left."""
_AT_ONCE = 64
"""Connections that are held; each takes a thread and a file, which polls need, too."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a page says."""

    status: int
    content_type: str
    body: bytes


Pages = dict[str, "Callable[[], Answer]"]
"""What answers, by path."""


def said(status: int, facts: Mapping[str, Any]) -> Answer:
    """Answer with JSON."""
    return Answer(status, JSON, json.dumps(facts).encode() + b"\n")


class Kept:
    """A page that takes long to make: kept for a while, made by one at a time.

    Whoever asks meanwhile gets the one before, or waits if there is none.
    """

    def __init__(self, make: Callable[[], str], keep: float = 60.0) -> None:
        self._make, self._keep = make, keep
        self._making = threading.Lock()
        self._page: tuple[float, Answer] | None = None

    def __call__(self) -> Answer:
        """Return the page."""
        if (found := self._fresh()) is not None:
            return found
        before = self._page
        if before is None:
            self._making.acquire()
        elif not self._making.acquire(blocking=False):
            return before[1]
        try:
            if (found := self._fresh()) is not None:  # made while we waited
                return found
            made = Answer(200, HTML, self._make().encode())
            self._page = time.monotonic(), made
            return made
        finally:
            self._making.release()

    def _fresh(self) -> Answer | None:
        page = self._page
        if page is not None and time.monotonic() - page[0] < self._keep:
            return page[1]
        return None


@contextmanager
def serving(listen: str, pages: Pages) -> Iterator[str]:
    """Serve pages for the block; yields the address, with the port that was chosen.

    Args:
        listen: Host and port; port 0 is any that is free.
        pages: What answers, by path; each in a thread of its own.

    Raises:
        SettingsError: Nothing can listen there.
    """
    host, _, port = listen.rpartition(":")
    try:
        server = _Server(host.strip("[]"), int(port), pages)
    except OSError as error:
        problem = f"run.listen: cannot listen on {listen}: {error.strerror or error}"
        raise SettingsError((problem,)) from None
    thread = threading.Thread(
        target=server.serve_forever, args=(0.1,), name="web", daemon=True
    )
    thread.start()
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = _AT_ONCE
    block_on_close = False  # whoever still reads does not keep us from ending

    def __init__(self, host: str, port: int, pages: Pages) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        self.pages = pages
        self._free = threading.Semaphore(_AT_ONCE)
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, or close it if there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection; a thread's work."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, *_: object) -> None:
        """A client that broke off is no news."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _IDLE
    server: _Server

    def do_GET(self) -> None:
        """Answer, or say why not; a page that fails takes nothing else with it."""
        path = urlsplit(self.path).path
        if (page := self.server.pages.get(path)) is None:
            self._send(Answer(404, TEXT, b"there is no such page\n"))
            return
        try:
            answer = page()
        except Exception:
            log.exception("a page could not be made", path=path)
            told = b"this page cannot be made now; the log says why\n"
            answer = Answer(503, TEXT, told)
        self._send(answer)

    do_HEAD = do_GET  # noqa: N815 (http.server's name)

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """Say what http.server refuses: 501 is its word for an unknown method."""
        del explain
        status = 405 if code == 501 else code
        told = "only GET and HEAD" if status == 405 else message or "refused"
        self._send(Answer(status, TEXT, told.encode() + b"\n"))

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""

    def _send(self, answer: Answer) -> None:
        self.send_response_only(answer.status)  # without naming the server
        self.send_header("Date", self.date_time_string())
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        if answer.status == 405:
            self.send_header("Allow", "GET, HEAD")
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
