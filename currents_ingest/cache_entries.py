"""What an entry changes in the cache."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from currents_ingest.manifest import SetAside
from currents_ingest.pace import COLUMNS, KEPT, added, slot

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from currents_ingest.manifest import Entry, Manifest

DONE, ASIDE, RELEASED, DISCARDED = "done", "aside", "released", "discarded"


def take_in(db: sqlite3.Connection, entry: Entry) -> None:
    """Write what an entry says into the tables, within the caller's transaction."""
    for batch in entry.batches:
        _apply_batch(db, entry, batch)
    _apply_pace(db, entry)
    _apply_shares(db, entry)
    _apply_days(db, entry)
    _apply_waiting(db, entry)
    _apply_joins(db, entry)
    db.executemany(
        "insert or replace into contracts values (?, ?)",
        [(one.feed, one.model_dump_json()) for one in entry.pinned],
    )
    db.executemany(
        "insert or replace into unified values (?, ?)",
        [(one.feed, one.model_dump_json()) for one in entry.unified],
    )
    _mark(db, entry, entry.set_aside, ASIDE)
    _mark(db, entry, entry.released, RELEASED)
    _mark(db, entry, entry.discarded, DISCARDED)
    seen = entry.at.isoformat()
    db.executemany(
        "insert or ignore into schemas values (?, ?, ?, ?)",
        [
            (one.fingerprint, one.event_type, seen, one.model_dump_json())
            for one in entry.schemas
        ],
    )


def _apply_batch(db: sqlite3.Connection, entry: Entry, batch: Manifest) -> None:
    kind, number = batch.event_type, entry.number
    db.executemany(
        "insert or replace into files values (?, ?, ?, ?, ?, ?, 'done', null)",
        [(*one.identity, seconds(one.hour), kind, number) for one in batch.inputs],
    )
    first, last = map(seconds, batch.queued)
    db.executemany(
        "insert or ignore into hours values (?, ?, ?, ?, ?, ?)",
        [
            (kind, hour, output.key, first, last, number)
            for output in batch.outputs
            if output.kind == "index"
            for hour in batch.hours
        ],
    )
    db.execute(
        "insert into totals values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "on conflict (event_type) do update set files = files + excluded.files, "
        "rows_in = rows_in + excluded.rows_in, "
        "rows_out = rows_out + excluded.rows_out, "
        "duplicates = duplicates + excluded.duplicates, "
        "rejects = rejects + excluded.rejects, bytes = bytes + excluded.bytes, "
        "watermark = max(watermark, excluded.watermark), "
        "committed_at = excluded.committed_at",
        (
            kind,
            batch.feed,
            len(batch.inputs),
            batch.rows_in,
            batch.rows_out,
            batch.duplicates,
            batch.rejects,
            sum(
                one.bytes
                for one in batch.outputs
                if one.kind == "feed" and not one.feed
            ),
            last,
            entry.at.isoformat(),
        ),
    )


def _apply_pace(db: sqlite3.Connection, entry: Entry) -> None:
    """Keep how much came in each hour of the last weeks, and how long it took.

    The entry's own time says which days are old, so that a cache which is rebuilt
    says the same.
    """
    oldest = seconds(entry.at) // 86400 - KEPT
    found: defaultdict[tuple[int, str], defaultdict[str, Counter[int]]]
    found = defaultdict(lambda: defaultdict(Counter))
    for day, event_type, column, place, rows in _paces(entry):
        if day > oldest:
            found[day, event_type][column][place] += rows
    names = ", ".join(COLUMNS)
    for key, columns in sorted(found.items()):
        held = db.execute(
            f"select {names} from pace where day = ? and event_type = ?",  # noqa: S608 (our names)
            key,
        ).fetchone()
        before = dict(zip(COLUMNS, held or (), strict=False))
        after = [added(before.get(one, ""), columns.get(one, {})) for one in COLUMNS]
        db.execute(
            "insert or replace into pace values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*key, *after),
        )
    db.execute("delete from pace where day <= ?", (oldest,))


def _paces(entry: Entry) -> Iterator[tuple[int, str, str, int, int]]:
    """Yield counts of rows by day, event type, column and place; see ``pace``."""
    at = seconds(entry.at)
    today, hour = at // 86400, at // 3600 % 24
    for batch in entry.batches:
        kind = batch.event_type
        by_hour: Counter[datetime] = Counter()
        for one in batch.inputs:
            by_hour[one.hour] += one.rows
        for time, rows in by_hour.items():
            queued = seconds(time) // 3600
            yield queued // 24, kind, "queued", queued % 24, rows
            yield today, kind, "wait", slot(at, queued), rows
        for event, rows in batch.hours.items():
            yield today, kind, "delay", slot(at, event), rows
        yield today, kind, "read", hour, batch.rows_in
        yield today, kind, "duplicates", hour, batch.duplicates
        yield today, kind, "rejects", hour, batch.rejects
        yield today, kind, "unfit", hour, sum(one.rejects for one in batch.shares)


