"""What a program takes: seconds, CPU seconds and peak memory, its children included."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[1]
_OURS = "_RJEM_MALLOC_CONF"
"""Polars sets it when it starts, and would for the programs that are measured."""


class Run(NamedTuple):
    """One run of a program as a whole process, its children included."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    """Of the largest process."""


def run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[Run, bytes]:
    """Run a program here, to its end; return what it took, and what it printed.

    Linux counts the memory of whoever starts a program as the program's, so this module
    starts it from a process of its own, which is small.

    Raises:
        SystemExit: The program failed; with what it said.
    """
    with tempfile.NamedTemporaryFile("r") as told, tempfile.TemporaryFile("r") as said:
        small = [sys.executable, "-I", "-S", __file__, told.name]
        ended = subprocess.run(
            [*small, *command],
            env={key: environment[key] for key in environment if key != _OURS},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=said,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        said.seek(0)
        if ended.returncode:
            reason = f"{' '.join(command)} ended with {ended.returncode}"
            raise SystemExit(f"{said.read()}{reason}")
        return Run(*json.load(told)), ended.stdout


def main() -> int:
    """Run the program that the arguments name, and write what it took to a file."""
    started = time.monotonic()
    status = subprocess.call(sys.argv[2:])
    seconds = time.monotonic() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 10**6
    Path(sys.argv[1]).write_text(json.dumps(figures))
    return status


if __name__ == "__main__":
    sys.exit(main())
