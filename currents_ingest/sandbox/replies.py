"""What a `/users/track` request is answered, and which of its objects are accepted.

Source: Braze docs, "POST /users/track", "POST /users/track/bulk", "POST
/users/track/sync", "API errors".
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import orjson

from currents_ingest.sandbox.ecommerce import is_currency_error
from currents_ingest.sandbox.objects import (
    attribute_errors,
    event_errors,
    purchase_errors,
    schema_errors,
)
from currents_ingest.sandbox.profiles import Batch
from currents_ingest.sandbox.values import instant, is_long

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from currents_ingest.sandbox.objects import Object

    Errors = list[dict[str, Any]]

MEGABYTE = 1_000_000
"""Bytes; the stricter reading of Braze's "MB"."""
TOO_MANY = "Max Input Length Exceeded"
NO_VALID = (
    "Valid data must be provided in the 'attributes', 'events', or 'purchases' fields."
)
_UNNAMED = "An object could not be processed"
_BLOCKED = "provided external_id is blacklisted and disallowed"
_CHECKS: dict[str, Callable[[Object], Sequence[str]]] = {
    "attributes": attribute_errors,
    "events": event_errors,
    "purchases": purchase_errors,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What one endpoint takes; None is no limit."""

    max_objects: int | None = None
    """In all three arrays together."""
    max_per_array: int | None = None
    max_per_profile: int | None = None
    only_one: bool = False
    max_bytes: int = 4 * MEGABYTE
    too_large: int = 413
    """Status for a body over `max_bytes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """An answer and what was accepted with it."""

    status: int
    reply: dict[str, Any]
    batch: Batch = field(default_factory=Batch)
    objects: int = 0
    """Sent, valid or not."""


def receive(
    body: bytes, rules: Rules, now: datetime, blocked_ids: frozenset[str]
) -> Received:
    """Check a request that arrives *now*; see `Rules` for what it may hold."""
    if len(body) > rules.max_bytes:
        return _refused(rules.too_large, "Request body is too large")
    sent = parsed(body)
    if sent is None:
        return _refused(400, "The request body is not a JSON object")
    arrays = {name: sent.get(name) or [] for name in _CHECKS}
    for name, objects in arrays.items():
        if not isinstance(objects, list):
            return _refused(400, f"The property '#/{name}' is not an array")
    number = sum(map(len, arrays.values()))
    if message := _length_error(arrays, number, rules):
        return replace(_refused(400, message), objects=number)
    return replace(_checked(arrays, blocked_ids, now), objects=number)


def parsed(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object that *body* is, or None."""
    try:
        sent = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return sent if isinstance(sent, dict) else None


def without_index(received: Received) -> Received:
    """Refuse one accepted object more, and take the index from every error."""
    reply, batch = dict(received.reply), received.batch
    errors = [
        {key: value for key, value in error.items() if key != "index"}
        for error in reply.get("errors", [])
    ]
    name = next((name for name in _CHECKS if getattr(batch, name)), "")
    if name:
        errors.append({"type": _UNNAMED, "input_array": name})
        batch = replace(batch, **{name: getattr(batch, name)[:-1]})
        reply[f"{name}_processed"] -= 1
    return replace(received, reply=reply | {"errors": errors}, batch=batch)


def _refused(status: int, message: str, errors: Errors | None = None) -> Received:
    return Received(status=status, reply={"message": message, "errors": errors or []})


def _length_error(arrays: dict[str, list[Any]], number: int, rules: Rules) -> str:
    """Return why a request is refused for how much it holds, or ""."""
    if rules.only_one and number != 1:
        return "Exactly one object in one array is allowed"
    if rules.max_objects is not None and number > rules.max_objects:
        return TOO_MANY
    longest = max(map(len, arrays.values()))
    if rules.max_per_array is not None and longest > rules.max_per_array:
        return TOO_MANY
    if rules.max_per_profile is not None and number > rules.max_per_profile:
        people = Counter(_person(obj) for objects in arrays.values() for obj in objects)
        del people[""]
        if max(people.values(), default=0) > rules.max_per_profile:
            return f"At most {rules.max_per_profile} objects per user are allowed"
    return ""


def _person(obj: object) -> str:
    """Tell people apart by the identifier that counts; "" has none."""
    names = ("external_id", "user_alias", "braze_id", "email", "phone")
    if not isinstance(obj, dict):
        return ""
    return next((f"{name} {obj[name]}" for name in names if obj.get(name)), "")


def _checked(
    arrays: dict[str, list[Any]], blocked_ids: frozenset[str], now: datetime
) -> Received:
    valid, errors = {}, []
    for name, objects in arrays.items():
        found = [_errors(name, obj, blocked_ids) for obj in objects]
        valid[name] = [o for o, wrong in zip(objects, found, strict=True) if not wrong]
        errors += _listed(name, found)
    if not any(valid.values()):
        return _refused(400, NO_VALID, errors)
    if valid["events"]:
        errors += _drop_off_schema(valid, arrays["events"])
    for obj in [*valid["events"], *valid["purchases"]]:
        _settle(obj, now)
    reply: dict[str, Any] = {"message": "success"}
    for name, objects in arrays.items():
        if objects:
            reply[f"{name}_processed"] = len(valid[name])
    if errors:
        reply["errors"] = errors
    return Received(status=201, reply=reply, batch=Batch(**valid))


def _errors(name: str, obj: object, blocked_ids: frozenset[str]) -> Sequence[str]:
    if not isinstance(obj, dict):
        return [f"The property '#/{name}' holds an item that is not an object"]
    if blocked_ids and obj.get("external_id") in blocked_ids:
        return [_BLOCKED]
    return _CHECKS[name](obj)


def _listed(name: str, found: Sequence[Sequence[str]]) -> Errors:
    return [
        {"type": error, "input_array": name, "index": index}
        for index, wrong in enumerate(found)
        for error in wrong
    ]


def _drop_off_schema(valid: dict[str, list[Any]], events: Sequence[Object]) -> Errors:
    """Drop `ecommerce.*` events that break their schema; the answer is still "success".

    An error about the currency is listed under "purchases", as in Braze's example.
    """
    wrong = {id(event): schema_errors(event) for event in valid["events"]}
    valid["events"] = [event for event in valid["events"] if not wrong[id(event)]]
    return [
        {
            "type": error,
            "input_array": "purchases" if is_currency_error(error) else "events",
            "index": index,
        }
        for index, event in enumerate(events)
        for error in wrong.get(id(event), ())
    ]


def _settle(obj: Object, now: datetime) -> None:
    """Make a future time *now*, and leave out properties with too long a text."""
    moment = instant(obj["time"])
    if moment is not None and moment > now:
        obj["time"] = now.isoformat(timespec="milliseconds")
    properties = obj.get("properties") or {}
    for name in [name for name in properties if is_long(properties[name])]:
        del properties[name]
