"""``run``: one process that polls, syncs audiences on their schedules, and answers.

Polls and audiences have a lane each: a long load keeps no audience waiting, and no two
audiences share Braze's rate. Nothing that a task raises ends the process.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import structlog
from structlog.contextvars import bound_contextvars

from currents_ingest import api, report, silence, web
from currents_ingest.audiences import sync
from currents_ingest.audiences.gathering import Target
from currents_ingest.backends import Queue
from currents_ingest.crontab import Every, cron
from currents_ingest.errors import (
    CurrentsError,
    LeaseHeldError,
    RetryableError,
    SettingsError,
    StoreError,
)
from currents_ingest.health import LOOK, POLL, Health
from currents_ingest.metrics import CONTENT_TYPE, Metrics
from currents_ingest.schedule import Job, Schedule
from currents_ingest.session import looking_at_feeds

if TYPE_CHECKING:
    from collections.abc import Callable

    from currents_ingest.audiences.work import Run
    from currents_ingest.config import Settings
    from currents_ingest.metrics import Result
    from currents_ingest.pipeline import Committed
    from currents_ingest.schedule import When

log = structlog.get_logger()

Inbox = SimpleQueue[int | SettingsError]
"""What ends the process: a signal's number, or settings that cannot be used."""
_LOOK_EVERY = timedelta(minutes=5)
"""A look lists every event type once, and S3 asks money for that."""
_BEAT = 5.0
"""Seconds between two turns of the schedule, at most: a clock may be set meanwhile."""
_LEAST_MEMORY = 256 * 10**6


@dataclass(slots=True, kw_only=True)
class Service:
    """The process: its settings, its schedule, and how its tasks stand."""

    settings: Settings
    inbox: Inbox
    ending: threading.Event = field(default_factory=threading.Event)
    schedule: Schedule = field(init=False)
    metrics: Metrics = field(init=False)
    health: Health = field(init=False)
    _said: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        now = datetime.now(UTC)
        jobs = [self._poll_job(now), *self._audience_jobs(now)]
        if self.settings.run.listen:
            jobs.append(
                self._job(LOOK, LOOK, Every(_LOOK_EVERY, now), self._look, first=now)
            )
        names = [job.name for job in jobs]
        self.metrics = Metrics(names, scheduled(self.settings))
        self.schedule = Schedule(jobs, self.metrics.overran)
        self.health = Health(self.schedule, self.ending)

    def run(self) -> None:
        """Work until the inbox says to end, and finish what is in hand.

        Raises:
            SettingsError: They cannot be used, as the first poll found.
        """
        with ExitStack() as stack:
            if listen := self.settings.run.listen:
                address = stack.enter_context(web.serving(listen, self.pages()))
                log.info("listening", address=address)
            self.schedule.start()
            log.info("started", tasks=sorted(self.schedule.jobs))
            told = None
            while told is None:
                wait = min(self.schedule.turn(), _BEAT)
                self.health.beat()
                told = self._told(wait)
            log.info("ending", in_hand=self._running())
            self.ending.set()
            self.schedule.stop()
            self.schedule.join()
        log.info("ended")
        if isinstance(told, SettingsError):
            raise told

    def pages(self) -> web.Pages:
        """Return what answers, by path."""
        page = web.Kept(lambda: report.page(self.settings, datetime.now(UTC)))
        return {
            "/": page,
            "/report": page,
            "/metrics": self._metrics,
            "/healthz": lambda: _verdict(self.health.dead()),
            "/readyz": lambda: _verdict(self.health.unready(datetime.now(UTC))),
        }

    def _metrics(self) -> web.Answer:
        now = datetime.now(UTC)
        running = self._running()
        for name in self.schedule.jobs:
            self.metrics.set("currents_task_running", name in running, name)
            due = self.schedule.next_time(name).timestamp()
            self.metrics.set("currents_task_next_timestamp_seconds", due, name)
            late = self.health.late(name, now).total_seconds()
            self.metrics.set("currents_task_late_seconds", late, name)
        self.metrics.set("currents_ready", not self.health.unready(now))
        return web.Answer(200, CONTENT_TYPE, self.metrics.text())

    def _running(self) -> list[str]:
        lanes = self.schedule.lanes.values()
        return [found[0] for lane in lanes if (found := lane.running)]

    def _told(self, seconds: float) -> int | SettingsError | None:
        try:
            return self.inbox.get(timeout=max(seconds, 0.001))
        except Empty:
            return None

    # Tasks.

    def _poll_job(self, now: datetime) -> Job:
        """Poll at once: what was missed is found by listing, at the price of that."""
        run = self.settings.run
        every = Every(run.poll_every, now)
        when = cron(run.poll_cron, run.time_zone) if run.poll_cron else every
        return self._job(POLL, "polls", when, self._poll, first=now)

    def _audience_jobs(self, now: datetime) -> list[Job]:
        found, problems = [], list[str]()
        for name in scheduled(self.settings):
            target = Target(name, self.settings.audiences[name])
            try:
                sync.key(self.settings, target)  # one that is missing is told at once
                when, first = audience_times(self.settings, target, now)
            except SettingsError as error:
                problems += [one for one in error.problems if one not in problems]
                continue
            work, task = partial(self._sync, target), f"audience {name}"
            found.append(self._job(task, "audiences", when, work, first=first))
        if problems:
            raise SettingsError(tuple(problems))
        return found

    def _job(
        self,
        name: str,
        lane: str,
        when: When,
        work: Callable[[], Result],
        *,
        first: datetime | None,
    ) -> Job:
        attempt = partial(self._attempt, name, work)
        return Job(name=name, lane=lane, when=when, work=attempt, first=first)

    def _attempt(self, name: str, work: Callable[[], Result]) -> None:
        """Do a task, and keep how it ended."""
        began, one = time.monotonic(), self.health.standing[name]
        with bound_contextvars(task=name):
            try:
                result, trouble, grave = work(), "", False
            except LeaseHeldError as error:
                log.info("another run is at work", told=error.told())
                result, trouble, grave = "held", "", False
            except RetryableError as error:
                log.warning("will try again", told=error.told())
                result, trouble, grave = "retry", error.told(), False
            except CurrentsError as error:
                log.exception("failed")
                result, trouble, grave = "failed", error.told(), True
                self._unusable(name, error)
            except BaseException as error:  # a panic of Rust's, too
                log.exception("failed unexpectedly")
                kind = type(error).__name__
                result, trouble, grave = "failed", f"unexpected {kind}", True
        now = datetime.now(UTC)
        one.trouble, one.grave = trouble, grave
        if result in {"ok", "held"}:
            one.fresh = now
        self.metrics.ended(name, result, time.monotonic() - began, now)

    def _unusable(self, name: str, error: CurrentsError) -> None:
        """End if polls never worked because of the settings."""
        never = self.health.standing[POLL].fresh is None
        if name == POLL and never and isinstance(error, SettingsError):
            self.inbox.put(error)

    def _poll(self) -> Result:
        outcome = api.poll(
            shared(self.settings), stop=self.ending.is_set, seen=self._seen
        )
        self.metrics.polled(outcome)
        for told in outcome.warnings:
            log.warning("after delivery", told=told)
        if outcome.unread:
            first = outcome.unread[0]
            raise StoreError("read", f"{len(outcome.unread)} files", first)
        return "stopped" if outcome.stopped else "ok"

    def _seen(self, one: Committed) -> None:
        """Count a commit; a long load that gets on is not late."""
        self.metrics.committed(one)
        self.health.standing[POLL].fresh = datetime.now(UTC)

    def _sync(self, target: Target) -> Result:
        settings, began = shared(self.settings), datetime.now(UTC)
        key = sync.key(settings, target)
        try:
            run = sync.sync(settings, target, key, stop=self.ending.is_set)
        except CurrentsError:
            self._count_failed(target, began)
            raise
        self.metrics.synced(run)
        log.info("synced", run=run.run, **_figures(run))
        return "stopped" if run.state == "stopped" else "ok"

    def _count_failed(self, target: Target, began: datetime) -> None:
        """Count what a run did before it failed, from its own summary."""
        try:
            runs = sync.runs(self.settings, target)[:1]
        except CurrentsError:  # it is not known then
            return
        if runs and runs[0].run >= f"{began:%Y%m%dT%H%M%S.%f}":
            self.metrics.synced(runs[0])

    def _look(self) -> Result:
        now = datetime.now(UTC)
        sentinel = silence.watch(self.settings, now)
        with looking_at_feeds(self.settings) as ledger:
            self.metrics.looked(ledger.cache, sentinel, now)
        if queue := self.settings.source.queue:
            depth = zip(("waiting", "in_work"), Queue.open(queue).depth(), strict=True)
            for state, messages in depth:
                self.metrics.set("currents_queue_messages", messages, state)
        quiet = [one for one in sentinel.types if one.verdict in {"quiet", "behind"}]
        said = (sentinel.source, *(f"{one.event_type} {one.verdict}" for one in quiet))
        if said != self._said and sentinel.needs_a_look:
            log.warning("Braze's side", state=sentinel.source, told=sentinel.told)
            for one in quiet:
                log.warning("event type", event_type=one.event_type, told=one.told)
        self._said = said
        return "ok"


