"""What is wrong with an attributes, event or purchase object, in Braze's words.

An object with any error is not processed; the others of its request are. Texts in
capitals and those in quotation marks are Braze's own; where Braze gives none in
public, the text is ours.

Source: Braze docs, "POST /users/track", and the three object pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from currents_ingest.sandbox.ecommerce import SCHEMAS, ecommerce_errors
from currents_ingest.sandbox.values import (
    MAX_TEXT,
    instant,
    is_currency,
    is_email,
    is_uuid,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Object = dict[str, Any]
    """One item of `attributes`, `events` or `purchases`, as parsed from JSON."""

STATES = frozenset(["opted_in", "subscribed", "unsubscribed"])
BAD_EMAIL = "EMAIL_BAD_FORMAT"
BAD_PROPERTIES = "Invalid 'properties' field"
_NONE: tuple[str, ...] = ()
_PRIMARY = ("external_id", "user_alias", "braze_id")
_MAX_ID = 987
_MAX_ALIAS = 236
"""Both in bytes of UTF-8."""
_BAD_ALIAS = (
    "'user_alias' must hold an 'alias_name' and an 'alias_label', "
    f"each of 1 to {_MAX_ALIAS} bytes"
)


def identifier_errors(obj: Object) -> Sequence[str]:
    """Return what is wrong with the identifiers of *obj*; null and "" are none."""
    external_id = obj.get("external_id")
    if external_id and "user_alias" not in obj and "braze_id" not in obj:
        return _external_id_errors(external_id)
    primary = [name for name in _PRIMARY if obj.get(name)]
    if len(primary) > 1:
        return [
            "only one of 'external_id', 'braze_id' and 'user_alias' may be given",
        ]
    if primary:
        return _PRIMARY_ERRORS[primary[0]](obj[primary[0]])
    if obj.get("email") or isinstance(obj.get("phone") or None, str):
        return _NONE
    return [
        "'external_id', 'braze_id', 'user_alias', 'email' or 'phone' is required",
    ]


def _external_id_errors(value: object) -> Sequence[str]:
    if type(value) is int:
        return _NONE
    if not isinstance(value, str):
        return ["'external_id' must be a string"]
    if len(value) * 4 > _MAX_ID and len(value.encode()) > _MAX_ID:
        return [f"'external_id' must be fewer than {_MAX_ID + 1} bytes"]
    return _NONE


def _alias_errors(value: object) -> Sequence[str]:
    keys = ("alias_name", "alias_label")
    if isinstance(value, dict) and all(_is_alias(value.get(key)) for key in keys):
        return _NONE
    return [_BAD_ALIAS]


def _is_alias(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value.encode()) <= _MAX_ALIAS


def _braze_id_errors(value: object) -> Sequence[str]:
    return _NONE if isinstance(value, str) else ["'braze_id' must be a string"]


_PRIMARY_ERRORS: dict[str, Callable[[object], Sequence[str]]] = {
    "external_id": _external_id_errors,
    "user_alias": _alias_errors,
    "braze_id": _braze_id_errors,
}


def attribute_errors(obj: Object) -> Sequence[str]:
    """Return everything that keeps an attributes object from being processed."""
    errors = identifier_errors(obj)
    if _CHECKED.isdisjoint(obj):
        return errors
    found = [
        error
        for name, check in _CHECKS.items()
        if obj.get(name) is not None
        for error in check(obj)
    ]
    return [*errors, *found]


def _email(obj: Object) -> Iterator[str]:
    if not (isinstance(obj["email"], str) and is_email(obj["email"])):
        yield BAD_EMAIL


def _email_state(obj: Object) -> Iterator[str]:
    if not _among(obj["email_subscribe"], STATES):
        yield "BAD_EMAIL_SUBSCRIPTION_STATE"


def _push_state(obj: Object) -> Iterator[str]:
    if not _among(obj["push_subscribe"], STATES):
        yield "BAD_PUSH_SUBSCRIPTION_STATE"


def _location(obj: Object) -> Iterator[str]:
    place = obj["current_location"]
    numbers = (
        [place.get("longitude"), place.get("latitude")]
        if isinstance(place, dict)
        else [None]
    )
    if not all(type(number) in {int, float} for number in numbers):
        yield "BAD_LOCATION_UPDATE"


def _groups(obj: Object) -> Iterator[str]:
    groups = obj["subscription_groups"]
    if not isinstance(groups, list):
        yield "BAD_SUBSCRIPTION_GROUP_ARRAY"
        return
    for group in groups:
        yield from _group_errors(group)


def _group_errors(group: object) -> Iterator[str]:
    if not isinstance(group, dict):
        yield "BAD_SUBSCRIPTION_GROUP_HASH"
        return
    number = group.get("subscription_group_id")
    if not (isinstance(number, str) and is_uuid(number)):
        yield "BAD_SUBSCRIPTION_GROUP_ID"
    if not _among(group.get("subscription_state"), {"subscribed", "unsubscribed"}):
        yield "BAD_SUBSCRIPTION_GROUP_STATE"


def _push_tokens(obj: Object) -> Iterator[str]:
    tokens = obj["push_tokens"]
    if not (isinstance(tokens, list) and all(isinstance(t, dict) for t in tokens)):
        yield "BAD_PUSH_TOKEN_VALUE"
        return
    for token in tokens:
        if not _is_text(token.get("app_id")):
            yield "BAD_PUSH_TOKEN_APP_ID"
        if not _is_text(token.get("token")):
            yield "BAD_PUSH_TOKEN_STRING"
        if "device_id" in token and not _is_device(token["device_id"]):
            yield "BAD_DEVICE_ID"


def _token_import(obj: Object) -> Iterator[str]:
    known = obj.get("external_id") or obj.get("braze_id")
    if obj["push_token_import"] is True and (known or not obj.get("push_tokens")):
        yield "BAD_PUSH_TOKEN_IMPORT"


def _subscription_info(_obj: Object) -> Iterator[str]:
    yield "INVALID_ATTRIBUTE_EMAIL_SUBSCRIPTION_INFO"


_CHECKS: dict[str, Callable[[Object], Iterator[str]]] = {
    "email": _email,
    "email_subscribe": _email_state,
    "push_subscribe": _push_state,
    "current_location": _location,
    "subscription_groups": _groups,
    "push_tokens": _push_tokens,
    "push_token_import": _token_import,
    "email_subscription_info": _subscription_info,
}
_CHECKED = frozenset(_CHECKS)


def event_errors(obj: Object) -> list[str]:
    """Return what is wrong with an event, leaving the `ecommerce.*` schemas out."""
    properties = obj.get("properties")
    return [
        *identifier_errors(obj),
        *_lookup_errors(obj),
        *_missing(obj, ("name", "time")),
        *_time_errors(obj),
        *_name_errors(obj, "name"),
        *_properties_errors(properties, {"time", "event_name"}, 102_400),
    ]


def schema_errors(event: Object) -> list[str]:
    """Return what the strict schema says, if the event's name has one."""
    if event["name"] not in SCHEMAS:
        return []
    return list(ecommerce_errors(event["name"], event.get("properties") or {}))


