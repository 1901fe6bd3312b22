"""The endpoints under `/_sandbox/`: ours, not Braze's; they need no key."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from aiohttp import web

from currents_ingest.sandbox.cohorts import membership
from currents_ingest.sandbox.faults import changed
from currents_ingest.sandbox.replies import parsed
from currents_ingest.sandbox.state import summary

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from currents_ingest.sandbox.profiles import Profile
    from currents_ingest.sandbox.state import State

_LINES = 1000
"""Written at once."""


class Controlled(Protocol):
    """What the control endpoints ask of a server."""

    state: State

    def reset(self) -> None:
        """Forget everything."""


async def control(server: Controlled, request: web.Request) -> web.StreamResponse:
    """Answer one request under `/_sandbox/`."""
    state = server.state
    match request.method, request.path.removeprefix("/_sandbox/"):
        case "GET", "profiles":
            profiles = sorted(state.store.profiles.values(), key=_identifier)
            return await _lines(request, profiles)
        case "GET", "events":
            return await _lines(request, list(state.store.events))
        case "POST", "faults":
            return _set_faults(state, await request.read())
        case "POST", "reset":
            server.reset()
            return _json({"message": "success"})
        case "GET", part:
            return _told(state, part)
    return _json({"message": "Not Found"}, 404)


def _told(state: State, part: str) -> web.Response:
    if part == "state":
        return _json(summary(state))
    if part == "cohorts":
        return _json({"cohorts": membership(state.cohorts, state.store)})
    return _json({"message": "Not Found"}, 404)


def _set_faults(state: State, body: bytes) -> web.Response:
    sent = parsed(body)
    if sent is None:
        return _json({"message": "The request body is not a JSON object"}, 400)
    try:
        state.faults = changed(state.faults, sent)
    except (TypeError, ValueError) as error:
        return _json({"message": str(error)}, 400)
    state.drawn = 0
    return _json({"message": "success"})


def _identifier(profile: Profile) -> tuple[str, str, str]:
    """Sort by external_id; whoever has none comes before, by alias, email or phone."""
    alias = profile.get("user_aliases", [{}])[0]
    return (
        profile.get("external_id", ""),
        alias.get("alias_name") or profile.get("email") or profile.get("phone", ""),
        profile["braze_id"],
    )


async def _lines(
    request: web.Request, rows: Iterable[Mapping[str, Any]]
) -> web.StreamResponse:
    """Stream *rows* as lines of JSON."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    waiting = iter(rows)
    while some := list(islice(waiting, _LINES)):
        await response.write(b"".join(orjson.dumps(row) + b"\n" for row in some))
    await response.write_eof()
    return response


def _json(body: Mapping[str, Any], status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=orjson.dumps(body), content_type="application/json"
    )
