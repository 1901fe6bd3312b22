"""Pictures of the report for the docs, of weeks that never were.

Run from the checkout's root: ``python -m tools.screenshots``. Needs Chromium.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from currents_ingest import config, report
from currents_ingest.audiences.gathering import Target
from currents_ingest.audiences.work import FOLDER, Run, destination, summary
from currents_ingest.ledger import Ledger
from currents_ingest.store import Store
from tests.browser import browser
from tests.histories import NOW, world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from currents_ingest.config import Settings

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PICTURES = {
    "report-light": {"width": 1280, "dark": False, "height": 1560},
    "report-dark": {"width": 1280, "dark": True, "height": 1560},
    "report-phone": {"width": 390, "dark": False, "height": 1700},
}
AUDIENCES = {
    "high_value": {
        "source": "s3://acme-exports/high_value/",
        "kind": "cohort",
        "cohort": "High value",
    },
    "loyalty": {"source": "s3://acme-exports/loyalty/"},
}


def made_up(root: Path) -> Settings:
    """Return settings of feeds that have five weeks behind them."""
    settings = config.given(
        source={"url": str(root / "source")},
        feeds={"url": str(root / "feeds")},
        ledger={"cache": str(root / "cache.db")},
        braze={"instance": "US-03"},
        audiences=AUDIENCES,
    )
    ledger = Ledger.open(Store.open(settings.feeds.url), settings.ledger.cache)
    world(ledger, NOW, every=3)
    ledger.close()
    for name, audience in settings.audiences.items():
        where = destination(settings, Target(name, audience))
        store = Store.open(f"{settings.feeds.url}/{FOLDER}/{name}/{where}")
        for run in _runs(name, where):
            store.put(summary(run.run), json.dumps(asdict(run)).encode())
    return settings


def _runs(name: str, where: str) -> Iterator[Run]:
    """Yield a week of daily runs, one with trouble."""
    for ago in range(7):
        began = (NOW - timedelta(days=ago)).replace(hour=6, minute=0)
        new, left = 3_400 - 211 * ago % 900, 1_900 + 173 * ago % 700
        run = Run(
            run=f"{began:%Y%m%dT%H%M%S}.000000Z-{ago:04}",
            audience=name,
            destination=where,
            state="done",
            began=began.isoformat(),
            rows=2_000_000 + 1_500 * (7 - ago),
            new=new,
            left=left,
            taken=new + left,
            requests=-(-new // 75) + -(-left // 75),
            data_points=new + left,
        )
        if name == "loyalty" and ago == 0:
            reasons = {"phone: no number of country US": 12}
            run = replace(run, rejected=12, reasons=reasons)
        yield run


def main() -> None:
    """Take the pictures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser() as page:
        path = Path(folder) / "report.html"
        path.write_text(report.page(made_up(Path(folder)), NOW), "utf-8")
        for name, one in PICTURES.items():
            page.open(path, width=int(one["width"]), dark=bool(one["dark"]))
            picture = page.picture(height=int(one["height"]))
            (IMAGES / f"{name}.png").write_bytes(picture)
            print(f"{name}: {len(picture):,} bytes")


if __name__ == "__main__":
    main()
