"""When cron text fires, by watching a clock: a reckoning of its own for tests.

It looks at the clock on the wall once every real minute, as cron itself does, and knows
nothing of offsets or of how to find the next time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cached_property
from zoneinfo import ZoneInfo

_MINUTE = timedelta(minutes=1)
JUMPS = [
    ("Europe/Berlin", "2026-03-29"),
    ("Europe/Berlin", "2026-10-25"),
    ("Australia/Lord_Howe", "2026-04-05"),
    ("Australia/Lord_Howe", "2026-10-04"),
    ("America/Santiago", "2026-09-06"),
    ("America/New_York", "2026-11-01"),
    ("Asia/Kolkata", "2026-03-29"),
]
"""Zones, and days on which their clocks are changed (the last one's never are)."""


class Watched:
    """Cron text, field by field, of numbers alone."""

    def __init__(self, text: str, zone: str) -> None:
        self.fields = text.split()
        self.zone = ZoneInfo(zone)

    def wall(self, moment: datetime) -> datetime:
        """Return what the clock on the wall shows."""
        return moment.astimezone(self.zone).replace(tzinfo=None, fold=0)

    def fits(self, wall: datetime) -> bool:
        """Tell whether a minute on the wall is meant."""
        shown = (
            wall.minute,
            wall.hour,
            wall.day,
            wall.month,
            wall.isoweekday() % 7,
        )
        return all(n in named for n, named in zip(shown, self._named, strict=True))

    @cached_property
    def _named(self) -> list[set[int]]:
        """Return which numbers each field names."""
        spans = [range(60), range(24), range(1, 32), range(1, 13), range(8)]
        found = [
            {n for part in field.split(",") for n in _part(part, span)}
            for field, span in zip(self.fields, spans, strict=True)
        ]
        found[4] = {n % 7 for n in found[4]}
        return found

    @property
    def of_the_day(self) -> bool:
        """Tell whether it names times of the day."""
        return "*" not in {self.fields[0][0], self.fields[1][0]}


def _part(part: str, span: range) -> list[int]:
    body, _, step = part.partition("/")
    if body == "*":
        return [n for n in span if (n - span[0]) % int(step or 1) == 0]
    first, _, last = body.partition("-")
    return list(range(int(first), int(last or first) + 1))


def fires(watched: Watched, since: datetime, until: datetime) -> list[datetime]:
    """Return the minutes after *since* up to *until* at which it fires.

    A clock that goes on by more than a minute has skipped what lies between, which is
    caught up at once; one that goes back shows minutes again that were there before.
    """
    moment = since.astimezone(UTC).replace(second=0, microsecond=0) - timedelta(hours=3)
    latest = watched.wall(moment)
    found = []
    while (moment := moment + _MINUTE) <= until:
        wall = watched.wall(moment)
        if watched.of_the_day:
            news = []
            while latest < wall:
                latest += _MINUTE
                news.append(latest)
        else:
            news = [wall]
        if any(map(watched.fits, news)) and moment > since:
            found.append(moment)
    return found
