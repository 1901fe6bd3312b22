"""What an event type's week usually looks like, and whether a silence is unusual.

Pure functions over rows by hour, hours counted since 1970. The rule, and how often it
errs, stands in docs/monitoring.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from math import log
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WEEK = 168
LEARNT = 5 * WEEK
"""Hours before the silence that are looked at."""
ENOUGH = 2 * WEEK
"""Hours of history without which nothing is said."""
GRACE = 1
"""Hours that a queued hour has after its end until its files must be there: Braze
writes every five minutes, small connectors within half an hour."""
SURPRISE = 14.0
"""Silences less surprising than this are let pass; e to the -14 is one in a million,
and a year has 8,760 hours."""
RARE = 84
"""Hours; a type that lately was silent twice for longer has no rhythm to break."""
LONGER = 3.0
"""How far a silence must surpass those that the type has had lately."""
_MOST = 7.0
"""Surprise of one silent hour, at most: no alarm after less than two."""
_PRIOR = 8.0
"""Weight, in hours, of what is known without looking at this hour of the week."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Hours without a file after the last one, and what to make of them."""

    hours: int
    """Over, with time to arrive."""
    expected: int
    """Rows that these hours of the week usually bring: the median week's."""
    surprise: float
    needed: float
    """Surprise from which on it is unusual."""
    learnt: int
    """Hours of history."""
    longest: int
    """Hours of the second longest silence in it."""

    @property
    def known(self) -> bool:
        """Tell whether there is history enough to judge."""
        return self.learnt >= ENOUGH

    @property
    def rare(self) -> bool:
        """Tell whether its silences are too long for a rhythm."""
        return self.longest > RARE

    @property
    def unusual(self) -> bool:
        """Tell whether someone should look."""
        judged = self.known and not self.rare
        return judged and self.surprise >= self.needed


def silence(rows: Mapping[int, int], newest: int, now: int) -> Silence:
    """Judge the silence since an hour, by the five weeks before.

    Args:
        rows: By queued hour; hours without any may be left out.
        newest: Last hour with rows.
        now: The hour that is not over.
    """
    first = max(min(rows, default=newest), newest - LEARNT + 1)
    active = [rows.get(hour, 0) > 0 for hour in range(first, newest)] + [True]
    surprise = _surprises(active, first)
    past, longest = _gaps(active, first, surprise)
    silent = range(newest + 1, now - GRACE)
    return Silence(
        hours=len(silent),
        expected=round(sum(_usual(rows, hour, first, newest) for hour in silent)),
        surprise=sum(surprise[hour % WEEK] for hour in silent),
        needed=max(SURPRISE, LONGER * past),
        learnt=len(active),
        longest=longest,
    )


def _surprises(active: Sequence[bool], first: int) -> list[float]:
    """Return by hour of the week how surprising it is if nothing comes.

    That is -ln(1 - p), where p is the share of the weeks in which this hour or its
    neighbours had something, drawn a little to the same hours of the other days.
    Neighbours count because five weeks are few, and because clocks change.
    """
    tried, had = [0] * WEEK, [0] * WEEK
    for hour, one in enumerate(active, first):
        tried[hour % WEEK] += 1
        had[hour % WEEK] += one

    tried, had = _near(tried), _near(had)

    def of(hour: int) -> float:
        alike = slice(hour % 24, None, 24)
        usual = (sum(had[alike]) + 0.5) / (sum(tried[alike]) + 1)
        share = (had[hour] + _PRIOR * usual) / (tried[hour] + _PRIOR)
        return min(_MOST, -log(1 - share))

    return [of(hour) for hour in range(WEEK)]


def _near(counts: Sequence[int]) -> list[int]:
    """Add to each hour of the week its neighbours."""
    return [
        counts[hour - 1] + counts[hour] + counts[(hour + 1) % WEEK]
        for hour in range(WEEK)
    ]


def _gaps(
    active: Sequence[bool], first: int, surprise: Sequence[float]
) -> tuple[float, int]:
    """Return the surprise and the hours of the second worst silence of the history.

    The worst is left out, so that an outage of last month does not hide today's.
    """
    hours = enumerate(active, first)
    silent = [
        [surprise[hour % WEEK] for hour, _ in run]
        for came, run in groupby(hours, key=lambda it: it[1])
        if not came
    ]
    if len(silent) < 2:
        return 0.0, 0
    return sorted(map(sum, silent))[-2], sorted(map(len, silent))[-2]


def _usual(rows: Mapping[int, int], hour: int, first: int, newest: int) -> float:
    """Return what an hour of the week brings in the median week."""
    weeks = range(1, 2 * LEARNT // WEEK)
    same = [hour - week * WEEK for week in weeks]
    known = [rows.get(one, 0) for one in same if first <= one <= newest]
    return median(known) if known else 0.0
