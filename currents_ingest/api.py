"""What each command does, as a function that returns a value.

For Airflow, Dagster or a notebook::

    from currents_ingest import config
    from currents_ingest.api import poll

    outcome = poll(config.read(Path("currents.toml")))
    print(outcome.rows_out)
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from itertools import chain, count, islice
from typing import TYPE_CHECKING, NamedTuple

import structlog

from currents_ingest import after, discover, joining, quiet
from currents_ingest.cache_entries import ASIDE
from currents_ingest.discover import Window
from currents_ingest.drain import draining
from currents_ingest.engine import Threads
from currents_ingest.errors import (
    LedgerConflictError,
    NotThereError,
    SettingsError,
    SkippableError,
    WorkLostError,
)
from currents_ingest.manifest import Drift, Entry, FileId, SetAside
from currents_ingest.session import TRIES, begin, looking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager
    from datetime import timedelta

    from currents_ingest.config import Limits, Settings
    from currents_ingest.discover import Found
    from currents_ingest.drain import Drain
    from currents_ingest.engine import Engine
    from currents_ingest.pipeline import Committed
    from currents_ingest.session import Session

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a poll, a load or a retry came to."""

    entries: tuple[int, ...] = ()
    files: int = 0
    bytes_in: int = 0
    rows_in: int = 0
    rows_out: int = 0
    duplicates: int = 0
    rejects: int = 0
    unified_rejects: int = 0
    """Rows that a unified feed could not take; the raw feed has them."""
    objects: int = 0
    """Feed objects published."""
    quarantined: tuple[SetAside, ...] = ()
    unread: tuple[str, ...] = ()
    """What the bucket did not give, with the reason; it is tried again next time."""
    drift: tuple[Drift, ...] = ()
    """Schemas met for the first time that their feed's contract does not know whole."""
    waiting: int = 0
    """Files held back until there are more of them; see feeds.max_wait."""
    messages: dict[str, int] = field(default_factory=dict)
    """Messages of source.queue by what became of them: done, foreign (nothing of ours
    in it), unknown (left to the queue) or returned, to come again."""
    stopped: bool = False
    """Asked to stop before everything was done."""
    warnings: tuple[str, ...] = ()
    """What did not go well after delivery: joins, and what [amperity] asks for."""

    @property
    def needs_a_look(self) -> bool:
        """Tell whether something was set aside, drifted or went wrong afterwards."""
        rejects = self.rejects + self.unified_rejects
        return bool(self.quarantined or rejects or self.drift or self.warnings)

    def plus(self, committed: Committed) -> Outcome:
        """Add one commit."""
        unread = tuple(f"{key}: {error.told()}" for key, error in committed.unread)
        entry = committed.entry
        if entry is None:
            return replace(self, unread=self.unread + unread)
        batches = entry.batches
        return replace(
            self,
            entries=(*self.entries, entry.number),
            files=self.files + sum(len(one.inputs) for one in batches),
            bytes_in=self.bytes_in + sum(i.size for one in batches for i in one.inputs),
            rows_in=self.rows_in + sum(one.rows_in for one in batches),
            rows_out=self.rows_out + sum(one.rows_out for one in batches),
            duplicates=self.duplicates + sum(one.duplicates for one in batches),
            rejects=self.rejects + sum(one.rejects for one in batches),
            unified_rejects=self.unified_rejects
            + sum(share.rejects for one in batches for share in one.shares),
            objects=self.objects + sum(one.kind == "feed" for one in entry.outputs),
            quarantined=self.quarantined + entry.set_aside,
            unread=self.unread + unread,
            drift=self.drift + entry.schemas,
        )


