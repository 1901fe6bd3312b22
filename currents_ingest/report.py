"""The report: how the feeds have fared for five weeks, on a page that loads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from currents_ingest import charts
from currents_ingest.history import within
from currents_ingest.pages import templates
from currents_ingest.status import last_runs, survey
from currents_ingest.units import span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from currents_ingest.config import Settings
    from currents_ingest.history import History, Past
    from currents_ingest.manifest import Drift
    from currents_ingest.status import FeedStatus, LastRun, Status

_WIDE, _NARROW = 1080, 400
"""Pixels that charts are drawn for: across a desk's screen, or half of it or a phone's.
"""
_HOURS = 14 * 24
_DAYS = 35
_RUNS = 10
_FIRST = 20
"""Event types that are shown at once, at most, but for those that need a look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """What was committed on one day."""

    day: datetime
    queued: int
    """Rows that Braze queued on it."""
    read: int
    duplicates: int
    rejects: int
    delay: float | None
    """Minutes from event to commit, the median; the next two likewise."""
    late: float | None
    """Those of the slowest twentieth."""
    wait: float | None
    """From the queued hour on: our own part of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One event type."""

    feed: FeedStatus
    rows_7d: int
    spark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """A schema that drifted, and what it means today."""

    drift: Drift
    seen: datetime
    now: str
    """Its verdict today; empty: its feed's contract knows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All that the page shows."""

    status: Status
    days: tuple[Day, ...]
    """The newest first."""
    rows: tuple[Row, ...]
    drift: tuple[Met, ...]
    quarantine: tuple[tuple[str, str, int], ...]
    """Event type, reason, files."""
    audiences: tuple[LastRun, ...]
    charts: dict[str, str]
    """SVG by name; empty where they cannot be drawn."""
    delay: float | None
    late: float | None
    wait: float | None

    @property
    def first(self) -> tuple[Row, ...]:
        """Return the event types that are shown at once."""
        return self.rows[: max(_FIRST, sum(one.feed.needs_a_look for one in self.rows))]

    @property
    def others(self) -> tuple[Row, ...]:
        """Return those that are shown when asked for."""
        return self.rows[len(self.first) :]

    @property
    def duplicate_share(self) -> float:
        """Return the share of duplicates among what was read in the last 24 hours."""
        read = sum(one.read for one in self.days[:2])
        return sum(one.duplicates for one in self.days[:2]) / read if read else 0.0


def page(settings: Settings, now: datetime) -> str:
    """Return the report as HTML: no script, nothing from outside, all text escaped."""
    environment = templates(escape=True)
    environment.filters["span"] = lambda it: "-" if it is None else span(it)
    environment.filters["time"] = lambda at: at[:16].replace("T", " ")
    return environment.get_template("report.html").render(page=gathered(settings, now))


def gathered(settings: Settings, now: datetime) -> Page:
    """Collect what the page shows; changes nothing."""
    found, past = survey(settings, now)
    whole = past.whole
    days = tuple(_days(whole, now))
    week = int(now.timestamp()) // 86400 - 6
    still = {(one.event_type, one.fingerprint): one.verdict for one in found.drift}
    met = [
        Met(
            drift=drift,
            seen=seen,
            now=str(still.get((drift.event_type, drift.fingerprint), "")),
        )
        for drift, seen in past.drift
    ]
    return Page(
        status=found,
        days=days,
        rows=tuple(_rows(found.feeds, past, now)),
        drift=tuple(sorted(met, key=lambda one: one.seen, reverse=True)),
        quarantine=tuple(
            (event_type, reason, files)
            for (event_type, reason), files in sorted(past.quarantine.items())
        ),
        audiences=last_runs(settings, _RUNS),
        charts=_charts(whole, days, now) if charts.can_draw() and days else {},
        delay=whole.typical("delay", 0.5, week),
        late=whole.typical("delay", 0.95, week),
        wait=whole.typical("wait", 0.5, week),
    )


def _days(whole: Past, now: datetime) -> Iterator[Day]:
    today = int(now.timestamp()) // 86400
    known = [hour // 24 for hour in (*whole.queued, *whole.read)]
    first = min(known, default=today + 1)
    for day in range(today, max(first, today - _DAYS + 1) - 1, -1):
        hours = day * 24, day * 24 + 24
        yield Day(
            day=datetime.fromtimestamp(day * 86400, UTC),
            queued=within(whole.queued, *hours),
            read=within(whole.read, *hours),
            duplicates=within(whole.duplicates, *hours),
            rejects=within(whole.rejects, *hours) + within(whole.unfit, *hours),
            delay=whole.on("delay", day, 0.5),
            late=whole.on("delay", day, 0.95),
            wait=whole.on("wait", day, 0.5),
        )


def _rows(feeds: Sequence[FeedStatus], past: History, now: datetime) -> Iterator[Row]:
    """Yield event types: first those that need a look, then those with most rows."""
    end = int(now.timestamp()) // 3600 + 1
    week, before = range(end - 168, end), range(end - 336, end - 168)
    rows = []
    for one in feeds:
        queued = past.of(one.event_type).queued
        spark = charts.sparkline(
            [queued[hour] for hour in week], [queued[hour] for hour in before]
        )
        rows.append(Row(feed=one, rows_7d=within(queued, week[0], end), spark=spark))
    yield from sorted(rows, key=lambda it: (it.feed.rank, -it.rows_7d))


def _charts(whole: Past, days: Sequence[Day], now: datetime) -> dict[str, str]:
    end = now.replace(minute=0, second=0, microsecond=0)
    at = int(end.timestamp()) // 3600
    hours = [
        (end - timedelta(hours=ago), whole.queued[at - ago])
        for ago in range(_HOURS, 0, -1)
    ]
    delays = [
        (one.day, name, minutes)
        for one in reversed(days)
        for name, minutes in (
            ("half of the rows", one.delay),
            ("95 % of the rows", one.late),
        )
        if minutes is not None
    ]
    wrong = [
        (one.day, name, count / one.read)
        for one in reversed(days)
        for name, count in (("duplicates", one.duplicates), ("rejects", one.rejects))
        if one.read
    ]
    title = "Rows an hour of all event types over the last 14 days"
    return {
        "wide": charts.hours(hours, title, _WIDE),
        "narrow": charts.hours(hours, title, _NARROW),
        "delays": charts.spans(delays, "Delay from event to delivery by day", _NARROW),
        "wrong": charts.shares(
            wrong, "Share of duplicates and rejects by day", _NARROW
        ),
    }
