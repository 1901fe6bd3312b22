"""Entries folded, so that a start reads little: a state, and rows by type and month.

A state (``states/<number>.json.gz``) says what entries up to its number come to, but
for the rows of files and of hours. Those lie in segments::

    <files|hours>/<event type>/<YYYY-MM>/<first day>-<last day>-<rows>-<digest>.parquet

Nothing lists the segments but their folders. That works without any lock, because
whatever lies there is true, and what a segment holds is removed only an hour after
another one held it, too: two that fold at once, a kill in between, and a reader
meanwhile may leave or meet a row twice, but never miss one. A state says how many rows
a month has at least, so that segments which somebody removed are missed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from calendar import monthrange
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import polars as pl
import structlog

from currents_ingest import parquet
from currents_ingest.cache_days import FOLDED, filed
from currents_ingest.errors import (
    AlreadyThereError,
    CheckpointGoneError,
    LedgerBrokenError,
    NotThereError,
    RefusedError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from currents_ingest.cache import Cache
    from currents_ingest.cache_days import Day
    from currents_ingest.store import Store

log = structlog.get_logger()

ROOT = "_ledger/checkpoints"
_STATES = f"{ROOT}/states"
_FORMAT = 2
FULL = 4_000
"""Rows of a segment that is not merged any more."""
MERGE = 8
"""Segments of a month that are not full, before they are merged."""
_KEPT = timedelta(hours=1)
"""How long what was merged stays for those who have just listed it."""
_STATES_KEPT = 3
_THREADS = 16
_AT_ONCE = 64
_TRIES = 10
_EPOCH = date(1970, 1, 1).toordinal()
_SCHEMAS: dict[str, dict[str, pl.DataType]] = {
    "files": {
        "key": pl.String(),
        "etag": pl.String(),
        "size": pl.Int64(),
        "hour": pl.Int64(),
        "event_type": pl.String(),
        "entry": pl.Int64(),
        "state": pl.String(),
        "reason": pl.String(),
    },
    "hours": {
        "event_type": pl.String(),
        "hour": pl.Int64(),
        "object": pl.String(),
        "queued_from": pl.Int64(),
        "queued_to": pl.Int64(),
        "entry": pl.Int64(),
    },
}
_NAME = re.compile(r"(\d\d)-(\d\d)-(\d+)-[0-9a-f]+\.parquet")
_KEYS = {"files": ["key", "etag", "size"], "hours": ["hour", "object"]}


@dataclass(frozen=True, slots=True)
class State:
    """A checkpoint's state; number 0: there is none."""

    number: int = 0
    holds: dict[str, Any] = field(default_factory=dict)

    @property
    def months(self) -> list[list[Any]]:
        """Return rows of the cache's table ``months``."""
        found: list[list[Any]] = self.holds.get("months", [])
        return found


@dataclass(frozen=True, slots=True, order=True)
class _Segment:
    key: str
    first: int
    last: int
    rows: int

    def has(self, days: Collection[int]) -> bool:
        return any(self.first <= day <= self.last for day in days)


@dataclass(frozen=True, slots=True)
class _Month:
    """Rows of one kind, event type and month."""

    kind: str
    event_type: str
    month: str

    @property
    def folder(self) -> str:
        return f"{ROOT}/{self.kind}/{self.event_type}/{self.month}"

    @property
    def days(self) -> range:
        first = date.fromisoformat(f"{self.month}-01")
        length = monthrange(first.year, first.month)[1]
        return range(first.toordinal() - _EPOCH, first.toordinal() - _EPOCH + length)


def newest(store: Store) -> State:
    """Read the newest state.

    Raises:
        LedgerBrokenError: A newer version of the program wrote it.
    """
    for _ in range(_TRIES):
        if not (found := _states(store)):
            return State()
        (body,) = store.find(found[-1:])
        if body is not None:  # else it was replaced meanwhile
            holds = json.loads(gzip.decompress(body))
            if holds["format"] != _FORMAT:
                raise LedgerBrokenError(found[-1], "it was written by a newer version")
            return State(int(found[-1].rsplit("/", 1)[-1].split(".")[0]), holds)
    raise LedgerBrokenError(_STATES, "its objects vanish while they are read")


def write(
    store: Store, cache: Cache, last: State, run: str, now: datetime
) -> State | None:
    """Fold the entries that came after the last state.

    Args:
        store: The feeds folder.
        cache: What the ledger says; entries after *last* are in it whole.
        last: The newest state.
        run: Token of the run.
        now: When.

    Returns:
        The new state; None if a rival's with the same number was first.
    """
    state = cache.state()
    number = state.pop("head")
    months = {_Month(*one[:3]): (one[3], one[4]) for one in last.months}
    gone = [(key, at) for key, at in last.holds.get("gone", ())]
    due = [key for key, at in gone if now - datetime.fromisoformat(at) >= _KEPT]
    _remove(store, due)
    gone = [one for one in gone if one[0] not in due]
    for part, rows, small, merged in _folded(store, cache, last, number):
        months[part] = max(0, months.get(part, (0, 0))[0] + rows), small
        gone += [(key, now.isoformat()) for key in merged]
    state |= {
        "months": [
            [one.kind, one.event_type, one.month, *counts]
            for one, counts in months.items()
        ],
        "gone": gone,
        "format": _FORMAT,
        "run": run,
        "at": now.isoformat(),
    }
    body = gzip.compress(json.dumps(state).encode(), mtime=0)
    try:
        store.create(f"{_STATES}/{number:010}.json.gz", body)
    except AlreadyThereError:
        return None
    _remove(store, _states(store)[:-_STATES_KEPT])
    return State(number, state)


