"""Write ``docs/feeds.md``: every raw feed and its columns, from the contracts.

Usage: ``python tools/feeds_page.py [--check]``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from currents_ingest import schemas
from currents_ingest.contracts import ADDED, Contract, raw_contract

PAGE = Path(__file__).parents[1] / "docs" / "feeds.md"
_HEAD = """\
# Raw feeds

One feed for each event type. The key is `id`, the last-updated column is
`ingested_at`; every other column may be null. Below are the columns that come from
Braze, in order, with their types; each feed ends with these:

{added}

`json` is text that holds an array or an object. This page is written by
`tools/feeds_page.py`.
"""


def main() -> int:
    """Write the page, or say that it is out of date."""
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text, "utf-8")
    elif not PAGE.exists() or PAGE.read_text("utf-8") != text:
        sys.stderr.write("docs/feeds.md is out of date: run tools/feeds_page.py\n")
        return 1
    return 0


def page() -> str:
    """Return the page."""
    added = "\n".join(f"- `{column.name}` {column.type}" for column in ADDED)
    contracts = [
        raw_contract(event_type, [version.writer for version in versions])
        for event_type, versions in schemas.known().items()
    ]
    sections = [section(one) for one in sorted(contracts, key=lambda one: one.feed)]
    return "\n".join([_HEAD.format(added=added), *sections])


def section(contract: Contract) -> str:
    """Return one feed's part."""
    own = contract.columns[: -len(ADDED)]
    columns = ", ".join(f"`{column.name}` {column.type}" for column in own)
    return f"## {contract.feed}\n\nFrom `{contract.event_type}`.\n\n{columns}\n"


if __name__ == "__main__":
    sys.exit(main())
