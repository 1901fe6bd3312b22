"""Read arguments, call one function of ``api``, report, choose an exit status.

Results go to standard output, logs and progress to standard error. 0: done;
1: failed; 2: wrong use or configuration; 3: done, but something needs a look.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_args

import typer
from rich.markup import escape

from currents_ingest import memory
from currents_ingest.commands import (
    audience,
    doctor,
    feeds,
    quarantine,
    report,
    run,
    sandbox,
    schemas,
    validate,
)
from currents_ingest.commands.shared import (
    LOG_FORMAT,
    ConfigOption,
    JsonOption,
    StrictOption,
    checked,
    chosen,
    day,
    ended,
    finish,
    hour,
    one_of,
    settings_of,
    shown,
)
from currents_ingest.errors import CurrentsError, RetryableError, SettingsError
from currents_ingest.output import (
    err,
    out,
    print_json,
    show_status,
    show_survey,
    show_verified,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from currents_ingest.config import Limits
    from currents_ingest.engine import Engine

# Heavy modules (Polars, boto3) are imported by the commands that need them, so that
# --help answers at once.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(schemas.app, name="schemas")
app.add_typer(feeds.app, name="feeds")
app.add_typer(audience.app, name="audience")
app.command()(validate.validate)
app.command()(doctor.doctor)
app.command()(report.report)
app.command()(run.run)
app.command(context_settings=sandbox.AS_GIVEN)(sandbox.sandbox)


def main() -> NoReturn:
    """Run the command line; nothing of ours ends in a traceback.

    The process ends without tearing the interpreter down: a thread of obstore's that
    still waits for Python at that moment would abort it, after all was done.
    """
    status_ = _run()
    with suppress(OSError):  # whoever read our output has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status_)


def _run() -> int:
    gc.set_threshold(50_000, 20, 50)  # what we make lives until its commit
    memory.keep_what_is_freed()  # no module of Polars is there yet
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except SettingsError as error:
        return _say(error, 2)
    except CurrentsError as error:
        return _say(error, 1)
    except KeyboardInterrupt:
        err.print("stopped; what was committed stays, run again to go on")
        return 1
    return 0


@app.callback()
def _before(
    config: ConfigOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    log_format: Annotated[
        str, typer.Option(envvar=LOG_FORMAT, help="console or json.")
    ] = "console",
) -> None:
    """Braze Currents Avro in, Parquet feeds for Amperity out, each event once."""
    from currents_ingest import logs

    chosen[0] = config
    one_of("--log-format", log_format, get_args(logs.Format))
    chosen_format: logs.Format = "json" if log_format == "json" else "console"
    logs.configure(logging.DEBUG if verbose else logging.INFO, chosen_format)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path(
        "currents.toml"
    ),
) -> None:
    """Write a commented settings file and the JSON Schema that editors check it by."""
    from currents_ingest import config, template

    schema = path.with_name("currents.schema.json")
    if path.exists():
        raise SettingsError((f"{path} exists already; move it away first",))
    path.write_text(template.toml(schema.name), "utf-8")
    schema.write_text(json.dumps(config.json_schema(), indent=2) + "\n", "utf-8")
    out.print(
        f"wrote {path} and {schema}; set the two urls, then: currents-ingest poll"
    )


@app.command()
def poll(
    config: ConfigOption = None,
    every: Annotated[
        str | None,
        typer.Option(help="Go on until SIGTERM, with this pause, such as 5m."),
    ] = None,
    json_: JsonOption = False,
    strict: StrictOption = False,
) -> None:
    """Ingest what is new; --every goes on until SIGTERM."""
    from currents_ingest import api
    from currents_ingest.units import duration

    settings = settings_of(config)
    stop = ended()
    if every is None:
        finish(api.poll(settings, stop=stop.is_set), json_, strict)
    pause = checked(duration, every)
    while not stop.is_set():
        try:
            shown(api.poll(settings, stop=stop.is_set), json_)
        except RetryableError as error:
            err.print(f"[yellow]will try again:[/] {escape(error.told())}")
        stop.wait(pause.total_seconds())


@app.command()
def load(
    since: Annotated[str, typer.Option(help="First UTC day, YYYY-MM-DD.")],
    until: Annotated[str, typer.Option(help="First UTC day that is left out.")],
    config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be read.")] = False,
    engine: Annotated[str, typer.Option(help="threads, or dask.")] = "threads",
    scheduler: Annotated[
        str, typer.Option(help="Dask's; left out: a cluster on this machine.")
    ] = "",
    json_: JsonOption = False,
    strict: StrictOption = False,
) -> None:
    """Ingest history; run it again and it goes on where it stopped."""
    from currents_ingest import api
    from currents_ingest.progress import Bar

    settings = settings_of(config)
    first, last = checked(day, since), checked(day, until)
    chosen = _engine(engine, scheduler)
    if dry_run:
        ahead = api.survey(settings, first, last)
        if json_:
            print_json(ahead)
        else:
            show_survey(ahead)
        return
    with Bar(err) as bar:
        outcome = api.load(
            settings,
            first,
            last,
            engine=chosen,
            stop=ended().is_set,
            seen=bar.advance,
        )
    finish(outcome, json_, strict)


def _engine(name: str, scheduler: str) -> Callable[[Limits], Engine]:
    from currents_ingest.engine import Threads

    if name == "threads" and not scheduler:
        return Threads
    if name != "dask":
        told = f"--engine {name} --scheduler {scheduler!r}: dask has a scheduler"
        raise SettingsError((f"{told}, threads has none, and there is no other",))
    from currents_ingest.dask_engine import Dask

    return partial(Dask, address=scheduler)


@app.command()
def status(
    config: ConfigOption = None,
    all_: Annotated[
        bool, typer.Option("--all", help="A row for every event type.")
    ] = False,
    json_: JsonOption = False,
    strict: StrictOption = False,
) -> None:
    """Say what was delivered, what is newest and what waits for someone."""
    from currents_ingest import status as status_

    found = status_.status(settings_of(config))
    if json_:
        print_json(found)
    else:
        show_status(found, whole=all_)
    raise typer.Exit(3 if strict and found.look else 0)


@app.command()
def verify(
    config: ConfigOption = None,
    since: Annotated[
        str | None, typer.Option(help="First delivery day to read.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="First delivery day left out.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Prove from the bucket alone that nothing is lost, doubled or changed."""
    from currents_ingest import verify as verify_

    first = checked(day, since) if since else None
    last = checked(day, until) if until else None
    found = verify_.verify(settings_of(config), first, last)
    if json_:
        print_json(found)
    else:
        show_verified(found)
    raise typer.Exit(1 if found.differences else 0)


