"""A Dask cluster of real processes on this machine, to be killed one by one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = str(Path(__file__).parents[1])
_ADDRESS = re.compile(r"Scheduler at: +(tcp://\S+)")
_READY = re.compile(r"Registered to:")


@dataclass
class Cluster:
    """A scheduler and its workers, each a process."""

    folder: Path
    environment: dict[str, str]
    threads: int = 2
    address: str = ""
    scheduler: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    numbers: count[int] = field(default_factory=count)

    def start_scheduler(self) -> None:
        """Start it, at the same address as before."""
        port = self.address.rpartition(":")[2] or "0"
        options = ["--host", "127.0.0.1", "--port", port, "--no-jupyter"]
        options += ["--dashboard-address", "127.0.0.1:0"]
        self.scheduler, found = self._start("dask_scheduler", options, _ADDRESS)
        self.address = found[1]

    def start_worker(self) -> None:
        """Start one more."""
        options = [
            self.address,
            "--no-nanny",
            "--no-dashboard",
            "--death-timeout",
            "60",
        ]
        options += ["--nthreads", str(self.threads)]
        options += ["--local-directory", str(self.folder)]
        process, _ = self._start("dask_worker", options, _READY)
        self.workers.append(process)

    def end(self) -> None:
        """Kill what is left."""
        for one in [*self.workers, *filter(None, [self.scheduler])]:
            one.kill()
            one.wait()
        self.workers.clear()

    def _start(
        self, module: str, options: list[str], ready: re.Pattern[str]
    ) -> tuple[subprocess.Popen[bytes], re.Match[str]]:
        log = self.folder / f"{module}-{next(self.numbers)}.log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{module}", *options],
                cwd=self.folder,
                env=self.environment,
                stdout=said,
                stderr=said,
            )
        while not (found := ready.search(log.read_text())):
            if process.poll() is not None:
                raise AssertionError(log.read_text())
            time.sleep(0.02)
        return process, found


@contextmanager
def cluster(
    folder: Path,
    workers: int = 2,
    environment: dict[str, str] | None = None,
    threads: int = 2,
) -> Iterator[Cluster]:
    """Yield a cluster; whatever of it still runs is killed at the end."""
    given = {**os.environ, **(environment or {}), "PYTHONPATH": ROOT}
    given.pop("_RJEM_MALLOC_CONF", None)  # what Polars set in this process
    made = Cluster(folder, given, threads)
    try:
        made.start_scheduler()
        for _ in range(workers):
            made.start_worker()
        yield made
    finally:
        made.end()
