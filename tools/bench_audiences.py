"""Speed and memory of the way back: a sync to the sandbox, and a large difference.

Usage: ``python tools/bench_audiences.py [--people N] [--large N]``. Prints a table and
keeps the figures in ``build/bench_audiences.json``.

- *sync*: people with ten attributes, the client on one core, the sandbox on another,
  from the first request to the last answer (and the whole run, with the export read
  before), beside what a sender that does nothing but send prepared requests gets out
  of the same sandbox: its own limit.
- *difference*: a preview of an export of which 1 % changed, beside a snapshot of as
  many people.

The exit status is 1 if the sync is slower than 50,000 people/s and than nine tenths of
the sandbox's limit, or if the difference takes more than 60 s or 2 GB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import polars as pl

from currents_ingest import config
from currents_ingest.audiences import gathering, planning, work
from currents_ingest.audiences import sync as sync_
from currents_ingest.audiences.difference import cells_of
from currents_ingest.audiences.gathering import Target
from currents_ingest.audiences.journal import Journal, Step
from currents_ingest.audiences.mapping import ID, OBJECT
from currents_ingest.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
_ROWS = 1_000_000
_CORES = {"client": 0, "server": 1}
WANTED, LIMIT_SHARE, SECONDS, BYTES = 50_000, 0.9, 60, 2 * 10**9
_TIERS = {0: "bronze", 1: "silver", 2: "gold", 3: "platinum"}


def people(first: int, count: int, changed: int) -> pl.DataFrame:
    """Make people up; of a hundred *changed* have other loyalty points."""
    at = pl.col("at")
    mixed = (at * 2_654_435_761) % 1_000_003
    points = mixed % 9000
    return pl.select(pl.int_range(first, first + count).alias("at")).select(
        pl.format("u{}-{}", mixed, at).alias("external_id"),
        pl.format("Name{}", mixed % 5000).alias("given_name"),
        pl.format("Surname{}", mixed % 20_000).alias("surname"),
        pl.format("p{}@example.com", at).alias("email"),
        pl.lit("US").alias("country"),
        (mixed % 365).alias("days_since_latest_order"),
        pl.when(at % 100 < changed).then(points + 1).otherwise(points).alias("Points"),
        (mixed / 100).round(2).alias("lifetime_order_revenue"),
        (mixed % 2 == 0).alias("one_and_done"),
        (mixed % 4).replace_strict(_TIERS).alias("tier"),
        pl.format("2026-0{}-1{} 10:00:00", mixed % 9 + 1, mixed % 10).alias(
            "latest_order_datetime"
        ),
    )


def write_export(path: Path, count: int, changed: int) -> None:
    """Write an export as Amperity does: one CSV."""
    with path.open("wb") as file:
        for first in range(0, count, _ROWS):
            size = min(_ROWS, count - first)
            frame = people(first, size, changed)
            frame.write_csv(file, include_header=first == 0)


def settings_for(folder: Path, url: str) -> tuple[config.Settings, Target]:
    """Return settings and the audience of the export in *folder*."""
    settings = config.read_audiences(
        feeds={"url": str(folder / "feeds")},
        braze={"url": url},
        audiences={"vip": {"source": str(folder / "export.csv"), "settle": "0s"}},
    )
    return settings, Target("vip", settings.audiences["vip"])


def acknowledge(folder: Path, url: str) -> None:
    """Make the snapshot that a first sync would have left, without sending."""
    settings, target = settings_for(folder, url)
    where = work.destination(settings, target)
    journal = Journal.open(Store.open(f"{folder}/feeds/_audiences/vip/{where}"))
    memory = settings.limits.memory // 5
    now = datetime.now(UTC)
    delivery = gathering.find(target, now)
    with (
        gathering.gathered(target, delivery, memory) as found,
        journal.snapshot(memory) as snapshot,
    ):
        everything = planning.differences(snapshot, found, target.audience)
        for number, one in enumerate(everything):
            rows = one.send.select(ID, *cells_of(one.send))
            key = journal.write(f"told/{number:010}.parquet", rows)
            count = len(rows)
            step = Step(at=now, run="bench", kind="told", objects=(key,), rows=count)
            journal.commit(step)
    journal.fold("bench", now, memory)


def part_sync(folder: Path, url: str) -> dict[str, Any]:
    """Sync, and say how long it took."""
    settings, target = settings_for(folder, url)
    started = time.perf_counter()
    run = sync_.sync(settings, target, "key")
    whole = time.perf_counter() - started
    return {"seconds": run.seconds, "objects": run.taken, "whole": whole}


def part_preview(folder: Path, url: str) -> dict[str, Any]:
    """Preview, and say how long it took and what it found."""
    settings, target = settings_for(folder, url)
    started = time.perf_counter()
    found = sync_.preview(settings, target)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "objects": found.figures.objects}


def part_acknowledge(folder: Path, url: str) -> dict[str, Any]:
    """Make a snapshot."""
    started = time.perf_counter()
    acknowledge(folder, url)
    return {"seconds": time.perf_counter() - started, "objects": 0}


def part_limit(folder: Path, url: str) -> dict[str, Any]:
    """Send prepared requests as fast as they are taken: the sandbox's limit."""
    settings, target = settings_for(folder, url)
    memory = settings.limits.memory // 5
    delivery = gathering.find(target, datetime.now(UTC))
    bodies = []
    with (
        gathering.gathered(target, delivery, memory) as found,
        Journal.open(Store.open("memory://nothing")).snapshot(memory) as empty,
    ):
        for one in planning.differences(empty, found, target.audience):
            objects = one.send[OBJECT].to_list()
            for at in range(0, len(objects), 75):
                inner = ",".join(objects[at : at + 75])
                bodies.append(f'{{"attributes":[{inner}]}}'.encode())
    started = time.perf_counter()
    asyncio.run(_send(url, bodies))
    return {"seconds": time.perf_counter() - started, "objects": found.rows.rows}


