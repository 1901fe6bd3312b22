"""Values out of messages and samples: what is told of a person has only its shape."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from typing import TYPE_CHECKING, Any

import orjson

from currents_ingest.audiences.braze import ALIAS, PRIMARY, facts
from currents_ingest.schemas import BRAZE, schemas_root

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST = 200
_HIDDEN = "[…]"


def reason_without_values(reason: str, sent: str = "{}") -> str:
    """Keep of Braze's reason what is known to tell of nobody.

    It may repeat what it was sent, in whatever form, of this object or another. So a
    word stays if it is one of ``schemas/braze/reasons.toml``, Braze's own name of a
    field, or a name (not a value) in the object; whatever else it says is left out.

    Args:
        reason: Braze's words.
        sent: The object, as JSON.
    """
    known = words() | {one.lower() for one in _names(orjson.loads(sent))}

    def kept(found: re.Match[str]) -> str:
        return found[0] if found[0].lower() in known else _HIDDEN

    told = re.sub(r"[^\s'\"#/,.:;()\[\]]+", kept, reason[: 4 * _MOST])
    shorter = re.sub(rf"{re.escape(_HIDDEN)}(\W*{re.escape(_HIDDEN)})+", _HIDDEN, told)
    return shorter[:_MOST]


@cache
def words() -> frozenset[str]:
    """Return the words of Braze's reasons, lower case."""
    path = schemas_root() / BRAZE / "reasons.toml"
    found = tomllib.loads(path.read_text("utf-8"))
    plain = (*found["codes"], *" ".join(found["sentences"]).split())
    fields = (*facts().fields, *PRIMARY, *ALIAS)
    return frozenset(one.strip("'.,").lower() for one in (*plain, *fields))


def masked(cell: str) -> str:
    """Show a cell's shape: letters as x, digits as 9; true, false and null as is."""
    if cell in {"true", "false", "null"}:
        return cell
    return re.sub(r"\d", "9", re.sub(r"[^\W\d_]", "x", cell))


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, one in value.items():
            yield name
            yield from _names(one)
