"""A Currents tree that looks like the real one, and what a correct ingest makes of it.

Below the URL lie ``currents/`` (what Braze would have written), ``expected.json``
(counts by event type, and the keys that must be set aside) and
``expected/<feed>.ids`` (the event ids that the feed must hold, sorted). Equal options
write equal bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from operator import itemgetter
from random import Random
from typing import TYPE_CHECKING, Literal

from currents_ingest import schemas, simulate_files, simulate_rows, simulate_values
from currents_ingest.contracts import feed_name
from currents_ingest.errors import SettingsError
from currents_ingest.simulate_files import ENDINGS, FOREIGN, LAYOUTS, ROOT, TORN, File
from currents_ingest.simulate_rows import Shares
from currents_ingest.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from currents_ingest.schemas import SchemaVersion
    from currents_ingest.simulate_files import Layout
    from currents_ingest.simulate_rows import Pool

_PARTITIONS = 3
_SPOILT_PARTITION = _PARTITIONS
"""Damaged files have one of their own, so no key is taken twice."""
_SPOILT_ROWS = 20
_REMEMBERED = 2_000
"""Rows kept for redelivery, by schema version."""
_POOL_SIZES = (200, 10_000)
_COUNTS = ("files", "rows", "distinct", "duplicates", "rejects")
_ROWS_A_BLOCK = (120, 120, 120, 1000, 7)
"""A block of 64 kB, Java's default, holds about 120 rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What the tree shall be like; shares are of rows, from 0 to 1."""

    seed: int = 1
    events: tuple[str, ...] = ("*",)
    """Globs over the event types that ``schemas.known()`` has."""
    versions: Literal["latest", "all"] = "latest"
    """With "all", every schema version is in at least one file, older ones first;
    hours get more files than ``files_per_hour`` if it takes that."""
    layout: Literal["new", "old", "2017", "mixed"] = "mixed"
    """Key layout; "mixed" goes from the oldest to the newest in the course of time."""
    end: datetime = datetime(2026, 9, 15, 12, tzinfo=UTC)
    """The first hour that is no longer in the tree."""
    hours: int = 6
    files_per_hour: int = 2
    """Of each event type."""
    rows: int = 20
    """Mean rows of a small file; sizes vary, with at least one row."""
    large_files: int = 0
    """Files of each event type that have ``large_rows`` rows."""
    large_rows: int = 15_000
    """Braze flushes at 15,000 rows, and writes up to 100,000 under load."""
    redelivered: float = 0.02
    """Rows that are a copy of one in an earlier file of the same schema version."""
    late: float = 0.05
    """Rows whose ``time`` is a minute to 45 days before the queued hour."""
    torn: int = 0
    """Damaged files in all, of six kinds in turn."""
    foreign: int = 0
    """Files in all that Braze did not write there, of three kinds in turn."""
    bad_rows: float = 0.0
    """Rows that break a rule: an empty ``id``, or (where ``time`` is a long) a
    ``time`` that is millennia away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What was written, in all; ``rows = distinct + duplicates + rejects``."""

    files: int
    """Readable ones; those to set aside are extra."""
    rows: int
    distinct: int
    duplicates: int
    rejects: int
    set_aside: int
    bytes: int
    """Of everything below ``currents/``."""


@dataclass(frozen=True, slots=True)
class _SetAside:
    key: str
    why: str
    size: int


def simulate(url: str, simulation: Simulation) -> Simulated:
    """Write the tree and what must come of it.

    Args:
        url: A folder or an object-store URL, best an empty one.
        simulation: What to write.

    Raises:
        SettingsError: The options contradict themselves, or no event type matches.
        StoreError: The store refused a write; the tree is then incomplete.
    """
    event_types = _event_types(simulation)
    store, pool = Store.open(url), _pools(simulation)
    counts: dict[str, Counter[str]] = {}
    for event_type in event_types:
        counts[event_type], ids = _write_event_type(store, event_type, simulation, pool)
        body = "\n".join([*sorted(ids), ""]).encode()
        store.put(f"expected/{feed_name(event_type)}.ids", body)
    aside = [
        _write_spoilt(store, file, kind, simulation, pool)
        for file, kind in _spoilt_files(event_types, simulation)
    ]
    totals = _totals(counts, aside)
    store.put("expected.json", _expected(counts, aside, totals))
    return totals