async def _send(url: str, bodies: list[bytes]) -> None:
    waiting = iter(bodies)
    headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def work() -> None:
            for body in waiting:
                async with session.post(f"{url}/users/track", data=body) as got:
                    await got.read()

        await asyncio.gather(*(work() for _ in range(32)))


@contextmanager
def sandbox() -> Iterator[str]:
    """Run the sandbox on its own core, with Braze's limit of 3,000 requests in 3 s."""
    command = [
        *("taskset", "-c", str(_CORES["server"])),
        *(sys.executable, "-m", "currents_ingest.sandbox", "--delay", "0"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None  # noqa: S101 (it is a pipe)
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def measured(part: str, folder: Path, url: str, *, pinned: bool) -> dict[str, Any]:
    """Run a part in a process of its own."""
    command = [sys.executable, __file__, "--part", part, str(folder), url]
    if pinned:
        command = ["taskset", "-c", str(_CORES["client"]), *command]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description="Measure the way back.")
    parser.add_argument("--people", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=10_000_000)
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        part, folder, url = given.part
        found = globals()[f"part_{part}"](Path(folder), url)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        sys.stdout.write(json.dumps(found | {"peak": peak}) + "\n")
        return 0
    return _all(given.people, given.large)


def _all(count: int, large: int) -> int:
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if count:
            write_export(folder / "export.csv", count, 0)
            for part, label in (("limit", "sandbox alone"), ("sync", "first sync")):
                with sandbox() as url:
                    rows[label] = measured(part, folder, url, pinned=True)
        if large:
            url = "http://127.0.0.1:9"  # nothing is sent
            write_export(folder / "export.csv", large, 0)
            rows["snapshot made"] = measured("acknowledge", folder, url, pinned=False)
            write_export(folder / "export.csv", large, 1)
            rows["difference"] = measured("preview", folder, url, pinned=False)
    for label, one in rows.items():
        print(
            f"{label:16} {one['seconds']:8.1f} s {one['objects']:12,} objects "
            f"{one['peak'] / 1e6:8.0f} MB"
            + (f" (whole run {one['whole']:.1f} s)" if "whole" in one else "")
        )
    kept = ROOT / "build" / "bench_audiences.json"
    kept.parent.mkdir(exist_ok=True)
    machine = {"machine": platform.platform(), "cores": os.cpu_count()}
    kept.write_text(json.dumps(machine | {"people": count, "large": large} | rows))
    return int(not _good(rows, count))


def _good(rows: dict[str, dict[str, Any]], count: int) -> bool:
    good = True
    if count:
        speed = {
            one: count / rows[one]["seconds"] for one in ("sandbox alone", "first sync")
        }
        print(
            " ".join(f"{one}: {value:,.0f} people/s;" for one, value in speed.items())
        )
        least = min(WANTED, LIMIT_SHARE * speed["sandbox alone"])
        good = speed["first sync"] >= least
    if one := rows.get("difference"):
        good = good and one["seconds"] <= SECONDS and one["peak"] <= BYTES
    return good


if __name__ == "__main__":
    sys.exit(main())
