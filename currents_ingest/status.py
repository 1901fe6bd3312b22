"""What was delivered, what is newest, what waits for someone; a look only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from currents_ingest import lease
from currents_ingest.backends import Queue
from currents_ingest.compatibility import Comparison, Verdict, judge
from currents_ingest.contracts import feed_name
from currents_ingest.errors import AmperityError, CurrentsError
from currents_ingest.history import History, history, within
from currents_ingest.reconcile import reconcile
from currents_ingest.registry import open_registry
from currents_ingest.schemas import parse
from currents_ingest.session import looking
from currents_ingest.silence import judged
from currents_ingest.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from currents_ingest.audiences.work import Run
    from currents_ingest.cache import Cache
    from currents_ingest.config import Settings
    from currents_ingest.reconcile import Reconciled
    from currents_ingest.schemas import Registry
    from currents_ingest.silence import Rhythm, Sentinel

_DAYS = 7
"""Over which delays are taken."""
_NAMED = 3
"""Event types that are told one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedStatus:
    """One event type since its first batch."""

    event_type: str
    feed: str
    files: int
    rows_in: int
    rows_out: int
    duplicates: int
    rejects: int
    bytes: int
    newest_hour: datetime
    """Newest queued hour that was committed."""
    committed_at: str
    rows_24h: int = 0
    """Rows that Braze queued in the last 24 hours, as far as they were read."""
    duplicates_24h: int = 0
    """Of the commits of the last 24 hours, as is the next."""
    rejects_24h: int = 0
    """Those of unified feeds included."""
    delay: float | None = None
    """Minutes from event to commit: the median of the last seven days."""
    quarantined: int = 0
    verdict: str = ""
    """The sentinel's: ok, quiet, behind or new; empty: it is not watched."""
    told: str = ""
    """Why."""

    @property
    def needs_a_look(self) -> bool:
        """Tell whether it is quiet or behind, or rows or files were set aside."""
        return self.rank < 2

    @property
    def rank(self) -> int:
        """Return where it stands: 0 if nothing comes, 1 if something was set aside."""
        if self.verdict in {"quiet", "behind"}:
            return 0
        return 1 if self.quarantined or self.rejects_24h else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LastRun:
    """How an audience's last run went, or a few."""

    audience: str
    runs: tuple[Run, ...] = ()
    """The newest first; none: it was never sent."""
    told: str = ""
    """Why that is not known."""

    @property
    def trouble(self) -> str:
        """Say what is wrong, if anything is."""
        if self.told or not self.runs:
            return self.told
        run = self.runs[0]
        if run.state == "failed":
            return f"failed: {run.cause}"
        wrong = {
            "objects not taken": run.failed,
            "objects in doubt": run.undecided,
            "rows rejected": run.rejected,
        }
        return ", ".join(f"{count:,} {what}" for what, count in wrong.items() if count)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnifiedStatus:
    """One unified feed since its first object."""

    feed: str
    objects: int
    rows: int
    rejects: int
    bytes: int
    committed_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drifted:
    """A writer schema that its feed's contract does not know whole today."""

    event_type: str
    fingerprint: str
    verdict: Verdict
    differences: tuple[str, ...]
    seen: datetime
    """When a poll first met it."""
    key: str
    """A file that has it."""

    @property
    def needs_a_look(self) -> bool:
        """Tell whether a column is missing, or files cannot be read."""
        return self.verdict.rank > Verdict.COMPATIBLE.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The state of one feeds folder."""

    entries: int
    feeds: tuple[FeedStatus, ...]
    unified: tuple[UnifiedStatus, ...]
    quarantined: int
    drift: tuple[Drifted, ...]
    lease: str | None
    """Who is at work, and since when."""
    reconciled_at: datetime | None
    started_at: datetime | None
    """When Amperity's workflow was last started."""
    at: datetime
    sentinel: Sentinel
    audiences: tuple[LastRun, ...] = ()
    look: tuple[str, ...] = ()
    """What needs a look, a sentence each."""
    amperity: Reconciled | None = None
    """What Amperity read in the last seven days, if the settings ask for it."""
    amperity_error: str = ""
    """Why that is not known."""
    queue: tuple[int, int] | None = None
    """Messages in source.queue: about how many wait, and how many are in work."""
    queue_error: str = ""
    """Why that is not known."""


def status(settings: Settings, now: datetime | None = None) -> Status:
    """Read the ledger, look at the source and say how things stand; changes nothing."""
    return survey(settings, now or datetime.now(UTC))[0]


def survey(settings: Settings, now: datetime) -> tuple[Status, History]:
    """Return the status, and the weeks behind it."""
    registry = open_registry(settings.schemas)
    with looking(settings) as (source, ledger):
        past = history(ledger.cache)
        sentinel = judged(settings, source, ledger, past, now)
        holder = lease.holder(Store.open(settings.feeds.url))
        found = _of(ledger.cache, registry, holder, past, sentinel)
        found = replace(found, audiences=last_runs(settings))
        if settings.amperity.tenant and settings.amperity.reconcile:
            try:
                read = reconcile(settings.amperity, ledger, now)
                found = replace(found, amperity=read)
            except AmperityError as error:
                found = replace(found, amperity_error=str(error))
    if settings.source.queue:
        try:
            found = replace(found, queue=Queue.open(settings.source.queue).depth())
        except CurrentsError as error:
            found = replace(found, queue_error=error.told())
    return replace(found, look=tuple(_look(found))), past


