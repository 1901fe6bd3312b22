"""The sandbox as a process of its own, and a stub for what it never does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator, Mapping

_PATIENCE = 60.0
"""Seconds to wait for an answer, and for work that is under way."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A running sandbox."""

    url: str
    pid: int

    def profiles(self) -> dict[str, dict[str, Any]]:
        """Return profiles by external id, once nothing is under way."""
        known = (one for one in self.lines("profiles") if "external_id" in one)
        return {one["external_id"]: one for one in known}

    def events(self) -> list[dict[str, Any]]:
        """Return events and purchases in the order stored."""
        return list(self.lines("events"))

    def lines(self, what: str) -> Iterator[dict[str, Any]]:
        """Stream profiles or events, once nothing is under way."""
        self.quiet()
        with closing(self._connection()) as connection:
            connection.request("GET", f"/_sandbox/{what}")
            for line in connection.getresponse():
                yield json.loads(line)

    def state(self) -> dict[str, Any]:
        """Return the counts, once nothing is under way."""
        self.quiet()
        return self._state()

    def objects(self) -> int:
        """Return how many objects were accepted in all."""
        return sum(self.state()["objects"].values())

    def taken(self) -> int:
        """Return how many objects and ids were accepted so far, without waiting."""
        found = self._state()
        return int(found["cohort_ids"]) + sum(found["objects"].values())

    def requests(self, status: str = "") -> int:
        """Return how many requests were answered, or with one status."""
        counts = self.state()["requests"].values()
        return sum(
            number
            for one in counts
            for told, number in one.items()
            if status in {"", told}
        )

    def cohorts(self) -> dict[str, dict[str, Any]]:
        """Return all cohorts with their members by id, once nothing is under way."""
        self.quiet()
        with closing(self._connection()) as connection:
            connection.request("GET", "/_sandbox/cohorts")
            found = json.load(connection.getresponse())["cohorts"]
        return {one["cohort_id"]: one for one in found}

    def people(self, objects: Iterable[Mapping[str, Any]], most: int = 75) -> None:
        """Send objects of attributes, *most* at once: the sandbox has their people."""
        waiting = iter(objects)
        headers = {"Authorization": "Bearer k", "Content-Type": "application/json"}
        with closing(self._connection()) as connection:
            while some := list(islice(waiting, most)):
                body = json.dumps({"attributes": some})
                connection.request("POST", "/users/track", body, headers)
                got = connection.getresponse()
                assert got.status == 201, got.read()
                got.read()
        self.quiet()

    def faults(self, **change: Any) -> None:
        """Change the faults, as in `faults(share=0.2, kinds=["500"])`."""
        self._post("faults", change)

    def reset(self) -> None:
        """Forget all profiles, events and counts."""
        self._post("reset", {})

    def quiet(self) -> None:
        """Wait until everything that was answered is applied."""
        end = time.monotonic() + _PATIENCE
        while self._state()["pending"]:
            assert time.monotonic() < end, "the sandbox never comes to rest"
            time.sleep(0.01)

    def _state(self) -> dict[str, Any]:
        with closing(self._connection()) as connection:
            connection.request("GET", "/_sandbox/state")
            found: dict[str, Any] = json.load(connection.getresponse())
        return found

    def _post(self, what: str, body: dict[str, Any]) -> None:
        with closing(self._connection()) as connection:
            connection.request("POST", f"/_sandbox/{what}", json.dumps(body))
            got = connection.getresponse()
            assert got.status == 200, got.read()

    def _connection(self) -> HTTPConnection:
        return HTTPConnection(urlsplit(self.url).netloc, timeout=_PATIENCE)


@contextmanager
def sandbox(**options: Any) -> Iterator[Sandbox]:
    """Run a sandbox on a free port, without rate limit unless one is given.

    Args:
        options: Those of its command line, as in `sandbox(fault_kinds="500,502")`;
            True is a flag.
    """
    given = {"requests": 0, "delay": 0.01, **options}
    arguments = []
    for name, value in given.items():
        arguments.append(f"--{name.replace('_', '-')}")
        arguments += [] if value is True else [str(value)]
    command = [sys.executable, "-m", "currents_ingest.sandbox", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield Sandbox(process.stdout.readline().strip(), process.pid)
        finally:
            process.terminate()
            process.wait(_PATIENCE)


# A server that answers as one test wants.


@dataclass(frozen=True, slots=True)
class Got:
    """A request that a stub was sent."""

    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Return all objects in it, in their order."""
        arrays: dict[str, list[dict[str, Any]]] = json.loads(self.body)
        return [one for array in arrays.values() for one in array]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a stub answers."""

    status: int
    body: Any
    """Bytes, or what is written as JSON."""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        """Return the body as bytes."""
        return (
            self.body
            if isinstance(self.body, bytes)
            else json.dumps(self.body).encode()
        )


@dataclass(frozen=True, slots=True)
class Stub:
    """A running stub, and what it was sent."""

    url: str
    got: list[Got] = field(default_factory=list)

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Return all objects of all requests."""
        return [one for request in self.got for one in request.objects]


SUCCESS = Reply(201, {"message": "success"})


@contextmanager
def stub(
    answer: Callable[[Got], Reply], context: ssl.SSLContext | None = None
) -> Iterator[Stub]:
    """Run a server in threads of this process that answers as *answer* says.

    Args:
        answer: Returns the reply; may wait.
        context: For https.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            headers = {name.lower(): one for name, one in self.headers.items()}
            request = Got(self.path, headers, body)
            running.got.append(request)
            reply = answer(request)
            with suppress(OSError):  # who asked may have gone
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.content)))
                self.end_headers()
                self.wfile.write(reply.content)

        do_GET = do_POST  # noqa: N815 (http.server)

        def log_message(self, *_: object) -> None:
            """Say nothing of each request."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            """Say nothing of clients that hang up, as those must who refuse us."""

    server = Quiet(("127.0.0.1", 0), Handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "https" if context else "http"
    running = Stub(f"{scheme}://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
