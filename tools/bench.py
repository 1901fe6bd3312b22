"""Speed, memory and scale against other ways to do it, all in one run.

Usage: ``python -m tools.bench PEERS [--quick]``, where PEERS is a Python with the
packages of ``tools/peers/requirements.txt``. Every program reads the same made-up email
events from the same server (``tools/memory_s3.py``) and writes Parquet back to it, in
turn, so that whatever else the machine does meets all of them. Prints a table, and what
docs/performance.md asks of it; keeps the figures in ``docs/bench.json`` and draws
``docs/images/bench.svg``; with ``--quick``, a twentieth of the data, both lie in
``build``. The exit status is 1 if a program wrote other rows than there are.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from currents_ingest.simulate import Simulation, simulate
from currents_ingest.store import Store
from tests.clusters import cluster
from tools.bench_figures import HEADER, Figure, Goal, about, as_json, draw
from tools.measured import ROOT, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from currents_ingest.simulate import Simulated
    from tools.measured import Run

CORES = os.cpu_count() or 1
END = datetime(2026, 9, 15, 12, tzinfo=UTC)
DAY = ["--since", "2026-09-01", "--until", "2026-09-16"]
OURS, DASK, LIMIT = "currents-ingest", "currents-ingest, two Dask workers", "the limit"
PLAIN, POOL = "fastavro and boto3", f"the same, {CORES} processes"
FUSION, EACH = "DataFusion", "polars-avro, file by file"
SCRIPTS = {
    PLAIN: ["fastavro_boto3.py"],
    POOL: ["fastavro_boto3.py", "--processes", str(CORES)],
    FUSION: ["datafusion_copy.py"],
    EACH: ["polars_avro_each.py"],
    LIMIT: ["limit.py"],
}
LARGE, SMALL = "files of 15,000 rows", "files of 100 rows"
ONCE, TENFOLD = "once the input", "ten times the input"
TARGET = "out"
"""Folder that every program writes to; emptied after each."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What the programs share."""

    peers: str
    """Python of the other programs."""
    disk: Path
    environment: dict[str, str]
    """Of this server's bucket."""
    share: int
    """By how much the work is smaller than asked for."""

    def command(self, program: str, source: str) -> list[str]:
        """Return how to start a program."""
        if program not in SCRIPTS:
            return [sys.executable, "-m", "currents_ingest", "load", *DAY]
        name, *options = SCRIPTS[program]
        script = str(ROOT / "tools" / "peers" / name)
        places = f"s3://bench/{source}", f"s3://bench/{TARGET}"
        return [self.peers, script, *places, *options]

    def run(self, program: str, source: str, rows: int, *more: str) -> Run:
        """Run a program once, and count what it wrote."""
        settings = ours(f"s3://bench/{source}", f"s3://bench/{TARGET}", self.disk)
        command = [*self.command(program, source), *more]
        found, _ = run(command, {**os.environ, **self.environment, **settings})
        store = Store.open("s3://bench")
        if (written := parquet_rows(store)) != rows:
            raise SystemExit(f"{program} wrote {written} rows of {rows}")
        for page in store.scan(TARGET):
            store.delete(one.key for one in page)
        shutil.rmtree(self.disk / "cache", ignore_errors=True)
        return found

    def against(
        self, work: str, source: str, made: Simulated, rounds: Mapping[str, int]
    ) -> list[Figure]:
        """Run programs in turn, each as often as asked for."""
        runs: dict[str, list[Run]] = {program: [] for program in rounds}
        for number in range(max(rounds.values())):
            for program, times in rounds.items():
                if number < times:
                    runs[program].append(self.run(program, source, made.rows))
        return told(
            Figure(
                work=work,
                program=program,
                files=made.files,
                rows=made.rows,
                runs=tuple(each),
            )
            for program, each in runs.items()
        )


def main() -> int:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the data")
    chosen = parser.parse_args()
    share = 20 if chosen.quick else 1
    print(HEADER, flush=True)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for part in (large, small, scale):
            figures += part(chosen.peers, Path(folder), share)
    goals = list(asked(figures))
    for goal in goals:
        print(goal.told())
    kept, pictures = ROOT / "docs", ROOT / "docs" / "images"
    if chosen.quick:
        kept = pictures = ROOT / "build"
    kept.mkdir(exist_ok=True)
    whole = about(ROOT, chosen.peers) | as_json(figures, goals)
    (kept / "bench.json").write_text(json.dumps(whole, indent=1) + "\n")
    draw([one for one in figures if one.work in (LARGE, SMALL)], pictures / "bench.svg")
    return 0


