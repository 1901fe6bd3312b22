"""What a value does to a custom attribute: set, count, add, remove, merge.

A value that Braze would not apply leaves the attribute as it was, without error.

Source: Braze docs, "Data types", "Nested custom attributes", "Array of objects".
"""

from __future__ import annotations

from typing import Any, TypeGuard

import orjson

from currents_ingest.sandbox.values import MAX_TEXT, is_date, is_long

SCALARS = frozenset([str, int, float, bool])
_NUMBERS = frozenset([int, float])
MAX_ITEMS = 500
"""Of an array of scalars; the oldest fall off."""
MAX_BYTES = 102_400
"""Of an array, an object or an array of objects, as JSON."""
_COUNT = frozenset(["inc"])
_CHANGES = frozenset(["add", "remove"])
_OBJECT_CHANGES = frozenset(["$add", "$remove", "$update"])


def spoils(value: object) -> bool:
    """Say whether *value* is nested and invalid: no nested update is applied then."""
    if type(value) in SCALARS:  # most are
        return False
    if isinstance(value, list):
        return any(type(item) is dict for item in value) and not _is_nested(value)
    if not is_nested(value):
        return False
    if value.keys() <= _OBJECT_CHANGES:  # type: ignore[attr-defined]
        return not _is_objects_change(value)  # type: ignore[arg-type]
    return not _is_nested(value)


def is_nested(value: object) -> bool:
    """Say whether *value* is an object, an array of objects or a change of one."""
    if isinstance(value, list):
        return any(type(item) is dict for item in value)
    return isinstance(value, dict) and not (
        value.keys() <= _CHANGES or value.keys() == _COUNT
    )


def set_custom(
    custom: dict[str, Any], name: str, value: object, *, merge: bool
) -> None:
    """Apply *value* to the attribute *name*; null removes it.

    Args:
        custom: All custom attributes of one profile; changed in place.
        name: Not applied if it is empty or longer than 255 characters.
        value: As parsed from JSON.
        merge: Whether `_merge_objects` was sent.
    """
    if not 0 < len(name) <= MAX_TEXT:
        return
    if type(value) in SCALARS:  # most are
        if not is_long(value):
            custom[name] = value
        return
    if value is None:
        custom.pop(name, None)
        return
    after = _applied(custom.get(name), value, merge=merge)
    if after is not None:
        custom[name] = after


def _applied(before: object, value: object, *, merge: bool) -> object:
    """Return the attribute's value afterwards, or None if nothing changes."""
    if isinstance(value, dict):
        return _changed(before, value, merge=merge)
    if isinstance(value, list):
        return _listed(value)
    return value if _is_scalar(value) else None


def _changed(before: object, value: dict[str, Any], *, merge: bool) -> object:
    if value.keys() == _COUNT:
        return _counted(before, value["inc"])
    if value and value.keys() <= _CHANGES:
        return _edited(before, value)
    if value and value.keys() <= _OBJECT_CHANGES:
        return _small(_edited_objects(before, value, merge=merge))
    if merge and isinstance(before, dict):
        return _small(_merged(before, value))
    return _small(value)


def _counted(before: object, by: object) -> object:
    start = 0 if before is None else before
    if type(by) is int and type(start) in _NUMBERS:
        return start + by  # type: ignore[operator]
    return None


def _listed(value: list[Any]) -> object:
    if _are_scalars(value):
        return _small(_unique(value)[-MAX_ITEMS:])
    return _small(value) if all(type(item) is dict for item in value) else None


def _edited(before: object, value: dict[str, Any]) -> object:
    """Add, then remove; what is added again moves to the end."""
    items = [] if before is None else before
    add, remove = value.get("add", []), value.get("remove", [])
    if not (_are_scalars(items) and _are_scalars(add) and _are_scalars(remove)):
        return None
    added, removed = {_key(i) for i in add}, {_key(i) for i in remove}
    kept = [item for item in items if _key(item) not in added]
    after = [i for i in [*kept, *_unique(add)] if _key(i) not in removed]
    return _small(after[-MAX_ITEMS:])


def _unique(items: list[Any]) -> list[Any]:
    """Drop repetitions; 1, 1.0 and true are three values."""
    return list({_key(item): item for item in items}.values())


def _key(item: object) -> tuple[type, object]:
    return type(item), item


def _edited_objects(
    before: object, value: dict[str, Any], *, merge: bool
) -> list[Any] | None:
    """Always `$add`, then `$remove`, then `$update`, as Braze does."""
    items = [] if before is None else before
    if not isinstance(items, list):
        return None
    items = [*items, *value.get("$add", [])]
    for change in value.get("$remove", []):
        items = [item for item in items if not _matches(item, change)]
    for change in value.get("$update", []):
        new = change["$new_object"]
        items = [
            (_merged(item, new) if merge else new) if _matches(item, change) else item
            for item in items
        ]
    return items


def _matches(item: object, change: dict[str, Any]) -> bool:
    key = change["$identifier_key"]
    return (
        isinstance(item, dict)
        and key in item
        and _key(item[key]) == _key(change["$identifier_value"])
    )


def _merged(before: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    after = dict(before)
    for name, new in value.items():
        old = after.get(name)
        both = isinstance(old, dict) and isinstance(new, dict)
        after[name] = _merged(old, new) if both else new  # type: ignore[arg-type]
    return after


def _small(value: Any) -> Any:
    """Return *value* unless it is too large to be stored."""
    return None if value is None or len(orjson.dumps(value)) > MAX_BYTES else value


def _is_scalar(value: object) -> bool:
    return type(value) in SCALARS and not is_long(value)


def _are_scalars(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and all(_is_scalar(item) for item in value)


def _is_nested(value: object) -> bool:
    """Say whether a nested value is valid, all the way down; null never is."""
    if isinstance(value, dict):
        if "$time" in value:
            return len(value) == 1 and is_date(value["$time"])
        return all(_is_key(key) and _is_nested(value[key]) for key in value)
    if isinstance(value, list):
        return all(_is_nested(item) for item in value)
    return _is_scalar(value)


def _is_key(name: str) -> bool:
    return 0 < len(name) <= MAX_TEXT and not any(sign in name for sign in " .$")


def _is_objects_change(value: dict[str, Any]) -> bool:
    lists = [value.get(name, []) for name in ("$add", "$remove", "$update")]
    if not all(_are_objects(changes) for changes in lists):
        return False
    add, remove, update = lists
    return (
        _is_nested(add)
        and all(_names_one(change) for change in [*remove, *update])
        and all(
            isinstance(change.get("$new_object"), dict)
            and _is_nested(change["$new_object"])
            for change in update
        )
    )


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _names_one(change: dict[str, Any]) -> bool:
    return (
        isinstance(change.get("$identifier_key"), str) and "$identifier_value" in change
    )
