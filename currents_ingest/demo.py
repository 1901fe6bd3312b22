"""The whole loop on made-up data: in, out, back to Braze, and the report."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from currents_ingest import config, report
from currents_ingest.api import poll
from currents_ingest.audiences.client import PartnerKeys
from currents_ingest.audiences.gathering import Target
from currents_ingest.audiences.sync import sync
from currents_ingest.sandbox.beside import read_back, sandbox
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.status import status
from currents_ingest.verify import verify

if TYPE_CHECKING:
    from rich.console import Console

    from currents_ingest.audiences.client import Key
    from currents_ingest.audiences.work import Run

_SHOWN = 12


def demo(out: Console, folder: Path | None) -> bool:
    """Run it all in *folder* (default: a temporary one); tell whether all was well."""
    where = folder or Path(tempfile.mkdtemp(prefix="currents-demo-"))
    with sandbox() as url:
        settings = _settings(where, url)
        there = _feeds(out, settings, where)
        back = _audiences(out, settings, where)
        path = where / "report.html"
        path.write_text(report.page(settings, datetime.now(UTC)), "utf-8")
    out.print(f"8. All of it as a page, for a browser: {path}\n")
    out.print(f"   source  {where / 'currents'}")
    out.print(f"   feeds   {where / 'feeds'}")
    out.print(f"   ledger  {where / 'feeds' / '_ledger'}")
    return there and back


def _settings(where: Path, url: str) -> config.Settings:
    export = {"source": str(where / "export.csv"), "settle": "0s"}
    vip = export | {"membership": "in_vip", "mode": "mirror"}
    cohort = export | {"kind": "cohort", "cohort": "High Value"}
    return config.given(
        source={"url": str(where / "currents")},
        feeds={"url": str(where / "feeds")},
        ledger={"cache": where / "cache.db"},
        braze={"url": url},
        audiences={"vip": vip, "high_value": cohort},
    )


def _feeds(out: Console, settings: config.Settings, where: Path) -> bool:
    """Make files up, poll them twice, verify; tells whether all is there once."""
    out.print(
        "1. A day of Braze Currents, made up: every event type and schema version,"
    )
    out.print("   redelivered and late events, damaged and foreign files.")
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    asked = Simulation(versions="all", hours=24, torn=6, foreign=3, end=end)
    made = simulate(str(where), asked)
    out.print(f"   {made.files:,} files, {made.rows:,} rows\n")
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
    whole = not second.files and first.rows_out == made.distinct
    return whole and not found.differences


def _audiences(out: Console, settings: config.Settings, where: Path) -> bool:
    """Send an audience and a cohort to the sandbox; tells whether it has them."""
    keys: dict[str, Key] = {
        "vip": "made-up key",
        "high_value": PartnerKeys("made-up", "keys"),
    }
    runs: dict[str, list[Run]] = {name: [] for name in keys}
    for people in (_people(range(2000), 0), _people(range(20, 2000), 20)):
        (where / "export.csv").write_text(people, "utf-8")
        for name, key in keys.items():
            target = Target(name, settings.audiences[name])
            runs[name].append(sync(settings, target, key))
    profiles = read_back(settings.braze.url, "profiles")
    named = read_back(settings.braze.url, "cohorts")[0]["cohorts"][0]
    first, second = runs["vip"]
    out.print(
        "\n6. An export of Amperity's goes to a sandbox that answers as Braze does:"
    )
    out.print(f"   {first.taken:,} people in {first.requests} requests. In the next")
    out.print("   export 20 people have left and 20 have changed:")
    out.print(f"   {second.taken} people in {second.requests} request.")
    members = sum(one["custom_attributes"]["in_vip"] for one in profiles)
    out.print(
        f"   Read back: {len(profiles):,} profiles, {members:,} in the audience.\n"
    )
    joined, left = runs["high_value"]
    out.print(f"7. And as the cohort {named['name']!r}: {joined.new:,} members join in")
    out.print(f"   {joined.requests} requests, {left.left} leave in {left.requests}.")
    out.print(f"   Read back: {len(named['user_ids']):,} members.\n")
    there = members == len(profiles) - 20 and second.taken == 40
    return there and len(named["user_ids"]) == members and left.taken == 20


def _people(numbers: range, changed: int) -> str:
    """Return an export; the first *changed* people have other points."""
    lines = ["external_id,given_name,Loyalty Points"]
    for at, number in enumerate(numbers):
        points = number + (1000 if at < changed else 0)
        lines.append(f"customer-{number:04},Name {number},{points}")
    return "\n".join(lines) + "\n"


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
