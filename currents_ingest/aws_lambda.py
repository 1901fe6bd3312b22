"""AWS Lambda: polls on a schedule, and audiences as soon as their export lies in S3.

A function that nears its time limit ends between two requests or batches and calls
itself once more; what was acknowledged or committed is not done again. Settings come
from ``currents.toml`` beside the code, the file that ``CURRENTS_CONFIG`` names, and the
environment, as everywhere.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

import structlog

from currents_ingest import api, config, logs
from currents_ingest.audiences import sync
from currents_ingest.audiences.cohorts import effective
from currents_ingest.audiences.gathering import Target
from currents_ingest.backends import invoke
from currents_ingest.errors import (
    CurrentsError,
    LeaseHeldError,
    SettingsError,
    StoreError,
    TooLittleTimeError,
)
from currents_ingest.units import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Protocol

    class Context(Protocol):
        """What Lambda tells of an invocation."""

        invoked_function_arn: str

        def get_remaining_time_in_millis(self) -> int:
            """Return how long it may go on."""

    Again = Callable[[str, Mapping[str, Any]], None]
    """Invokes a function by its ARN with an event, and does not wait for it."""

log = structlog.get_logger()

RESERVE = "CURRENTS_LAMBDA_RESERVE"
"""Variable that says how long before its limit an invocation ends; 60s if none."""
POLL = "poll"
_FRUITLESS = 3
"""Invocations that end without having done anything, before someone is told."""
_MARKER = ".DONE"


def handler(
    event: Mapping[str, Any], context: Context, again: Again = invoke
) -> dict[str, Any]:
    """Do what an event asks for.

    Args:
        event: A scheduled one or ``{"do": "poll"}`` polls; ``{"do": "audience", "name":
            NAME}`` sends an audience, and so does an S3 notification (or one through
            EventBridge, SNS or SQS) of an object in its source.
        context: Lambda's.
        again: How to go on in another invocation.

    Returns:
        What came of each task, for the log: figures alone.

    Raises:
        CurrentsError: A task failed; Lambda tries the event again, and then hands it to
            the destination for failures.
    """
    logs.configure(logging.INFO, "json")
    os.environ.setdefault(
        "CURRENTS_LEDGER__CACHE", str(Path(tempfile.gettempdir()) / "currents.db")
    )
    reserve = duration(os.environ.get(RESERVE, "60s")).total_seconds() * 1000

    def ends() -> bool:
        return context.get_remaining_time_in_millis() < reserve

    found: dict[str, Any] = {}
    trouble: list[CurrentsError] = []
    for task in _tasks(event):
        name = task.get("name", POLL)
        try:
            found[name] = _do(task, ends)
        except CurrentsError as error:
            log.warning("failed", task=name, told=error.told())
            trouble.append(error)
            continue
        log.info("ended", task=name, **found[name])
        if found[name]["state"] == "stopped":
            again(context.invoked_function_arn, _next(task, found[name]["done"]))
    if trouble:
        raise trouble[0]
    return found


def _do(task: Mapping[str, Any], ends: Callable[[], bool]) -> dict[str, Any]:
    if task["do"] == POLL:
        return _poll(ends)
    settings = config.read_audiences(_path())
    if task["name"] not in settings.audiences:
        raise SettingsError((f"there is no [audiences.{task['name']}]",))
    target = Target(task["name"], settings.audiences[task["name"]])
    run = sync.sync(settings, target, sync.key(settings, target), stop=ends)
    return {
        "state": run.state,
        "done": run.taken,
        "failed": run.failed,
        "unknown": run.unknown,
        "rejected": run.rejected,
        "requests": run.requests,
    }


def _poll(ends: Callable[[], bool]) -> dict[str, Any]:
    """Poll; another run at work does what there is to do."""
    try:
        outcome = api.poll(config.read(_path()), stop=ends)
    except LeaseHeldError as error:
        log.info("another run is at work", told=error.told())
        return {"state": "held", "done": 0}
    if outcome.unread and not outcome.files:
        raise StoreError("read", f"{len(outcome.unread)} files", outcome.unread[0])
    return {
        "state": "stopped" if outcome.stopped else "done",
        "done": outcome.files,
        "rows": outcome.rows_out,
        "quarantined": len(outcome.quarantined),
        "rejects": outcome.rejects,
        "unread": len(outcome.unread),
        "warnings": len(outcome.warnings),
    }


def _next(task: Mapping[str, Any], done: int) -> dict[str, Any]:
    """Return the event that goes on with a task.

    Raises:
        TooLittleTimeError: Several invocations came to nothing.
    """
    fruitless = 0 if done else task.get("fruitless", 0) + 1
    if fruitless >= _FRUITLESS:
        raise TooLittleTimeError(task.get("name", POLL), fruitless)
    return {**task, "fruitless": fruitless}


def _tasks(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what an event asks for.

    Raises:
        SettingsError: Nothing that we know.
    """
    if event.get("do") in {POLL, "audience"}:
        return [event]
    if event.get("detail-type") == "Scheduled Event":
        return [{"do": POLL}]
    objects = list(_objects(event))
    if not objects:
        told = "an event that is neither a schedule's, nor S3's, nor {'do': ...}"
        raise SettingsError((told,))
    settings = config.read_audiences(_path())
    names = [
        name
        for name, one in settings.audiences.items()
        if any(_is_of(effective(settings, name, one).source, url) for url in objects)
    ]
    if not names:
        log.info("no audience's source", objects=len(objects))
    return [{"do": "audience", "name": name} for name in names]


def _objects(event: Mapping[str, Any]) -> Iterator[str]:
    """Yield the URLs that a notification of S3's names, however it is wrapped."""
    if event.get("detail-type") == "Object Created":
        detail = event["detail"]
        yield f"s3://{detail['bucket']['name']}/{detail['object']['key']}"
    for record in event.get("Records", ()):
        if "s3" in record:
            one = record["s3"]
            key = unquote_plus(one["object"]["key"])
            yield f"s3://{one['bucket']['name']}/{key}"
        elif text := record.get("body") or record.get("Sns", {}).get("Message"):
            yield from _objects(json.loads(text))
    if isinstance(event.get("Message"), str):  # SNS within SQS
        yield from _objects(json.loads(event["Message"]))


def _is_of(source: str, url: str) -> bool:
    """Tell whether an object, or the marker of one, belongs to a source."""
    plain = url.removesuffix(_MARKER)
    if fnmatchcase(plain, source) or fnmatchcase(url, source):
        return True
    return "*" not in source and url.startswith(source.rstrip("/") + "/")


def _path() -> Path | None:
    named = os.environ.get("CURRENTS_CONFIG")
    return Path(named) if named else None
