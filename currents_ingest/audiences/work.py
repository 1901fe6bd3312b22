"""One run of an audience: what it was, what it does, and where that is kept."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import polars as pl
import structlog

from currents_ingest import lease
from currents_ingest.audiences import gathering, planning
from currents_ingest.audiences.braze import rest_url
from currents_ingest.audiences.journal import Journal, Step
from currents_ingest.audiences.mapping import ID, PART, REASON, STATE, WHAT
from currents_ingest.audiences.tables import ROW
from currents_ingest.audiences.telling import Teller
from currents_ingest.backends import local_path
from currents_ingest.errors import CurrentsError, GuardError, SettingsError
from currents_ingest.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from currents_ingest.audiences.gathering import Gathered, Target
    from currents_ingest.config import Settings

log = structlog.get_logger()

FOLDER = "_audiences"
SUMMARIES = "summaries"


@dataclass(slots=True, kw_only=True)
class Run:
    """One run of an audience, as ``audience status`` shows it."""

    run: str
    audience: str
    destination: str
    state: str = "running"
    """running, done, stopped, failed or nothing new."""
    began: str = ""
    ended: str = ""
    delivery: str = ""
    rows: int = 0
    rejected: int = 0
    rejects: str = ""
    """Where rejected rows are listed, with reasons."""
    new: int = 0
    changed: int = 0
    left: int = 0
    taken: int = 0
    """Objects that Braze acknowledged."""
    failed: int = 0
    unknown: int = 0
    requests: int = 0
    repeated_requests: int = 0
    seconds: float = 0.0
    """From the first request to the last answer."""
    reasons: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    cause: str = ""
    """Why it failed."""

    @property
    def needs_a_look(self) -> bool:
        """Tell whether something was not taken."""
        return bool(self.failed or self.unknown or self.rejected)


@dataclass(slots=True)
class Work:
    """A run that may write."""

    settings: Settings
    target: Target
    store: Store
    journal: Journal
    run: Run
    token: str

    def by_export(
        self, found: Gathered, key: str, stop: Callable[[], bool], *, force: bool
    ) -> Run:
        """Send what an export has that Braze has not."""
        self.run.delivery, self.run.rows = found.delivery.id, found.read
        self.run.rejected = found.rejected
        self.run.warnings = found.layout.warnings if found.layout else ()
        self.run.rejects = self._list_rejects(found)
        refused = objection(self.target, found, self.journal)
        if refused and not (force and found.rejected <= self._bearable(found)):
            self.run.state, self.run.cause = "failed", refused
            self._summarise()
            gathering.guard(self.target, found, self.journal.last.get("accepted"))
        with self.journal.snapshot(room(self.settings)) as snapshot:
            differences = planning.differences(snapshot, found, self.target.audience)
            frames = (one.send for one in differences if len(one.send))
            self._tell(frames, key, stop, found.rows.rows)
        return self.run

    def by_plan(
        self, path: Path, key: str, stop: Callable[[], bool], *, force: bool
    ) -> Run:
        """Send what a plan holds, if nothing was sent since."""
        plan = planning.read_plan(path)
        planning.fits(plan, self.target, self.run.destination, self.journal.head)
        if plan.guard and not force:
            raise GuardError(self.target.name, plan.guard, "")
        self.run.delivery = plan.delivery
        self._tell(planning.plan_rows(path), key, stop, plan.accepted)
        return self.run

    def again(self, name: str, key: str, stop: Callable[[], bool], unknown: str) -> Run:
        """Send once more what the run *name* could not."""
        before = [one.key for page in self.store.listing(SUMMARIES) for one in page]
        if summary(name) not in before:
            told = "`audience status` lists those there are."
            raise GuardError(self.target.name, f"there is no run {name!r}", told)
        kind = self.target.audience.kind
        if kind == "attributes" and before[-1] != summary(name):
            told = "A sync sends whatever Braze has not acknowledged."
            reason = f"a later run tried the people of {name} again"
            raise GuardError(self.target.name, reason, told)
        steps = [one for one in self.journal.undecided.values() if one.run == name]
        if steps and unknown == "keep":
            self._settle(steps)
        self.run.delivery = name
        again = steps if unknown == "send" else []
        self._tell(iter(self._failed(name)), key, stop, None, again)
        return self.run

    def nothing_new(self, delivery: str) -> Run:
        """Say that the delivery was sent before; leaves no trace."""
        self.run.delivery, self.run.state = delivery, "nothing new"
        return self.run

    def _tell(
        self,
        frames: Iterator[pl.DataFrame],
        key: str,
        stop: Callable[[], bool],
        accepted: int | None,
        again: Sequence[Step] = (),
    ) -> None:
        """Send rows; whatever happens, the run's summary says what came of it."""
        self._step("begin", {"delivery": self.run.delivery})
        self._summarise()
        teller = Teller(
            journal=self.journal,
            audience=self.target.audience,
            braze=self.settings.braze,
            run=self.token,
            stop=stop,
        )
        try:
            teller.tell(self._seen(frames), rest_url(self.settings.braze), key, again)
            self.run.state = "stopped" if teller.told.stopped else "done"
        except CurrentsError as error:
            self.run.state, self.run.cause = "failed", error.told()
            raise
        finally:
            self._sum_up(teller)
            self._summarise()
        self._end(accepted)

    def _end(self, accepted: int | None) -> None:
        whole = self.run.state == "done" and not self.run.failed
        about = dict(self.journal.last)
        if self.run.state == "done" and accepted is not None:
            about["accepted"] = accepted
        if accepted is not None:
            sent = [self.run.delivery, planning.digest(self.target.audience)]
            about["sent"] = sent if whole else []
        self._step("end", about)
        if self.journal.worth_folding:
            self.journal.fold(self.token, datetime.now(UTC), room(self.settings))

    def _seen(self, frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Count why rows are sent, as they go by."""
        for frame in frames:
            what = dict(frame[WHAT].value_counts().iter_rows())
            self.run.new += what.get("new", 0)
            self.run.changed += what.get("changed", 0)
            self.run.left += what.get("left", 0)
            yield frame

    def _sum_up(self, teller: Teller) -> None:
        one = self.run
        one.taken, one.failed = teller.told.taken, teller.told.failed
        one.unknown, one.reasons = teller.told.unknown, teller.told.reasons
        one.requests = teller.tally.requests
        one.repeated_requests = teller.tally.again
        one.seconds = round(teller.tally.seconds, 3)
        log.info("audience run ended", run=one.run, state=one.state, taken=one.taken)

    def _step(self, kind: Any, about: dict[str, Any]) -> None:
        now = datetime.now(UTC)
        self.journal.commit(Step(at=now, run=self.token, kind=kind, about=about))

    def _summarise(self) -> None:
        self.run.ended = "" if self.run.state == "running" else _now()
        body = json.dumps(asdict(self.run)).encode()
        self.store.put(summary(self.token), body)

    def _list_rejects(self, found: Gathered) -> str:
        if not found.rejected:
            return ""
        name = f"runs/{self.token}/rejects.jsonl"
        names = pl.Series(found.parts, dtype=pl.String)
        told = pl.concat(found.rejects).select(
            pl.col(PART).replace_strict(range(len(names)), names).alias("part"),
            pl.col(ROW).alias("row"),
            "reason",
        )
        self.store.put(name, told.write_ndjson().encode())
        return name

    def _bearable(self, found: Gathered) -> int:
        return int(found.read * self.target.audience.max_reject_share)

    def _failed(self, name: str) -> list[pl.DataFrame]:
        """Return rows that failed, without events that were sent since."""
        keys = [one.key for page in self.store.listing(f"runs/{name}") for one in page]
        found = [
            self.journal.read(one).filter(pl.col(STATE) == "failed")
            for one in keys
            if "/left-" in one
        ]
        rows = [one.drop(STATE, REASON) for one in found if len(one)]
        if self.target.audience.kind == "attributes" or not rows:
            return rows
        with self.journal.snapshot(room(self.settings)) as snapshot:
            sent = [one.select(ID) for one in snapshot.frames()]
        if not sent:
            return rows
        return [one.join(pl.concat(sent), on=ID, how="anti") for one in rows]

    def _settle(self, steps: Sequence[Step]) -> None:
        """Take it that what nobody knows of has arrived."""
        step = Step(
            at=datetime.now(UTC),
            run=self.token,
            kind="told",
            settles=tuple(one.number for one in steps),
        )
        self.journal.commit(step)


def objection(target: Target, found: Gathered, journal: Journal) -> str:
    """Return why the export looks wrong as a whole; empty: it does not."""
    try:
        gathering.guard(target, found, journal.last.get("accepted"))
    except GuardError as error:
        return str(error)
    return ""


@contextmanager
def at_work(settings: Settings, target: Target) -> Iterator[Work]:
    """Open an audience's ledger for a run; one at a time."""
    where = destination(settings, target)
    store = Store.open(_url(settings, target))
    now = datetime.now(UTC)
    token = f"{now:%Y%m%dT%H%M%S}.{now.microsecond:06}Z-{secrets.token_hex(2)}"
    holder = f"{socket.gethostname()} {os.getpid()}"
    with lease.hold(store, holder, settings.ledger.lease):
        run = Run(run=token, audience=target.name, destination=where, began=_now())
        yield Work(settings, target, store, Journal.open(store), run, token)


def look(settings: Settings, target: Target) -> tuple[Store, str]:
    """Open an audience's folder without making it."""
    url = _url(settings, target)
    path = local_path(url)
    if path is not None and not path.is_dir():
        url = f"memory://nothing-{secrets.token_hex(8)}"
    return Store.open(url), destination(settings, target)


def destination(settings: Settings, target: Target) -> str:
    """Return what a snapshot belongs to: host and kind of identifier."""
    host = urlsplit(rest_url(settings.braze)).netloc.replace(":", "-")
    return f"{host}/{target.audience.identifier}"


def _url(settings: Settings, target: Target) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", target.name):
        problem = f"audience {target.name!r}: use letters, digits, '_', '.' and '-'"
        raise SettingsError((problem,))
    where = destination(settings, target)
    return f"{settings.feeds.url.rstrip('/')}/{FOLDER}/{target.name}/{where}"


def room(settings: Settings) -> int:
    """Return the bytes that compressed rows may take."""
    return settings.limits.memory // 5


def summary(run: str) -> str:
    """Return where a run's summary lies."""
    return f"{SUMMARIES}/{run}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
