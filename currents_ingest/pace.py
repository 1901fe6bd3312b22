"""How much came in each hour, and how long it took: counts as the cache keeps them.

A day of an event type is a few short texts, such as ``0,0,17``: 24 hours, or the
slots of a histogram; zeros at the end are left out.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KEPT = 36
"""Days: five whole weeks and the day that is not over."""
COLUMNS = ("queued", "read", "duplicates", "rejects", "unfit", "wait", "delay")
"""queued: rows by the hour in which Braze queued them. read, duplicates, rejects and
unfit (rejects of unified feeds): by the hour of the commit. wait and delay: rows by the
time from their queued hour, or from their event's, to the commit; see ``slot``."""
BOUNDS = (30, 60, 90, 120, 180, 240, 360, 720, 1440, 2880, 10080)
"""Minutes up to which each slot goes; the last one has no end."""


def slot(at: int, hour: int) -> int:
    """Return the slot of what happened in the middle of an hour, or never before.

    Keys and manifests know hours, so that a time is known to half an hour.

    Args:
        at: When it was committed, in seconds since 1970.
        hour: Since 1970.
    """
    minutes = (at - hour * 3600 - 1800) / 60
    return bisect_left(BOUNDS, minutes)


def counts(text: str) -> list[int]:
    """Read what ``added`` returns."""
    return [int(one) for one in text.split(",")] if text else []


def added(text: str, more: Mapping[int, int]) -> str:
    """Return counts with more, by place."""
    found = dict(enumerate(counts(text)))
    for place, count in more.items():
        found[place] = found.get(place, 0) + count
    last = max((place for place, count in found.items() if count), default=-1)
    return ",".join(str(found.get(place, 0)) for place in range(last + 1))


def minutes(histogram: Sequence[int], share: float) -> float | None:
    """Return the minutes within which a share of the rows was there; None: no rows.

    What lies beyond the last bound counts as lying on it.
    """
    wanted = share * sum(histogram)
    if not wanted:
        return None
    lower, passed = 0, 0
    for count, upper in zip(histogram, (*BOUNDS, BOUNDS[-1]), strict=False):
        if passed + count >= wanted:
            return lower + (upper - lower) * (wanted - passed) / count
        lower, passed = upper, passed + count
    return float(BOUNDS[-1])