@app.command()
def simulate(
    url: Annotated[str, typer.Argument(help="Folder or URL to write to.")],
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 1,
    events: Annotated[list[str] | None, typer.Option(help="Glob; repeatable.")] = None,
    versions: Annotated[str, typer.Option(help="latest or all.")] = "latest",
    layout: Annotated[str, typer.Option(help="new, old, 2017 or mixed.")] = "mixed",
    end: Annotated[
        str, typer.Option(help="Hour after the last queued one.")
    ] = "2026-09-15T12",
    hours: Annotated[int, typer.Option(help="Queued hours.")] = 6,
    files_per_hour: Annotated[int, typer.Option(help="Per event type.")] = 2,
    rows: Annotated[int, typer.Option(help="Rows of a small file.")] = 20,
    large_files: Annotated[int, typer.Option(help="Per event type.")] = 0,
    large_rows: Annotated[int, typer.Option(help="Rows of a large file.")] = 15_000,
    redelivered: Annotated[float, typer.Option(help="Share of rows.")] = 0.02,
    late: Annotated[float, typer.Option(help="Share of rows.")] = 0.05,
    bad_rows: Annotated[float, typer.Option(help="Share of rows.")] = 0.0,
    torn: Annotated[int, typer.Option(help="Damaged files in all.")] = 0,
    foreign: Annotated[int, typer.Option(help="Files that are not Currents'.")] = 0,
    json_: JsonOption = False,
) -> None:
    """Write a Currents tree that looks real, and what must come of it."""
    from currents_ingest.simulate import Simulation
    from currents_ingest.simulate import simulate as write

    options: dict[str, Any] = {
        "events": tuple(events or ["*"]),
        "end": checked(hour, end),
        "seed": seed,
        "versions": one_of("--versions", versions, ("latest", "all")),
        "layout": one_of("--layout", layout, ("new", "old", "2017", "mixed")),
        "hours": hours,
        "files_per_hour": files_per_hour,
        "rows": rows,
        "large_files": large_files,
        "large_rows": large_rows,
        "redelivered": redelivered,
        "late": late,
        "bad_rows": bad_rows,
        "torn": torn,
        "foreign": foreign,
    }
    written = write(url, Simulation(**options))
    if json_:
        print_json(written)
    else:
        out.print(
            f"{written.files:,} files, {written.rows:,} rows, "
            f"{written.distinct:,} distinct events"
        )
        out.print(f"source.url is {url.rstrip('/')}/currents")


@app.command()
def demo(
    folder: Annotated[
        Path | None, typer.Option(help="Where to work (default: a temporary folder).")
    ] = None,
) -> None:
    """Show the whole way with made-up data: no account, no network, no settings."""
    from currents_ingest import logs
    from currents_ingest.demo import demo as show

    logs.configure(logging.ERROR)  # what it shows is the point, not how it came about
    if not show(out, folder):
        raise typer.Exit(1)


def _say(error: CurrentsError, status_: int) -> int:
    import structlog

    from currents_ingest import logs

    if logs.as_json():
        structlog.get_logger(__package__).error("failed", told=error.told())
        return status_
    err.print(f"[bold red]error:[/] {escape(error.told())}")
    return status_
