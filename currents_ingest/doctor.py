"""``doctor``: everything that a run needs, tried one by one, and how to mend it.

Each check is one function that yields findings. All run at the same time, so that a
host that never answers costs its own check alone.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from currents_ingest import backends, config, lease, policies
from currents_ingest.audiences import gathering, sync
from currents_ingest.audiences.asking import ask
from currents_ingest.audiences.gathering import Target
from currents_ingest.cache_entries import ASIDE
from currents_ingest.errors import (
    CurrentsError,
    ExportNotReadyError,
    NotThereError,
    SettingsError,
)
from currents_ingest.ledger import Ledger
from currents_ingest.probing import Finding, attempt, mend_of, written
from currents_ingest.probing_queue import queued
from currents_ingest.selection import select
from currents_ingest.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from currents_ingest.config import Settings
    from currents_ingest.probing import State

_PATIENCE = 12.0
"""Seconds that the checks may take."""
_LEAST_DISK = 500 * 10**6
_OPTIONAL = {
    "polars_avro": "fastavro decodes in its place, ten times slower",
    "polars_hash": "hashlib hashes personal fields in its place, a row at a time",
    "vl_convert": "the report has tables and no charts",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All findings, and the least that our role has to be allowed in AWS."""

    findings: tuple[Finding, ...]
    policy: str = ""
    usable: bool = True
    """The settings could be read."""

    @property
    def problems(self) -> int:
        """Return how many findings keep a run from working."""
        return sum(one.state == "problem" for one in self.findings)


@dataclass(frozen=True, slots=True)
class _Case:
    settings: Settings
    read_only: bool


def examine(path: Path | None, *, read_only: bool = False) -> Diagnosis:
    """Try everything.

    Args:
        path: Settings file; None: the usual one.
        read_only: Leave out what writes: a probe object below the ledger, which is
            removed again.
    """
    here = tuple(_here())
    try:
        settings = config.read(path)
    except SettingsError as error:
        wrong = [
            Finding("problem", "read the settings", one, "Mend it, then try again.")
            for one in error.problems
        ]
        return Diagnosis(findings=(*here, *wrong), usable=False)
    read = Finding("ok", "read the settings", _about(settings, path))
    case = _Case(settings, read_only)
    checks = [_credentials, _source, _queue, _feeds, _ledger, _courier, _cache]
    checks += [_schemas, _braze, _exports, _amperity, _listen]
    found = [one for part in _all(case, checks) for one in part]
    with_s3 = "s3" in {urlsplit(one).scheme for one in _urls(settings)}
    return Diagnosis(
        findings=(*here, read, *found),
        policy=policies.own(settings) if with_s3 else "",
    )


def _all(
    case: _Case, checks: Sequence[Callable[[_Case], Iterator[Finding]]]
) -> Iterator[list[Finding]]:
    """Yield what each check finds, in their order; none is waited for too long."""
    pool = ThreadPoolExecutor(len(checks), thread_name_prefix="doctor")
    kept: list[list[Finding]] = [[] for _ in checks]

    def run(check: Callable[[_Case], Iterator[Finding]], found: list[Finding]) -> None:
        what = str(check.__doc__).rstrip(".").lower()
        try:
            for one in check(case):
                found.append(one)  # noqa: PERF402 (what came before an error stays)
        except (CurrentsError, OSError) as error:
            told = error.told() if isinstance(error, CurrentsError) else str(error)
            found.append(Finding("problem", what, told, mend_of(told)))

    futures = [pool.submit(run, *one) for one in zip(checks, kept, strict=True)]
    wait(futures, _PATIENCE)
    pool.shutdown(wait=False, cancel_futures=True)
    for check, future, found in zip(checks, futures, kept, strict=True):
        if not future.done():
            what = str(check.__doc__).rstrip(".").lower()
            told = f"no answer within {_PATIENCE:.0f} s"
            mend = "Look at the network between this machine and the host."
            found = [*found, Finding("problem", what, told, mend)]  # noqa: PLW2901
        yield found


def _here() -> Iterator[Finding]:
    """Look at this machine."""
    told = f"currents-ingest {version('currents-ingest')}, Python "
    yield Finding("ok", "look at this machine", told + platform.python_version())
    for name, without in _OPTIONAL.items():
        if not find_spec(name):
            mend = "Install it, if there is a wheel for this platform."
            yield Finding("warning", f"find {name}", f"it is missing: {without}", mend)


def _about(settings: Settings, path: Path | None) -> str:
    where = path or (config.DEFAULT_PATH if config.DEFAULT_PATH.is_file() else None)
    return (
        f"{where or 'the environment'}: {settings.source.url} to {settings.feeds.url}"
    )


