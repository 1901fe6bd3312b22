"""Values out of messages and samples: what is told of a person has only its shape."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST = 200
_HIDDEN = "[…]"


def reason_without_values(reason: str, sent: str) -> str:
    """Take out of Braze's reason whatever the object held, and what looks like it.

    Args:
        reason: Braze's words; it may repeat what it was sent.
        sent: The object, as JSON.
    """
    told = reason[: 4 * _MOST]
    for value in sorted(set(_leaves(orjson.loads(sent))), key=len, reverse=True):
        told = re.sub(re.escape(value), _HIDDEN, told, flags=re.IGNORECASE)
    told = re.sub(r"[^\s'\"<>]+@[^\s'\"<>]+", _HIDDEN, told)
    told = re.sub(r"\+?\d[\d\s().-]{5,}\d", _HIDDEN, told)
    return told[:_MOST]


def masked(cell: str) -> str:
    """Show a cell's shape: letters as x, digits as 9; true, false and null as is."""
    if cell in {"true", "false", "null"}:
        return cell
    return re.sub(r"[0-9]", "9", re.sub(r"[^\W\d_]", "x", cell))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for one in value.values():
            yield from _leaves(one)
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        text = str(value)
        if len(text) > 1:
            yield text
