"""What each endpoint answers to a body, and what becomes of it later; no network."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from currents_ingest.sandbox.cohorts import (
    change,
    changes_error,
    contradictions,
    define,
    definition_error,
    number_of,
)
from currents_ingest.sandbox.export import export, shown
from currents_ingest.sandbox.faults import AFTER, BEFORE, PARTIAL
from currents_ingest.sandbox.profiles import Batch, apply
from currents_ingest.sandbox.replies import (
    MEGABYTE,
    Received,
    Rules,
    parsed,
    receive,
    without_index,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from currents_ingest.sandbox.options import SandboxOptions
    from currents_ingest.sandbox.profiles import Profile
    from currents_ingest.sandbox.state import State

_LOCKED = "423"
"""Told by the cohort endpoints alone."""
_TRACKED = tuple(kind for kind in (*BEFORE, *AFTER, *PARTIAL) if kind != _LOCKED)
_READ = (*(kind for kind in BEFORE if kind != _LOCKED), "hang_after")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request that passed the gate."""

    options: SandboxOptions
    state: State
    partner: str
    body: bytes
    now: float
    """Epoch seconds."""
    fault: str


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and the work that is done after it, if any."""

    status: int
    body: Mapping[str, Any]
    work: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """How a path answers."""

    permission: str
    """Empty: the keys are in the body."""
    faults: tuple[str, ...]
    """That it can have."""
    reply: Callable[[Call], Reply]


def _track(call: Call) -> Reply:
    limit = call.options.batch_limit
    if call.options.legacy_batches:
        return _queued(call, Rules(max_per_array=limit))
    return _queued(call, Rules(max_objects=limit))


def _bulk(call: Call) -> Reply:
    rules = Rules(
        max_objects=1000,
        max_per_profile=100,
        max_bytes=2 * MEGABYTE,
        too_large=400,
    )
    return _queued(call, rules)


def _queued(call: Call, rules: Rules) -> Reply:
    received = _received(call, rules)
    if received.status != 201:
        return Reply(received.status, received.reply)
    work = partial(apply, call.state.store, received.batch, _text(call.now))
    return Reply(received.status, received.reply, work)


def _sync(call: Call) -> Reply:
    """Apply at once, and answer with what the profile then holds of what was sent."""
    received = _received(call, Rules(only_one=True))
    if received.status != 201:
        return Reply(received.status, received.reply)
    names = [_names(obj) for obj in received.batch.attributes]
    identifiers = [_identifier(obj) for obj in _objects(received.batch)]
    found = apply(call.state.store, received.batch, _text(call.now))
    users = [
        identifier | _outcome(profile, received.batch, names)
        for identifier, profile in zip(identifiers, found, strict=False)
    ]
    return Reply(201, {"users": users, "message": "success"})


def _received(call: Call, rules: Rules) -> Received:
    """Check the request and count what it brought."""
    moment = datetime.fromtimestamp(call.now, UTC)
    blocked = call.options.blocked_ids
    received = receive(call.body, rules, moment, blocked)
    if call.fault in PARTIAL and received.status == 201:
        received = without_index(received)
    state, batch = call.state, received.batch
    state.most_objects = max(state.most_objects, received.objects)
    state.objects.update(
        attributes=len(batch.attributes),
        events=len(batch.events),
        purchases=len(batch.purchases),
    )
    return received


def _objects(batch: Batch) -> list[dict[str, Any]]:
    return [*batch.attributes, *batch.events, *batch.purchases]


def _names(obj: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(obj)


def _identifier(obj: Mapping[str, Any]) -> dict[str, Any]:
    names = ("external_id", "user_alias", "braze_id", "email", "phone")
    return next({name: obj[name]} for name in names if obj.get(name))


def _outcome(
    profile: Profile, batch: Batch, names: list[frozenset[str]]
) -> dict[str, Any]:
    if names:
        custom = profile["custom_attributes"]
        return {"custom_attributes": {k: custom[k] for k in custom if k in names[0]}}
    if batch.events:
        rows = profile["custom_events"]
        sent = {event["name"] for event in batch.events}
        return {"custom_events": [row for row in rows if row["name"] in sent]}
    sent = {purchase["product_id"] for purchase in batch.purchases}
    return {
        "purchase_events": [
            {"product_id": row["name"], **shown(row, ["first", "last", "count"])}
            for row in profile["purchases"]
            if row["name"] in sent
        ]
    }


def _export(call: Call) -> Reply:
    sent = parsed(call.body)
    if sent is None:
        return Reply(400, {"message": "The request body is not a JSON object"})
    return Reply(*export(call.state.store, sent))


def _cohort(call: Call) -> Reply:
    sent = parsed(call.body) or {}
    if refusal := _partner_refusal(call, sent):
        return refusal
    if message := definition_error(sent):
        return Reply(400, {"message": message})
    define(call.state.cohorts, call.partner, sent)
    return Reply(201, {"message": "success"})


def _members(call: Call) -> Reply:
    sent, state = parsed(call.body) or {}, call.state
    if refusal := _partner_refusal(call, sent):
        return refusal
    if message := changes_error(state.cohorts, call.partner, sent):
        return Reply(400, {"message": message})
    changes = sent["cohort_changes"]
    state.cohort_ids += number_of(changes)
    state.most_ids = max(state.most_ids, number_of(changes))
    state.contradictions += contradictions(changes)
    cohort = state.cohorts[call.partner, str(sent["cohort_id"])]
    work = partial(change, cohort, state.store, changes)
    return Reply(201, {"message": "success"}, work)


def _partner_refusal(call: Call, sent: Mapping[str, Any]) -> Reply | None:
    """Check the keys in the body; the text repeats the secret, as Braze's does."""
    key, secret = sent.get("partner_api_key"), sent.get("client_secret")
    if not key or call.options.partner_key not in ("", key):
        return Reply(401, {"message": "Invalid partner API key"})
    if not secret or call.options.data_import_key not in ("", secret):
        return Reply(401, {"message": f"Invalid client secret: {secret}"})
    return None


def _text(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")


_MEMBERSHIP = (*BEFORE, *AFTER)
ENDPOINTS = {
    "/users/track": Endpoint(permission="users.track", faults=_TRACKED, reply=_track),
    "/users/track/bulk": Endpoint(
        permission="users.track.bulk", faults=_TRACKED, reply=_bulk
    ),
    "/users/track/sync": Endpoint(
        permission="users.track.sync", faults=_TRACKED, reply=_sync
    ),
    "/users/export/ids": Endpoint(
        permission="users.export.ids", faults=_READ, reply=_export
    ),
    "/partners/{name}/cohorts": Endpoint(
        permission="", faults=_MEMBERSHIP, reply=_cohort
    ),
    "/partners/{name}/cohorts/users": Endpoint(
        permission="", faults=_MEMBERSHIP, reply=_members
    ),
}
"""By path; all are POST."""