def _urls(settings: Settings) -> list[str]:
    exports = [one.source for one in settings.audiences.values()]
    return [settings.source.url, settings.feeds.url, *exports]


def _credentials(case: _Case) -> Iterator[Finding]:
    """Find AWS credentials."""
    if "s3" not in {urlsplit(one).scheme for one in _urls(case.settings)}:
        return
    tried, session = "find AWS credentials", backends.session()
    found = session.get_credentials()
    if found is None:
        mend = "Give this process a role, or say `aws sso login`, or set AWS_PROFILE."
        yield Finding("problem", tried, "there are none", mend)
        return
    ends: datetime | None = getattr(found, "_expiry_time", None)
    told = f"by {found.method}, region {session.region_name or 'not set'}"
    if ends:
        told += f", until {ends:%Y-%m-%d %H:%M} UTC"
    state: State = "ok" if session.region_name else "warning"
    mend = "" if session.region_name else "Set AWS_REGION to the buckets' region."
    yield Finding(state, tried, told, mend)


def _source(case: _Case) -> Iterator[Finding]:
    """List and read the Currents bucket."""
    url = case.settings.source.url
    store, tried = Store.open(url), f"list {url}"
    folders = store.folders()
    exports = [one for one in folders if "dataexport." in one or "event_type=" in one]
    if not exports:
        mend = "source.url is the folder that holds Braze's dataexport.* folders."
        yield Finding("warning", tried, "no folder of Braze's is there", mend)
        return
    yield Finding("ok", tried, f"{len(exports)} folders of Braze's")
    tried = f"read from {url}"
    first = next((one for page in store.listing(exports[0]) for one in page), None)
    if first is None:
        yield Finding("skipped", tried, "there is no file to read")
        return
    (head,) = store.heads([first], 4)
    if isinstance(head, CurrentsError):
        yield Finding("problem", tried, head.told(), mend_of(head.told()))
        return
    avro = bytes(head).startswith(b"Obj\x01")
    told = "a file's first bytes" + ("" if avro else ", which are not Avro's")
    yield Finding("ok", tried, told)


def _queue(case: _Case) -> Iterator[Finding]:
    """Look at the queue that S3 notifies."""
    if case.settings.source.queue:
        yield from queued(case.settings, read_only=case.read_only)


def _feeds(case: _Case) -> Iterator[Finding]:
    """Write to the feeds bucket and read it again."""
    url = case.settings.feeds.url
    path = backends.local_path(url)
    if case.read_only and path is not None and not path.exists():
        yield Finding("skipped", f"list {url}", "it is not there; a run makes it")
        return
    store = Store.open(url)
    yield attempt(f"list {url}", store.folders)
    if case.read_only:
        yield Finding("skipped", f"write to {url}", "--read-only")
        return
    yield from written(store)


def _ledger(case: _Case) -> Iterator[Finding]:
    """Read the ledger."""
    settings = case.settings
    path = backends.local_path(settings.feeds.url)
    if path is not None and not path.exists():
        yield Finding("skipped", "read the ledger", "there is none yet")
        return
    store = Store.open(settings.feeds.url)
    with closing(Ledger.look(store, settings.ledger.cache)) as ledger:
        head, aside = ledger.cache.head, len(ledger.cache.files(ASIDE))
    yield Finding("ok", "read the ledger", f"{head:,} entries, none missing")
    if aside:
        mend = "currents-ingest quarantine list says why."
        told = f"{aside:,} files wait for someone"
        yield Finding("warning", "look into the quarantine", told, mend)
    told = lease.holder(store) or "free"
    yield Finding("ok", "look at the lease", told)


def _courier(case: _Case) -> Iterator[Finding]:
    """Hold the feeds folder against courier patterns."""
    settings = case.settings
    source, feeds = (f"{one.rstrip('/')}/" for one in _urls(settings)[:2])
    tried = "hold the feeds folder against Amperity's file patterns"
    if feeds == source:
        mend = "Give the feeds a folder of their own."
        yield Finding("problem", tried, "it is the source, too", mend)
        return
    if feeds.startswith(source) or source.startswith(feeds):
        mend = "Give each a folder that is not within the other."
        yield Finding("warning", tried, "source and feeds lie within each other", mend)
    path = backends.local_path(settings.feeds.url)
    if path is not None and not path.exists():
        return
    store, foreign = Store.open(settings.feeds.url), []
    today = f"{datetime.now(UTC):%Y/%m/%d}"
    for folder in store.folders():
        feed = folder.strip("/")
        if feed.startswith("_"):
            continue
        ours = re.compile(rf"{re.escape(feed)}-\d{{8}}-\d{{10}}-\d{{5}}\.parquet")
        for page in store.listing(f"{feed}/{today}"):
            names = [one.key.rpartition("/")[2] for one in page]
            foreign += [
                f"{feed}/{today}/{name}"
                for name in names
                if name.startswith(f"{feed}-") and not ours.fullmatch(name)
            ]
    if foreign:
        told = f"{len(foreign)} objects that are not ours match, such as {foreign[0]}"
        yield Finding("problem", tried, told, "Remove them: Amperity would read them.")
    else:
        yield Finding("ok", tried, "nothing but finished objects matches today's")