def fetch(store: Store, cache: Cache, kind: str, days: Collection[Day]) -> None:
    """Load days into the cache from the checkpoints.

    Raises:
        CheckpointGoneError: Segments are missing.
    """
    base = cache.base
    by_type = groupby(sorted(days), key=lambda one: one[0])
    for event_type, some in by_type:
        held = cache.months(kind, event_type)
        wanted = groupby((day for _, day in some), key=_month)
        for month, in_month in wanted:
            numbers = set(in_month)
            if month in held:
                part = _Month(kind, event_type, month)
                numbers, rows = _read(store, part, numbers, held[month])
            else:
                rows = []
            counts = dict.fromkeys(((event_type, one) for one in numbers), 0)
            for row in rows:
                counts[event_type, filed(kind, row["hour"])] += 1
            cache.load(kind, base, counts, rows)


def _read(
    store: Store, part: _Month, wanted: set[int], least: int
) -> tuple[set[int], list[dict[str, Any]]]:
    """Read days of a month, and others that come with them whole."""
    for _ in range(_TRIES):
        found = _segments(store, part)
        if sum(one.rows for one in found) < least:
            continue  # merged while they were listed, or somebody removed them
        chosen = [one for one in found if one.has(wanted)]
        if part.kind == "hours" and sum(one.rows for one in found) <= FULL:
            chosen = found  # late events ask for a day here and a day there
        others = [one for one in found if one not in chosen]
        try:
            bodies = store.gather([one.key for one in chosen])
        except NotThereError:  # merged an hour ago, and removed just now
            continue
        whole = {day for day in part.days if not any(one.has((day,)) for one in others)}
        days = wanted | whole
        rows = [
            row
            for body in bodies
            for row in parquet.from_bytes(body).to_dicts()
            if filed(part.kind, row["hour"]) in days
        ]
        return days, rows
    raise CheckpointGoneError(part.folder)


def _folded(
    store: Store, cache: Cache, last: State, until: int
) -> Iterator[tuple[_Month, int, int, list[str]]]:
    """Write what came since, many months at once.

    Yields:
        Of each month: how many rows it has more, how many segments are not full now,
        and which ones were merged into others.
    """
    small = {_Month(*one[:3]): one[4] for one in last.months}

    def one(
        given: tuple[_Month, list[dict[str, Any]]],
    ) -> tuple[_Month, int, int, list[str]]:
        part, rows = given
        added = _put(store, part, pl.DataFrame(rows, schema=_SCHEMAS[part.kind]))
        count = small.get(part, 0) + _small(added)
        if count <= MERGE:
            return part, len(rows), count, []
        count, twice, merged = _merge(store, part)
        return part, len(rows) - twice, count, merged

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="fold") as pool:
        for kind in FOLDED:
            parts = _parts(kind, cache.added(kind, last.number, until))
            while some := list(islice(parts, _AT_ONCE)):
                yield from pool.map(one, some)


def _parts(
    kind: str, rows: Iterable[dict[str, Any]]
) -> Iterator[tuple[_Month, list[dict[str, Any]]]]:
    def of(row: dict[str, Any]) -> _Month:
        return _Month(kind, row["event_type"], _month(filed(kind, row["hour"])))

    return ((part, list(some)) for part, some in groupby(rows, key=of))


def _merge(store: Store, part: _Month) -> tuple[int, int, list[str]]:
    """Make few segments of those that are not full.

    Returns:
        How many are not full then, how many rows were there twice, and the keys of
        those that others replace.
    """
    old = [one for one in _segments(store, part) if one.rows < FULL]
    try:
        bodies = store.gather([one.key for one in old])
    except NotThereError:  # a rival is at it
        return len(old), 0, []
    new = _put(store, part, parquet.from_bytes(bodies))
    kept = {one.key for one in new}
    twice = sum(one.rows for one in old) - sum(one.rows for one in new)
    return _small(new), twice, [one.key for one in old if one.key not in kept]


def _put(store: Store, part: _Month, rows: pl.DataFrame) -> list[_Segment]:
    """Write segments; equal rows give equal objects."""
    keys = _KEYS[part.kind]
    rows = rows.sort("entry").unique(keys, keep="last", maintain_order=True)
    rows = rows.sort("hour", *keys)
    written = []
    for some in rows.iter_slices(FULL):
        body = parquet.index_to_bytes(some)
        first, last = (filed(part.kind, some["hour"][at]) for at in (0, -1))
        span = f"{_date(first).day:02}-{_date(last).day:02}"
        digest = hashlib.sha256(body).hexdigest()[:16]
        key = f"{part.folder}/{span}-{some.height}-{digest}.parquet"
        store.put(key, body)
        written.append(_Segment(key, first, last, some.height))
    return written


def _remove(store: Store, keys: Sequence[str]) -> None:
    """Remove what others replace; where that is not allowed, it lies there for ever."""
    try:
        store.delete(keys)
    except RefusedError as error:
        log.warning("old checkpoints stay", told=error.told())


def _small(segments: Iterable[_Segment]) -> int:
    return sum(one.rows < FULL for one in segments)


def _segments(store: Store, part: _Month) -> list[_Segment]:
    found, start = [], part.days[0] - 1
    for page in store.listing(part.folder):
        for one in page:
            if name := _NAME.fullmatch(one.key.rsplit("/", 1)[-1]):
                first, last, rows = (int(text) for text in name.groups())
                found.append(_Segment(one.key, start + first, start + last, rows))
    return found


def _states(store: Store) -> Sequence[str]:
    return [one.key for page in store.listing(_STATES) for one in page]


def _month(day: int) -> str:
    return f"{_date(day):%Y-%m}"


def _date(day: int) -> date:
    return date.fromordinal(_EPOCH + day)
