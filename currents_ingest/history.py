"""The last five weeks as the ledger tells them: rows an hour, delays, what went wrong.

Hours and days are counted since 1970, in UTC.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product
from typing import TYPE_CHECKING

from currents_ingest import pace
from currents_ingest.cache_entries import ASIDE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from currents_ingest.cache import Cache
    from currents_ingest.manifest import Drift

HISTOGRAMS = ("wait", "delay")


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """An event type's last weeks, or what several add up to."""

    queued: Counter[int] = field(default_factory=Counter)
    """Rows by the hour in which Braze queued them, duplicates included."""
    read: Counter[int] = field(default_factory=Counter)
    """Rows by the hour of the commit, as are the next three."""
    duplicates: Counter[int] = field(default_factory=Counter)
    rejects: Counter[int] = field(default_factory=Counter)
    unfit: Counter[int] = field(default_factory=Counter)
    """Rejects of unified feeds."""
    wait: dict[int, Counter[int]] = field(default_factory=dict)
    """From the queued hour to the commit: rows by slot, by the day of the commit."""
    delay: dict[int, Counter[int]] = field(default_factory=dict)
    """The same from the event on."""

    def typical(self, what: str, share: float, since: int = 0) -> float | None:
        """Return the minutes of ``wait`` or ``delay`` that a share of the rows took.

        Args:
            what: Which.
            share: Of the rows, 0.5 for the median.
            since: First day that counts.
        """
        days: Mapping[int, Counter[int]] = getattr(self, what)
        return _minutes((one for day, one in days.items() if day >= since), share)

    def on(self, what: str, day: int, share: float) -> float | None:
        """Return the same for one day."""
        days: Mapping[int, Counter[int]] = getattr(self, what)
        return _minutes([days.get(day, Counter())], share)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What the ledger tells of the last weeks."""

    types: Mapping[str, Past]
    """By event type; those without anything in these weeks are not there."""
    watermarks: Mapping[str, datetime]
    """Newest queued hour that was ever committed, by event type."""
    quarantine: Mapping[tuple[str, str], int]
    """Files that wait, by event type and reason."""
    drift: tuple[tuple[Drift, datetime], ...]
    """Every schema that drifted, and when it was first met."""

    def of(self, event_type: str) -> Past:
        """Return one event type's."""
        return self.types.get(event_type, Past())

    @property
    def whole(self) -> Past:
        """Return what all add up to."""
        return _sum(self.types.values())


def history(cache: Cache) -> History:
    """Read what the cache knows."""
    types: dict[str, Past] = {}
    for row in cache.table("pace"):
        past = types.setdefault(row["event_type"], Past())
        for name in pace.COLUMNS:
            found = enumerate(pace.counts(row[name]))
            if name in HISTOGRAMS:
                getattr(past, name)[row["day"]] = Counter(dict(found))
            else:
                hours = {row["day"] * 24 + at: count for at, count in found if count}
                getattr(past, name).update(hours)
    return History(
        types=dict(sorted(types.items())),
        watermarks={
            row["event_type"]: datetime.fromtimestamp(row["watermark"], UTC)
            for row in cache.table("totals")
        },
        quarantine=Counter(
            (one.event_type or "", one.reason) for one in cache.files(ASIDE)
        ),
        drift=tuple(cache.drift()),
    )


def within(hours: Mapping[int, int], since: int, until: int) -> int:
    """Add up the hours from *since* to before *until*."""
    return sum(n for hour, n in hours.items() if since <= hour < until)


def _sum(pasts: Iterable[Past]) -> Past:
    whole = Past()
    for past, name in product(pasts, pace.COLUMNS):
        if name not in HISTOGRAMS:
            getattr(whole, name).update(getattr(past, name))
            continue
        for day, one in getattr(past, name).items():
            getattr(whole, name).setdefault(day, Counter()).update(one)
    return whole


def _minutes(histograms: Iterable[Counter[int]], share: float) -> float | None:
    whole: Counter[int] = Counter()
    for one in histograms:
        whole.update(one)
    return pace.minutes([whole[at] for at in range(len(pace.BOUNDS) + 1)], share)
