"""What runs when: APScheduler says what is due, lanes see that nothing runs twice.

A job that is due waits in its lane, once however often it came due. So one that is due
again while it runs, runs once more right after, and jobs of one lane take turns.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.base import BaseScheduler
from apscheduler.triggers.base import BaseTrigger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = structlog.get_logger()


class When(Protocol):
    """Says when a job is due."""

    def after(self, moment: datetime) -> datetime:
        """Return the first time after *moment*."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is done, and when."""

    name: str
    lane: str
    when: When
    work: Callable[[], None]
    first: datetime | None = None
    """When it is due for the first time; None: when its schedule says so."""


class Lane:
    """Jobs that take turns; each waits once at most, even while it runs."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, Job] = {}
        self._running: tuple[str, float] | None = None
        self._closed = False

    @property
    def running(self) -> tuple[str, float] | None:
        """Return which job runs, and since when by the monotonic clock."""
        return self._running

    def ask(self, job: Job) -> bool:
        """Let a job run when its turn comes; False: it runs or waits already."""
        with self._changed:
            idle = job.name not in self._waiting and (
                self._running is None or self._running[0] != job.name
            )
            if not self._closed:
                self._waiting.setdefault(job.name, job)
                self._changed.notify()
            return idle

    def begin(self, timeout: float | None = None) -> Job | None:
        """Wait for the next job and mark it as running; None: the lane is closed.

        Args:
            timeout: Seconds after which it is given up, too; None: wait for ever.
        """
        with self._changed:
            self._changed.wait_for(self._ready, timeout)
            if self._closed or not self._waiting or self._running:
                return None
            job = self._waiting.pop(next(iter(self._waiting)))
            self._running = job.name, time.monotonic()
            return job

    def done(self) -> None:
        """Say that the running job has ended."""
        with self._changed:
            self._running = None
            self._changed.notify()

    def close(self) -> None:
        """Begin no more jobs."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def work(self) -> None:
        """Do what is due until the lane is closed; a thread's work."""
        while job := self.begin():
            try:
                job.work()
            except Exception:
                log.exception("a task failed unexpectedly", task=job.name)
            finally:
                self.done()

    def _ready(self) -> bool:
        return self._closed or bool(self._waiting and self._running is None)


class Schedule:
    """Jobs with their times, and the lanes that they run in."""

    def __init__(
        self, jobs: Iterable[Job], overran: Callable[[str], None] = lambda _: None
    ) -> None:
        """Make a schedule.

        Args:
            jobs: Each with a name of its own.
            overran: Told of a job that came due before it had ended.
        """
        self.jobs = {job.name: job for job in jobs}
        self.lanes = {job.lane: Lane() for job in self.jobs.values()}
        self._overran = overran
        self._threads = [
            threading.Thread(target=lane.work, name=name, daemon=True)
            for name, lane in self.lanes.items()
        ]
        self._clock = _Clock(timezone=UTC)
        for job in self.jobs.values():
            given = {"next_run_time": job.first} if job.first else {}
            self._clock.add_job(
                self._due,
                _Trigger(job.when),
                args=[job],
                id=job.name,
                coalesce=True,
                max_instances=1,
                misfire_grace_time=None,
                **given,
            )
        self._clock.start()

    def start(self) -> None:
        """Let jobs run that are due."""
        for thread in self._threads:
            thread.start()

    def turn(self) -> float:
        """Hand what is due to its lane; return the seconds until the next time."""
        return self._clock.turn()

    def next_time(self, name: str) -> datetime:
        """Return when a job is due next."""
        found: datetime = self._clock.get_job(name).next_run_time
        return found

    def dead(self) -> list[str]:
        """Return the lanes whose thread has ended, though nobody told it to."""
        return [one.name for one in self._threads if not one.is_alive()]

    def stop(self) -> None:
        """Begin no more jobs."""
        for lane in self.lanes.values():
            lane.close()

    def join(self) -> None:
        """Wait for the jobs in hand."""
        for thread in self._threads:
            thread.join()
        self._clock.shutdown()

    def _due(self, job: Job) -> None:
        if not self.lanes[job.lane].ask(job):
            self._overran(job.name)


class _Trigger(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """When, in APScheduler's words; times missed in between are one."""

    def __init__(self, when: When) -> None:
        self._when = when

    def get_next_fire_time(
        self, previous_fire_time: datetime | None, now: datetime
    ) -> datetime:
        return self._when.after(max(previous_fire_time or now, now))


class _Clock(BaseScheduler):  # type: ignore[misc]  # APScheduler has no types
    """A scheduler that somebody else's loop turns."""

    def turn(self) -> float:
        wait: float = self._process_jobs()
        return wait

    def wakeup(self) -> None:
        """Nobody sleeps here."""

    def shutdown(self, *, wait: bool = True) -> None:
        super().shutdown(wait)

    def _create_default_executor(self) -> Any:
        return DebugExecutor()  # handing a job to its lane needs no thread
