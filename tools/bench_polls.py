"""What a poll costs beside a million ingested files, and what a ledger of ten millions.

Usage: ``python -m tools.bench_polls [--files 1000000] [--model 10000000]``. Prints a
table, keeps the figures in ``build/bench_polls.json``, and ends with 1 if a goal is
missed. The files are made up: keys of 100 event types over a year, which the ledger
holds, made by its own commits and folds. S3 is a server on loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, cast

from currents_ingest import checkpoints, dedupe, keys, parquet
from currents_ingest.contracts import feed_name, raw_contract
from currents_ingest.ledger import Ledger
from currents_ingest.manifest import Entry, Input, Manifest, Output
from currents_ingest.schemas import Registry
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.store import Store
from tools.measured import ROOT, run
from tools.memory_s3 import Objects, body_of, serve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from currents_ingest.contracts import Contract
    from tools.local_s3 import Body


END = datetime(2026, 9, 15, 12, tzinfo=UTC)
SPAN = timedelta(days=365)
TYPES = 100
ENTRIES_A_DAY = 4
RUNS = 3
_ROW = "{:54} {:>10} {:>10} {:>6}"
COMMAND = str(Path(sys.executable).with_name("currents-ingest"))
_AWS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class Spent:
    """What a program took, and what it asked of S3."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    asked: dict[str, int] = field(default_factory=dict)
    said: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """A figure and what it should be below."""

    what: str
    found: float
    below: float

    @property
    def met(self) -> bool:
        """Tell whether it is."""
        return self.found < self.below


def main() -> int:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--model", type=int, default=10_000_000, help="0: leave it out")
    parser.add_argument("--serve", action="store_true", help="the server alone")
    chosen = parser.parse_args()
    if chosen.serve:
        serve(world(chosen.files))
    with tempfile.TemporaryDirectory(prefix="bench-polls-") as folder:
        goals, about = polls(chosen.files, Path(folder))
    if chosen.model:
        about["model"] = model(chosen.model)
    about |= {"at": datetime.now(UTC).isoformat(), "goals": [asdict(g) for g in goals]}
    kept = ROOT / "build" / "bench_polls.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(about, indent=2) + "\n")
    print(_ROW.format("", "found", "below", ""))
    for one in goals:
        numbers = f"{one.found:,.2f}", f"{one.below:,.2f}"
        print(_ROW.format(one.what, *numbers, "ok" if one.met else "MISSED"))
    return int(not all(one.met for one in goals))


def polls(files: int, folder: Path) -> tuple[list[Goal], dict[str, object]]:
    """Measure polls beside so many files, and beside none."""
    templates, _ = made_up()
    with served(files) as endpoint:
        os.environ |= _AWS | {"AWS_ENDPOINT_URL": endpoint}
        big = "big", "feeds", folder / "big.db"
        first = poll(endpoint, *big)
        nothing = [poll(endpoint, *big) for _ in range(RUNS)]
        beside, alone = [], []
        for n in range(RUNS):
            put_new(templates, n, ("big", f"new-{n}"))
            beside.append(poll(endpoint, *big))
            other = f"new-{n}", f"new-feeds-{n}", folder / f"new-{n}.db"
            alone.append(poll(endpoint, *other))
    assert_files(0, [first, *nothing])
    assert_files(3 * TYPES, [*beside, *alone])
    by_name = {"first": [first], "nothing": nothing, "beside": beside, "alone": alone}
    about: dict[str, object] = {"files": files}
    about |= {name: [asdict(one) for one in runs] for name, runs in by_name.items()}
    lists = max(one.asked["LIST"] for one in nothing) / TYPES
    new = [median([one.seconds for one in runs]) for runs in (beside, alone)]
    return [
        Goal("nothing new: s", median([one.seconds for one in nothing]), 10),
        Goal("nothing new: peak MB", max(one.peak_mb for one in nothing), 300),
        Goal("nothing new: list requests an event type", lists, 3),
        Goal("300 new files, times the same in an empty bucket", new[0] / new[1], 1.5),
        Goal("first poll on an empty disk: s", first.seconds, 15),
        Goal("first poll on an empty disk: MB", first.asked["bytes"] / 10**6, 50),
        Goal("--help: s", median([start().seconds for _ in range(5)]), 0.4),
    ], about