def _cache(case: _Case) -> Iterator[Finding]:
    """Look at the cache file's folder."""
    path = case.settings.ledger.cache.absolute()
    there = next(one for one in (path, *path.parents) if one.exists())
    tried = f"look at {path}"
    if not os.access(there, os.W_OK):
        mend = (
            "Set ledger.cache (CURRENTS_LEDGER__CACHE) to a place that may be written."
        )
        yield Finding("problem", tried, f"{there} cannot be written", mend)
        return
    free = shutil.disk_usage(there).free
    state: State = "ok" if free > _LEAST_DISK else "warning"
    mend = "" if free > _LEAST_DISK else "Make room, or put ledger.cache elsewhere."
    yield Finding(state, tried, f"{free / 10**9:,.1f} GB free", mend)


def _schemas(case: _Case) -> Iterator[Finding]:
    """Read schemas and contracts."""
    chosen = select(case.settings)
    registry = chosen.registry
    types = registry.event_types()
    count = sum(len(registry.versions(one)) for one in types)
    told = f"{count} schemas of {len(types)} event types"
    urls = case.settings.schemas.urls
    more = f", {', '.join(urls)} included" if urls else ""
    yield Finding("ok", "read the schema folders", told + more)
    made = ", ".join(case.settings.feeds.include)
    told = f"{len(chosen.contracts)} known; the settings ask for {made}"
    yield Finding("ok", "read the contracts of unified feeds", told)


def _braze(case: _Case) -> Iterator[Finding]:
    """Ask Braze whether it takes our keys."""
    settings, asked = case.settings, set[str]()
    for name, audience in settings.audiences.items():
        target = sync.effective(settings, Target(name, audience))
        kind = "partner" if target.audience.to_partner else "REST API"
        if kind in asked:
            continue
        asked.add(kind)
        tried = f"ask Braze whether it takes the {kind} key"
        try:
            ask(settings, sync.key(settings, target), _PATIENCE / 2)
        except SettingsError as error:
            told = "; ".join(error.problems)
            yield Finding("problem", tried, told, "Set it in the environment.")
        except CurrentsError as error:
            yield Finding("problem", tried, error.told(), "See what it says.")
        else:
            yield Finding("ok", tried, "it does")


def _exports(case: _Case) -> Iterator[Finding]:
    """Look for the audiences' exports."""
    now = datetime.now(UTC)
    for name, audience in case.settings.audiences.items():
        target = sync.effective(case.settings, Target(name, audience))
        tried = f"find the export of {name}"
        try:
            found = gathering.find(target, now)
        except ExportNotReadyError as error:
            mend = "Nothing to do, if it is on its way."
            yield Finding("warning", tried, error.reason, mend)
        except (CurrentsError, NotThereError) as error:
            yield Finding("problem", tried, error.told(), mend_of(error.told()))
        else:
            times = [one.modified for one in found.parts if one.modified]
            when = f", of {max(times):%Y-%m-%d %H:%M} UTC" if times else ""
            told = f"{len(found.parts)} files{when}"
            yield Finding("ok", tried, told)


def _amperity(case: _Case) -> Iterator[Finding]:
    """Look for Amperity's token."""
    asked = case.settings.amperity
    if not (asked.tenant and (asked.workflow or asked.reconcile)):
        return
    tried = f"find Amperity's token in {asked.token_env}"
    if os.environ.get(asked.token_env):
        yield Finding("ok", tried, f"it is set, for tenant {asked.tenant}")
    else:
        yield Finding("problem", tried, "it is not set", "Set it, or leave tenant out.")


def _listen(case: _Case) -> Iterator[Finding]:
    """See whether the address of run is free."""
    if not (listen := case.settings.run.listen):
        return
    host, _, port = listen.rpartition(":")
    tried = f"see whether {listen} is free, for run"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host.strip("[]"), int(port)))
        except OSError as error:
            mend = "If it is not `run` itself that listens there, change run.listen."
            yield Finding("warning", tried, str(error.strerror), mend)
            return
    yield Finding("ok", tried, "it is")
