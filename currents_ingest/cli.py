"""Read arguments, call one function of ``api``, report, choose an exit status.

Results go to standard output, logs and progress to standard error. 0: done;
1: failed; 2: wrong use or configuration; 3: done, but something needs a look.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import structlog
import typer
from rich.markup import escape

from currents_ingest.errors import CurrentsError, RetryableError, SettingsError
from currents_ingest.output import (
    err,
    out,
    print_json,
    show_outcome,
    show_status,
    show_survey,
    show_verified,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from currents_ingest.api import Outcome
    from currents_ingest.config import Settings

# Heavy modules (Polars, boto3) are imported by the commands that need them, so that
# --help answers at once.

T = TypeVar("T")
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
quarantine_app = typer.Typer(
    no_args_is_help=True, help="Files that could not be read whole."
)
app.add_typer(quarantine_app, name="quarantine")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file (default: currents.toml, if there)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
StrictOption = Annotated[
    bool,
    typer.Option("--strict", help="Exit with 3 if something needs a look."),
]
_config: list[Path | None] = [None]


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
    try:
        app()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
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
) -> None:
    """Braze Currents Avro in, Parquet feeds for Amperity out, each event once."""
    _config[0] = config
    _log(logging.DEBUG if verbose else logging.INFO)


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
    from currents_ingest.config import duration

    settings = _settings(config)
    ended = _ended()
    if every is None:
        _finish(api.poll(settings, stop=ended.is_set), json_, strict)
    pause = _checked(duration, every)
    while not ended.is_set():
        try:
            _report(api.poll(settings, stop=ended.is_set), json_)
        except RetryableError as error:
            err.print(f"[yellow]will try again:[/] {escape(error.told())}")
        ended.wait(pause.total_seconds())


@app.command()
def load(
    since: Annotated[str, typer.Option(help="First UTC day, YYYY-MM-DD.")],
    until: Annotated[str, typer.Option(help="First UTC day that is left out.")],
    config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be read.")] = False,
    json_: JsonOption = False,
    strict: StrictOption = False,
) -> None:
    """Ingest history; run it again and it goes on where it stopped."""
    from currents_ingest import api
    from currents_ingest.progress import Bar

    settings = _settings(config)
    first, last = _checked(_day, since), _checked(_day, until)
    ahead = api.survey(settings, first, last)
    if dry_run:
        if json_:
            print_json(ahead)
        else:
            show_survey(ahead)
        return
    with Bar(err, ahead.files, ahead.bytes) as bar:
        outcome = api.load(
            settings, first, last, stop=_ended().is_set, seen=bar.advance
        )
    _finish(outcome, json_, strict)


@app.command()
def status(config: ConfigOption = None, json_: JsonOption = False) -> None:
    """Say what was delivered, what is newest and what waits for someone."""
    from currents_ingest import status as status_

    found = status_.status(_settings(config))
    if json_:
        print_json(found)
        return
    show_status(found)


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

    first = _checked(_day, since) if since else None
    last = _checked(_day, until) if until else None
    found = verify_.verify(_settings(config), first, last)
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
        "end": _checked(_hour, end),
        "seed": seed,
        "versions": _one_of("--versions", versions, ("latest", "all")),
        "layout": _one_of("--layout", layout, ("new", "old", "2017", "mixed")),
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
    from currents_ingest.demo import demo as show

    _log(logging.ERROR)  # what it shows is the point, not how it came about
    if not show(out, folder):
        raise typer.Exit(1)


@quarantine_app.command("list")
def quarantine_list(config: ConfigOption = None, json_: JsonOption = False) -> None:
    """List the files in quarantine with their reasons."""
    from currents_ingest import api

    held = api.quarantine(_settings(config))
    if json_:
        print_json([one.model_dump(mode="json") for one in held])
        return
    for one in held:
        out.print(f"{escape(one.key)}\n    {escape(one.reason)}")
    out.print(f"{len(held)} files in quarantine")


@quarantine_app.command("show")
def quarantine_show(
    key: Annotated[str, typer.Argument(help="Key, as list prints it.")],
    config: ConfigOption = None,
) -> None:
    """Show what is known of one file."""
    from currents_ingest import api

    held = [one for one in api.quarantine(_settings(config)) if one.key == key]
    if not held:
        raise SettingsError((f"no file {key!r} is in quarantine",))
    for one in held:
        print_json(one.model_dump(mode="json"))


@quarantine_app.command("retry")
def quarantine_retry(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Keys; none with --all.")
    ] = None,
    config: ConfigOption = None,
    all_: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    json_: JsonOption = False,
) -> None:
    """Read files again now, for instance after a schema was learned."""
    from currents_ingest import api

    _finish(api.retry(_settings(config), _keys(keys, all_)), json_, strict=True)


@quarantine_app.command("discard")
def quarantine_discard(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Keys; none with --all.")
    ] = None,
    config: ConfigOption = None,
    all_: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Give files up for good; they stay in the source bucket."""
    from currents_ingest import api

    count = api.discard(_settings(config), _keys(keys, all_))
    out.print(f"{count} files discarded")


def _log(level: int) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
    )


def _settings(config: Path | None) -> Settings:
    from currents_ingest import config as config_

    return config_.read(config or _config[0])


def _report(outcome: Outcome, json_: bool) -> None:
    if json_:
        print_json(outcome)
    else:
        show_outcome(outcome)


def _finish(outcome: Outcome, json_: bool, strict: bool) -> NoReturn:
    _report(outcome, json_)
    if outcome.unread:
        raise typer.Exit(1)
    raise typer.Exit(3 if strict and outcome.needs_a_look else 0)


def _ended() -> threading.Event:
    """Return an event that SIGTERM sets; the batch in hand is finished then."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    return ended


def _keys(keys: list[str] | None, all_: bool) -> list[str]:
    if bool(keys) == all_:
        raise SettingsError(("name the keys, or say --all",))
    return keys or []


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise SettingsError(
            (f"{option} is one of {', '.join(allowed)}, not {value!r}",)
        )
    return value


def _day(text: str) -> date:
    return date.fromisoformat(text)


def _hour(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H").replace(tzinfo=UTC)


def _checked(read: Callable[[str], T], text: str) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise SettingsError((f"{text!r}: {error}",)) from None


def _say(error: CurrentsError, status_: int) -> int:
    err.print(f"[bold red]error:[/] {escape(error.told())}")
    return status_
