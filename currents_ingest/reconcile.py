"""What Amperity read, held against what was delivered."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from currents_ingest.amperity_api import WINDOW, Client
from currents_ingest.ledger import entry_key, read_entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from currents_ingest.amperity_api import IngestJob
    from currents_ingest.config import Amperity
    from currents_ingest.ledger import Ledger

_AT_ONCE = 64
_BAD = frozenset({"failed", "stopped", "canceled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """An object that we published."""

    feed: str
    name: str
    """The last part of its key; no other object has it."""
    rows: int
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedReading:
    """What Amperity read of one feed."""

    feed: str
    tables: tuple[str, ...]
    """Its tables in Amperity."""
    objects: int
    objects_read: int
    rows: int
    """In the objects that were read."""
    rows_read: int
    inserted: int
    updated: int
    rejected: int
    errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """Seven days of deliveries and of ingest jobs."""

    since: datetime
    feeds: tuple[FeedReading, ...]
    differences: tuple[str, ...]


@dataclass(slots=True)
class _Tally:
    tables: set[str] = field(default_factory=set)
    read: dict[str, int] = field(default_factory=dict)
    """Rows by object; read twice, it counts once."""
    figures: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def reconcile(settings: Amperity, ledger: Ledger, now: datetime) -> Reconciled:
    """Ask Amperity for its ingest jobs and compare; changes nothing.

    Raises:
        AmperityError: It did not answer.
        SettingsError: There is no token.
    """
    since = now - WINDOW
    jobs = Client(settings).jobs(since, now)
    return compare(delivered(ledger, since), jobs, since, now - settings.read_within)


def delivered(ledger: Ledger, since: datetime) -> list[Delivered]:
    """Return the feed objects committed since, newest entries first."""
    found: list[Delivered] = []
    for last in range(ledger.cache.head, 0, -_AT_ONCE):
        keys = [entry_key(n) for n in range(max(1, last - _AT_ONCE + 1), last + 1)]
        entries = [
            read_entry(key, body)
            for key, body in zip(keys, ledger.store.gather(keys), strict=True)
        ]
        found += [
            Delivered(
                feed=one.key.split("/")[0],
                name=one.key.rsplit("/", 1)[-1],
                rows=one.rows,
                at=entry.at,
            )
            for entry in entries
            if entry.at >= since
            for one in entry.outputs
            if one.kind == "feed"
        ]
        if entries[0].at < since:
            break
    return found


def compare(
    objects: Sequence[Delivered],
    jobs: Iterable[IngestJob],
    since: datetime,
    due: datetime,
) -> Reconciled:
    """Hold ingest jobs against the objects.

    Args:
        objects: What was delivered within the window.
        jobs: What Amperity did within it.
        since: When the window began.
        due: What was delivered before should have been read by now.
    """
    by_name = {one.name: one for one in objects}
    tallies: dict[str, _Tally] = defaultdict(_Tally)
    differences: list[str] = []
    for job in jobs:
        ours = [
            (by_name[name], one)
            for one in job.files
            if (name := one.name.rsplit("/", 1)[-1]) in by_name
        ]
        if not ours:
            continue  # another source's table
        first = tallies[ours[0][0].feed]
        for name in ("inserted", "updated", "rejected", "errors"):
            first.figures[name] += getattr(job, name)
        for mine, theirs in ours:
            tally = tallies[mine.feed]
            tally.tables.add(job.table)
            tally.read[mine.name] = max(theirs.read, tally.read.get(mine.name, 0))
        if job.state in _BAD:
            differences.append(f"ingest job {job.id} into {job.table} has {job.state}")
        if job.errors:
            told = f"ingest job {job.id} into {job.table}: {job.errors:,} rows in error"
            differences.append(told)
    differences += _unlike(objects, tallies, due)
    feeds = sorted({one.feed for one in objects})
    readings = (_reading(feed, objects, tallies[feed]) for feed in feeds)
    return Reconciled(
        since=since, feeds=tuple(readings), differences=tuple(differences)
    )


def _unlike(
    objects: Iterable[Delivered], tallies: dict[str, _Tally], due: datetime
) -> Iterator[str]:
    for one in objects:
        read = tallies[one.feed].read.get(one.name)
        if read is None and one.at < due and one.rows:
            yield f"{one.name} was delivered at {one.at:%Y-%m-%d %H:%M} and never read"
        elif read is not None and read != one.rows:
            yield f"{one.name} has {one.rows:,} rows, and Amperity read {read:,}"


def _reading(feed: str, objects: Iterable[Delivered], tally: _Tally) -> FeedReading:
    own = [one for one in objects if one.feed == feed]
    return FeedReading(
        feed=feed,
        tables=tuple(sorted(tally.tables)),
        objects=len(own),
        objects_read=len(tally.read),
        rows=sum(one.rows for one in own if one.name in tally.read),
        rows_read=sum(tally.read.values()),
        **{
            name: tally.figures[name]
            for name in ("inserted", "updated", "rejected", "errors")
        },
    )


def midnight(day: int) -> datetime:
    """Return when a day since 1970 begins, in UTC."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)
