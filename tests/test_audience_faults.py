"""Syncs that go wrong in every way: nothing is lost, nothing happens twice."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from currents_ingest.audiences import sync
from currents_ingest.errors import BrazeDownError
from currents_ingest.sandbox.faults import KINDS
from tests.audience_campaign import (
    KEY,
    KILLED,
    Place,
    chosen,
    end,
    held,
    id_of,
    rows,
    start,
    take_in,
    write_csv,
    write_settings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from currents_ingest.audiences.gathering import Target
    from currents_ingest.config import Settings

EVENTS = {"kind": "events", "dedupe": "nr"}
INC = {"operations": {"gained": "inc"}}
QUICK = {"timeout": "0.5s", "concurrency": 16}
HANG = 1.0
TRACKED = tuple(one for one in KINDS if one != "423")
"""Those that `/users/track` has."""


def happenings(count: int) -> Iterator[dict[str, str]]:
    for number in range(count):
        yield {
            "external_id": id_of(number % 500),
            "name": "visited",
            "time": "2026-09-01T10:00:00Z",
            "nr": str(number),
            "properties.n": str(number),
        }


def gains(count: int) -> Iterator[dict[str, str]]:
    for number in range(count):
        yield {"external_id": id_of(number), "gained": "5"}


def until_done(settings: Settings, target: Target) -> list[sync.Run]:
    """Sync again and again until all is sent; a server that is down is no end."""
    found = []
    for _ in range(30):
        try:
            found.append(sync.sync(settings, target, KEY))
        except BrazeDownError:
            continue
        if found[-1].state == "nothing new":
            return found
        if found[-1].state == "done" and not found[-1].failed:
            return found
    raise AssertionError("it never says done")


def left(place: Place, state: str) -> pl.DataFrame:
    """Return all rows that runs have told of as *state*."""
    found = [pl.read_parquet(one) for one in place.ours.rglob("runs/*/left-*.parquet")]
    whole = pl.concat(found, how="diagonal") if found else None
    return pl.DataFrame() if whole is None else whole.filter(__state__=state)


def faulty(kinds: tuple[str, ...], share: float, seed: int) -> dict[str, Any]:
    return {"kinds": kinds, "share": share, "seed": seed, "hang": HANG}


CASES = [
    *(pytest.param((kind,), 0.3, 1, id=kind) for kind in TRACKED),
    *(pytest.param(TRACKED, 0.3, seed, id=f"all, seed {seed}") for seed in (1, 2)),
]


@pytest.mark.parametrize(("kinds", "share", "seed"), CASES)
def test_profiles_equal_the_export_whatever_goes_wrong(place, box, kinds, share, seed):
    want: dict[str, Any] = {}
    for version in (0, 1):
        box.faults(**faulty(kinds, share, seed + version))
        write_csv(place.export, rows(range(2000), version))
        take_in(want, rows(range(2000), version))
        until_done(*chosen(place, braze=QUICK))
        assert held(box) == want
    assert box.state()["faults"].keys() <= set(kinds)
    assert sum(box.state()["faults"].values()) > 3


@pytest.mark.parametrize(("kinds", "share", "seed"), CASES)
def test_no_event_happens_twice_and_none_is_silently_lost(
    place, box, kinds, share, seed
):
    box.faults(**faulty(kinds, share, seed))
    write_csv(place.export, happenings(3000))
    given = chosen(place, braze=QUICK, **EVENTS)
    first = sync.sync(*given, KEY)
    assert first.taken + first.failed + first.unknown == 3000
    until_done(*given)
    arrived = Counter(one["properties"]["n"] for one in box.events())
    assert set(arrived.values()) <= {1}
    unknown = (
        {int(one) for one in left(place, "unknown")["__id__"]}
        if first.unknown
        else set()
    )
    assert sum(sync.undecided(*given).values()) == len(unknown)
    assert set(range(3000)) - arrived.keys() <= unknown
    assert len(arrived.keys() - unknown) == 3000 - len(unknown)
    box.faults(share=0)
    sync.sync(*given, KEY, force=True)
    again = Counter(one["properties"]["n"] for one in box.events())
    assert again == arrived


@pytest.mark.parametrize(("kinds", "share", "seed"), CASES)
def test_no_increment_counts_twice_and_none_is_silently_lost(
    place, box, kinds, share, seed
):
    most = Counter[str]()
    unknown = Counter[str]()
    for version in (0, 1):
        box.faults(**faulty(kinds, share, seed + version))
        write_csv(place.export, gains(1500))
        most.update(map(id_of, range(1500)))
        until_done(*chosen(place, braze=QUICK, **INC))
    told = left(place, "unknown")
    unknown.update(told["__person__"] if len(told) else ())
    given = chosen(place, braze=QUICK, **INC)
    assert sum(sync.undecided(*given).values()) == unknown.total()
    counts = {who: one.get("gained", 0) // 5 for who, one in held(box).items()}
    for who, deliveries in most.items():
        assert deliveries - unknown[who] <= counts.get(who, 0) <= deliveries


def sync_and_kill(
    place: Place, rng: random.Random, kills: int, **variables: str
) -> tuple[int, int]:
    """Start syncs and kill them at random until one ends; returns kills and starts.

    A process starts for longer than it works: half of the kills wait until it works.
    """
    killed = starts = 0
    while starts < 40:
        process = start(place, "audience", "sync", "vips", **variables)
        starts += 1
        if killed < kills:
            if rng.random() < 0.7:
                wait_until_at_work(place, process)
            time.sleep(rng.uniform(0, 0.8))
            process.kill()
        ended = end(process)
        if ended.status == KILLED:
            killed += 1
            continue
        assert ended.status == 0, ended.stderr
        if killed >= kills or "nothing new" in ended.stdout:
            return killed, starts
    raise AssertionError("it never ends")


def wait_until_at_work(place: Place, process: Any) -> None:
    def begun() -> int:
        return len(list(place.ours.rglob("_ledger/*.json")))

    before, limit = begun(), time.monotonic() + 20
    while process.poll() is None and begun() == before:
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.mark.parametrize("seed", [1])
def test_profiles_equal_the_export_whenever_a_sync_is_killed(place, box, seed):
    rng, want = random.Random(seed), dict[str, Any]()
    for version, share in ((0, 0.2), (1, 0.4)):
        box.faults(**faulty(TRACKED, share, seed))
        write_csv(place.export, rows(range(4000), version))
        take_in(want, rows(range(4000), version))
        write_settings(place, braze=QUICK)
        sync_and_kill(place, rng, kills=4)
        assert held(box) == want


@pytest.mark.parametrize("settings", [EVENTS, INC], ids=["events", "increments"])
def test_nothing_happens_twice_or_is_lost_whenever_a_sync_is_killed(
    place, box, settings
):
    events = settings is EVENTS
    box.faults(**faulty(TRACKED, 0.1, 5))
    write_csv(place.export, happenings(12000) if events else gains(12000))
    given = chosen(place, braze=QUICK, **settings)
    killed, _ = sync_and_kill(place, random.Random(5), kills=6)
    box.faults(share=0)
    until_done(*given)
    if events:
        found = Counter(one["properties"]["n"] for one in box.events())
    else:
        found = Counter({who: one["gained"] // 5 for who, one in held(box).items()})
    unknown = sum(sync.undecided(*given).values())
    assert set(found.values()) == {1}
    assert 12000 - unknown <= len(found) <= 12000
    assert killed
    sync.sync(*given, KEY, force=True)
    assert sum(sync.undecided(*given).values()) == unknown