def large(peers: str, folder: Path, share: int) -> list[Figure]:
    """Large files, against everything; and on two Dask workers."""
    tree = replace(EMAIL, hours=60 // share, large_files=60 // share, large_rows=15_000)
    with bench(peers, folder, share, {"currents": tree}) as (one, made):
        rounds = {OURS: 3, LIMIT: 3, FUSION: 3, EACH: 1, POOL: 1, PLAIN: 1}
        figures = one.against(LARGE, "currents", made["currents"], rounds)
        return [*figures, *on_dask(one, made["currents"])]


def on_dask(one: Bench, made: Simulated) -> list[Figure]:
    """Compare two workers of a thread each with the threads of one process.

    The cluster is there before, as it is where one uses one; its first load, in which
    the workers import what they need, does not count.
    """
    threads, workers = [], []
    with cluster(one.disk, 2, one.environment, threads=1) as made_of:
        more = ("--engine", "dask", "--scheduler", made_of.address)
        one.run(DASK, "currents", made.rows, *more)
        for _ in range(3):
            threads.append(one.run(OURS, "currents", made.rows))
            workers.append(one.run(DASK, "currents", made.rows, *more))
    return told(
        Figure(
            work="on a cluster",
            program=name,
            files=made.files,
            rows=made.rows,
            runs=tuple(runs),
        )
        for name, runs in ((OURS, threads), (DASK, workers))
    )


def small(peers: str, folder: Path, share: int) -> list[Figure]:
    """Small files, against everything."""
    tree = replace(EMAIL, hours=20, files_per_hour=250 // share, rows=100)
    with bench(peers, folder, share, {"currents": tree}) as (one, made):
        rounds = {OURS: 3, LIMIT: 3, FUSION: 2, EACH: 1, POOL: 1, PLAIN: 1}
        return one.against(SMALL, "currents", made["currents"], rounds)


def scale(peers: str, folder: Path, share: int) -> list[Figure]:
    """Ten times the input, in the same run."""
    files = 15 if share == 1 else 2
    once = replace(EMAIL, hours=files, large_files=files, large_rows=15_000)
    tenfold = replace(once, hours=10 * files, large_files=10 * files, seed=2)
    trees = {"once": once, "tenfold": tenfold}
    with bench(peers, folder, share, trees) as (one, made):
        runs: dict[str, list[Run]] = {"once": [], "tenfold": []}
        for _ in range(2):
            for source, each in runs.items():
                each.append(one.run(OURS, source, made[source].rows))
        return told(
            Figure(
                work=work,
                program=OURS,
                files=made[source].files,
                rows=made[source].rows,
                runs=tuple(runs[source]),
            )
            for work, source in ((ONCE, "once"), (TENFOLD, "tenfold"))
        )


EMAIL = Simulation(
    events=tuple(
        f"users.messages.email.{one}" for one in ("Click", "Delivery", "Open", "Send")
    ),
    layout="new",
    end=END,
    files_per_hour=1,
    redelivered=0.0,
)


def asked(figures: Sequence[Figure]) -> Iterator[Goal]:
    """Hold the figures against what is asked for."""
    found = {(one.work, one.program): one for one in figures}

    def faster(work: str, other: str, least: float, name: str = OURS) -> Goal:
        ratio = found[work, other].seconds / found[work, name].seconds
        return Goal(what=f"{work}, times as fast as {other}", found=ratio, least=least)

    yield faster(LARGE, PLAIN, 10)
    yield faster(LARGE, POOL, 5)
    yield faster(LARGE, FUSION, 1)
    yield faster(LARGE, LIMIT, 0.7)
    yield faster(SMALL, PLAIN, 15)
    yield faster(SMALL, FUSION, 5)
    yield faster(SMALL, LIMIT, 0.6)
    once, tenfold = found[ONCE, OURS], found[TENFOLD, OURS]
    ratio = tenfold.seconds / once.seconds
    yield Goal(what=f"{TENFOLD}, times the time", found=ratio, most=10.5)
    ratio = tenfold.peak_mb / once.peak_mb
    yield Goal(what=f"{TENFOLD}, times the peak memory", found=ratio, most=1.1)
    cluster_ = "on a cluster"
    ratio = found[cluster_, OURS].seconds / found[cluster_, DASK].seconds
    what = "two Dask workers, times the speed of threads"
    yield Goal(what=what, found=ratio, least=0.9)
    peak = found[cluster_, DASK].peak_mb
    yield Goal(what="MB of memory in the coordinator", found=peak, most=500)


def told(figures: Iterator[Figure]) -> list[Figure]:
    """Print figures as they come."""
    found = list(figures)
    for one in found:
        print(one.told(), flush=True)
    return found


@contextmanager
def bench(
    peers: str, folder: Path, share: int, trees: Mapping[str, Simulation]
) -> Iterator[tuple[Bench, dict[str, Simulated]]]:
    """Make trees up, serve them from memory, and forget them."""
    made, below = {}, folder / "trees"
    for name, simulation in trees.items():
        made[name] = simulate(str(folder / "made"), simulation)
        (below / name).parent.mkdir(exist_ok=True)
        (folder / "made" / "currents").rename(below / name)
        shutil.rmtree(folder / "made")
    with served(below) as environment:
        shutil.rmtree(below)
        os.environ.update(environment)
        yield Bench(peers, folder, environment, share), made


@contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """Serve a folder as a bucket; yield the variables that lead there."""
    command = [sys.executable, "-m", "tools.memory_s3", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as server:
        try:
            endpoint = server.stdout.readline().decode() if server.stdout else ""
            yield {
                "AWS_ENDPOINT_URL": endpoint.strip(),
                "AWS_ACCESS_KEY_ID": "nobody",
                "AWS_SECRET_ACCESS_KEY": "nothing",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            server.terminate()


def parquet_rows(store: Store) -> int:
    """Count the rows of the feed objects, or of what a peer wrote."""
    keys = [
        one.key
        for page in store.listing(TARGET)
        for one in page
        if one.key.endswith(".parquet") and not one.key.startswith(f"{TARGET}/_")
    ]
    read = (pq.ParquetFile(io.BytesIO(store.get(key))) for key in keys)
    return sum(one.metadata.num_rows for one in read)


def ours(
    source: str, feeds: str, disk: Path, memory: str = "2GB", include: str = '["raw"]'
) -> dict[str, str]:
    """Return the settings of a load."""
    return {
        "CURRENTS_SOURCE__URL": source,
        "CURRENTS_FEEDS__URL": feeds,
        "CURRENTS_FEEDS__INCLUDE": include,
        "CURRENTS_LEDGER__CACHE": str(disk / "cache" / "cache.db"),
        "CURRENTS_LIMITS__MEMORY": memory,
    }


if __name__ == "__main__":
    sys.exit(main())
