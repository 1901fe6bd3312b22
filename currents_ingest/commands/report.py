"""``report``: how the feeds have fared, as a page to open or to send."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from currents_ingest.commands.shared import ConfigOption, settings_of
from currents_ingest.output import out


def report(
    config: ConfigOption = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File to write; -: standard output.")
    ] = Path("report.html"),
) -> None:
    """Write one HTML page of the last five weeks; it loads nothing from outside."""
    from currents_ingest import report as report_

    page = report_.page(settings_of(config), datetime.now(UTC))
    if str(output) == "-":
        sys.stdout.write(page)
        return
    output.write_text(page, "utf-8")
    out.print(f"wrote {output.absolute()}")
