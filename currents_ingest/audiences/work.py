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
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import polars as pl
import structlog
from structlog.contextvars import bound_contextvars

from currents_ingest import lease
from currents_ingest.audiences import gathering, planning
from currents_ingest.audiences.braze import rest_url
from currents_ingest.audiences.client import PartnerKeys
from currents_ingest.audiences.journal import Journal, Step
from currents_ingest.audiences.mapping import (
    COHORT,
    ID,
    PART,
    REASON,
    REJECTS,
    STATE,
    WHAT,
)
from currents_ingest.audiences.tables import ROW
from currents_ingest.audiences.telling import Teller
from currents_ingest.backends import local_path
from currents_ingest.errors import CurrentsError, GuardError, SettingsError
from currents_ingest.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from currents_ingest.audiences.client import Key
    from currents_ingest.audiences.difference import Difference
    from currents_ingest.audiences.gathering import Gathered, Target
    from currents_ingest.config import Settings
    from currents_ingest.lease import Lease

log = structlog.get_logger()

FOLDER = "_audiences"
SUMMARIES = "summaries"
_MEND = "Mend the export or the settings; `audience preview` tells more."
_FORCE = "If it is right, say --force."
_OTHER_KEY = (
    "If it is of the same workspace, say audience sync --force once; if of another, "
    "name that one in braze.workspace, so that each has a snapshot of its own."
)


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
    undecided: int = 0
    """Objects, of this run and those before, of which nobody knows."""
    skipped: int = 0
    """Rows that are nobody's, or in no cohort."""
    cohorts: dict[str, list[int]] = field(default_factory=dict)
    """Joins and leaves by cohort."""
    repeated: int = 0
    """Rows that a later row of the same person took the place of."""
    data_points: int = 0
    """Of what was to be sent, where a contract is billed by them; an estimate."""
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
        return bool(self.failed or self.undecided or self.rejected)


