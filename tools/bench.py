"""Speed and memory of a load, against a plain script, in the same minute.

Usage: ``python tools/bench.py [--quick]``. Prints a table and keeps the figures in
``build/bench.json``. The plain script does what most glue code does: fastavro row by
row, pyarrow to one Parquet file; it neither drops duplicates nor keeps a ledger.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from currents_ingest.simulate import Simulation, simulate

ROOT = Path(__file__).parents[1]
DAY = ["--since", "2026-09-14", "--until", "2026-09-16"]
_ROW = "{:34} {:7} {:>7} {:>7} {:>7} {:>9} {:>8}"
END = datetime(2026, 9, 15, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Work:
    """A tree to load."""

    name: str
    simulation: Simulation
    pairs: int
    """Runs of each program, in turn."""


@dataclass(frozen=True)
class Figure:
    """One program over one tree: medians."""

    work: str
    program: str
    files: int
    rows: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    rows_per_second: float
    files_per_second: float


def main() -> int:
    """Run everything; the exit status is 1 if memory went over its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the data")
    share = 10 if parser.parse_args().quick else 1
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="currents-bench-") as folder:
        for work in works(share):
            figures += measure(work, Path(folder))
        memory = measure_memory(Path(folder), share)
    report([*figures, memory])
    return 1 if memory.peak_mb > 1000 else 0


def works(share: int) -> list[Work]:
    """Return the trees: few large files, and many small ones."""
    opens = ("users.messages.email.Open",)
    base = Simulation(events=opens, layout="new", end=END, hours=20, redelivered=0.0)
    large = replace(base, files_per_hour=2, large_files=40, large_rows=15_000)
    small = replace(base, files_per_hour=500, rows=100)
    if share > 1:
        large = replace(large, files_per_hour=1, large_files=20)
        small = replace(small, files_per_hour=500 // share)
    return [
        Work("40 files of 15,000 rows", large, 3),
        Work("10,000 files of about 100 rows", small, 3),
    ]


def measure(work: Work, folder: Path) -> list[Figure]:
    """Time both programs in turn, each run on fresh feeds."""
    tree = folder / "tree"
    made = simulate(str(tree), work.simulation)
    runs: dict[str, list[tuple[float, float, float]]] = {"ours": [], "plain": []}
    for number in range(work.pairs):
        out = folder / f"out-{number}"
        runs["ours"].append(run(ours(tree, out, "2GB")))
        plain = [sys.executable, str(ROOT / "tools" / "plain.py")]
        runs["plain"].append(run([*plain, str(tree / "currents"), str(out)], {}))
        remove(out)
    remove(tree)
    return [
        figure(work.name, program, made.files, made.rows, found)
        for program, found in runs.items()
    ]


def measure_memory(folder: Path, share: int) -> Figure:
    """Load 2 GB of Avro of every email event type under a limit of 1 GB."""
    tree = folder / "tree"
    events = ("users.messages.email.*",)
    simulation = Simulation(events=events, end=END, files_per_hour=6, redelivered=0.01)
    simulation = replace(simulation, large_files=24 // min(share, 8))
    made = simulate(str(tree), simulation)
    found = run(ours(tree, folder / "out", "1GB"))
    size = made.bytes / 10**9
    return figure(
        f"{size:.1f} GB, limits.memory = 1GB", "ours", made.files, made.rows, [found]
    )


def ours(
    tree: Path, out: Path, memory: str, include: tuple[str, ...] = ("raw",)
) -> tuple[list[str], dict[str, str]]:
    """Return the command and its settings."""
    return [sys.executable, "-m", "currents_ingest", "load", *DAY], {
        "CURRENTS_SOURCE__URL": str(tree / "currents"),
        "CURRENTS_FEEDS__URL": str(out / "feeds"),
        "CURRENTS_FEEDS__INCLUDE": json.dumps(include),
        "CURRENTS_LEDGER__CACHE": str(out / "cache.db"),
        "CURRENTS_LIMITS__MEMORY": memory,
    }


def run(
    command: list[str] | tuple[list[str], dict[str, str]],
    settings: dict[str, str] | None = None,
) -> tuple[float, float, float]:
    """Run a program; return seconds, CPU seconds and peak memory in MB."""
    arguments, more = (
        command if isinstance(command, tuple) else (command, settings or {})
    )
    started = time.monotonic()
    process = subprocess.Popen(
        arguments, env=os.environ | more, cwd=ROOT, stdout=-3, stderr=-3
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} ended with {status}")
    peak = usage.ru_maxrss * 1024 / 10**6
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, peak


def figure(
    work: str,
    program: str,
    files: int,
    rows: int,
    found: list[tuple[float, float, float]],
) -> Figure:
    """Take medians over runs."""
    seconds, cpu, peak = (statistics.median(one[n] for one in found) for n in range(3))
    return Figure(
        work, program, files, rows, seconds, cpu, peak, rows / seconds, files / seconds
    )


def report(figures: list[Figure]) -> None:
    """Print a table, and keep it as JSON."""
    print(_ROW.format("work", "program", "s", "cpu s", "MB", "rows/s", "files/s"))
    for one in figures:
        numbers = one.seconds, one.cpu_seconds, one.peak_mb
        speeds = one.rows_per_second, one.files_per_second
        texts = [f"{n:.1f}" for n in numbers] + [f"{n:,.0f}" for n in speeds]
        print(_ROW.format(one.work, one.program, *texts))
    by_work: dict[str, dict[str, float]] = {one.work: {} for one in figures}
    for one in figures:
        by_work[one.work][one.program] = one.seconds
    for work, seconds in by_work.items():
        if "plain" in seconds:
            print(f"{work}: {seconds['plain'] / seconds['ours']:.1f} times as fast")
    kept = ROOT / "build" / "bench.json"
    kept.parent.mkdir(exist_ok=True)
    packages = ("polars", "polars-avro", "obstore", "fastavro", "pyarrow")
    about = {
        "at": datetime.now(UTC).isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "figures": [asdict(one) for one in figures],
    }
    kept.write_text(json.dumps(about, indent=2) + "\n")


def remove(folder: Path) -> None:
    """Delete a tree."""
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
