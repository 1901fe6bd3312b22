"""Write ``docs/feeds/<feed>.md``: an example of each shipped unified feed's paper.

Usage: ``python tools/contract_pages.py [--check]``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from currents_ingest import config
from currents_ingest.handover import page
from currents_ingest.handover_page import markdown
from currents_ingest.selection import select

FOLDER = Path(__file__).parents[1] / "docs" / "feeds"


def main() -> int:
    """Write the pages, or say which are out of date."""
    wanted = pages()
    if "--check" not in sys.argv:
        FOLDER.mkdir(exist_ok=True)
        for name, text in wanted.items():
            (FOLDER / name).write_text(text, "utf-8")
        return 0
    found = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.md")}
    wrong = [
        name for name in {**wanted, **found} if wanted.get(name) != found.get(name)
    ]
    for name in sorted(wrong):
        told = f"docs/feeds/{name} is out of date: run tools/contract_pages.py\n"
        sys.stderr.write(told)
    return bool(wrong)


def pages() -> dict[str, str]:
    """Return the pages by file name, with example settings."""
    settings = config.read(
        source={"url": "s3://acme-currents/braze"},
        feeds={"url": "s3://acme-amperity/currents", "include": ["raw", "*"]},
        brands={"default": "Acme", "names": {"mail.acme.example": "Acme"}},
    )
    selection = select(settings)
    return {
        f"{one.feed}.md": markdown(page(selection, one, published=True))
        for one in selection.included()
    }


if __name__ == "__main__":
    sys.exit(main())