@dataclass(slots=True)
class Work:
    """A run that may write."""

    settings: Settings
    target: Target
    store: Store
    journal: Journal
    run: Run
    token: str
    lease: Lease | None

    def by_export(
        self, found: Gathered, key: Key, stop: Callable[[], bool], *, force: bool
    ) -> Run:
        """Send what an export has that Braze has not."""
        self.run.delivery, self.run.rows = found.delivery.id, found.read
        self.run.rejected, self.run.warnings = found.rejected, found.warnings
        self.run.skipped = found.skipped
        self.run.rejects = self._list_rejects(
            rejects_of(found).write_ndjson().encode(), found.rejected
        )
        last = self.journal.last.get("accepted")
        self._refuse(gathering.unbearable(self.target, found), _MEND)
        if not force:
            self._refuse(gathering.suspicious(self.target, found, last), _FORCE)
            self._same_key(key)
        with self.journal.snapshot(room(self.settings)) as snapshot:
            differences = planning.differences(snapshot, found, self.target.audience)
            frames = (self._counted(one) for one in differences)
            self._tell(frames, key, stop, found.rows.rows)
        return self.run

    def by_plan(
        self, path: Path, key: Key, stop: Callable[[], bool], *, force: bool
    ) -> Run:
        """Send what a plan holds, if nothing was sent since."""
        plan = planning.read_plan(path)
        planning.fits(plan, self.target, self.run.destination, self.journal.head)
        self.run.delivery, self.run.rows = plan.delivery, plan.rows
        self.run.rejected, self.run.skipped = plan.rejected, plan.skipped
        self.run.warnings = plan.warnings
        rejects = planning.plan_rejects(path)
        self.run.rejects = self._list_rejects(rejects, self.run.rejected)
        if not force:
            self._refuse(plan.guard, _FORCE)
            self._same_key(key)
        self._tell(planning.plan_rows(path), key, stop, plan.accepted)
        return self.run

    def again(self, name: str, key: Key, stop: Callable[[], bool], unknown: str) -> Run:
        """Send once more what the run *name* could not."""
        before = [one.key for page in self.store.listing(SUMMARIES) for one in page]
        if summary(name) not in before:
            told = "`audience status` lists those there are."
            raise GuardError(self.target.name, f"there is no run {name!r}", told)
        self._same_key(key)
        steps = [one for one in self.journal.undecided.values() if one.run == name]
        deciding = bool(steps and unknown)
        newest = before[-1] == summary(name)
        of_people = self.target.audience.of_people
        if of_people and not newest and not deciding:
            told = "A sync sends whatever Braze has not acknowledged."
            reason = f"a later run tried the people of {name} again"
            raise GuardError(self.target.name, reason, told)
        failed = [] if of_people and not newest else self._failed(name)
        if unknown == "keep":
            self._settle(steps)
        self.run.delivery = name
        self._tell(iter(failed), key, stop, None, steps if unknown == "send" else [])
        return self.run

    def nothing_new(self, delivery: str) -> Run:
        """Say that the delivery was sent before; leaves no trace."""
        self.run.delivery, self.run.state = delivery, "nothing new"
        self.run.undecided = self._undecided()
        return self.run

    def stopped_reading(self, delivery: str) -> Run:
        """Say that the delivery was not read to its end: it has to be gone on with."""
        self.run.delivery, self.run.state = delivery, "stopped"
        self.run.undecided = self._undecided()
        self._summarise()
        return self.run

    def _undecided(self) -> int:
        """Return how many objects nobody knows of."""
        return sum(one.unknown_rows for one in self.journal.undecided.values())

    def _tell(
        self,
        frames: Iterator[pl.DataFrame],
        key: Key,
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
            check=self.lease.check if self.lease else lambda: None,
        )
        self.run.state = "failed"  # unless it ends
        try:
            teller.tell(self._seen(frames), rest_url(self.settings.braze), key, again)
            self.run.state = "stopped" if teller.told.stopped else "done"
        except BaseException as error:
            told = isinstance(error, CurrentsError) and error.told()
            self.run.cause = told or type(error).__name__
            raise
        finally:
            self._sum_up(teller)
            self._summarise()
        self._end(accepted, key)

    def _end(self, accepted: int | None, key: Key) -> None:
        done = self.run.state == "done"
        about = self.journal.last | {"key": self._mark_of(key)}
        if done and accepted is not None:
            about["accepted"] = accepted
        if accepted is not None:
            whole = done and not (self.run.failed or self.run.unknown)
            sent = [self.run.delivery, planning.digest(self.target.audience)]
            about["sent"] = sent if whole else []
        self._step("end", about)
        if self.journal.worth_folding:
            self.journal.fold(self.token, datetime.now(UTC), room(self.settings))

    def _refuse(self, reason: str, way_out: str) -> None:
        """Stop if there is a reason to; the run's summary says it."""
        if reason:
            error = GuardError(self.target.name, reason, way_out)
            self.run.state, self.run.cause = "failed", str(error)
            self._summarise()
            raise error

    def _same_key(self, key: Key) -> None:
        """See that the key is the last one: a key belongs to one workspace."""
        before = self.journal.last.get("key")
        if before and before != self._mark_of(key):
            reason = "the key is another one than the last run's"
            self._refuse(reason, _OTHER_KEY)

    def _mark_of(self, key: Key) -> str:
        """Return what tells keys apart, and gives none away."""
        secret = key.client_secret if isinstance(key, PartnerKeys) else key
        text = f"{self.run.destination} {secret}".encode()
        return sha256(text).hexdigest()[:12]

    def _counted(self, found: Difference) -> pl.DataFrame:
        self.run.repeated += found.repeated
        return found.send

    def _seen(self, frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Count why rows are sent, as they go by."""
        for frame in frames:
            if not len(frame):
                continue
            what = dict(frame[WHAT].value_counts().iter_rows())
            self.run.new += what.get("new", 0)
            self.run.changed += what.get("changed", 0)
            self.run.left += what.get("left", 0)
            self.run.data_points += planning.data_points(frame)
            if COHORT in frame.columns:
                planning.add_cohorts(self.run.cohorts, frame, self.target.audience)
            yield frame

    def _sum_up(self, teller: Teller) -> None:
        one = self.run
        one.taken, one.failed = teller.told.taken, teller.told.failed
        one.unknown, one.reasons = teller.told.unknown, teller.told.reasons
        one.undecided = self._undecided()
        one.requests = teller.tally.requests
        one.repeated_requests = teller.tally.again
        one.seconds = round(teller.tally.seconds, 3)
        log.info("audience run ended", state=one.state, taken=one.taken)

    def _step(self, kind: Any, about: dict[str, Any]) -> None:
        now = datetime.now(UTC)
        self.journal.commit(Step(at=now, run=self.token, kind=kind, about=about))

    def _summarise(self) -> None:
        self.run.ended = "" if self.run.state == "running" else _now()
        body = json.dumps(asdict(self.run)).encode()
        self.store.put(summary(self.token), body)

    def _list_rejects(self, rejects: bytes, count: int) -> str:
        if not count:
            return ""
        name = f"runs/{self.token}/rejects.jsonl"
        self.store.put(name, rejects)
        return name

    def _failed(self, name: str) -> list[pl.DataFrame]:
        """Return rows that failed, without events that were sent since."""
        keys = [one.key for page in self.store.listing(f"runs/{name}") for one in page]
        found = [
            self.journal.read(one).filter(pl.col(STATE) == "failed")
            for one in keys
            if "/left-" in one
        ]
        rows = [one.drop(STATE, REASON) for one in found if len(one)]
        if self.target.audience.of_people or not rows:
            return rows
        with self.journal.snapshot(room(self.settings)) as snapshot:
            sent = [one.select(ID) for one in snapshot.frames()]
        if not sent:
            return rows
        return [one.join(pl.concat(sent), on=ID, how="anti") for one in rows]

    def _settle(self, steps: Sequence[Step]) -> None:
        """Take it that what nobody knows of has arrived."""
        if not steps:
            return
        step = Step(
            at=datetime.now(UTC),
            run=self.token,
            kind="told",
            settles=tuple(one.number for one in steps),
        )
        self.journal.commit(step)


def rejects_of(found: Gathered) -> pl.DataFrame:
    """Return rejected rows with the names of their parts."""
    names = pl.Series(found.parts, dtype=pl.String)
    rejects = (
        pl.concat(found.rejects) if found.rejects else pl.DataFrame(schema=REJECTS)
    )
    return rejects.select(
        pl.col(PART).replace_strict(range(len(names)), names).alias("part"),
        pl.col(ROW).alias("row"),
        "reason",
    )


@contextmanager
def at_work(settings: Settings, target: Target) -> Iterator[Work]:
    """Open an audience's ledger for a run; one at a time."""
    where = destination(settings, target)
    store = Store.open(_url(settings, target))
    now = datetime.now(UTC)
    token = f"{now:%Y%m%dT%H%M%S}.{now.microsecond:06}Z-{secrets.token_hex(2)}"
    holder = f"{socket.gethostname()} {os.getpid()}"
    with (
        bound_contextvars(run=token, audience=target.name),
        lease.hold(store, holder, settings.ledger.lease) as held,
    ):
        run = Run(run=token, audience=target.name, destination=where, began=_now())
        yield Work(settings, target, store, Journal.open(store), run, token, held)


def look(settings: Settings, target: Target) -> tuple[Store, str]:
    """Open an audience's folder without making it."""
    url = _url(settings, target)
    path = local_path(url)
    if path is not None and not path.is_dir():
        url = f"memory://nothing-{secrets.token_hex(8)}"
    return Store.open(url), destination(settings, target)


def destination(settings: Settings, target: Target) -> str:
    """Return what a snapshot belongs to: host, workspace and kind of identifier."""
    host = urlsplit(rest_url(settings.braze)).netloc.replace(":", "-")
    named = f"{host}-{settings.braze.workspace}" if settings.braze.workspace else host
    if target.audience.kind == "cohort":
        route = target.audience.without_partner or settings.braze.partner
        return f"{named}/cohort-{route}"
    return f"{named}/{target.audience.identifier}"


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
