"""What all unified feeds cost beside the raw ones, in the same minute.

Usage: ``python -m tools.bench_feeds [--quick]``. Prints a table and keeps the figures
in ``build/bench-feeds.json``. The exit status is 1 if a load of everything takes more
than twice as long as one of the raw feeds alone, or more memory than its limit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from currents_ingest.simulate import Simulation, simulate
from tools.bench import DAY, END, ours
from tools.measured import ROOT, run

if TYPE_CHECKING:
    from tools.measured import Run

_ROW = "{:38} {:26} {:>7} {:>7} {:>7}"
RAW, ALL = '["raw"]', '["raw", "*"]'
MOST = 2.0


@dataclass(frozen=True)
class Work:
    """A tree to load, and how much memory it may take."""

    name: str
    simulation: Simulation
    memory: str
    pairs: int


def main() -> int:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the data")
    share = 10 if parser.parse_args().quick else 1
    figures, bad = [], False
    print(_ROW.format("work", "feeds", "s", "cpu s", "MB"))
    with tempfile.TemporaryDirectory(prefix="currents-bench-") as folder:
        for work in works(share):
            found = measure(work, Path(folder))
            ratio = found["all"][0] / found["raw"][0]
            print(f"{work.name}: {ratio:.2f} times as long (at most {MOST:g})")
            limit = int(work.memory.removesuffix("MB"))
            bad = bad or ratio > MOST or found["all"][2] > limit
            figures.append({"work": work.name, "ratio": ratio, **found})
    kept = ROOT / "build" / "bench-feeds.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps({"days": DAY, "figures": figures}, indent=2) + "\n")
    return bad


def works(share: int) -> list[Work]:
    """Return the trees: every event type, and email alone, in large and small files."""
    base = Simulation(layout="new", end=END, hours=12, redelivered=0.01)
    email = replace(base, events=("users.messages.email.*",))
    large = replace(email, files_per_hour=1, large_files=8, large_rows=15_000)
    return [
        Work("every event type", replace(base, rows=1500 // share), "2000MB", 3),
        Work("email, files of 15,000 rows", large, "2000MB", 3),
        Work(
            "email, files of about 100 rows",
            replace(email, files_per_hour=60 // min(share, 6), rows=100),
            "2000MB",
            3,
        ),
        Work(
            "email, 2 GB under limits.memory = 1GB",
            replace(email, files_per_hour=6, large_files=24 // min(share, 8)),
            "1000MB",
            1,
        ),
    ]


def measure(work: Work, folder: Path) -> dict[str, tuple[float, float, float]]:
    """Time both in turn, each run on fresh feeds; return medians."""
    tree, out = folder / "tree", folder / "out"
    simulate(str(tree), work.simulation)
    runs: dict[str, list[Run]] = {"raw": [], "all": []}
    for _ in range(work.pairs):
        for name, include in (("raw", RAW), ("all", ALL)):
            places = str(tree / "currents"), str(out / "feeds"), out
            settings = ours(*places, work.memory, include)
            command = [sys.executable, "-m", "currents_ingest", "load", *DAY]
            spent, _ = run(command, os.environ | settings)
            runs[name].append(spent)
            shutil.rmtree(out)
    shutil.rmtree(tree)
    found = {}
    for name, each in runs.items():
        kinds = "seconds", "cpu_seconds", "peak_mb"
        middle = [median(getattr(one, kind) for one in each) for kind in kinds]
        found[name] = (middle[0], middle[1], middle[2])
        feeds = {"raw": "raw", "all": "raw and all unified"}[name]
        print(_ROW.format(work.name, feeds, *(f"{n:.1f}" for n in middle)))
    return found


if __name__ == "__main__":
    sys.exit(main())
