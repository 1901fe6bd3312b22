"""Which fault the next request gets: a pure function of the seed and its number."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

BEFORE = ("500", "502", "503", "429", "429_mau", "423", "reset")
"""Given instead of any work: nothing of the request is applied."""
AFTER = ("500_after", "reset_after", "hang_after", "empty_201", "queued_202")
"""The request is taken as usual; only its answer is withheld or spoilt."""
PARTIAL = ("no_index",)
"""One object is refused, and no error says which."""
KINDS = (*BEFORE, *AFTER, *PARTIAL)
NO_FAULT = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How often to fail, and how."""

    seed: int = 0
    share: float = 0.0
    """Of the requests, 0 to 1."""
    kinds: tuple[str, ...] = KINDS
    hang: float = 60.0
    """Seconds for which `hang_after` holds the answer back."""
    first: tuple[str, ...] = ()
    """Faults of the first requests, one each ("" is none); after them, by share."""

    def __post_init__(self) -> None:
        """Refuse kinds that do not exist and shares that are none."""
        unknown = sorted({*self.kinds, *self.first} - {*KINDS, NO_FAULT})
        if unknown:
            raise ValueError(
                f"no fault is called {', '.join(unknown)}; there are {', '.join(KINDS)}"
            )
        if not 0 <= self.share <= 1:
            raise ValueError(f"the share of faults is {self.share}; it is 0 to 1")
        if not self.hang >= 0:
            raise ValueError(f"a fault hangs for {self.hang} seconds; 0 is the least")


def fault(faults: Faults, number: int, fitting: tuple[str, ...]) -> str:
    """Return the fault of request *number* (from 0), or "" for none.

    Args:
        faults: The setting.
        number: How many requests came before since it was set.
        fitting: The kinds that this endpoint can have.
    """
    if number < len(faults.first):
        kind = faults.first[number]
        return kind if kind in fitting else NO_FAULT
    if not faults.share:
        return NO_FAULT
    chance = Random(f"{faults.seed}:{number}")  # noqa: S311 - repeatable, no secret
    kinds = [kind for kind in faults.kinds if kind in fitting]
    if not kinds or chance.random() >= faults.share:
        return NO_FAULT
    return chance.choice(kinds)


def changed(faults: Faults, change: Mapping[str, Any]) -> Faults:
    """Return *faults* with the keys of *change* (JSON) put in.

    Raises:
        ValueError: A key, kind or share does not exist.
    """
    unknown = sorted(change.keys() - {one.name for one in fields(Faults)})
    if unknown:
        raise ValueError(f"faults have no {', '.join(unknown)}")
    lists = {k: tuple(v) for k, v in change.items() if k in {"kinds", "first"}}
    return replace(faults, **{**change, **lists})
