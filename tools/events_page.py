"""Write ``docs/events.md``: every event type, its fields and since when, from schemas.

Usage: ``python tools/events_page.py [--check]``.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from currents_ingest import schemas
from currents_ingest.compatibility import changes, describe
from currents_ingest.contracts import feed_name

if TYPE_CHECKING:
    from currents_ingest.schemas import SchemaVersion

PAGE = Path(__file__).parents[1] / "docs" / "events.md"
_HEAD = """\
# Events

Every event type that the shipped schemas know, with the fields of its newest version.
*Since* is the Currents version that brought a field, or, before those were numbered
(April 2025), the day of Braze's first sample that has it. `null or` marks what an event
may leave out. `currents-ingest schemas diff` compares any two versions. This page is
written by `tools/events_page.py`.

{count} event types, {versions} versions, {fields} fields.
"""


def main() -> int:
    """Write the page, or say that it is out of date."""
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text, "utf-8")
    elif not PAGE.exists() or PAGE.read_text("utf-8") != text:
        sys.stderr.write("docs/events.md is out of date: run tools/events_page.py\n")
        return 1
    return 0


def page() -> str:
    """Return the page."""
    known = schemas.known()
    head = _HEAD.format(
        count=len(known),
        versions=sum(map(len, known.values())),
        fields=sum(len(versions[-1].writer.fields) for versions in known.values()),
    )
    return "\n".join([head, *map(section, known.values())])


def section(versions: tuple[SchemaVersion, ...]) -> str:
    """Return one event type's part."""
    newest = versions[-1]
    rows = [
        f"| `{field.name}` | {describe(field)} | {since(field.name, versions)} |"
        for field in newest.writer.fields
    ]
    table = "\n".join(["| field | type | since |", "|---|---|---|", *rows])
    return (
        f"## {newest.event_type}\n\n"
        f"Feed `{feed_name(newest.event_type)}`. {told(versions)}\n\n{table}\n"
    )


def since(name: str, versions: tuple[SchemaVersion, ...]) -> str:
    """Return the version from which on every version has the field."""
    oldest = versions[-1]
    for version in reversed(versions):
        if name not in {field.name for field in version.writer.fields}:
            break
        oldest = version
    return oldest.since()


def told(versions: tuple[SchemaVersion, ...]) -> str:
    """Say in how many versions it came, and what changed beside new fields."""
    parts = [f"{len(versions)} versions, the first in {versions[0].since()}."]
    for old, new in pairwise(versions):
        found = [str(c) for c in changes(old.writer, new.writer) if c.kind != "added"]
        if found:
            parts.append(f"In {new.since()}: {'; '.join(found)}.")
    return " ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