def _event_types(simulation: Simulation) -> tuple[str, ...]:
    found = tuple(
        event_type
        for event_type in schemas.known()
        if any(fnmatchcase(event_type, glob) for glob in simulation.events)
    )
    if problems := tuple(_problems(simulation, found)):
        raise SettingsError(problems)
    return found


_LEAST = {
    "hours": 1,
    "files_per_hour": 1,
    "rows": 1,
    "large_rows": 1,
    "large_files": 0,
    "torn": 0,
    "foreign": 0,
}


def _problems(simulation: Simulation, event_types: Sequence[str]) -> Iterator[str]:
    if not event_types:
        yield "events matches no known event type; `schemas list` shows them"
    if simulation.end.tzinfo is None:
        yield "end has no time zone"
    for name, least in _LEAST.items():
        if getattr(simulation, name) < least:
            yield f"{name} must be {least} or more"
    for name in ("redelivered", "late", "bad_rows"):
        if not 0 <= getattr(simulation, name) <= 1:
            yield f"{name} must be between 0 and 1"
    if simulation.redelivered + simulation.bad_rows > 1:
        yield "redelivered and bad_rows must not be more than 1 together"
    if simulation.large_files > simulation.hours * simulation.files_per_hour:
        yield "large_files must not be more than hours times files_per_hour"


