"""The main job on made-up data: simulate, poll twice, verify, show."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from currents_ingest import config
from currents_ingest.api import poll
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.status import status
from currents_ingest.verify import verify

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = 12


def demo(out: Console, folder: Path | None) -> bool:
    """Run it all in *folder* (default: a temporary one); tell whether all was well."""
    where = folder or Path(tempfile.mkdtemp(prefix="currents-demo-"))
    out.print(
        "1. A day of Braze Currents, made up: every event type and schema version,"
    )
    out.print("   redelivered and late events, damaged and foreign files.")
    made = simulate(str(where), Simulation(versions="all", hours=24, torn=6, foreign=3))
    out.print(f"   {made.files:,} files, {made.rows:,} rows\n")
    settings = config.read(
        source={"url": str(where / "currents")},
        feeds={"url": str(where / "feeds")},
        ledger={"cache": where / "cache.db"},
    )
    first, second = poll(settings), poll(settings)
    out.print(f"2. First poll: {first.rows_out:,} events in {first.objects} objects,")
    out.print(f"   {first.duplicates:,} duplicates dropped,")
    out.print(f"   {len(first.quarantined)} bad files in quarantine, for example:")
    out.print(f"   [yellow]{first.quarantined[0].reason}[/]\n")
    out.print(f"3. Second poll: {second.files} files, for nothing is new.\n")
    found = verify(settings)
    out.print(
        f"4. Verified from the bucket alone: {found.objects} objects read again, "
        f"{len(found.differences)} differences.\n"
    )
    for difference in found.differences:
        out.print(f"   [red]{difference.about}: {difference.what}[/]")
    _show(out, settings)
    out.print(f"\n   source  {where / 'currents'}")
    out.print(f"   feeds   {where / 'feeds'}")
    out.print(f"   ledger  {where / 'feeds' / '_ledger'}")
    return (
        not found.differences and not second.files and first.rows_out == made.distinct
    )


def _show(out: Console, settings: config.Settings) -> None:
    feeds = status(settings).feeds
    table = Table(box=None, pad_edge=False)
    for name in ("   feed", "files", "rows", "duplicates"):
        table.add_column(name, justify="left" if "feed" in name else "right")
    for one in feeds[:_SHOWN]:
        table.add_row(
            f"   {one.feed}",
            *(f"{n:,}" for n in (one.files, one.rows_out, one.duplicates)),
        )
    out.print(f"5. The first {_SHOWN} of {len(feeds)} feeds:")
    out.print(table)
