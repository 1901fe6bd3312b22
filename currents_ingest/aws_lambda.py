"""AWS Lambda: polls on a schedule, and audiences as soon as their export lies in S3.

A function that nears its time limit ends between two requests or batches and calls
itself once more; what was acknowledged or committed is not done again. Settings come
from ``currents.toml`` beside the code, from the file or object that ``CURRENTS_CONFIG``
names, and from the environment, as everywhere.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

import structlog

from currents_ingest import api, backends, config, logs, memory, status
from currents_ingest.audiences import sync
from currents_ingest.audiences.cohorts import effective
from currents_ingest.audiences.completeness import stems
from currents_ingest.audiences.gathering import Target
from currents_ingest.errors import (
    CurrentsError,
    ExportNotReadyError,
    LeaseHeldError,
    SettingsError,
    StoreError,
    TooLittleTimeError,
)
from currents_ingest.store import Store
from currents_ingest.units import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Protocol

    from currents_ingest.audiences.work import Run
    from currents_ingest.config import Settings

    class Context(Protocol):
        """What Lambda tells of an invocation."""

        invoked_function_arn: str

        def get_remaining_time_in_millis(self) -> int:
            """Return how long it may go on."""

    Again = Callable[[str, Mapping[str, Any]], None]
    """Invokes a function by its ARN with an event, and does not wait for it."""
    Task = Mapping[str, Any]

memory.keep_what_is_freed()
log = structlog.get_logger()

RESERVE = "CURRENTS_LAMBDA_RESERVE"
"""Variable that says how long before its limit an invocation ends; 60s if none."""
CONFIG = "CURRENTS_CONFIG"
"""Variable that names a settings file, or an object by its URL."""
SECRETS = "CURRENTS_SECRETS"
"""Variable that names a secret of Secrets Manager, which holds variables as JSON."""
_FRUITLESS = 3
"""Invocations that end without having done anything, before someone is told."""
_MARKER = ".DONE"


@dataclass(frozen=True, slots=True)
class Place:
    """What a task may use of the world around it."""

    folder: Path
    """Writable, and kept as long as the function is warm."""
    ends: Callable[[], bool]
    """Tells that it is time to come to an end."""

    def settings(self, read: Callable[[Path | None], Settings]) -> Settings:
        """Read settings, and keep within what the function has.

        Its memory is the limit's limit, and a relative cache goes to the folder.
        """
        found = read(self._file())
        has = int(os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "0")) * 10**6
        memory = min(found.limits.memory, has or found.limits.memory)
        cache = self.folder / found.ledger.cache
        return found.model_copy(
            update={
                "limits": found.limits.model_copy(update={"memory": memory}),
                "ledger": found.ledger.model_copy(update={"cache": cache}),
            }
        )

    def _file(self) -> Path | None:
        """Return the settings file, fetched if it is an object."""
        named = os.environ.get(CONFIG, "")
        if "://" not in named:
            return Path(named) if named else None
        above, _, name = named.rpartition("/")
        try:
            body = Store.open(above).get(name)
        except CurrentsError as error:
            raise SettingsError((f"{CONFIG}, {named}: {error.told()}",)) from error
        path = self.folder / "currents.toml"
        path.write_bytes(body)
        return path


def handler(
    event: Task, context: Context, again: Again = backends.invoke
) -> dict[str, Any]:
    """Do what an event asks for.

    Args:
        event: A scheduled one or ``{"do": "poll"}`` polls; ``{"do": "audience", "name":
            NAME}`` sends an audience, and so does an S3 notification (or one through
            EventBridge, SNS or SQS) of an object in its source; ``{"do": "status"}``
            looks.
        context: Lambda's.
        again: How to go on in another invocation.

    Returns:
        What came of it, for the log: figures alone.

    Raises:
        CurrentsError: It failed; Lambda tries the event again, and then hands it to
            the destination for failures.
    """
    logs.configure(logging.INFO, "json")  # the alarms read fields of it
    try:
        return _handled(event, context, again)
    except CurrentsError as error:
        log.warning("failed", told=error.told())
        raise
    except Exception as error:  # noqa: BLE001 (its text may quote what was read)
        last = extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
    raise RuntimeError(told)


def _handled(event: Task, context: Context, again: Again) -> dict[str, Any]:
    if secret := os.environ.get(SECRETS):
        os.environ.update(backends.secrets(secret))
    reserve = _reserve()
    folder = Path(tempfile.gettempdir()) / "currents"
    folder.mkdir(exist_ok=True)
    place = Place(folder, lambda: context.get_remaining_time_in_millis() < reserve)
    tasks = _tasks(event, place)
    if not tasks:
        return {"state": "nothing to do"}
    for one in tasks[1:]:  # each has an invocation of its own
        again(context.invoked_function_arn, one)
    task = tasks[0]
    found = _DO[task["do"]](task, place)
    log.info("ended", task=dict(task), **found)
    if found["state"] == "stopped":
        again(context.invoked_function_arn, _next(task, found["done"]))
    return {**task, **found}


def _reserve() -> float:
    """Return the milliseconds before its limit at which an invocation ends."""
    try:
        return duration(os.environ.get(RESERVE, "60s")).total_seconds() * 1000
    except ValueError as error:
        raise SettingsError((f"{RESERVE}: {error}",)) from None


def _poll(_: Task, place: Place) -> dict[str, Any]:
    """Poll; another run at work does what there is to do."""
    try:
        outcome = api.poll(place.settings(config.read), stop=place.ends)
    except LeaseHeldError as error:
        log.info("another run is at work", told=error.told())
        return {"state": "another run is at work"}
    if outcome.unread and not outcome.files:
        raise StoreError("read", f"{len(outcome.unread)} files", outcome.unread[0])
    return {
        "state": "stopped" if outcome.stopped or outcome.unread else "done",
        "done": outcome.files or outcome.messages.get("done", 0),
        "rows": outcome.rows_out,
        "quarantined": len(outcome.quarantined),
        "rejects": outcome.rejects,
        "drift": len(outcome.drift),
        "warnings": len(outcome.warnings),
        "needs_a_look": outcome.needs_a_look,
    }


def _audience(task: Task, place: Place) -> dict[str, Any]:
    """Send an audience, once its export is still.

    One that is still not complete then has been written to meanwhile: the event of
    that object follows, so one of an earlier object ends well.
    """
    settings = place.settings(config.read_audiences)
    name = task.get("name")
    if name not in settings.audiences:
        told = ", ".join(settings.audiences) or "none"
        raise SettingsError((f"there is no [audiences.{name}]; there are: {told}",))
    target = Target(name, settings.audiences[name])
    try:
        run = _sync(settings, target, place)
    except ExportNotReadyError as error:
        if not task.get("object"):
            raise
        log.warning("left to the event of a later object", told=error.told())
        return {"state": "not ready"}
    return {
        "state": run.state,
        "done": run.taken + run.unknown,
        "failed": run.failed,
        "unknown": run.unknown,
        "rejected": run.rejected,
        "requests": run.requests,
        "needs_a_look": run.needs_a_look,
    }


def _sync(settings: Settings, target: Target, place: Place) -> Run:
    key = sync.key(settings, target)
    settle = target.audience.settle.total_seconds()
    end = time.monotonic() + settle + 1
    try:
        return sync.sync(settings, target, key, stop=place.ends)
    except ExportNotReadyError as error:
        log.info("waiting for the export", seconds=settle, told=error.told())
    while (left := end - time.monotonic()) > 0 and not place.ends():
        time.sleep(min(1, left))
    return sync.sync(settings, target, key, stop=place.ends)


def _status(_: Task, place: Place) -> dict[str, Any]:
    found = status.status(place.settings(config.read))
    return {
        "state": "done",
        "entries": found.entries,
        "quarantined": found.quarantined,
        "drift": len(found.drift),
        "lease": found.lease,
        "needs_a_look": bool(found.look),
        "look": list(found.look),
        "newest": {one.feed: one.newest_hour.isoformat() for one in found.feeds},
    }


_DO = {"poll": _poll, "audience": _audience, "status": _status}


def _next(task: Task, done: int) -> Task:
    """Return the event that goes on with a task.

    Raises:
        TooLittleTimeError: Several invocations came to nothing.
    """
    fruitless = 0 if done else task.get("fruitless", 0) + 1
    if fruitless >= _FRUITLESS:
        raise TooLittleTimeError(task.get("name", task["do"]), fruitless)
    return {**task, "fruitless": fruitless}


def _tasks(event: Task, place: Place) -> list[Task]:
    """Return what an event asks for.

    Raises:
        SettingsError: Nothing that we know.
    """
    if event.get("do") in _DO:
        return [event]
    if event.get("detail-type") == "Scheduled Event":
        return [{"do": "poll"}]
    objects = list(_objects(event))
    settings = place.settings(config.read_audiences)
    sources = {
        name: effective(settings, name, one).source
        for name, one in settings.audiences.items()
    }
    names = {name for one in objects for name in _owners(one, sources)}
    if not names:
        log.warning("an object that is in no audience's source", objects=len(objects))
    return [{"do": "audience", "name": one, "object": True} for one in sorted(names)]


def _objects(event: Task) -> Iterator[str]:
    """Yield the URLs that a notification of S3's names, however it is wrapped.

    Raises:
        SettingsError: It is none.
    """
    if event.get("detail-type") == "Object Created":
        detail = event["detail"]
        yield f"s3://{detail['bucket']['name']}/{detail['object']['key']}"
    elif "s3" in event:  # a record of a direct one
        one = event["s3"]
        yield f"s3://{one['bucket']['name']}/{unquote_plus(one['object']['key'])}"
    elif text := event.get("body") or event.get("Message"):  # SQS's or SNS's
        yield from _objects(json.loads(text))
    elif "Sns" in event:
        yield from _objects(event["Sns"])
    elif "Records" in event:
        for record in event["Records"]:
            yield from _objects(record)
    elif event.get("Event") != "s3:TestEvent":  # S3 asks whether we are there
        told = "an event that is neither a schedule's, nor S3's, nor {'do': ...}"
        raise SettingsError((told,))


def _owners(url: str, sources: Mapping[str, str]) -> list[str]:
    """Return the audiences that an object belongs to, or the marker of one.

    A marker that is named after no source speaks of those in its folder.
    """
    if not url.upper().endswith(_MARKER):
        return [name for name, one in sources.items() if _holds(one, url)]
    stem = url[: -len(_MARKER)]
    named = [
        name
        for name, one in sources.items()
        if _holds(one, stem) or stem in stems(one.rstrip("/"))
    ]
    folder = stem.rpartition("/")[0]
    return named or [
        name
        for name, one in sources.items()
        if fnmatchcase(folder, one.rpartition("/")[0])
    ]


def _holds(source: str, url: str) -> bool:
    """Tell whether an object is a part of what a source names."""
    return fnmatchcase(url, source) or url.startswith(source.rstrip("/") + "/")