def _apply_days(db: sqlite3.Connection, entry: Entry) -> None:
    """Keep the last delivery day of each feed."""
    days: dict[str, int] = {}
    for batch in entry.batches:
        written = [one for one in batch.outputs if one.kind == "feed"]
        day = seconds(batch.planned_at) // 86400
        days |= {one.feed or batch.feed: day for one in written}
    for delivery in entry.deliveries:
        if any(one.kind == "feed" for one in delivery.outputs):
            days[delivery.feed] = seconds(delivery.planned_at) // 86400
    db.executemany(
        "insert into delivered values (?, ?) on conflict (feed) "
        "do update set day = max(day, excluded.day)",
        sorted(days.items()),
    )


def _apply_joins(db: sqlite3.Connection, entry: Entry) -> None:
    """Keep the batches whose rows wait to be joined, by feed."""
    for batch in entry.batches:
        index = [one.key for one in batch.outputs if one.kind == "index"]
        span = min(batch.hours, default=0), max(batch.hours, default=0)
        db.executemany(
            "insert or ignore into unjoined values (?, ?, ?, ?, ?, ?)",
            [
                (feed, key, batch.event_type, *span, seconds(entry.at))
                for feed in batch.joins
                for key in index
            ],
        )
    db.executemany(
        "delete from unjoined where feed = ? and object = ?",
        [(one.feed, one.index) for one in entry.joined],
    )


def _apply_waiting(db: sqlite3.Connection, entry: Entry) -> None:
    """Keep the delivery days that no workflow was started over yet."""
    done = [
        *((one.planned_at, one.outputs) for one in entry.batches),
        *((one.planned_at, one.outputs) for one in entry.deliveries),
        *((one.planned_at, one.outputs) for one in entry.refills),
    ]
    for at, outputs in done:
        if any(one.kind == "feed" for one in outputs):
            day = seconds(at) // 86400
            kept = "insert into meta values (?, ?) on conflict (name) do update set "
            smaller = "value = min(cast(value as integer), excluded.value + 0)"
            larger = "value = max(cast(value as integer), excluded.value + 0)"
            db.execute(kept + smaller, ("waiting_from", day))
            db.execute(kept + larger, ("waiting_to", day))
    if entry.started:
        if not entry.started.again:
            db.execute("delete from meta where name in ('waiting_from', 'waiting_to')")
        started = seconds(entry.at)
        db.execute("insert or replace into meta values ('started', ?)", (started,))


def _apply_shares(db: sqlite3.Connection, entry: Entry) -> None:
    """Add up what an entry gave to unified feeds."""
    rejects: Counter[str] = Counter()
    for batch in entry.batches:
        rejects.update({one.feed: one.rejects for one in batch.shares})
    written = [one for one in entry.outputs if one.feed and one.kind == "feed"]
    for feed in sorted({*rejects, *(one.feed for one in written)}):
        own = [one for one in written if one.feed == feed]
        db.execute(
            "insert into shares values (?, ?, ?, ?, ?, ?) "
            "on conflict (feed) do update set "
            "objects = objects + excluded.objects, rows = rows + excluded.rows, "
            "rejects = rejects + excluded.rejects, bytes = bytes + excluded.bytes, "
            "committed_at = excluded.committed_at",
            (
                feed,
                len(own),
                sum(one.rows for one in own),
                rejects[feed],
                sum(one.bytes for one in own),
                entry.at.isoformat(),
            ),
        )


def _mark(
    db: sqlite3.Connection, entry: Entry, files: Iterable[Any], state: str
) -> None:
    for one in files:
        if isinstance(one, SetAside):
            hour = seconds(one.hour) if one.hour else None
            about = hour, one.event_type, entry.number, state, one.reason
            db.execute(
                "insert or replace into files values (?, ?, ?, ?, ?, ?, ?, ?)",
                (*one.identity, *about),
            )
        else:
            db.execute(
                "update files set state = ?, entry = ? "
                "where key = ? and etag = ? and size = ?",
                (state, entry.number, *one.identity),
            )


def seconds(time: datetime) -> int:
    """Return whole seconds since 1970."""
    return int(time.timestamp())