def _write_event_type(
    store: Store, event_type: str, simulation: Simulation, pool: Pool
) -> tuple[Counter[str], list[str]]:
    """Write an event type's files; return the counts and the ids to expect."""
    rng = Random(f"{simulation.seed} {event_type}")
    shares = _shares(simulation)
    recent: dict[int, list[bytes]] = {}
    counts: Counter[str] = Counter()
    ids: list[str] = []
    for file in _files(event_type, simulation, rng):
        remembered = recent.setdefault(file.version.number, [])
        rows = simulate_rows.rows(file, remembered, shares, pool, rng)
        body = simulate_files.container(
            file.version, rows.encoded, rng.choice(_ROWS_A_BLOCK), rng
        ).joined()
        store.put(simulate_files.key(file, _integration(simulation)), body)
        counts += Counter(files=1, bytes=len(body)) + rows.counts()
        ids += [rows.ids[at] for at in rows.new]
        again = rng.sample(rows.new, min(len(rows.new), _REMEMBERED // 2))
        remembered += [rows.encoded[at] for at in again]
        del remembered[:-_REMEMBERED]
    return counts, ids


def _files(event_type: str, simulation: Simulation, rng: Random) -> Iterator[File]:
    """Yield an event type's files in the order in which Braze queued them."""
    versions = _versions(event_type, simulation)
    per_hour = max(simulation.files_per_hour, -(-len(versions) // simulation.hours))
    count = simulation.hours * per_hour
    large = set(rng.sample(range(count), simulation.large_files))
    offsets = [rng.randrange(1_000_000) for _ in range(_PARTITIONS)]
    for at in range(count):
        hour, place = divmod(at, per_hour)
        # Partitions rise within an hour, so that the keys' order is this order.
        partition = place * _PARTITIONS // max(per_hour, _PARTITIONS)
        rows = simulation.large_rows if at in large else _small(simulation.rows, rng)
        yield File(
            version=versions[at * len(versions) // count],
            hour=_hour(simulation, hour),
            layout=_layout(simulation, hour),
            rows=rows,
            tests=1 if at == 0 else 0,
            partition=partition,
            offset=offsets[partition],
        )
        offsets[partition] += rows


def _versions(event_type: str, simulation: Simulation) -> tuple[SchemaVersion, ...]:
    versions = schemas.known()[event_type]
    return versions if simulation.versions == "all" else versions[-1:]


def _small(mean: int, rng: Random) -> int:
    return 1 + int(rng.expovariate(1 / (mean - 1))) if mean > 1 else 1


def _hour(simulation: Simulation, number: int) -> datetime:
    end = simulation.end.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return end - timedelta(hours=simulation.hours - number)


def _layout(simulation: Simulation, hour: int) -> Layout:
    if simulation.layout != "mixed":
        return simulation.layout
    to_come = simulation.hours - 1 - hour  # counted from the end: one hour is "new"
    return tuple(LAYOUTS)[-1 - to_come * len(LAYOUTS) // simulation.hours]


def _shares(simulation: Simulation) -> Shares:
    return Shares(
        redelivered=simulation.redelivered,
        late=simulation.late,
        bad=simulation.bad_rows,
    )


def _integration(simulation: Simulation) -> str:
    return f"{Random(f'{simulation.seed} integration').getrandbits(96):024x}"


def _pools(simulation: Simulation) -> Pool:
    """Return the pools, made when first asked for; a bounded number is kept.

    Larger trees get larger ones, or their columns would compress too well.
    """
    files = simulation.hours * simulation.files_per_hour
    rows = files * simulation.rows + simulation.large_files * simulation.large_rows
    size = sorted((*_POOL_SIZES, rows // 10))[1]
    return lru_cache(128)(
        partial(simulate_values.pool, seed=simulation.seed, size=size)
    )


def _spoilt_files(
    event_types: Sequence[str], simulation: Simulation
) -> Iterator[tuple[File, str]]:
    """Yield the files to set aside and their kinds, each kind in turn."""
    rng = Random(f"{simulation.seed} spoilt")
    torn, foreign = tuple(TORN), tuple(FOREIGN)
    kinds = [torn[at % len(torn)] for at in range(simulation.torn)]
    kinds += [foreign[at % len(foreign)] for at in range(simulation.foreign)]
    for at, kind in enumerate(kinds):
        hour = rng.randrange(simulation.hours)
        yield (
            File(
                version=schemas.known()[rng.choice(event_types)][-1],
                hour=_hour(simulation, hour),
                layout=_layout(simulation, hour),
                rows=1 + rng.randrange(_SPOILT_ROWS),
                partition=_SPOILT_PARTITION,
                offset=at,
            ),
            kind,
        )


def _write_spoilt(
    store: Store, file: File, kind: str, simulation: Simulation, pool: Pool
) -> _SetAside:
    key = simulate_files.key(file, _integration(simulation))
    key = key.removesuffix(".avro") + ENDINGS.get(kind, ".avro")
    rng = Random(f"{simulation.seed} {key}")
    inner = replace(file, version=_other(file.version)) if kind == "record" else file
    rows = simulate_rows.rows(inner, (), Shares(), pool, rng).encoded
    whole = simulate_files.container(inner.version, rows, 5, rng)
    body = (TORN | FOREIGN)[kind](whole, rng)
    store.put(key, body)
    return _SetAside(key.removeprefix(ROOT), kind, len(body))


def _other(version: SchemaVersion) -> SchemaVersion:
    """Return the newest schema of a neighbouring event type."""
    event_types = tuple(schemas.known())
    at = event_types.index(version.event_type)
    return schemas.known()[event_types[at - 1]][-1]


def _totals(
    counts: Mapping[str, Counter[str]], aside: Sequence[_SetAside]
) -> Simulated:
    spoilt = Counter(set_aside=len(aside), bytes=sum(each.size for each in aside))
    total = sum(counts.values(), spoilt)
    return Simulated(**{each.name: total[each.name] for each in fields(Simulated)})


def _expected(
    counts: Mapping[str, Counter[str]], aside: Iterable[_SetAside], totals: Simulated
) -> bytes:
    content = {
        "events": {
            event_type: {"feed": feed_name(event_type)}
            | {name: found[name] for name in _COUNTS}
            for event_type, found in counts.items()
        },
        "set_aside": sorted(
            ({"key": each.key, "why": each.why} for each in aside),
            key=itemgetter("key"),
        ),
        "totals": asdict(totals),
    }
    return json.dumps(content, indent=1).encode()
