"""How logs look: lines for people or JSON for programs, on standard error.

What libraries log goes the same way, warnings and worse alone. An error's own text may
quote what was read, so of errors that are not ours only type and place are told, and of
libraries' messages only what stands in their source, with ``%s`` for the rest.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, Literal

import structlog
from structlog.stdlib import ProcessorFormatter

if TYPE_CHECKING:
    from collections.abc import MutableMapping

Format = Literal["console", "json"]
_FRAMES = 12
"""Innermost places that are told of an error."""


def configure(level: int, format_: Format = "console") -> None:
    """Set up logging for this process; ours from *level* on."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _errors_without_values,
    ]
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        processors=[*shared, ProcessorFormatter.wrap_for_formatter],
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[_without_arguments, *shared],
            processors=[ProcessorFormatter.remove_processors_meta, _renderer(format_)],
            use_get_message=False,
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(__package__).setLevel(level)
    logging.captureWarnings(capture=True)


def as_json() -> bool:
    """Tell whether logs are for programs."""
    return any(
        isinstance(one.formatter, ProcessorFormatter)
        and isinstance(one.formatter.processors[-1], structlog.processors.JSONRenderer)
        for one in logging.getLogger().handlers
    )


def _renderer(format_: Format) -> structlog.typing.Processor:
    if format_ == "json":
        return structlog.processors.JSONRenderer(default=str)
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())


def _without_arguments(
    _: Any, __: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Keep what a library's source says, and leave out what it filled in."""
    record: logging.LogRecord = event["_record"]
    event["event"] = str(event["event"]).strip().partition("\n")[0]
    if record.name == "py.warnings":
        event["event"] = "a library warned"
    event["logger"] = record.name
    return event


def _errors_without_values(
    _: Any, __: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Put an error's type and places in place of its text and traceback."""
    given = event.pop("exc_info", None)
    event.pop("stack_info", None)
    error = given if isinstance(given, BaseException) else None
    if given and error is None:
        error = given[1] if isinstance(given, tuple) else sys.exc_info()[1]
    if error is not None:
        event["error"] = type(error).__qualname__
        event["at"] = [
            f"{Path(one.filename).name}:{one.lineno} {one.name}"
            for one in extract_tb(error.__traceback__)[-_FRAMES:]
        ]
        if told := getattr(error, "told", None):  # one of ours
            event["told"] = told()
    return event
