"""What `run` serves, asked over a real connection."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection, HTTPException

import pytest
from structlog.testing import capture_logs

from currents_ingest import web
from currents_ingest.errors import SettingsError

PATIENCE = 30.0


def fail():
    raise KeyError("jane@example.com")


@pytest.fixture
def address():
    pages = {
        "/": lambda: web.Answer(200, web.HTML, b"<p>hello"),
        "/healthz": lambda: web.said(503, {"reasons": ["made up"]}),
        "/broken": fail,
    }
    with web.serving("127.0.0.1:0", pages) as found:
        yield found


def ask(address, path, method="GET"):
    """Return status, headers and body."""
    with closing(HTTPConnection(address, timeout=PATIENCE)) as connection:
        connection.request(method, path)
        got = connection.getresponse()
        return got.status, dict(got.getheaders()), got.read()


def raw(address, request):
    """Return all that comes back, byte for byte."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as got:
            return got.read()


def test_pages_are_served_with_headers_that_let_them_load_nothing(address):
    status, headers, body = ask(address, "/?x=1")
    assert (status, body) == (200, b"<p>hello")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Security-Policy"].startswith("default-src 'none';")
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "Server" not in headers


def test_head_says_the_same_without_the_body(address):
    head, _, body = raw(address, b"HEAD / HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"HTTP/1.0 200 OK"
    assert b"Content-Length: 8" in head.splitlines()
    assert body == b""


@pytest.mark.parametrize(
    "path", ["/nope", "/metrics/", "/..", "/../etc/passwd", "/%2e", "*"]
)
def test_other_paths_are_not_there(address, path):
    status, _, body = ask(address, path)
    assert (status, body) == (404, b"there is no such page\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "ODD"])
def test_other_methods_are_refused(address, method):
    status, headers, body = ask(address, "/", method)
    assert (status, body) == (405, b"only GET and HEAD\n")
    assert headers["Allow"] == "GET, HEAD"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_what_is_no_http_is_refused_without_naming_the_server(address):
    got = raw(address, b"GET / or HTTP/1.1\r\n\r\n")
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"HTTP/1.0 400 Bad Request"
    assert b"Server" not in head
    assert b"ython" not in head + body


def test_a_page_that_fails_says_nothing_of_why_but_the_log_does(address):
    with capture_logs() as logs:
        status, _, body = ask(address, "/broken")
    assert (status, body) == (503, b"this page cannot be made now; the log says why\n")
    assert [(one["event"], one["path"]) for one in logs] == [
        ("a page could not be made", "/broken")
    ]
    assert ask(address, "/")[0] == 200


def test_json_is_json(address):
    status, headers, body = ask(address, "/healthz")
    assert (status, json.loads(body)) == (503, {"reasons": ["made up"]})
    assert headers["Content-Type"] == "application/json"


def test_it_listens_on_ipv6_too():
    pages = {"/": lambda: web.said(200, {})}
    with web.serving("[::1]:0", pages) as found:
        assert ask(found, "/")[0] == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid"])
def test_an_address_that_cannot_be_had_is_a_setting_to_mend(address, host):
    listen = f"{host}:{address.rpartition(':')[2]}"
    told = f"run.listen: cannot listen on {listen}: "
    with pytest.raises(SettingsError) as caught, web.serving(listen, {}):
        pass
    assert told in str(caught.value)


def test_clients_that_say_nothing_cannot_take_all_there_is(address):
    host, _, port = address.rpartition(":")
    with ExitStack() as held:
        silent = [
            held.enter_context(socket.create_connection((host, int(port)), PATIENCE))
            for _ in range(70)
        ]
        last = silent[-1]
        assert last.recv(1) == b""  # closed at once
    deadline = time.monotonic() + PATIENCE
    status = 0
    while status != 200 and time.monotonic() < deadline:
        with suppress(OSError, HTTPException):
            status, _, _ = ask(address, "/")
    assert status == 200


# A page that takes long.


class Slow:
    """A page that is made when the test says so."""

    def __init__(self):
        self.made = 0
        self.began, self.leave = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self):
        self.began.release()
        assert self.leave.acquire(timeout=PATIENCE)
        self.made += 1
        return f"page {self.made}"


def aside(work, into):
    thread = threading.Thread(target=lambda: into.append(work()))
    thread.start()
    return thread


def test_a_page_in_the_making_keeps_no_other_page_waiting():
    slow = Slow()
    pages = {"/": web.Kept(slow), "/metrics": lambda: web.said(200, {})}
    with web.serving("127.0.0.1:0", pages) as address:
        found = []
        thread = aside(lambda: ask(address, "/"), found)
        assert slow.began.acquire(timeout=PATIENCE)
        assert ask(address, "/metrics")[0] == 200
        assert found == []
        slow.leave.release()
        thread.join(PATIENCE)
    assert found[0][2] == b"page 1"


def test_a_page_is_kept_for_a_while_and_made_once_for_all_who_wait():
    slow, found = Slow(), []
    kept = web.Kept(slow)
    threads = [aside(kept, found) for _ in range(5)]
    assert slow.began.acquire(timeout=PATIENCE)
    slow.leave.release()
    for thread in threads:
        thread.join(PATIENCE)
    assert [one.body for one in [*found, kept()]] == [b"page 1"] * 6
    assert slow.made == 1


def test_whoever_asks_while_it_is_made_anew_gets_the_page_before():
    slow, found = Slow(), []
    kept = web.Kept(slow, keep=0.0)
    slow.leave.release()
    kept()
    assert slow.began.acquire(timeout=PATIENCE)
    thread = aside(kept, found)
    assert slow.began.acquire(timeout=PATIENCE)
    assert kept().body == b"page 1"
    slow.leave.release()
    thread.join(PATIENCE)
    assert found[0].body == b"page 2"


def test_a_page_that_failed_is_tried_again():
    told = iter([None, "page"])

    def make():
        if (found := next(told)) is None:
            raise KeyError("made up")
        return found

    kept = web.Kept(make)
    with pytest.raises(KeyError):
        kept()
    assert kept().body == b"page"
