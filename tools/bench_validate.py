"""Speed and memory of ``validate`` over many small files, against fastavro over s3fs.

Usage: ``python -m tools.bench_validate [--quick]``. Prints a table and keeps the
figures in ``build/bench_validate.json``. Both programs read from a server in
``tools/local_s3.py``, which answers in a fraction of a millisecond: a real bucket takes
tens, which costs one request at a time the most. The exit status is 1 if validate is
less than five times as fast as opening one file after the other, if it counts other
files or schemas, or if its memory grows with the number of files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from tools.measured import ROOT, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


FILES = 100_000
RUNS = 3
FASTER, GROWTH = 5, 1.2
"""What is asked for: times as fast, and memory at all files over that at a tenth."""
_ROW = "{:24} {:>8} {:>7} {:>8} {:>7} {:>9}"

ONE_BY_ONE = """
import json, os
import fastavro, s3fs
fs = s3fs.S3FileSystem(client_kwargs={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]})
files, seen = 0, {}
for key in fs.find("bench/currents"):
    with fs.open(key, "rb") as f:
        schema = fastavro.reader(f).writer_schema
    files += 1
    seen[json.dumps(schema, sort_keys=True)] = schema
print(json.dumps({"files": files, "schemas": list(seen.values())}))
"""
"""What one would write at first."""
POOLED = """
import json, os, sys
from concurrent.futures import ThreadPoolExecutor
import fastavro, s3fs
fs = s3fs.S3FileSystem(client_kwargs={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]})
def read(key):
    with fs.open(key, "rb") as f:
        return fastavro.reader(f).writer_schema
keys = fs.find("bench/currents")
with ThreadPoolExecutor(16) as pool:
    seen = {json.dumps(one, sort_keys=True): one for one in pool.map(read, keys)}
print(json.dumps({"files": len(keys), "schemas": list(seen.values())}))
"""
"""The same on 16 threads, for information."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a program, as a whole process."""

    program: str
    files: int
    schemas: frozenset[str]
    """Fingerprints."""
    seconds: float
    cpu_seconds: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One program over one bucket: medians."""

    program: str
    files: int
    runs: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    files_per_second: float


def main() -> int:
    """Run everything; the exit status is 1 if a requirement is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the files")
    files = FILES // 10 if parser.parse_args().quick else FILES
    small, sample, large = files // 10, files // 5, files * 3
    with served(files) as endpoint:
        ours = [validated(endpoint, files) for _ in range(RUNS)]
        plain = [baseline("s3fs, one by one", ONE_BY_ONE, endpoint, files)]
    with served(sample) as endpoint:
        pooled = [baseline("s3fs, 16 threads", POOLED, endpoint, sample)]
    with served(small) as endpoint:
        few = [validated(endpoint, small) for _ in range(RUNS)]
    with served(large) as endpoint:
        many = [validated(endpoint, large)]
    figures = [figure(runs) for runs in (few, ours, many, plain, pooled)]
    report(figures)
    return conclude(figures, {run.schemas for run in (*ours, *plain)})


def conclude(figures: Sequence[Figure], schemas: set[frozenset[str]]) -> int:
    """Hold the figures against what is asked for."""
    few, ours, _, plain, _ = figures
    ratio = ours.files_per_second / plain.files_per_second
    growth = ours.peak_mb / few.peak_mb
    print(f"{ratio:.1f} times as fast as one by one (at least {FASTER})")
    print(f"memory {growth:.2f} times that at a tenth of the files (at most {GROWTH})")
    print(f"the same {len(min(schemas, key=len))} schemas: {len(schemas) == 1}")
    return int(ratio < FASTER or growth > GROWTH or len(schemas) != 1)


@contextmanager
def served(files: int) -> Iterator[str]:
    """Serve so many files for a while."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / "local_s3.py"), "--files", str(files)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = process.stdout.readline().strip() if process.stdout else ""
        yield f"http://127.0.0.1:{int(port)}"
    finally:
        process.kill()
        process.communicate()


def validated(endpoint: str, files: int) -> Run:
    """Run validate over all files."""
    arguments = ["s3://bench/currents", "--fail-on", "never", "--format", "json"]
    command = [sys.executable, "-m", "currents_ingest", "validate", *arguments]
    spent, said = run(command, environment(endpoint))
    found = json.loads(said)
    counted = sum(one["files"] for one in found["schemas"])
    wrong = found["troubles"] or found["unread"] or found["listed"] != files
    if wrong or counted != files:
        raise SystemExit(f"validate counted {counted} of {files} files")
    schemas = frozenset(one["fingerprint"] for one in found["schemas"])
    return Run("validate", files, schemas, *spent)


def baseline(name: str, script: str, endpoint: str, files: int) -> Run:
    """Run a script over all files."""
    from currents_ingest.schemas import read

    spent, said = run([sys.executable, "-c", script], environment(endpoint))
    found = json.loads(said)
    if found["files"] != files:
        raise SystemExit(f"{name} found {found['files']} of {files} files")
    schemas = frozenset(read(one).fingerprint for one in found["schemas"])
    return Run(name, files, schemas, *spent)


def environment(endpoint: str) -> dict[str, str]:
    """Return our own environment without settings, and with a made-up account."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "CURRENTS_")) and name.lower() != "http_proxy"
    }
    return kept | {
        "PYTHONPATH": str(ROOT),
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def figure(runs: Sequence[Run]) -> Figure:
    """Take medians over runs."""
    seconds = statistics.median(one.seconds for one in runs)
    return Figure(
        program=runs[0].program,
        files=runs[0].files,
        runs=len(runs),
        seconds=seconds,
        cpu_seconds=statistics.median(one.cpu_seconds for one in runs),
        peak_mb=statistics.median(one.peak_mb for one in runs),
        files_per_second=runs[0].files / seconds,
    )


def report(figures: Sequence[Figure]) -> None:
    """Print a table, and keep it as JSON."""
    print(_ROW.format("program", "files", "s", "cpu s", "MB", "files/s"))
    for one in figures:
        numbers = one.seconds, one.cpu_seconds, one.peak_mb
        texts = [f"{one.files:,}", *(f"{n:.1f}" for n in numbers)]
        print(_ROW.format(one.program, *texts, f"{one.files_per_second:,.0f}"))
    kept = ROOT / "build" / "bench_validate.json"
    kept.parent.mkdir(exist_ok=True)
    packages = ("obstore", "fastavro", "s3fs", "aiobotocore")
    about = {
        "at": datetime.now(UTC).isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "figures": [asdict(one) for one in figures],
    }
    kept.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
