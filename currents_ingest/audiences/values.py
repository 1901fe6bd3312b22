"""One text to a JSON array or object that Braze takes, or None; in plain Python."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

import orjson

from currents_ingest.audiences.braze import facts

_DEEPEST = 50
"""Levels of brackets, counted without regard to quotes."""
_OPERATORS = {
    "$add",
    "$remove",
    "$update",
    "$identifier_key",
    "$identifier_value",
    "$new_object",
}


def array(text: str) -> str | None:
    """Read an array of texts, numbers and booleans; nulls in it are left out."""
    found = _loaded(text)
    limits = facts().limits
    if not isinstance(found, list) or len(found) > limits["array_items"]:
        return None
    kept = [one for one in found if one is not None]
    if not all(_is_item(one, limits["string_chars"]) for one in kept):
        return None
    return _dumped(kept, limits["array_bytes"])


def _is_item(value: Any, most: int) -> bool:
    if isinstance(value, str):
        return len(value) <= most
    return isinstance(value, bool | int | float) and math.isfinite(value)


def object_(text: str) -> str | None:
    """Read an object, or an array of objects."""
    found = _loaded(text)
    several = found if isinstance(found, list) and found else [found]
    if not all(isinstance(one, dict) for one in several):
        return None
    if not all(_keys_fit(one) for one in several):
        return None
    return _dumped(found, facts().limits["object_bytes"])


def _keys_fit(value: Any) -> bool:
    """Tell whether nested names and times are ones that Braze takes.

    An operator (``$add``, ``$update``, ...) and ``$time`` may begin with a dollar; no
    other name may, nor may one hold a point or a blank.
    """
    if isinstance(value, list):
        return all(map(_keys_fit, value))
    limits = facts().limits
    if not isinstance(value, dict):
        return value is None or _is_item(value, limits["string_chars"])
    if not all(isinstance(name, str) for name in value):
        return False
    if "$time" in value:
        return set(value) == {"$time"} and isinstance(value["$time"], str)
    names = value.keys() - _OPERATORS
    fit = all(0 < len(name) <= limits["name_chars"] for name in names)
    plain = not any(set(name) & set(" .$") for name in names)
    return fit and plain and all(map(_keys_fit, value.values()))


def properties(text: str) -> str | None:
    """Read an object whose names may be those of properties.

    Names within its values follow the rules for nested ones.
    """
    found = _loaded(text)
    if not isinstance(found, dict) or not all(map(_is_property, found)):
        return None
    if not all(map(_keys_fit, found.values())):
        return None
    return _dumped(found, facts().limits["event_properties_bytes"])


def _is_property(name: object) -> bool:
    known = facts()
    if not isinstance(name, str) or name in known.reserved["events"]:
        return False
    return 0 < len(name) <= known.limits["name_chars"] and not name.startswith("$")


def location_(text: str) -> str | None:
    """Read an object with longitude and latitude, in degrees."""
    found = _loaded(text)
    if not isinstance(found, dict) or set(found) != {"longitude", "latitude"}:
        return None
    if not all(isinstance(one, int | float) for one in found.values()):
        return None
    return _dumped(found, 1000)


def objects_(text: str) -> str | None:
    """Read an array of objects."""
    found = _loaded(text)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        return None
    return _dumped(found, facts().limits["object_bytes"])


def _loaded(text: str) -> Any:
    """Read JSON, or what Python writes; None if it is neither, or too deep for both."""
    if text.count("[") + text.count("{") > _DEEPEST and _depth(text) > _DEEPEST:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _depth(text: str) -> int:
    deepest = depth = 0
    for mark in re.findall(r"[\[\]{}]", text):
        depth += 1 if mark in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _dumped(value: Any, most: int) -> str | None:
    try:
        body = orjson.dumps(value)
    except TypeError:  # a set, bytes, a number beyond 64 bits
        return None
    return body.decode() if len(body) <= most else None
