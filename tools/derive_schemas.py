"""Derive ``schemas/<event type>/<NNN>.avsc`` from facts about Braze's samples.

Usage: ``python tools/derive_schemas.py FACTS [--check]``. FACTS is a folder with
``writer_schemas.json`` (schemas seen, 2018 to v10), ``changelog.json`` (changes of
later Currents versions) and ``catalog.json`` (fields of event types that came later).
``--check`` writes nothing and fails if a file would differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from currents_ingest.registry import schema_file
from currents_ingest.schemas import read

ROOT = Path(__file__).parents[1] / "schemas"
Version = dict[str, Any]
Histories = dict[str, list[Version]]


def main() -> int:
    """Write the schemas, or check them; return an exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    files = {
        ROOT / event_type / f"{number:03}.avsc": schema_file(
            version["schema"], version["version"], version["seen"]
        ).decode()
        for event_type, versions in sorted(derive(arguments.facts).items())
        for number, version in enumerate(versions, 1)
    }
    return check(files) if arguments.check else write(files)


def derive(facts: Path) -> Histories:
    """Return every version of every event type that differs in its fields."""
    writers, changelog, catalog = (
        json.loads((facts / f"{name}.json").read_text("utf-8"))
        for name in ("writer_schemas", "changelog", "catalog")
    )
    histories: Histories = {}
    for seen in sorted(writers, key=lambda one: (one["first_seen"], one["event_type"])):
        version = seen["currents_version"]
        append(
            histories.setdefault(seen["event_type"], []),
            seen["schema"],
            # "v1+" marks a sample between two releases: its own version is not known.
            None if version is None or version.endswith("+") else version,
            seen["first_seen"],
        )
    for name, release in changelog["versions"].items():
        apply(histories, name, release, catalog["events"])
    return histories


def apply(histories: Histories, name: str, release: Any, events: Any) -> None:
    """Put one release's changes on top, each event type's in one version."""
    by_event: dict[str, list[Any]] = {}
    for change in release["changes"]:
        by_event.setdefault(change["event_type"], []).append(change)
    for event_type, changes in sorted(by_event.items()):
        history = histories.setdefault(event_type, [])
        if [one["change"] for one in changes] == ["event type added"]:
            schema = new_event(event_type, events[event_type])
        else:
            schema = json.loads(json.dumps(history[-1]["schema"]))
            schema["fields"] += [added(change) for change in changes]
        append(history, schema, name, release["released"])


def added(change: Any) -> Any:
    """Return the Avro field of a "field added" change."""
    if change["change"] != "field added":
        message = f"{change['change']!r} of {change['event_type']} is not handled"
        raise ValueError(message)
    return {
        "name": change["field"],
        "type": change["type"],
        "default": change["default"],
    }


def new_event(event_type: str, entry: Any) -> Any:
    """Build the schema of an event type that the catalog alone describes."""
    namespace, _, name = f"dataexport.S3.inner.{event_type}".rpartition(".")
    return {
        "type": "record",
        "name": name,
        "namespace": namespace,
        "fields": [
            {"name": each["name"], "type": each["type"]}
            | ({"default": None} if "null" in each["type"] else {})
            for each in entry["fields"]
        ],
    }


def append(history: list[Version], schema: Any, version: str | None, seen: str) -> None:
    """Add a version unless an earlier one has the same fields."""
    if read(schema).fingerprint in {read(one["schema"]).fingerprint for one in history}:
        return
    history.append({"schema": schema, "version": version, "seen": seen})


def check(files: dict[Path, str]) -> int:
    """Say which files differ from what the facts give."""
    stale = [
        path
        for path, body in files.items()
        if not path.exists() or path.read_text("utf-8") != body
    ]
    extra = set(ROOT.glob("*/*.avsc")) - set(files)
    for path in sorted({*stale, *extra}):
        sys.stderr.write(f"differs from the facts: {path.relative_to(ROOT.parent)}\n")
    return 1 if stale or extra else 0


def write(files: dict[Path, str]) -> int:
    """Write every file."""
    for path, body in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body, "utf-8")
    sys.stdout.write(
        f"{len(files)} schemas of {len({p.parent for p in files})} event types\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