@dataclass(frozen=True, slots=True)
class Survey:
    """What a load would read."""

    files: int
    """Foreign ones included."""
    bytes: int
    by_event_type: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Files and bytes."""
    foreign: int = 0


def never() -> bool:
    """Never ask to stop."""
    return False


def poll(
    settings: Settings,
    *,
    stop: Callable[[], bool] = never,
    seen: Callable[[Committed], None] = lambda _: None,
) -> Outcome:
    """Ingest what is new, once.

    Args:
        settings: Where from, where to.
        stop: Asked between batches; True ends the run after the batches in hand.
        seen: Told of each commit.

    Raises:
        LeaseHeldError: Another run is at work; nothing was done.
        StoreError: A bucket could not be reached; what was committed stays.
    """
    with begin(settings) as session:
        started = datetime.now(UTC)
        cache = session.ledger.cache
        last = cache.reconciled()
        whole = last is None or started - last >= settings.source.reconcile

        def window(event_type: str) -> Window:
            newest = None if whole else cache.watermark(event_type)
            return Window(since=newest and newest - settings.source.lookback)

        # What a full listing finds may lie behind the look-back: it does not wait.
        hold = None if whole else settings.feeds.max_wait
        with _draining(session, stop) as queue:
            ways = [_listing(session, window)] if whole or not queue else []
            ways += [Way(queue.found, queue.settle, queue.goes_on)] if queue else []
            outcome = _ingest(session, ways, stop, seen, hold)
            if queue:
                stopped = outcome.stopped or queue.stopped
                outcome = replace(outcome, stopped=stopped, messages=queue.told())
        trouble: tuple[str, ...] = ()
        if not outcome.stopped:
            trouble = _joined(session)
        if settings.feeds.empty_objects and not outcome.stopped:
            quiet.fill(session, datetime.now(UTC))
        if whole and not outcome.stopped and not outcome.unread:
            stamp = Entry(at=datetime.now(UTC), run=session.token, reconciled=started)
            session.decide(lambda: stamp)
        session.ledger.fold(session.token, datetime.now(UTC))
        warnings = after.follow_up(session, datetime.now(UTC), compare=whole)
        _report(outcome)
        return replace(outcome, warnings=trouble + warnings)


def load(  # noqa: PLR0913 (three of them by name, each rare)
    settings: Settings,
    since: date,
    until: date,
    *,
    engine: Callable[[Limits], Engine] = Threads,
    stop: Callable[[], bool] = never,
    seen: Callable[[Committed], None] = lambda _: None,
) -> Outcome:
    """Ingest the files queued from *since* to before *until*, in UTC days.

    What is done already is passed over, so a load that ended early goes on. *engine*
    makes what the work runs on; other arguments and errors are those of poll.

    Raises:
        EngineError: The cluster was lost; what was committed stays.
    """
    hours = _window(since, until)
    with begin(settings, engine) as session:
        outcome = _ingest(session, [_listing(session, lambda _: hours)], stop, seen)
        warnings = after.follow_up(session, datetime.now(UTC), compare=False)
        return replace(outcome, warnings=warnings)


def survey(settings: Settings, since: date, until: date) -> Survey:
    """Say what a load would read; changes nothing."""
    hours = _window(since, until)
    by_type: dict[str, tuple[int, int]] = {}
    foreign = 0
    with looking(settings) as (source, ledger):
        for page in discover.new_files(
            source,
            ledger,
            settings.source.events,
            lambda _: hours,
            at_once=settings.limits.concurrency,
        ):
            files, size = by_type.get(page.event_type, (0, 0))
            files += len(page.files)
            size += sum(file.listed.size for file in page.files)
            by_type[page.event_type] = files, size
            foreign += len(page.foreign)
    return Survey(
        sum(files for files, _ in by_type.values()) + foreign,
        sum(size for _, size in by_type.values()),
        by_type,
        foreign,
    )


def quarantine(settings: Settings) -> list[SetAside]:
    """Return the files in quarantine, by key; changes nothing."""
    with looking(settings) as (_, ledger):
        return ledger.cache.files(ASIDE)


def retry(settings: Settings, keys: Sequence[str]) -> Outcome:
    """Take files out of quarantine and read them again now.

    Args:
        settings: Where from, where to.
        keys: Keys as ``quarantine`` lists them; none: all.
    """
    with begin(settings) as session:
        files = _chosen(session, keys)
        entry = _decision(session, released=files)
        session.decide(lambda: entry)
        return _ingest(session, [Way(tuple)], never, lambda _: None)


def discard(settings: Settings, keys: Sequence[str]) -> int:
    """Give quarantined files up for good; return how many."""
    with begin(settings) as session:
        files = _chosen(session, keys)
        entry = _decision(session, discarded=files)
        session.decide(lambda: entry)
        return len(files)


def _joined(session: Session) -> tuple[str, ...]:
    """Join what waits; what goes wrong waits for the next poll and stops nothing."""
    try:
        joining.join_what_waits(session, datetime.now(UTC))
    except SkippableError as error:
        log.warning("not joined", told=error.told())
        return (error.told(),)
    return ()


def _draining(
    session: Session, stop: Callable[[], bool]
) -> AbstractContextManager[Drain | None]:
    named = session.settings.source.queue
    return draining(session, stop) if named else nullcontext()


class Way(NamedTuple):
    """How new files are found, and who takes note of a commit first."""

    found: Callable[[], Iterable[Found]]
    settle: Callable[[Committed], Committed] = lambda committed: committed
    goes_on: Callable[[], bool] = lambda: False
    """Whether another run would find more."""


def _listing(session: Session, window: Callable[[str], Window]) -> Way:
    source, settings = session.source, session.settings
    events, at_once = settings.source.events, settings.limits.concurrency

    def found() -> Iterable[Found]:
        return discover.new_files(
            source, session.ledger, events, window, at_once=at_once
        )

    return Way(found)


def _ingest(
    session: Session,
    ways: Iterable[Way],
    stop: Callable[[], bool],
    seen: Callable[[Committed], None],
    hold: timedelta | None = None,
) -> Outcome:
    outcome = Outcome()
    attempts = count()  # through all runs, for they name what is staged
    for way in ways:
        more = True
        while more and not outcome.stopped:
            for attempt in islice(attempts, TRIES):
                waiting: list[int] = []
                try:
                    run = session.run(attempt, stop)
                    for committed in run.over(_batches(session, way, hold, waiting)):
                        settled = way.settle(committed)
                        outcome = outcome.plus(settled)
                        seen(settled)
                        session.ledger.fold(session.token, datetime.now(UTC))
                    break
                except (LedgerConflictError, WorkLostError) as error:
                    log.info("planning anew", why=error.told())
                    session.ledger.catch_up()
            else:
                raise LedgerConflictError(session.ledger.cache.head + 1)
            waits = outcome.waiting + sum(waiting)
            outcome = replace(outcome, stopped=run.stopped, waiting=waits)
            more = way.goes_on()
    return outcome


def _batches(
    session: Session, way: Way, hold: timedelta | None, waiting: list[int]
) -> Iterable[Found]:
    """Find files and group them; what is held back is told to *waiting*."""
    target = session.settings.feeds.target_size
    found: Iterable[Found] = chain(discover.released(session.ledger.cache), way.found())
    if hold:
        oldest = datetime.now(UTC) - hold
        found = discover.worth_an_object(found, target, oldest, waiting.append)
    return discover.batches(found, min(session.engine.bytes_each, target))


def _report(outcome: Outcome) -> None:
    log.info(
        "polled",
        files=outcome.files,
        rows_in=outcome.rows_in,
        rows_out=outcome.rows_out,
        duplicates=outcome.duplicates,
        rejects=outcome.rejects,
        quarantined=len(outcome.quarantined),
        drift=len(outcome.drift),
        unread=len(outcome.unread),
        waiting=outcome.waiting,
        stopped=outcome.stopped,
    )


def _decision(session: Session, **files: tuple[FileId, ...]) -> Entry:
    return Entry.model_validate(
        {"at": datetime.now(UTC), "run": session.token, **files}
    )


def _chosen(session: Session, keys: Sequence[str]) -> tuple[FileId, ...]:
    held = session.ledger.cache.files(ASIDE)
    if missing := set(keys) - {one.key for one in held}:
        raise NotThereError(f"{min(missing)!r} in quarantine")
    return tuple(
        FileId(key=one.key, etag=one.etag, size=one.size)
        for one in held
        if not keys or one.key in keys
    )


def _window(since: date, until: date) -> Window:
    if since >= until:
        message = (
            f"--since {since} is not before --until {until} (the first day left out)"
        )
        raise SettingsError((message,))
    return Window(
        datetime.combine(since, time(), UTC), datetime.combine(until, time(), UTC)
    )
