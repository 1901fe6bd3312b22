"""``quarantine``: files that could not be read whole."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from currents_ingest.commands.shared import (
    ConfigOption,
    JsonOption,
    chosen_keys,
    finish,
    settings_of,
)
from currents_ingest.errors import SettingsError
from currents_ingest.output import out, print_json

app = typer.Typer(no_args_is_help=True, help="Files that could not be read whole.")


@app.command("list")
def list_(config: ConfigOption = None, json_: JsonOption = False) -> None:
    """List the files in quarantine with their reasons."""
    from currents_ingest import api

    held = api.quarantine(settings_of(config))
    if json_:
        print_json([one.model_dump(mode="json") for one in held])
        return
    for one in held:
        out.print(f"{escape(one.key)}\n    {escape(one.reason)}")
    out.print(f"{len(held)} files in quarantine")


@app.command("show")
def show(
    key: Annotated[str, typer.Argument(help="Key, as list prints it.")],
    config: ConfigOption = None,
) -> None:
    """Show what is known of one file."""
    from currents_ingest import api

    held = [one for one in api.quarantine(settings_of(config)) if one.key == key]
    if not held:
        raise SettingsError((f"no file {key!r} is in quarantine",))
    for one in held:
        print_json(one.model_dump(mode="json"))


@app.command("retry")
def retry(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Keys; none with --all.")
    ] = None,
    config: ConfigOption = None,
    all_: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    json_: JsonOption = False,
) -> None:
    """Read files again now, for instance after a schema was learned."""
    from currents_ingest import api

    finish(api.retry(settings_of(config), chosen_keys(keys, all_)), json_, strict=True)


@app.command("discard")
def discard(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Keys; none with --all.")
    ] = None,
    config: ConfigOption = None,
    all_: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Give files up for good; they stay in the source bucket."""
    from currents_ingest import api

    count = api.discard(settings_of(config), chosen_keys(keys, all_))
    out.print(f"{count} files discarded")
