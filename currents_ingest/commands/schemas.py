"""``schemas``: the registry of writer schemas."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from currents_ingest.commands.shared import (
    ConfigOption,
    JsonOption,
    checked,
    config_path,
    day,
    settings_if_any,
)
from currents_ingest.errors import SettingsError
from currents_ingest.output import out, print_json, table_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from currents_ingest.compatibility import Change
    from currents_ingest.schemas import Registry, SchemaVersion

app = typer.Typer(no_args_is_help=True, help="Writer schemas: known, new, compared.")

_SIGNS = {
    "added": ("+", "green"),
    "removed": ("-", "red"),
    "retyped": ("!", "bold red"),
}
EventArgument = Annotated[str, typer.Argument(help="Event type, as list shows it.")]
VersionOption = Annotated[int | None, typer.Option(help="Number, as list shows it.")]


@app.command("list")
def list_(
    event: Annotated[str, typer.Argument(help="Glob of event types.")] = "*",
    fingerprint: Annotated[
        str | None, typer.Option(help="Only versions with this fingerprint.")
    ] = None,
    currents: Annotated[
        int | None, typer.Option(help="Only those in force in this Currents version.")
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="Only those in force on this day, YYYY-MM-DD.")
    ] = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """List the versions of every event type."""
    from fnmatch import fnmatchcase

    registry = _registry(config)
    at = checked(day, on) if on else None
    found = [
        version
        for event_type in registry.event_types()
        if fnmatchcase(event_type, event)
        for version in _in_force(registry, event_type, currents, at)
        if fingerprint in (None, version.writer.fingerprint)
    ]
    if not found:
        raise SettingsError(("no schema of the registry is so",))
    if json_:
        print_json([_as_json(one) for one in found])
    else:
        _show_versions(found)


@app.command()
def show(
    event: EventArgument,
    version: VersionOption = None,
    currents: Annotated[int | None, typer.Option(help="By Currents version.")] = None,
    on: Annotated[str | None, typer.Option(help="By day, YYYY-MM-DD.")] = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Show one version's fields (default: the newest); --json prints the schema."""
    registry = _registry(config)
    _known(registry, event)
    if version is not None:
        found = _numbered(registry, event, version)
    else:
        at = checked(day, on) if on else None
        held = _in_force(registry, event, currents, at)
        if not held:
            raise SettingsError((f"{event} was not there yet",))
        found = held[-1]
    if json_:
        import json

        print_json(json.loads(found.writer.canonical))
    else:
        _show_version(found)


@app.command()
def diff(
    event: EventArgument,
    old: Annotated[int, typer.Argument(help="Number of a version.")],
    new: Annotated[int, typer.Argument(help="Number of another.")],
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Say what changed between two versions of an event type."""
    from dataclasses import asdict

    from currents_ingest.compatibility import changes

    registry = _registry(config)
    _known(registry, event)
    before, after = (_numbered(registry, event, n) for n in (old, new))
    found = changes(before.writer, after.writer)
    if json_:
        print_json([asdict(one) for one in found])
    else:
        _show_changes(before, after, found)


@app.command()
def learn(
    file: Annotated[
        str,
        typer.Argument(
            help="A Currents file or a schema (.avsc): path, URL, or the key of a "
            "file as `status` shows it."
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(help="Folder to write to (default: the first of schemas.urls)."),
    ] = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Write the schema of a file as the next version into your own folder."""
    from currents_ingest import config as config_
    from currents_ingest import registry as registry_

    settings = config_.read_schemas(config_path(config))
    target = to or next(iter(settings.urls), None)
    registry = registry_.open_registry(settings)
    today = datetime.now(UTC).date()
    learned = registry_.learn(registry, _url(file, config), target, today)
    version = learned.version
    if json_:
        print_json(_as_json(version) | {"written": learned.written})
    elif learned.written:
        out.print(f"learned {version.event_type} version {version.number}")
        out.print(f"wrote {learned.written}")
        if target not in settings.urls:
            out.print(f"add {target} to schemas.urls, so that it is found")
    else:
        out.print(f"known already: {version.event_type} version {version.number}")


def _url(file: str, config: Path | None) -> str:
    """Take what is no path here for a key below source.url."""
    from currents_ingest.backends import local_path

    path = local_path(file)
    if path is None or path.exists() or (settings := settings_if_any(config)) is None:
        return file
    return f"{settings.source.url.rstrip('/')}/{file}"


def _registry(config: Path | None) -> Registry:
    from currents_ingest import config as config_
    from currents_ingest.registry import open_registry

    return open_registry(config_.read_schemas(config_path(config)))


def _known(registry: Registry, event: str) -> None:
    if not registry.versions(event):
        raise SettingsError(
            (f"no schema of {event!r} is known; `schemas list` shows those there are",)
        )


def _numbered(registry: Registry, event: str, number: int) -> SchemaVersion:
    versions = registry.versions(event)
    for version in versions:
        if version.number == number:
            return version
    held = ", ".join(str(one.number) for one in versions)
    raise SettingsError((f"{event} has no version {number}; it has {held}",))


def _in_force(
    registry: Registry, event_type: str, release: int | None, at: date | None
) -> list[SchemaVersion]:
    """Return all versions, or the one that counted in a release or on a day."""
    if release is not None:
        found = registry.of_release(event_type, release)
    elif at is not None:
        found = registry.on(event_type, at)
    else:
        return list(registry.versions(event_type))
    return [found] if found else []


def _as_json(version: SchemaVersion) -> dict[str, object]:
    return {
        "event_type": version.event_type,
        "number": version.number,
        "fingerprint": version.writer.fingerprint,
        "currents_version": version.currents_version,
        "first_seen": version.first_seen,
        "fields": len(version.writer.fields),
        "origin": version.origin,
    }


def _show_versions(versions: Sequence[SchemaVersion]) -> None:
    table = table_of(
        "event type", "version", "currents", "first seen", "fields", "fingerprint"
    )
    for one in versions:
        table.add_row(
            one.event_type + ("" if one.origin == "shipped" else " (own)"),
            str(one.number),
            one.currents_version or "-",
            one.first_seen or "-",
            str(len(one.writer.fields)),
            one.writer.fingerprint,
        )
    out.print(table)


def _show_version(version: SchemaVersion) -> None:
    out.print(
        f"{version.event_type} version {version.number}, "
        f"{version.currents_version or 'before v1'}, "
        f"first seen {version.first_seen or '?'}, {version.writer.fingerprint}"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("field", "type", "default"):
        table.add_column(name)
    for field in version.writer.fields:
        nullable = "null or " if field.nullable else ""
        kind = escape(nullable + field.plain)
        table.add_row(escape(field.name), kind, escape(field.default or ""))
    out.print(table)


def _show_changes(
    before: SchemaVersion, after: SchemaVersion, found: Sequence[Change]
) -> None:
    """Show what changed, coloured on a terminal."""
    out.print(
        f"{before.event_type} version {before.number} ({before.since()}) "
        f"to {after.number} ({after.since()})"
    )
    for one in found:
        sign, colour = _SIGNS.get(one.kind, ("~", "yellow"))
        out.print(f"[{colour}]{sign} {escape(str(one))}[/]")
    if not found:
        out.print("no differences")
