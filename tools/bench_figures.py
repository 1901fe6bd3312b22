"""Figures of a benchmark: table, ratios against their goals, JSON and SVG."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING, Any

import altair as alt
import vl_convert as vlc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.measured import Run

_ROW = "{:28} {:30} {:>7} {:>7} {:>7} {:>10} {:>8}"
_PACKAGES = (
    "currents-ingest",
    "polars",
    "polars-avro",
    "obstore",
    "fastavro",
    "boto3",
    "pyarrow",
    "datafusion",
    "distributed",
)
_ASK = (
    "import importlib.metadata as m, sys\n"
    "for n in sys.argv[1:]:\n"
    "    try: print(n, m.version(n))\n"
    "    except m.PackageNotFoundError: pass"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A program at a piece of work: medians over its runs."""

    work: str
    program: str
    files: int
    rows: int
    runs: tuple[Run, ...]

    @property
    def seconds(self) -> float:
        """Return the median."""
        return median(one.seconds for one in self.runs)

    @property
    def peak_mb(self) -> float:
        """Return the median."""
        return median(one.peak_mb for one in self.runs)

    def told(self) -> str:
        """Return a line of the table."""
        cpu = median(one.cpu_seconds for one in self.runs)
        numbers = [f"{n:,.1f}" for n in (self.seconds, cpu, self.peak_mb)]
        pace = [f"{n / self.seconds:,.0f}" for n in (self.rows, self.files)]
        return _ROW.format(self.work, self.program, *numbers, *pace)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a ratio, or a figure, has to be."""

    what: str
    found: float
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        """Tell whether it is."""
        low = self.least is None or self.found >= self.least
        return low and (self.most is None or self.found <= self.most)

    def told(self) -> str:
        """Return a line."""
        bound = f"at most {self.most:g}" if self.most else f"at least {self.least:g}"
        return f"{self.what}: {self.found:.2f} ({bound}){'' if self.met else ' MISSED'}"


HEADER = _ROW.format("work", "program", "s", "cpu s", "MB", "rows/s", "files/s")


def about(root: Path, peers: str) -> dict[str, Any]:
    """Return what a figure depends on: machine, versions, commit."""
    asked = [peers, "-c", _ASK, *_PACKAGES]
    others = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    commit = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{memory / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "packages": {one: version(one) for one in _PACKAGES if one != "datafusion"},
        "peers": dict(line.split() for line in others.splitlines()),
        "commit": subprocess.run(
            commit, capture_output=True, text=True, check=True
        ).stdout.strip(),
    }


def as_json(figures: Sequence[Figure], goals: Sequence[Goal]) -> dict[str, Any]:
    """Return everything measured."""
    return {
        "figures": [
            asdict(one)
            | {"seconds": one.seconds, "peak_mb": one.peak_mb}
            | {"runs": [run._asdict() for run in one.runs]}
            for one in figures
        ],
        "goals": [asdict(one) | {"met": one.met} for one in goals],
    }


def draw(figures: Sequence[Figure], target: Path) -> None:
    """Draw rows a second of each program, a chart for each piece of work."""
    values = [
        {
            "work": one.work,
            "program": one.program,
            "rows": one.rows / one.seconds / 1000,
            "text": f"{one.rows / one.seconds / 1000:,.0f}",
        }
        for one in figures
    ]
    order = list(dict.fromkeys(one.program for one in figures))
    base = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X("rows:Q", title="thousand rows a second", axis=alt.Axis(grid=False)),
        y=alt.Y("program:N", title=None, sort=order),
    )
    bars = base.mark_bar(height=14).encode(
        color=alt.condition(
            "datum.program == 'currents-ingest'",
            alt.value("#1f6f8b"),
            alt.value("#b8c4cc"),
        )
    )
    texts = base.mark_text(align="left", dx=4, fontSize=11).encode(text="text:N")
    chart = (
        (bars + texts)
        .properties(width=520, height=alt.Step(22))
        .facet(row=alt.Row("work:N", title=None, header=alt.Header(orient="top")))
        .configure_view(stroke=None)
        .configure(background="white", font="sans-serif")
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(vlc.vegalite_to_svg(chart.to_dict()) + "\n")