def serve(settings: Settings, inbox: Inbox) -> None:
    """Run until the inbox says to end.

    Raises:
        SettingsError: They cannot be used.
    """
    Service(settings=settings, inbox=inbox).run()


def scheduled(settings: Settings) -> list[str]:
    """Return the audiences that have a schedule."""
    return [name for name, one in settings.audiences.items() if one.every or one.cron]


def shared(settings: Settings) -> Settings:
    """Return the settings of one lane: half the memory, if both are at work."""
    if not scheduled(settings):
        return settings
    half = max(settings.limits.memory // 2, _LEAST_MEMORY)
    limits = settings.limits.model_copy(update={"memory": half})
    return settings.model_copy(update={"limits": limits})


def audience_times(
    settings: Settings, target: Target, now: datetime
) -> tuple[When, datetime | None]:
    """Return when an audience is due, and when first: at once if that was missed."""
    audience = target.audience
    try:
        newest = next(iter(sync.runs(settings, target)), None)
    except RetryableError as error:
        log.warning("last run not known", audience=target.name, told=error.told())
        newest = None
    began = datetime.fromisoformat(newest.began) if newest else None
    when: When
    if audience.every:
        when = Every(audience.every, began or now)
    else:
        when = cron(audience.cron, settings.run.time_zone)
    if newest is None or began is None:
        return when, now if audience.every else None
    if newest.state in {"running", "stopped"} or when.after(began) <= now:
        return when, now
    return when, None


def _figures(run: Run) -> dict[str, Any]:
    return {
        "state": run.state,
        "new": run.new,
        "changed": run.changed,
        "left": run.left,
        "acknowledged": run.taken,
        "objects_failed": run.failed,
        "unknown": run.unknown,
        "rejected": run.rejected,
        "requests": run.requests,
    }


def _verdict(reasons: list[str]) -> web.Answer:
    if reasons:
        return web.said(503, {"status": "not ok", "reasons": reasons})
    return web.said(200, {"status": "ok"})