def last_runs(settings: Settings, most: int = 1) -> tuple[LastRun, ...]:
    """Return the last runs of every audience; one that cannot be read stops nothing."""
    if not settings.audiences:
        return ()
    from currents_ingest.audiences.gathering import Target
    from currents_ingest.audiences.sync import runs

    found = []
    for name, audience in sorted(settings.audiences.items()):
        try:
            last = tuple(runs(settings, Target(name, audience))[:most])
            found.append(LastRun(audience=name, runs=last))
        except CurrentsError as error:
            found.append(LastRun(audience=name, told=error.told()))
    return tuple(found)


def _of(
    cache: Cache,
    registry: Registry,
    holder: str | None,
    past: History,
    sentinel: Sentinel,
) -> Status:
    return Status(
        entries=cache.head,
        feeds=tuple(_feeds(cache.table("totals"), past, sentinel)),
        unified=tuple(UnifiedStatus(**row) for row in cache.table("shares")),
        quarantined=sum(past.quarantine.values()),
        drift=drifted(cache, registry),
        lease=holder,
        reconciled_at=cache.reconciled(),
        started_at=cache.started(),
        at=sentinel.at,
        sentinel=sentinel,
    )


def _feeds(
    rows: Iterable[dict[str, Any]], past: History, sentinel: Sentinel
) -> Iterable[FeedStatus]:
    rhythms: dict[str, Rhythm] = {one.event_type: one for one in sentinel.types}
    aside: Counter[str] = Counter()
    for (event_type, _), count in past.quarantine.items():
        aside[event_type] += count
    now = int(sentinel.at.timestamp()) // 3600
    span = now - 23, now + 1
    for row in rows:
        del row["watermark"]
        event_type = row["event_type"]
        one, rhythm = past.of(event_type), rhythms.get(event_type)
        rejects = within(one.rejects, *span) + within(one.unfit, *span)
        yield FeedStatus(
            newest_hour=past.watermarks[event_type],
            rows_24h=within(one.queued, *span),
            duplicates_24h=within(one.duplicates, *span),
            rejects_24h=rejects,
            delay=one.typical("delay", 0.5, now // 24 - _DAYS + 1),
            quarantined=aside[event_type],
            verdict=rhythm.verdict if rhythm else "",
            told=rhythm.told if rhythm else "",
            **row,
        )


def _look(found: Status) -> Iterable[str]:
    """Yield what needs a look, the worst first."""
    if found.sentinel.source != "ok":
        yield found.sentinel.told
    yield from _types(found.sentinel)
    for last in found.audiences:
        if last.trouble:
            yield f"audience {last.audience}: {last.trouble}"
    if found.quarantined:
        yield (
            f"{found.quarantined:,} files in quarantine: see `currents-ingest "
            "quarantine list`"
        )
    if rejects := sum(one.rejects_24h for one in found.feeds):
        yield (
            f"{rejects:,} rows rejected in the last 24 hours: reasons are in _rejects/ "
            "beside the feeds"
        )
    if open_ := [one for one in found.drift if one.needs_a_look]:
        yield f"{len(open_)} schemas drifted: see `currents-ingest feeds list`"
    if found.queue_error:
        yield f"queue: {found.queue_error}"
    if found.amperity_error:
        yield f"Amperity: {found.amperity_error}"
    for told in found.amperity.differences if found.amperity else ():
        yield f"Amperity differs: {told}"


def _types(sentinel: Sentinel) -> Iterable[str]:
    """Yield event types that are quiet or behind; many of them in one sentence."""
    for verdict in ("quiet", "behind"):
        held = [one for one in sentinel.types if one.verdict == verdict]
        if len(held) <= _NAMED:
            yield from (f"{one.event_type} is {verdict}: {one.told}" for one in held)
            continue
        names = ", ".join(one.event_type for one in held[:_NAMED])
        others = len(held) - _NAMED
        yield f"{len(held)} event types are {verdict}: {names} and {others} others"


def drifted(cache: Cache, registry: Registry) -> tuple[Drifted, ...]:
    """Hold every schema that once drifted against today's contracts and registry."""
    found = []
    for drift, seen in cache.drift():
        event_type, fingerprint = drift.event_type, drift.fingerprint
        contract = cache.contract(feed_name(event_type))
        now = Comparison(drift.verdict, drift.differences)
        if contract and contract.event_type == event_type:
            writers = registry.writers(event_type)
            now = judge(parse(drift.avro), contract, writers)
        if now.verdict is not Verdict.KNOWN:
            found.append(
                Drifted(
                    event_type=event_type,
                    fingerprint=fingerprint,
                    verdict=now.verdict,
                    differences=now.differences,
                    seen=seen,
                    key=drift.key,
                )
            )
    return tuple(found)