@contextmanager
def served(files: int) -> Iterator[str]:
    """Serve the world from a process of its own; yields the endpoint.

    It is made there, too: a process started by a large one counts that as its memory.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.bench_polls", "--serve", "--files", str(files)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        lines = iter(process.stdout or ())
        yield next(line.strip() for line in lines if line.startswith("http://"))
    finally:
        process.kill()
        process.communicate()


def world(files: int) -> dict[str, Objects]:
    """Make a source, the ledger that holds it, and empty buckets."""
    templates, bodies = made_up()
    with closing(Ledger.look(Store.open("memory://bench"), Path("none"))) as ledger:
        listed = ingested(ledger, files, templates, bodies)
        feeds = stored(ledger)
    empty = [f"{name}-{n}" for n in range(RUNS) for name in ("new", "new-feeds")]
    return {
        "big": Objects.of({f"currents/{key}": body for key, body in listed.items()}),
        "feeds": Objects.of(feeds),
        **{name: Objects.of({}) for name in empty},
    }


def made_up() -> tuple[dict[str, str], dict[str, Body]]:
    """Return a key and a body of each of 100 event types."""
    one_each = Simulation(end=END, hours=1, files_per_hour=1, layout="new")
    with tempfile.TemporaryDirectory(prefix="bench-polls-") as folder:
        simulate(folder, one_each)
        root = Path(folder) / "currents"
        found = {
            path.relative_to(root).as_posix(): body_of(path.read_bytes())
            for path in sorted(root.rglob("*.avro"))
        }
    by_kind = {keys.parse(key).event_type: key for key in found}
    chosen = dict(sorted(by_kind.items())[:TYPES])
    return chosen, {kind: found[key] for kind, key in chosen.items()}


def put_new(templates: Mapping[str, str], number: int, buckets: Sequence[str]) -> None:
    """Put three files of each event type into buckets, of the same connector."""
    few = Simulation(
        seed=100 + number,
        events=tuple(templates),
        end=END,
        hours=1,
        files_per_hour=3,
        layout="new",
    )
    top = next(iter(templates.values())).split("/")[0]
    with tempfile.TemporaryDirectory(prefix="bench-polls-") as folder:
        simulate(folder, few)
        root = Path(folder) / "currents"
        for path in sorted(root.rglob("*.avro")):
            below = path.relative_to(root).as_posix().partition("/")[2]
            key = below.replace("+", f"+{number}", 1)
            for bucket in buckets:
                store = Store.open(f"s3://{bucket}/currents/{top}")
                store.put(key, path.read_bytes())


def files_of(
    files: int, templates: Mapping[str, str], bodies: Mapping[str, Body]
) -> Iterator[tuple[datetime, str, Input]]:
    """Yield queued hour, event type and file, in the order of time."""
    kinds = sorted(templates)
    ends = {kind: key.rpartition("+")[0] for kind, key in templates.items()}
    stamp = f"date={END - timedelta(hours=1):%Y-%m-%d-%H}"
    each = files // len(kinds)
    first = END - timedelta(hours=1) - SPAN
    for number in range(each):
        hour = first + timedelta(hours=int(number * SPAN / timedelta(hours=1) // each))
        dated = f"date={hour:%Y-%m-%d-%H}"
        for kind in kinds:
            body = bodies[kind]
            key = f"{ends[kind].replace(stamp, dated)}+{10**7 + number}.avro"
            yield (
                hour,
                kind,
                Input(
                    key=key,
                    etag=body.etag,
                    size=len(body.content),
                    hour=hour,
                    rows=20,
                    fingerprint="0" * 16,
                ),
            )


def ingested(
    ledger: Ledger, files: int, templates: Mapping[str, str], bodies: Mapping[str, Body]
) -> dict[str, Body]:
    """Fill a ledger; returns the source's objects."""
    ledger.publish = lambda *_: None  # type: ignore[method-assign]
    listed: dict[str, Body] = {}
    for number, entry in enumerate(entries(files, templates, bodies)):
        for one in (i for batch in entry.batches for i in batch.inputs):
            listed[one.key] = bodies[keys.event_type_of(one.key.split("/")[1])]
        pinned = contracts(templates) if number == 0 else ()
        ledger.commit(entry.model_copy(update={"pinned": pinned}))
        ledger.fold("bench", entry.at)
    now = datetime.now(UTC)
    ledger.commit(Entry(at=now, run="bench", reconciled=now))
    return listed


def contracts(templates: Mapping[str, str]) -> tuple[Contract, ...]:
    """Return what the first poll would pin."""
    writers = Registry().writers
    return tuple(raw_contract(kind, writers(kind)) for kind in sorted(templates))


