"""The sandbox on the wire: an aiohttp server on one event loop.

Nothing of a request is ever logged. Applied work runs on the loop, so a profile is
never seen half changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from currents_ingest.sandbox.control import control
from currents_ingest.sandbox.endpoints import ENDPOINTS, Call, Endpoint, Reply
from currents_ingest.sandbox.faults import AFTER, BEFORE, PARTIAL, Faults, fault
from currents_ingest.sandbox.limits import (
    Verdict,
    epoch_headers,
    mau_headers,
    take,
)
from currents_ingest.sandbox.options import SandboxOptions
from currents_ingest.sandbox.state import State, fresh

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Faults", "SandboxOptions", "Server", "application", "run", "serve"]

_BEARER = "Bearer "
_MAX_BODY = 16_000_000
"""Bytes that are read before a body is refused unread."""
_BUSY = "<html><head><title>502 Bad Gateway</title></head><body></body></html>"
_ERRORS = {
    "500": "Internal Server Error",
    "503": "Service Unavailable",
    "423": "Resource locked",
}
_NO_LINGER = struct.pack("ii", 1, 0)


class Server:
    """One sandbox: its options and what it remembers."""

    def __init__(self, options: SandboxOptions) -> None:
        self.options = options
        self.state: State = fresh(options)

    def reset(self) -> None:
        """Forget everything; work still due goes to the state that is forgotten."""
        self.state = fresh(self.options)


async def serve(options: SandboxOptions, *, ready: Callable[[str], None]) -> None:
    """Serve until cancelled; *ready* is given the base URL once requests are taken."""
    runner = web.AppRunner(
        application(Server(options)),
        access_log=None,
        shutdown_timeout=0.1,
        handler_cancellation=True,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port).start()
        host, port = runner.addresses[0][:2]
        ready(f"http://{host}:{port}")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def run(options: SandboxOptions, *, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT."""

    async def until_told() -> None:
        task = asyncio.ensure_future(serve(options, ready=ready))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(until_told())


def application(server: Server) -> web.Application:
    """Return the web application of *server*."""
    app = web.Application(client_max_size=_MAX_BODY)

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/_sandbox/"):
            return await control(server, request)
        return await _answer(server, request)

    app.router.add_route("*", "/{path:.*}", answer)
    return app


async def _answer(server: Server, request: web.Request) -> web.StreamResponse:
    path, partner = _route(request)
    state, status = server.state, "gone"
    try:
        response, status = await _respond(server, request, path, partner)
    finally:
        state.requests[path or "other", status] += 1
    return response


def _route(request: web.Request) -> tuple[str, str]:
    """Return the endpoint's path ("" if there is none) and the partner's name."""
    path, partner = request.path, ""
    parts = path.split("/")
    if len(parts) >= 4 and parts[1] == "partners" and parts[2]:
        partner = parts[2]
        path = "/".join(["", "partners", "{name}", *parts[3:]])
    known = request.method == "POST" and path in ENDPOINTS
    return (path, partner) if known else ("", "")


async def _respond(
    server: Server, request: web.Request, path: str, partner: str
) -> tuple[web.StreamResponse, str]:
    """Return the response, and the status to count it under."""
    if not path:
        return _json(404, {"message": "Not Found"})
    endpoint, state, now = ENDPOINTS[path], server.state, time.time()
    if refusal := _refusal(server.options, endpoint, request):
        return _json(*refusal)
    verdict = _taken(state, path, now)
    headers = _headers(server.options, verdict, now)
    if verdict and not verdict.allowed:
        return _json(429, {"message": "Rate limit exceeded"}, headers)
    kind = fault(state.faults, state.drawn, endpoint.faults)
    state.drawn += 1
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        return _json(413, {"message": "Request body is too large"}, headers)
    if kind in BEFORE:
        state.given[kind] += 1
        return _failure(request, kind, now)
    call = Call(
        options=server.options,
        state=state,
        partner=partner,
        body=body,
        now=now,
        fault=kind,
    )
    reply = endpoint.reply(call)
    _schedule(server, state, reply)
    return await _given(request, call, reply, headers)


def _refusal(
    options: SandboxOptions, endpoint: Endpoint, request: web.Request
) -> tuple[int, dict[str, Any]] | None:
    """Return status and answer for a request with a wrong key or content type."""
    if endpoint.permission:
        given = request.headers.get("Authorization", "")
        key = given[len(_BEARER) :] if given.startswith(_BEARER) else ""
        if not key or options.api_key not in {"", key}:
            return 401, {"message": "Invalid API key"}
        if endpoint.permission not in options.permissions:
            return 403, {"message": f"The key has no permission {endpoint.permission}"}
    if request.content_type != "application/json":
        return 415, {"message": "Content-Type must be application/json"}
    return None


def _taken(state: State, path: str, now: float) -> Verdict | None:
    if path not in state.windows:
        return None
    verdict, state.windows[path] = take(state.windows[path], now)
    return verdict


def _headers(
    options: SandboxOptions, verdict: Verdict | None, now: float
) -> dict[str, str]:
    if verdict is None:
        return {}
    return mau_headers(verdict, now) if options.mau_headers else epoch_headers(verdict)


def _schedule(server: Server, state: State, reply: Reply) -> None:
    """Do the work of *reply* after the delay, in the order of answers."""
    work = reply.work
    if work is None:
        return
    if not server.options.delay:
        work()
        return

    def done() -> None:
        state.pending -= 1
        work()

    state.pending += 1
    asyncio.get_running_loop().call_later(server.options.delay, done)


async def _given(
    request: web.Request, call: Call, reply: Reply, headers: Mapping[str, str]
) -> tuple[web.StreamResponse, str]:
    """Return the answer, spoilt by the fault if the request succeeded."""
    kind = call.fault if reply.status < 300 else ""
    if kind in (*AFTER, *PARTIAL):
        call.state.given[kind] += 1
    if kind == "hang_after":
        await asyncio.sleep(call.state.faults.hang)
    elif kind == "empty_201":
        return web.Response(status=201, headers=headers), "201"
    elif kind == "queued_202":
        return _json(202, {"message": "queued"}, headers)
    elif kind in {"500_after", "reset_after"}:
        return _failure(request, kind.removesuffix("_after"), call.now)
    return _json(reply.status, reply.body, headers)


def _failure(
    request: web.Request, kind: str, now: float
) -> tuple[web.StreamResponse, str]:
    if kind == "reset":
        _reset(request)
        return web.Response(), "reset"
    if kind == "502":
        return web.Response(status=502, text=_BUSY, content_type="text/html"), "502"
    if kind in {"429", "429_mau"}:
        over = Verdict(allowed=False, limit=3000, remaining=0, reset=int(now) + 1)
        headers = epoch_headers(over) if kind == "429" else mau_headers(over, now)
        return _json(429, {"message": "Rate limit exceeded"}, headers)
    return _json(int(kind), {"message": _ERRORS[kind]})


def _reset(request: web.Request) -> None:
    """Cut the connection hard: the client sees a reset, not an end."""
    transport = request.transport
    if transport is None:  # pragma: no cover - the client was quicker
        return
    sock = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


def _json(
    status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> tuple[web.StreamResponse, str]:
    response = web.Response(
        status=status,
        body=orjson.dumps(body),
        headers=headers,
        content_type="application/json",
    )
    return response, str(status)
