"""One text to a JSON array or object that Braze takes, or None; in plain Python."""

from __future__ import annotations

import ast
from typing import Any

import orjson

from currents_ingest.audiences.braze import facts

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
    return isinstance(value, bool | int | float)


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
        return not isinstance(value, str) or len(value) <= limits["string_chars"]
    if "$time" in value:
        return set(value) == {"$time"} and isinstance(value["$time"], str)
    names = value.keys() - _OPERATORS
    fit = all(0 < len(name) <= limits["name_chars"] for name in names)
    plain = not any(set(name) & set(" .$") for name in names)
    return fit and plain and all(map(_keys_fit, value.values()))


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
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _dumped(value: Any, most: int) -> str | None:
    try:
        body = orjson.dumps(value)
    except TypeError:  # a set, bytes, a number beyond 64 bits
        return None
    return body.decode() if len(body) <= most else None
