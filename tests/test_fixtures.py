"""A small tree that is kept, and the very rows that it must give.

``fixtures/small`` was written by ``currents-ingest simulate``; ``feeds.jsonl`` beside
it is what was found to be right. ``python -m tests.test_fixtures`` renews it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from currents_ingest import config
from currents_ingest.api import poll

SMALL = Path(__file__).parents[1] / "fixtures" / "small"


def delivered(folder: Path) -> list[str]:
    """Poll the tree; return every row as JSON, without the time of the run."""
    settings = config.read(
        source={"url": str(SMALL / "currents")},
        feeds={"url": str(folder)},
        ledger={"cache": ":memory:"},
    )
    poll(settings)
    lines = []
    for path in sorted(folder.glob("[a-z]*/**/*.parquet")):
        for row in pq.read_table(path).to_pylist():
            made = dict.fromkeys({"ingested_at", "feed_updated_at"} & row.keys())
            lines.append(json.dumps(row | made, default=str, ensure_ascii=False))
    return lines


def test_the_small_tree_gives_the_rows_it_always_gave(tmp_path):
    wanted = (SMALL / "feeds.jsonl").read_text("utf-8").split("\n")
    assert [*delivered(tmp_path), ""] == wanted


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        text = "\n".join([*delivered(Path(scratch)), ""])
    (SMALL / "feeds.jsonl").write_text(text, "utf-8")
