"""When a schedule fires: five-field cron text in a time zone, and fixed periods.

Cron text means what it means to Vixie's cron and its descendants. If neither minute nor
hour begins with ``*``, it names times of the day: each comes exactly once a day, at the
next time there is where clocks skip it, and the first time where they repeat it.
Otherwise it names minutes, and every real minute that the clock shows so counts.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator

if TYPE_CHECKING:
    from collections.abc import Iterator

_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()  # noqa: SIM905 (short)
_DAYS = "sun mon tue wed thu fri sat".split()  # noqa: SIM905 (likewise)
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: n for n, name in enumerate(_MONTHS, 1)}),
    ("day of the week", 0, 7, {name: n for n, name in enumerate(_DAYS)}),
)
_DAY = timedelta(days=1)
_LEAST = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """Cron text that was read."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday."""
    either: bool
    """Both kinds of day are named, so one of them is enough."""
    fixed: bool
    """It names times of the day, not minutes."""
    zone: ZoneInfo

    def after(self, moment: datetime) -> datetime:
        """Return the first time after *moment*, in UTC."""
        return self._fixed(moment) if self.fixed else self._running(moment)

    def _fixed(self, moment: datetime) -> datetime:
        for wall in self._walls(_wall(moment, self.zone)):
            if (found := self._instant(wall)) > moment:
                return found
        raise AssertionError("some day always fits")  # pragma: no cover

    def _running(self, moment: datetime) -> datetime:
        """Follow the clock on the wall, from one jump of it to the next."""
        at = moment.astimezone(UTC) + _LEAST
        while True:
            offset = _offset(at, self.zone)
            wall = next(self._walls((at + offset).replace(tzinfo=None)))
            found = wall.replace(tzinfo=UTC) - offset
            jump = self._jump(at, found)
            if jump is None:
                return found
            at = jump

    def _walls(self, since: datetime) -> Iterator[datetime]:
        """Yield fitting times of the wall's clock from *since* on, in order."""
        times = [time(h, m) for h in sorted(self.hours) for m in sorted(self.minutes)]
        day = since.date()
        while True:
            if self._fits(day):
                first = day == since.date()
                start = bisect_left(times, since.time()) if first else 0
                for one in times[start:]:
                    yield datetime.combine(day, one)
            day += _DAY

    def _fits(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        of_month, of_week = (
            day.day in self.days,
            day.isoweekday() % 7 in self.weekdays,
        )
        return of_month or of_week if self.either else of_month and of_week

    def _instant(self, wall: datetime) -> datetime:
        """Return when the wall's clock first shows *wall* or, skipping it, more."""
        found = wall.replace(tzinfo=self.zone).astimezone(UTC)
        if _wall(found, self.zone) == wall:
            return found
        # In a gap the two readings lie on either side of the jump.
        before = wall.replace(tzinfo=self.zone, fold=1).astimezone(UTC)
        return self._jump(before, found) or found

    def _jump(self, since: datetime, until: datetime) -> datetime | None:
        """Return the first time after *since*, up to *until*, with another offset."""
        offset, low = _offset(since, self.zone), since
        while low < until:
            high = min(low + _DAY, until)
            if _offset(high, self.zone) != offset:
                return self._bisected(low, high, offset)
            low = high
        return None

    def _bisected(self, low: datetime, high: datetime, offset: timedelta) -> datetime:
        """Return when the offset ends that counts at *low* and not at *high*."""
        while high - low > _LEAST:
            middle = low + (high - low) / 2
            if _offset(middle, self.zone) == offset:
                low = middle
            else:
                high = middle
        return high


@dataclass(frozen=True, slots=True)
class Every:
    """A period of real time, counted from an anchor."""

    period: timedelta
    anchor: datetime

    def after(self, moment: datetime) -> datetime:
        """Return the first time after *moment*, in UTC."""
        passed = (moment - self.anchor) // self.period
        return self.anchor + (passed + 1) * self.period


def cron(text: str, zone: str = "UTC") -> Cron:
    """Read cron text.

    Raises:
        ValueError: It is none; says which field is wrong, and why.
    """
    parts = text.lower().split()
    if len(parts) != len(_FIELDS):
        names = ", ".join(name for name, *_ in _FIELDS)
        problem = f"{text!r} is no cron; write five fields ({names}), as in 0 6 * * *"
        raise ValueError(problem)
    read = [_numbers(part, *field) for part, field in zip(parts, _FIELDS, strict=True)]
    minutes, hours, days, months, weekdays = read
    either = not (parts[2].startswith("*") or parts[4].startswith("*"))
    if not either and not any(
        min(days) <= monthrange(2024, month)[1] for month in months
    ):
        raise ValueError(f"{text!r} never comes: no such month has such a day")
    return Cron(
        minutes=minutes,
        hours=hours,
        days=days,
        months=months,
        weekdays=frozenset(day % 7 for day in weekdays),
        either=either,
        fixed=not (parts[0].startswith("*") or parts[1].startswith("*")),
        zone=time_zone(zone),
    )


def time_zone(name: str) -> ZoneInfo:
    """Return a time zone.

    Raises:
        ValueError: There is none of that name.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # unknown; a folder; a path
        problem = f"{name!r} is no time zone; write one as in Europe/Berlin or UTC"
        raise ValueError(problem) from None


def _numbers(
    text: str, field: str, least: int, most: int, names: dict[str, int]
) -> frozenset[int]:
    """Read one field: ``*``, ``5``, ``1-5``, ``mon``, with ``/2``, joined by commas."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(?:(\*)|(\w+)(?:-(\w+))?)(?:/(\d+))?", part, re.ASCII)
        if not match:
            raise ValueError(f"{part!r} is no {field}")
        star, first, last, step = match.groups()
        if star:
            low, high = least, most
        else:
            low = _number(first, field, least, most, names)
            high = _number(last, field, least, most, names) if last else low
            high = most if step and not last else high  # 5/10 is 5-59/10
        if low > high or (step and not int(step)):
            raise ValueError(f"{part!r} is no {field}: it names nothing")
        found.update(range(low, high + 1, int(step or 1)))
    return frozenset(found)


def _number(text: str, field: str, least: int, most: int, names: dict[str, int]) -> int:
    number = int(text) if text.isdecimal() else names.get(text, -1)
    if not least <= number <= most:
        known = f" or {', '.join(names)}" if names else ""
        raise ValueError(f"{text!r} is no {field}; write {least} to {most}{known}")
    return number


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _wall(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _cron_text(text: str) -> str:
    if text:
        cron(text)
    return text


CronText = Annotated[str, AfterValidator(_cron_text)]
"""Cron text in settings; empty: none."""
Zone = Annotated[str, AfterValidator(lambda name: time_zone(name).key)]
"""A time zone's name in settings."""