_OWN_COLUMNS = frozenset(
    ["time", "product_id", "quantity", "event_name", "price", "currency"]
)


def purchase_errors(obj: Object) -> list[str]:
    """Return what is wrong with a purchase."""
    return [
        *identifier_errors(obj),
        *_lookup_errors(obj),
        *_missing(obj, ("product_id", "currency", "price", "time")),
        *_time_errors(obj),
        *_sale_errors(obj),
        *_properties_errors(obj.get("properties"), _OWN_COLUMNS, 51_200),
    ]


def _sale_errors(obj: Object) -> Iterator[str]:
    yield from _name_errors(obj, "product_id")
    if obj.get("currency") is not None and not is_currency(obj["currency"]):
        yield "'currency' must be an ISO 4217 currency"
    if type(obj.get("price", 0)) not in {int, float}:
        yield "'price' must be a number"
    quantity = obj.get("quantity", 1)
    if type(quantity) is not int or not 1 <= quantity <= 100:
        yield "'quantity' must be an integer from 1 to 100"


def _lookup_errors(obj: Object) -> Iterator[str]:
    """Check the form of an address by which a person is to be found."""
    email = obj.get("email")
    if email and not any(obj.get(name) for name in _PRIMARY):
        yield from _email(obj)


def _missing(obj: Object, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if obj.get(name) is None:
            yield f"The property '#/' did not contain a required property of '{name}'"


def _time_errors(obj: Object) -> Iterator[str]:
    if obj.get("time") is not None and instant(obj["time"]) is None:
        yield "'time' must be an ISO 8601 time"


def _properties_errors(
    properties: object, reserved: Iterable[str], max_bytes: int
) -> Iterator[str]:
    if properties is None:
        return
    if (
        not isinstance(properties, dict)
        or not properties.keys().isdisjoint(reserved)
        or any(_is_no_property(name) for name in properties)
        or len(orjson.dumps(properties)) > max_bytes
    ):
        yield BAD_PROPERTIES


def _is_no_property(name: str) -> bool:
    return not name or len(name) > MAX_TEXT or name[0] == "$"


def _name_errors(obj: Object, key: str) -> Iterator[str]:
    name = obj.get(key)
    if name is None:
        return
    if not (isinstance(name, str) and 0 < len(name) <= MAX_TEXT):
        yield f"'{key}' must be a string of 1 to {MAX_TEXT} characters"


def _among(value: object, allowed: Iterable[str]) -> bool:
    return isinstance(value, str) and value in allowed


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_device(value: object) -> bool:
    return isinstance(value, str) and 8 <= len(value.encode()) <= MAX_TEXT