def entries(
    files: int, templates: Mapping[str, str], bodies: Mapping[str, Body]
) -> Iterator[Entry]:
    """Yield entries of some hours each, with a batch an event type."""
    length = timedelta(days=1) / ENTRIES_A_DAY
    everything = files_of(files, templates, bodies)
    for slot, some in groupby(everything, key=lambda one: (END - one[0]) // length):
        at = END - slot * length
        by_kind: dict[str, list[Input]] = {}
        for _, kind, one in some:
            by_kind.setdefault(kind, []).append(one)
        yield Entry(
            at=at,
            run="bench",
            batches=tuple(
                batch(kind, at, own) for kind, own in sorted(by_kind.items())
            ),
        )


def batch(kind: str, at: datetime, inputs: Sequence[Input]) -> Manifest:
    """Return a batch that gave an index object and a feed object."""
    hours = sorted({int(one.hour.timestamp()) // 3600 for one in inputs})
    rows = sum(one.rows for one in inputs)
    outputs = [
        Output(kind=name, staged="_staging/x", rows=rows, bytes=10**4, sha256="0" * 64)
        for name in ("feed", "index")
    ]
    return Manifest(
        event_type=kind,
        feed=feed_name(kind),
        contract_version=1,
        planned_at=at,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        rows_in=rows,
        rows_out=rows,
        duplicates=0,
        rejects=0,
        hours=dict.fromkeys(hours, rows // len(hours)),
    )


def stored(ledger: Ledger) -> dict[str, Body]:
    """Return all objects of the feeds folder, with an index object for each batch."""
    index = body_of(parquet.index_to_bytes(dedupe.NOTHING))
    found = {
        f"feeds/{row['object']}": index
        for entry in ledger.entries()
        for row in ({"object": o.key} for o in entry.outputs if o.kind == "index")
    }
    for page in ledger.store.listing():
        names = [one.key for one in page]
        bodies = ledger.store.gather(names)
        found |= {f"feeds/{k}": body_of(b) for k, b in zip(names, bodies, strict=True)}
    return found


def poll(endpoint: str, source: str, feeds: str, cache: Path) -> Spent:
    """Poll once, with the command."""
    settings = {
        "CURRENTS_SOURCE__URL": f"s3://{source}/currents",
        "CURRENTS_FEEDS__URL": f"s3://{feeds}/feeds",
        "CURRENTS_LEDGER__CACHE": str(cache),
    }
    asked(endpoint)
    spent, said = run([COMMAND, "poll", "--json"], os.environ | settings)
    return Spent(*spent, asked(endpoint), json.loads(said))


def start() -> Spent:
    """Ask for help."""
    spent, _ = run([COMMAND, "--help"], os.environ)
    return Spent(*spent)


def asked(endpoint: str) -> dict[str, int]:
    """Return what the server was asked since the last time."""
    with urllib.request.urlopen(f"{endpoint}/stats") as answer:  # noqa: S310 (ours)
        return cast("dict[str, int]", json.load(answer))


def assert_files(files: int, runs: Sequence[Spent]) -> None:
    """See that polls found what is new, no more and no less."""
    for one in runs:
        if one.said["files"] != files:
            raise SystemExit(f"a poll found {one.said['files']} files, not {files}")


def model(files: int) -> dict[str, object]:
    """Fold a ledger of so many files, without its entries, and see what that takes."""
    with tempfile.TemporaryDirectory(prefix="bench-polls-") as folder:
        templates, bodies = made_up()
        store = Store.open(str(Path(folder) / "feeds"))
        ledger = Ledger.open(store, Path(folder) / "cache.db")
        seconds, sizes = [], []
        for number, entry in enumerate(entries(files, templates, bodies), 1):
            numbered = entry.numbered(number)
            ledger.cache.apply(numbered, "0")
            began = time.monotonic()
            if ledger.fold("bench", entry.at):
                seconds.append(time.monotonic() - began)
                states = [
                    o for p in store.listing(f"{checkpoints.ROOT}/states") for o in p
                ]
                sizes.append(states[-1].size)
        objects = [one for page in store.listing(checkpoints.ROOT) for one in page]
        cache = (Path(folder) / "cache.db").stat().st_size
        ledger.close()
    found: dict[str, object] = {
        "files": files,
        "folds": len(seconds),
        "fold s, median": median(seconds),
        "fold s, most": max(seconds),
        "state kB, a tenth of the way": sizes[len(sizes) // 10] / 1000,
        "state kB, at the end": sizes[-1] / 1000,
        "segments": len(objects),
        "segments MB": sum(one.size for one in objects) / 10**6,
        "cache MB": cache / 10**6,
    }
    for name, value in found.items():
        print(_ROW.format(f"model: {name}", f"{value:,.2f}", "", ""))
    return found


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


if __name__ == "__main__":
    sys.exit(main())
