"""``audience``: exports of Amperity's to Braze, the difference alone."""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from currents_ingest.commands.shared import (
    ConfigOption,
    JsonOption,
    StrictOption,
    checked,
    config_path,
    ended,
    one_of,
)
from currents_ingest.errors import CurrentsError, SettingsError
from currents_ingest.output import err, print_json

if TYPE_CHECKING:
    from currents_ingest.audiences.gathering import Target
    from currents_ingest.config import Settings

app = typer.Typer(
    no_args_is_help=True, help="Audiences: from Amperity's exports to Braze."
)

AudienceArgument = Annotated[
    str,
    typer.Argument(help="Name of an [audiences.NAME], or a file, folder or URL."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the audience, as in kind=events."),
]
AsOption = Annotated[
    str | None,
    typer.Option("--as", help="Name of a one-time file's audience (its own if none)."),
]


@app.command()
def preview(
    audience: AudienceArgument,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_: AsOption = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Keep what would be sent, for --plan."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Say what sync would send: counts, masked samples, time, data points."""
    from currents_ingest.audiences import sync as sync_
    from currents_ingest.audiences_output import show_preview

    if output and output.exists():
        raise SettingsError((f"{output} exists already; move it away first",))
    settings, target = _chosen(config, audience, set_, as_)
    found = sync_.preview(settings, target, output)
    if json_:
        print_json(found)
    else:
        show_preview(found)
    if found.guard:
        raise typer.Exit(1)


@app.command()
def sync(
    audience: Annotated[
        str, typer.Argument(help="Name of an [audiences.NAME], or a file or URL.")
    ] = "",
    all_: Annotated[
        bool, typer.Option("--all", help="Every audience of the settings, in turn.")
    ] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_: AsOption = None,
    plan: Annotated[
        Path | None, typer.Option(help="Send exactly what preview -o kept.")
    ] = None,
    force: Annotated[
        bool, typer.Option(help="Send an export that lost many people, too.")
    ] = False,
    json_: JsonOption = False,
    strict: StrictOption = False,
) -> None:
    """Send new and changed people to Braze; run it again and it goes on."""
    from currents_ingest.audiences import sync as sync_

    if bool(audience) == all_:
        raise SettingsError(("name an audience, or say --all",))
    if all_:
        if set_ or as_ or plan or force:
            problem = "--all goes without --set, --as, --plan and --force"
            raise SettingsError((problem,))
        _sync_all(config, json_, strict)
        return
    settings, target = _chosen(config, audience, set_, as_)
    run = sync_.sync(
        settings,
        target,
        sync_.key(settings, target),
        force=force,
        plan=plan,
        stop=ended().is_set,
    )
    _finish(run, json_, strict)


@app.command()
def retry(
    audience: AudienceArgument,
    run: Annotated[str, typer.Argument(help="Run, as status shows it.")],
    config: ConfigOption = None,
    set_: SetOption = None,
    as_: AsOption = None,
    unknown: Annotated[
        str,
        typer.Option(
            help="What to do with objects that may have arrived: send, keep (as "
            "sent), or leave."
        ),
    ] = "leave",
    json_: JsonOption = False,
    strict: StrictOption = False,
) -> None:
    """Send once more what a run could not."""
    from currents_ingest.audiences import sync as sync_

    settings, target = _chosen(config, audience, set_, as_)
    what = one_of("--unknown", unknown, ("send", "keep", "leave"))
    found = sync_.retry(
        settings,
        target,
        run,
        sync_.key(settings, target),
        unknown="" if what == "leave" else what,
        stop=ended().is_set,
    )
    _finish(found, json_, strict)


@app.command()
def status(
    audience: AudienceArgument,
    run: Annotated[str, typer.Argument(help="One run only.")] = "",
    config: ConfigOption = None,
    set_: SetOption = None,
    as_: AsOption = None,
    json_: JsonOption = False,
) -> None:
    """Show what became of an audience's last runs."""
    from currents_ingest.audiences import sync as sync_
    from currents_ingest.audiences_output import show_runs

    settings, target = _chosen(config, audience, set_, as_)
    found = sync_.runs(settings, target, run)
    if run and not found:
        raise SettingsError((f"there is no run {run!r} of {target.name}",))
    undecided = sync_.undecided(settings, target)
    if json_:
        print_json({"runs": list(map(asdict, found)), "undecided": undecided})
    else:
        show_runs(found, undecided)


@app.command()
def csv(
    audience: AudienceArgument,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the files.")
    ],
    config: ConfigOption = None,
    set_: SetOption = None,
    as_: AsOption = None,
    json_: JsonOption = False,
) -> None:
    """Write files for the dashboard's User Import, in place of sending anything."""
    from currents_ingest.audiences import csv_import
    from currents_ingest.audiences_output import show_csv

    settings, target = _chosen(config, audience, set_, as_)
    found = csv_import.write(settings, target, output)
    if json_:
        print_json(found)
    else:
        show_csv(found)


def _sync_all(config: Path | None, json_: bool, strict: bool) -> None:
    """Send every audience; one that fails does not keep the others."""
    from currents_ingest import config as config_
    from currents_ingest.audiences import sync as sync_
    from currents_ingest.audiences.gathering import Target
    from currents_ingest.audiences_output import show_run

    settings = config_.read_audiences(config_path(config))
    stop = ended().is_set
    runs, failed = [], 0
    for name, one in settings.audiences.items():
        if stop():
            break
        target = Target(name, one)
        try:
            run = sync_.sync(settings, target, sync_.key(settings, target), stop=stop)
        except CurrentsError as error:
            failed += 1
            err.print(f"[bold red]{escape(name)}:[/] {escape(error.told())}")
            continue
        runs.append(run)
        if not json_:
            show_run(run)
    if json_:
        print_json({"runs": list(map(asdict, runs)), "failed": failed})
    if failed or any(one.state == "stopped" for one in runs) or stop():
        raise typer.Exit(1)
    raise typer.Exit(3 if strict and any(one.needs_a_look for one in runs) else 0)


def _finish(run: Any, json_: bool, strict: bool) -> None:
    from currents_ingest.audiences_output import show_run

    if json_:
        print_json(run)
    else:
        show_run(run)
    if run.state == "stopped":
        err.print("stopped before the end; run again to go on")
        raise typer.Exit(1)
    raise typer.Exit(3 if strict and run.needs_a_look else 0)


def _chosen(
    config: Path | None, audience: str, set_: list[str] | None, as_: str | None
) -> tuple[Settings, Target]:
    """Return settings and the audience that a command is about."""
    from currents_ingest import config as config_
    from currents_ingest.audiences.gathering import Target

    path = config_path(config)
    settings = config_.read_audiences(path)
    changes = dict(checked(_assigned, one) for one in set_ or ())
    if audience in settings.audiences:
        known = settings.audiences[audience].model_dump(exclude_unset=True)
        name = as_ or audience
    else:
        known = {"source": audience}
        name = as_ or _name_of(audience, settings)
    whole = config_.audience(name, known | changes)
    return settings, Target(name, whole)


def _name_of(source: str, settings: Settings) -> str:
    """Return a one-time file's own name, as an audience's."""
    if not ("/" in source or "." in source or Path(source).exists()):
        told = ", ".join(settings.audiences) or "none"
        problem = (
            f"{source!r} is neither an audience of the settings ({told}) nor a file"
        )
        raise SettingsError((problem,))
    stem = source.rstrip("/").rpartition("/")[2].partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-") or "once"


def _assigned(text: str) -> tuple[str, Any]:
    """Read ``name=value``; what is no TOML value is text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError("write it as in kind=events")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value
