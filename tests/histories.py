"""Ledgers of weeks that never were: entries committed as a poll would commit them."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

from currents_ingest.compatibility import Verdict
from currents_ingest.config import Schemas
from currents_ingest.contracts import feed_name
from currents_ingest.manifest import (
    Delivery,
    Drift,
    Entry,
    Input,
    Manifest,
    Output,
    SetAside,
)
from currents_ingest.registry import open_registry
from tests.avro_files import OPEN, container, key, record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from currents_ingest.ledger import Ledger
    from currents_ingest.store import Store

NOW = datetime(2026, 9, 16, 14, 20, tzinfo=UTC)
"""A Wednesday."""
FILE = container(record(), [{"id": "a", "time": 1_789_000_000}])


def hour_of(time: datetime) -> int:
    return int(time.timestamp()) // 3600


def time_of(hour: int) -> datetime:
    return datetime.fromtimestamp(hour * 3600, UTC)


@dataclass(frozen=True, slots=True)
class Week:
    """A rhythm: rows at the busiest hour, and when it sleeps."""

    peak: float = 1000.0
    night: float = 0.05
    weekend: float = 0.4
    campaigns: float = 0.0
    """A week."""

    def rows(self, first: int, last: int, random: Random) -> dict[int, int]:
        """Return rows by hour; hours whose share rounds to nothing are not there."""
        found = {
            hour: round(self.at(hour) * random.uniform(0.7, 1.3))
            for hour in range(first, last + 1)
        }
        for start in range(first, last + 1):
            if random.random() < self.campaigns / 168:
                for after in range(min(30, last + 1 - start)):
                    more = self.peak * 4 * math.exp(-after / 5) * random.random()
                    found[start + after] += round(more)
        return {hour: rows for hour, rows in found.items() if rows}

    def at(self, hour: int) -> float:
        """Return the rows that an hour has on average."""
        day, of_day = (hour // 24 + 3) % 7, hour % 24
        sun = math.sin((of_day - 6) / 16 * math.pi) if 6 <= of_day < 22 else 0
        return self.peak * max(sun, self.night) * (self.weekend if day > 4 else 1)


OFFICE = Week(peak=500, night=0, weekend=0)


def manifest(
    event_type: str, at: datetime, rows: Mapping[int, int], **more: int
) -> Manifest:
    """Return a batch of one file an hour.

    Of its rows some may be *duplicates*, *rejects* or *late*: of a day before.
    """
    total = sum(rows.values())
    hours = dict(rows)
    if late := more.get("late", 0):
        first = min(rows)
        hours = {first - 24: late, **hours, first: max(0, hours[first] - late)}
    inputs = [
        Input(
            key=key(event_type, f"{time_of(hour):%Y-%m-%d-%H}"),
            etag="e",
            size=1,
            hour=time_of(hour),
            rows=count,
            fingerprint="f",
        )
        for hour, count in sorted(rows.items())
    ]
    return Manifest(
        event_type=event_type,
        feed=feed_name(event_type),
        contract_version=1,
        planned_at=at,
        inputs=tuple(inputs),
        outputs=(),
        rows_in=total,
        rows_out=total - more.get("duplicates", 0) - more.get("rejects", 0),
        duplicates=more.get("duplicates", 0),
        rejects=more.get("rejects", 0),
        hours=hours,
    )


def commit(
    ledger: Ledger,
    types: Mapping[str, Mapping[int, int]],
    *,
    every: int = 6,
    lag: timedelta = timedelta(minutes=70),
    spoil: Callable[[str, int], dict[str, int]] = lambda *_: {},
) -> None:
    """Commit what came, *every* so many hours, some time after the last of them."""
    for at, batches in _polls(types, every, lag):
        done = tuple(
            manifest(one, at, rows, **spoil(one, sum(rows.values())))
            for one, rows in sorted(batches.items())
        )
        ledger.commit(Entry(at=at, run="run", batches=done))


def _polls(
    types: Mapping[str, Mapping[int, int]], every: int, lag: timedelta
) -> Iterator[tuple[datetime, dict[str, dict[int, int]]]]:
    found: dict[int, dict[str, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    for event_type, rows in types.items():
        for hour, count in rows.items():
            found[hour // every][event_type][hour] = count
    for poll, batches in sorted(found.items()):
        last = max(hour for rows in batches.values() for hour in rows)
        yield time_of(min(poll * every + every - 1, last)) + lag, batches


def put(source: Store, hour: int, event_type: str = OPEN, offset: int = 1) -> None:
    """Let Braze write a file."""
    name = key(event_type, f"{time_of(hour):%Y-%m-%d-%H}", offset=offset)
    source.put(name, FILE)


def aside(event_type: str, offset: int) -> SetAside:
    """Return a file for the quarantine."""
    name = key(event_type, offset=offset)
    reason = "a block ends before its rows do"
    return SetAside(key=name, etag="e", size=9, event_type=event_type, reason=reason)


def world(ledger: Ledger, now: datetime, *, every: int = 6, days: int = 36) -> None:
    """Commit weeks of every event type that there is, with what goes wrong in them."""
    random = Random(11)
    last = hour_of(now) - 1
    kinds = open_registry(Schemas()).event_types()
    types = {
        kind: _week(place, kind).rows(
            last - (5 if kind in _NEW else days) * 24 + 1,
            last - _SILENT.get(kind, 0),
            random,
        )
        for place, kind in enumerate(random.sample(kinds, len(kinds)))
    }

    def spoil(kind: str, rows: int) -> dict[str, int]:
        bad = rows // 900 if kind == OPEN and random.random() < 0.2 else 0
        share = random.random() / 40
        late = round(rows * random.random() / 12)
        return {"duplicates": round(rows * share), "rejects": bad, "late": late}

    lag = timedelta(minutes=now.minute)
    commit(ledger, types, every=every, lag=lag, spoil=spoil)
    asides = tuple(aside(_CLICK, offset) for offset in range(3))
    drifts = tuple(_drift(kind, at) for at, kind in enumerate(_DRIFTED))
    for drift in drifts:
        at = now - timedelta(days=4 * len(drift.fingerprint.rstrip("0")))
        ledger.commit(Entry(at=at, run="run", schemas=(drift,)))
    ledger.commit(Entry(at=now, run="run", set_aside=asides))
    ledger.commit(Entry(at=now, run="run", deliveries=_unified(ledger.store, now)))


def _unified(store: Store, now: datetime) -> tuple[Delivery, ...]:
    """Return objects of unified feeds; nobody looks into them."""
    found = []
    for feed, rows in (("email_events", 912_450), ("message_events", 1_804_221)):
        staged = f"_staging/run/{feed}"
        store.put(staged, b"made up")
        one = Output(
            kind="feed", staged=staged, feed=feed, rows=rows, bytes=7, sha256=""
        )
        found.append(
            Delivery(feed=feed, contract_version=1, planned_at=now, outputs=(one,))
        )
    return tuple(found)


_CLICK = "users.messages.email.Click"
_NEW = ("users.messages.rcs.Send", "users.messages.rcs.Delivery")
_SILENT = {"users.messages.sms.Send": 14, "users.messages.sms.Delivery": 13}
_DRIFTED = (OPEN, "users.messages.contentcard.Send")


def _week(place: int, kind: str) -> Week:
    """Return a rhythm; few event types have most of the rows."""
    if kind in _SILENT or kind in _NEW:
        return Week(peak=900)
    if ".email." in kind:
        return Week(peak=30_000 / (1 + place % 5), campaigns=2)
    odd = (Week(), Week(night=0), OFFICE, Week(campaigns=3), Week(peak=1.2, night=0))
    found = odd[place % len(odd)]
    return replace(found, peak=found.peak * 40 / (1 + place))


def _drift(kind: str, at: int) -> Drift:
    field = {"name": f"new_field_{at}", "type": ["null", "string"]}
    schema = record(kind)
    schema["fields"].append(field)
    return Drift(
        fingerprint=f"{'ab'[at] * (at + 1):0<16}",
        event_type=kind,
        avro=json.dumps(schema),
        verdict=Verdict.ADDITIVE,
        differences=(f"{field['name']} added (string, may be null)",),
        key=key(kind),
    )
