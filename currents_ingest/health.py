"""Whether ``run`` is alive, whether it keeps up, and why not."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading

    from currents_ingest.schedule import Schedule

POLL, LOOK = "poll", "look"
"""Tasks that everything hangs on: both buckets are reached by one of them."""
_STUCK = 60.0
"""Seconds without a turn of the schedule after which the process counts as dead."""
_GRACE = timedelta(minutes=1)


@dataclass(slots=True)
class Standing:
    """How a task stands."""

    fresh: datetime | None = None
    """When a run last ended well or got something done."""
    trouble: str = ""
    """Why the last run did not end well."""
    grave: bool = False
    """A person has to act."""


@dataclass(slots=True)
class Health:
    """How the process and its tasks stand."""

    schedule: Schedule
    ending: threading.Event
    standing: dict[str, Standing] = field(init=False)
    _beat: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.standing = {name: Standing() for name in self.schedule.jobs}

    def beat(self) -> None:
        """Say that the schedule has turned."""
        self._beat = time.monotonic()

    def dead(self) -> list[str]:
        """Return why the process is of no use any more; long work is no reason."""
        if self.ending.is_set():
            return []
        found = [f"the thread of {name} has ended" for name in self.schedule.dead()]
        if (silent := time.monotonic() - self._beat) > _STUCK:
            found.append(f"the schedule has not turned for {silent:.0f} s")
        return found

    def unready(self, now: datetime) -> list[str]:
        """Return what stands in the way of fresh feeds, and what needs a person."""
        found = ["ending"] if self.ending.is_set() else []
        poll = self.standing[POLL]
        if poll.fresh is None and not poll.trouble:
            found.append("the first poll has not ended")
        if late := self.late(POLL, now):
            found.append(f"a poll that ends well is overdue by {_span(late)}")
        for name, one in self.standing.items():
            if one.grave or (one.trouble and name in {POLL, LOOK}):
                found.append(f"{name}: {one.trouble}")
        return found

    def late(self, name: str, now: datetime) -> timedelta:
        """Return for how long a task is overdue; one of its times may be missed."""
        fresh, when = self.standing[name].fresh, self.schedule.jobs[name].when
        if fresh is None:
            return timedelta()
        return max(now - when.after(when.after(fresh)) - _GRACE, timedelta())


def _span(found: timedelta) -> str:
    minutes = int(found.total_seconds()) // 60
    return (
        f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    )
