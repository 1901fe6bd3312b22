"""What several commands share: options, settings, how a run ends."""

from __future__ import annotations

import os
import signal
import threading
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

from currents_ingest.errors import SettingsError
from currents_ingest.output import print_json, show_outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from currents_ingest.api import Outcome
    from currents_ingest.config import Settings

# Heavy modules (Polars, boto3) are imported by the commands that need them, so that
# --help answers at once.

T = TypeVar("T")
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file (default: currents.toml, if there)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
StrictOption = Annotated[
    bool,
    typer.Option("--strict", help="Exit with 3 if something needs a look."),
]
LOG_FORMAT = "CURRENTS_LOG_FORMAT"
"""Variable that is no setting of a run: how logs look."""
chosen: list[Path | None] = [None]
"""What --config before the subcommand says."""


def config_path(config: Path | None) -> Path | None:
    """Return what --config says, before or after the subcommand."""
    return config or chosen[0]


def settings_of(config: Path | None) -> Settings:
    """Read the settings."""
    from currents_ingest import config as config_

    return config_.read(config_path(config))


def settings_if_any(config: Path | None) -> Settings | None:
    """Read the settings; None where there are none at all."""
    from currents_ingest import config as config_

    path = config_path(config)
    in_environment = any(
        name.startswith("CURRENTS_") and name != LOG_FORMAT for name in os.environ
    )
    if path is None and not config_.DEFAULT_PATH.is_file() and not in_environment:
        return None
    return config_.read(path)


def shown(outcome: Outcome, json_: bool) -> None:
    """Print what a run came to."""
    if json_:
        print_json(outcome)
    else:
        show_outcome(outcome)


def finish(outcome: Outcome, json_: bool, strict: bool) -> NoReturn:
    """Print what a run came to, and end with its exit status."""
    shown(outcome, json_)
    if outcome.unread:
        raise typer.Exit(1)
    raise typer.Exit(3 if strict and outcome.needs_a_look else 0)


def ended() -> threading.Event:
    """Return an event that SIGTERM sets; the batch in hand is finished then."""
    event = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: event.set())
    return event


def chosen_keys(keys: list[str] | None, all_: bool) -> list[str]:
    """Check that either keys or --all are given."""
    if bool(keys) == all_:
        raise SettingsError(("name the keys, or say --all",))
    return keys or []


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    """Check an option that has a few values."""
    if value not in allowed:
        raise SettingsError(
            (f"{option} is one of {', '.join(allowed)}, not {value!r}",)
        )
    return value


def day(text: str) -> date:
    """Read YYYY-MM-DD."""
    return date.fromisoformat(text)


def hour(text: str) -> datetime:
    """Read YYYY-MM-DDTHH, in UTC."""
    return datetime.strptime(text, "%Y-%m-%dT%H").replace(tzinfo=UTC)


def checked(read: Callable[[str], T], text: str) -> T:
    """Read an argument; raises SettingsError if it is none."""
    try:
        return read(text)
    except ValueError as error:
        raise SettingsError((f"{text!r}: {error}",)) from None
