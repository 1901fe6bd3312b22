"""The sentinel: whether Braze went quiet, the bucket refuses us, or we are behind.

Braze stops writing when its credentials expire, and after some days it drops events
for good. The ledger says what each event type usually brings at this hour of the week;
a live listing says what lies in the bucket now; and the difference is told while there
is time.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from currents_ingest import discover, history, keys, rhythm
from currents_ingest.cache_entries import seconds
from currents_ingest.errors import (
    CurrentsError,
    ForeignKeyError,
    NotThereError,
    RefusedError,
    StoreError,
)
from currents_ingest.session import looking

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from currents_ingest.config import Settings
    from currents_ingest.history import History
    from currents_ingest.ledger import Ledger
    from currents_ingest.rhythm import Silence
    from currents_ingest.store import Store, StoredObject

Verdict = Literal["ok", "quiet", "behind", "new"]
_Source = Literal["ok", "stopped", "refused", "behind", "unknown"]
_BEHIND = timedelta(hours=1)
"""How long a file may wait at least before we are behind."""
_AT_MOST = timedelta(hours=24)
"""Wait that counts as usual at most, however long loads of history took."""
_PAGES = 2
"""Pages listed of an event type; what a poll should have left is far less."""
_AT_ONCE = 16
"""Listings in flight."""
_TOO_LONG = 96
"""Hours of silence of everything that are told even where no rhythm is known."""
_MEND_BRAZE = (
    "In Braze look at Partner Integrations > Data Export, and renew the connector's "
    "key or role"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rhythm:
    """What the sentinel says of one event type."""

    event_type: str
    verdict: Verdict
    newest: datetime | None
    """Hour in which Braze queued what it last wrote of it."""
    expected: int
    """Rows that usually come in the hours since then."""
    told: str

    @property
    def needs_a_look(self) -> bool:
        """Tell whether it has gone quiet, or we are behind."""
        return self.verdict in {"quiet", "behind"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentinel:
    """What the sentinel says."""

    at: datetime
    source: _Source
    told: str
    """What is so, and what to do about it."""
    types: tuple[Rhythm, ...]

    @property
    def needs_a_look(self) -> bool:
        """Tell whether someone should act."""
        return self.source != "ok" or any(one.needs_a_look for one in self.types)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lying:
    """What lies in the bucket of one event type, from its newest hour on."""

    newest: datetime | None = None
    last: StoredObject | None = None
    waiting: tuple[StoredObject, ...] = ()
    """Not in the ledger."""

    @property
    def oldest(self) -> datetime | None:
        """Return when the first of those that wait was written."""
        return min((one.modified for one in self.waiting if one.modified), default=None)


def watch(settings: Settings, now: datetime) -> Sentinel:
    """Look at ledger and bucket, and judge; changes nothing.

    It costs a listing for each event type, and one small read.
    """
    try:
        with looking(settings) as (source, ledger):
            found = history.history(ledger.cache)
            return judged(settings, source, ledger, found, now)
    except StoreError as error:
        return _shut_out(error, now)


def judged(
    settings: Settings, source: Store, ledger: Ledger, found: History, now: datetime
) -> Sentinel:
    """Judge with what is open already; errors of the source become a verdict."""
    events = settings.source.events
    try:
        lying = _lying(source, ledger, found, events)
        _read_one(source, lying.values())
    except StoreError as error:
        quiet = {one: _Lying() for one in _known(found, events)}
        rhythms = _rhythms(quiet, found, now, timedelta.max)
        return _shut_out(error, now, rhythms)
    patience = _patience(settings, found)
    types = _rhythms(lying, found, now, patience)
    verdict, told = _verdict(settings.source.url, lying, found, types, now)
    return Sentinel(at=now, source=verdict, told=told, types=types)


def _shut_out(
    error: StoreError, now: datetime, types: tuple[Rhythm, ...] = ()
) -> Sentinel:
    if isinstance(error, RefusedError):
        told = (
            f"{error.where} refuses us ({error.cause}). Braze may still be writing, "
            "and nothing is lost; check our credentials, the bucket's name and the "
            "right to list and get (`currents-ingest doctor` tries each)."
        )
        return Sentinel(at=now, source="refused", told=told, types=types)
    told = (
        f"{error.where} does not answer ({error.cause}), so nobody knows whether Braze "
        "is writing; check network and endpoint, then look again."
    )
    return Sentinel(at=now, source="unknown", told=told, types=types)


def _known(found: History, events: Iterable[str]) -> list[str]:
    globs = tuple(events)
    return [
        one for one in found.watermarks if any(fnmatchcase(one, glob) for glob in globs)
    ]


def _lying(
    source: Store, ledger: Ledger, found: History, events: Iterable[str]
) -> dict[str, _Lying]:
    """List each event type from the newest hour that the ledger knows."""
    listed: dict[str, list[StoredObject]] = defaultdict(list)
    listed |= {one: [] for one in _known(found, events)}
    folders = discover.event_folders(source, events)

    def pages(event_type: str, folder: str) -> list[StoredObject]:
        newest = found.watermarks.get(event_type)
        after = keys.hour_prefix(folder, newest) if newest else ""
        pages = zip(range(_PAGES), source.listing(folder, after=after), strict=False)
        return [one for _, page in pages for one in page]

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found_ = pool.map(lambda it: pages(*it), folders)
        for (event_type, _), objects in zip(folders, found_, strict=True):
            listed[event_type] += objects
    return {one: _of(ledger, objects) for one, objects in sorted(listed.items())}


def _of(ledger: Ledger, objects: list[StoredObject]) -> _Lying:
    hours, days = {}, set()
    for one in objects:
        try:
            key = keys.parse(one.key)
        except ForeignKeyError:
            continue
        hours[one] = key.hour
        days.add((key.event_type, seconds(key.hour) // 86400))
    if not hours:
        return _Lying()
    last = max(hours, key=lambda one: (hours[one], one.key))
    waiting = tuple(ledger.cache.unseen(list(hours), days))
    return _Lying(newest=hours[last], last=last, waiting=waiting)


def _read_one(source: Store, lying: Iterable[_Lying]) -> None:
    """Read the start of the newest file; what may be listed may yet be refused."""
    there = [one for one in lying if one.newest and one.last and one.last.size]
    if not there:
        return
    newest = max(there, key=lambda one: one.newest or datetime.min.replace(tzinfo=UTC))
    (head,) = source.heads([newest.last], 4) if newest.last else [b""]
    if isinstance(head, CurrentsError) and not isinstance(head, NotThereError):
        raise head


def _patience(settings: Settings, found: History) -> timedelta:
    """Return how long a file may wait: a few polls, or thrice what is usual here."""
    usual = timedelta(minutes=found.whole.typical("wait", 0.5) or 0)
    least = max(_BEHIND, 3 * settings.run.poll_every, 3 * min(usual, _AT_MOST))
    return least + settings.feeds.max_wait


def _rhythms(
    lying: Mapping[str, _Lying], found: History, now: datetime, patience: timedelta
) -> tuple[Rhythm, ...]:
    return tuple(
        _rhythm(event_type, one, found, now, patience)
        for event_type, one in lying.items()
    )


def _rhythm(
    event_type: str, lying: _Lying, found: History, now: datetime, patience: timedelta
) -> Rhythm:
    times = [lying.newest, found.watermarks.get(event_type)]
    newest = max((one for one in times if one), default=None)
    expected = 0
    verdict: Verdict = "new"
    told = "no file of it was ever there"
    if newest:
        rows = found.of(event_type).queued
        silent = rhythm.silence(rows, _hour(newest), _hour(now))
        expected = silent.expected
        verdict, told = _judged(silent, newest)
    if lying.oldest and now - lying.oldest > patience:
        verdict = "behind"
        told = f"{_files(lying)}, the first since {_time(lying.oldest)}"
    return Rhythm(
        event_type=event_type,
        verdict=verdict,
        newest=newest,
        expected=expected,
        told=told,
    )


def _judged(silent: Silence, newest: datetime) -> tuple[Verdict, str]:
    if not silent.known:
        return "new", f"{_learnt(silent)} of history are too few for a rhythm"
    if silent.unusual:
        return "quiet", (
            f"nothing queued since {_time(newest)} ({_span(silent.hours)}), when about "
            f"{silent.expected:,} rows are usual"
        )
    if silent.rare:
        return "ok", "comes too rarely for a rhythm"
    return "ok", "as usual at this hour of the week"


def _verdict(
    url: str,
    lying: Mapping[str, _Lying],
    found: History,
    types: Iterable[Rhythm],
    now: datetime,
) -> tuple[_Source, str]:
    """Judge the source as a whole: all event types as if they were one."""
    newest = max((one.newest for one in types if one.newest), default=None)
    if newest is None:
        told = (
            f"no Currents file was ever found below {url}. Check source.url (the "
            "folder that holds dataexport.*) and that the connector in Braze is on."
        )
        return "unknown", told
    behind = [one for one in types if one.verdict == "behind"]
    waiting = _waiting(lying, behind)
    queued = _queued(found, {one.event_type for one in types})
    silent = rhythm.silence(queued, _hour(newest), _hour(now))
    if silent.unusual or _far_too_long(silent):
        return "stopped", f"{stopped(url, newest, silent, now)} {waiting}".strip()
    if behind:
        return "behind", waiting
    if not silent.known:
        told = f"Files come in. Their usual rhythm is not known yet: {_learnt(silent)}"
        return "ok", f"{told} of history."
    quiet = sum(one.verdict == "quiet" for one in types)
    some = f", but {quiet} event types have gone quiet" if quiet else ""
    return "ok", f"Braze last wrote for {_time(newest)}, as usual{some}."


def _far_too_long(silent: Silence) -> bool:
    """Tell it of a source without a rhythm, too: Braze may be about to drop events."""
    longest = max(_TOO_LONG, silent.longest * 3 // 2)
    return not (silent.known and not silent.rare) and silent.hours >= longest


def _queued(found: History, types: set[str]) -> dict[int, int]:
    rows: dict[int, int] = defaultdict(int)
    for event_type in types:
        for hour, count in found.of(event_type).queued.items():
            rows[hour] += count
    return rows


def _waiting(lying: Mapping[str, _Lying], behind: list[Rhythm]) -> str:
    if not behind:
        return ""
    late = [lying[one.event_type] for one in behind]
    files = sum(len(one.waiting) for one in late)
    first = min(one.oldest for one in late if one.oldest)
    return (
        f"We are behind: {files:,} files of {len(behind)} event types wait in the "
        f"bucket, the first since {_time(first)}. See whether `currents-ingest run` or "
        "the scheduled poll is alive, then `currents-ingest poll`; nothing is lost."
    )


def stopped(url: str, newest: datetime, silent: Silence, now: datetime) -> str:
    """Say since when nothing comes, and how long Braze still keeps the events.

    Source: Braze docs, "Setting up Currents" (S3, Google: five days) and the page for
    Azure (48 hours).
    """
    kept = timedelta(hours=48) if url.startswith(("az", "abfs")) else timedelta(days=5)
    ends = newest + timedelta(hours=1) + kept
    left = ends - now
    usual = (
        f", when about {silent.expected:,} rows are usual" if silent.expected else ""
    )
    told = (
        f"Braze has stopped: nothing was queued since {_time(newest)} "
        f"({_span(silent.hours)}){usual}. {_MEND_BRAZE}. "
    )
    if left > timedelta(0):
        hours = int(left.total_seconds() // 3600)
        return told + (
            f"If they have expired, Braze drops events for good from {_time(ends)} on: "
            f"{_span(hours)} left."
        )
    return told + (
        f"If they have expired, Braze has been dropping events for good since "
        f"{_time(ends)}; renew them now."
    )


def _files(lying: _Lying) -> str:
    count = len(lying.waiting)
    return f"{count:,} files wait" if count > 1 else "1 file waits"


def _learnt(silent: Silence) -> str:
    return f"{silent.learnt // 24} of {rhythm.ENOUGH // 24} days"


def _span(hours: int) -> str:
    """Return hours as people say them."""
    return f"{hours} h" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _hour(time: datetime) -> int:
    return int(time.timestamp()) // 3600
