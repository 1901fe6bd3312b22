"""A day of `run` by a simulated clock: what is due runs then, never twice at once."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from queue import SimpleQueue
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest
import time_machine
from hypothesis import given, settings
from hypothesis import strategies as st

from currents_ingest import config
from currents_ingest.crontab import Every, cron
from currents_ingest.schedule import Job, Lane, Schedule
from currents_ingest.service import Service
from tests.cron_rules import JUMPS, Watched, fires

if TYPE_CHECKING:
    from collections.abc import Sequence

MINUTE = timedelta(minutes=1)
PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Task:
    """What a simulated day has to do."""

    name: str
    lane: str
    when: str
    """Cron text, or minutes."""
    minutes: int = 0
    """How long it takes."""


@dataclass(frozen=True, slots=True)
class Day:
    """A stretch of time in a zone."""

    zone: str
    since: datetime
    until: datetime

    def due(self, task):
        """Return when a task is due, by a reckoning that shares nothing with ours."""
        if not task.when.isdecimal():
            return fires(Watched(task.when, self.zone), self.since, self.until)
        period = int(task.when) * MINUTE
        times = range(1, (self.until - self.since) // period + 1)
        return [self.since + n * period for n in times]


def day_of(zone, date, hours=24):
    since = datetime.fromisoformat(date).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    return Day(zone, since, since + timedelta(hours=hours))


def lived(day: Day, tasks: Sequence[Task], late: Sequence[str] = ()):
    """Live through a day by our schedule; return when each task began."""
    with time_machine.travel(day.since, tick=False) as clock:
        schedule = Schedule(
            Job(
                name=task.name,
                lane=task.lane,
                when=Every(int(task.when) * MINUTE, day.since)
                if task.when.isdecimal()
                else cron(task.when, day.zone),
                work=lambda: None,
                first=day.since if task.name in late else None,
            )
            for task in tasks
        )
        minutes = {task.name: task.minutes for task in tasks}
        return driven(schedule, day, minutes, clock)


def driven(schedule, day: Day, minutes, clock):
    """Drive a schedule through a day; nothing sleeps.

    The clock is set to the next thing that happens: a time, or the end of a run.
    """
    began: dict[str, list[datetime]] = {name: [] for name in schedule.jobs}
    ends: dict[str, datetime] = {}
    now = day.since
    while now <= day.until:
        for name in [name for name, end in ends.items() if end == now]:
            del ends[name]
            schedule.lanes[name].done()
        schedule.turn()
        for name, lane in schedule.lanes.items():
            while job := lane.begin(timeout=0):
                began[job.name].append(now)
                if minutes[job.name]:
                    ends[name] = now + minutes[job.name] * MINUTE
                else:
                    lane.done()
        now = min([*map(schedule.next_time, began), *ends.values()])
        clock.move_to(now)
    return began


def reckoned(day: Day, tasks: Sequence[Task]):
    """Say minute by minute when each task has to begin."""
    began = {task.name: [] for task in tasks}
    due = {task.name: set(day.due(task)) for task in tasks}
    for lane in {task.lane for task in tasks}:
        mine = [task for task in tasks if task.lane == lane]
        queue, free = [], day.since
        for n in range((day.until - day.since) // MINUTE + 1):
            now = day.since + n * MINUTE
            queue += [t for t in mine if now in due[t.name] and t not in queue]
            while queue and now >= free:
                task = queue.pop(0)
                began[task.name].append(now)
                free = now + task.minutes * MINUTE
    return began


TASKS = (
    Task("poll", "polls", "5"),
    Task("hourly", "a", "60"),
    Task("every ten minutes", "b", "*/10 * * * *"),
    Task("at six", "c", "0 6 * * *"),
    Task("in the jump", "d", "30 2 * * *"),
    Task("in Lord Howe's jump", "e", "15 2 * * *"),
    Task("in its doubled hour", "f", "45 1 * * *"),
    Task("twice a day", "g", "0 9,21 * * 0-6"),
    Task("every 7 hours", "h", "420"),
)


@pytest.mark.parametrize(("zone", "date"), JUMPS)
def test_in_a_day_every_schedule_fires_when_it_should_none_twice(zone, date):
    day = day_of(zone, date)
    began = lived(day, TASKS)
    assert began == {task.name: day.due(task) for task in TASKS}
    counts = {name: len(times) for name, times in began.items()}
    assert counts == {
        "poll": 288,
        "hourly": 24,
        "every ten minutes": 144,
        "at six": 1,
        "in the jump": 1,
        "in Lord Howe's jump": 1,
        "in its doubled hour": 1,
        "twice a day": 2,
        "every 7 hours": 3,
    }
    wall = [f"{one.astimezone(ZoneInfo(zone)):%H:%M}" for one in began["at six"]]
    assert wall == ["06:00"]


@pytest.mark.parametrize(("zone", "date"), JUMPS)
def test_a_day_of_run_goes_as_its_settings_say(zone, date, tmp_path, monkeypatch):
    monkeypatch.setenv("BRAZE_API_KEY", "made up")
    crons = {"six": "0 6 * * *", "jump": "30 2 * * *", "ten": "*/10 * * * *"}
    audiences = {name: {"source": "x", "cron": text} for name, text in crons.items()}
    found = config.read(
        source={"url": str(tmp_path / "in")},
        feeds={"url": str(tmp_path / "out")},
        ledger={"cache": str(tmp_path / "cache.db")},
        braze={"instance": "US-03"},
        run={"poll_every": "5m", "time_zone": zone, "listen": ""},
        audiences=audiences | {"often": {"source": "x", "every": "90m"}},
    )
    day = day_of(zone, date)
    with time_machine.travel(day.since, tick=False) as clock:
        one = Service(settings=found, inbox=SimpleQueue())
        minutes = dict.fromkeys(one.schedule.jobs, 0) | {"poll": 7}
        began = driven(one.schedule, day, minutes, clock)
    # At the start: a poll, and what has a period; a poll takes longer than its own.
    tasks = [Task("poll", "polls", "5", 7), Task("audience often", "a", "90")]
    tasks += [Task(f"audience {name}", "b", text) for name, text in crons.items()]
    want = {task.name: day.due(task) for task in tasks}
    want["audience often"].insert(0, day.since)
    want["poll"] = [day.since + n * MINUTE for n in range(0, 24 * 60 + 1, 7)]
    assert began == want


def test_what_takes_longer_than_its_period_runs_once_more_right_after_its_end():
    day = day_of("Europe/Berlin", "2026-03-29", hours=6)
    began = lived(day, [Task("slow", "a", "5", minutes=17)])
    # Due at 5; at 10, 15 and 20 it ran, so it is owed once at 22, and so on.
    assert began["slow"] == [day.since + n * MINUTE for n in range(5, 361, 17)]


def test_tasks_of_a_lane_take_turns_and_each_gets_one():
    day = day_of("UTC", "2026-06-01", hours=2)
    greedy, modest = (
        Task("greedy", "a", "1", minutes=10),
        Task("modest", "a", "30", minutes=2),
    )
    began = lived(day, [greedy, modest])
    assert began == reckoned(day, [greedy, modest])
    # Due at 30, 60 and 90; before it come the run in hand and the one that waits.
    assert [one - day.since for one in began["modest"]] == [
        n * MINUTE for n in (41, 73, 105)
    ]


def test_what_was_missed_before_the_start_is_made_up_once_and_shifts_nothing():
    day = day_of("Europe/Berlin", "2026-10-25", hours=12)
    tasks = [Task("daily", "a", "0 6 * * *"), Task("often", "b", "7")]
    began = lived(day, tasks, late=["daily", "often"])
    assert began == {task.name: [day.since, *day.due(task)] for task in tasks}


def test_times_that_pass_while_the_machine_sleeps_are_one():
    since = datetime(2026, 6, 1, tzinfo=UTC)
    with time_machine.travel(since, tick=False) as clock:
        job = Job(
            name="a", lane="a", when=Every(MINUTE, since), work=lambda: None, first=None
        )
        schedule = Schedule([job])
        clock.move_to(since + timedelta(days=3, seconds=5))
        schedule.turn()
        assert schedule.lanes["a"].begin(timeout=0) is job
        schedule.lanes["a"].done()
        schedule.turn()
        assert schedule.lanes["a"].begin(timeout=0) is None
        assert schedule.next_time("a") == since + timedelta(days=3, minutes=1)


def named(number, lane, when, minutes):
    return Task(f"task {number}", f"lane {lane}", when, minutes)


TASK = st.tuples(
    st.integers(0, 1),
    st.one_of(
        st.integers(1, 300).map(str),
        st.sampled_from(
            [task.when for task in TASKS]
            + ["*/7 * * * *", "0 */2 * * *", "30 2,14 * * *", "59 1-3 * * *"]
        ),
    ),
    st.sampled_from([0, 0, 1, 10, 59, 60, 200]),
)


@given(st.lists(TASK, min_size=1, max_size=5), st.sampled_from(JUMPS))
@settings(deadline=None, max_examples=30)
def test_any_day_goes_as_reckoned_minute_by_minute(found, jump):
    tasks = [named(number, *one) for number, one in enumerate(found)]
    day = day_of(*jump, hours=30)
    began = lived(day, tasks)
    assert began == reckoned(day, tasks)
    for task in tasks:
        due = day.due(task)
        assert len(began[task.name]) <= len(due)
        for first, second in pairwise(began[task.name]):
            assert second - first >= task.minutes * MINUTE
        if task.minutes == 0 and len({one.lane for one in tasks}) == len(tasks):
            assert began[task.name] == due


# With real threads.


class Gate:
    """Work that waits for leave, and knows how much of it is done at once."""

    def __init__(self) -> None:
        self.began, self.leave = threading.Semaphore(0), threading.Semaphore(0)
        self.runs = self.at_once = self.most = 0

    def __call__(self) -> None:
        self.runs += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.began.release()
        assert self.leave.acquire(timeout=PATIENCE)
        self.at_once -= 1


@pytest.fixture
def gate():
    return Gate()


def job(work, name="a"):
    when = Every(timedelta(days=1), datetime.now(UTC))
    return Job(name=name, lane="one", when=when, work=work, first=datetime.now(UTC))


def test_a_lane_owes_one_run_however_often_it_was_asked_and_never_runs_two(gate):
    overran: list[str] = []
    schedule = Schedule([job(gate)], overran.append)
    schedule.start()
    schedule.turn()
    assert gate.began.acquire(timeout=PATIENCE)
    assert [schedule.lanes["one"].ask(job(gate)) for _ in range(5)] == [False] * 5
    gate.leave.release(5)
    assert gate.began.acquire(timeout=PATIENCE)
    schedule.stop()
    schedule.join()
    assert (gate.runs, gate.most) == (2, 1)
    assert overran == []


def test_stopping_begins_nothing_more_and_waits_for_what_is_in_hand(gate):
    never = Gate()
    schedule = Schedule([job(gate), job(never, "b")])
    schedule.start()
    schedule.turn()
    assert gate.began.acquire(timeout=PATIENCE)
    schedule.stop()
    assert schedule.lanes["one"].running
    gate.leave.release()
    schedule.join()
    assert (gate.runs, never.runs) == (1, 0)
    assert schedule.lanes["one"].running is None


def test_work_that_fails_costs_nothing_but_itself(gate):
    def fail():
        raise KeyError("made up")

    schedule = Schedule([job(fail), job(gate, "b")])
    schedule.start()
    schedule.turn()
    assert gate.began.acquire(timeout=PATIENCE)
    gate.leave.release()
    assert schedule.dead() == []
    schedule.stop()
    schedule.join()
    assert schedule.dead() == ["one"]


def test_a_closed_lane_takes_nothing(gate):
    lane = Lane()
    lane.close()
    assert lane.ask(job(gate))
    assert lane.begin(timeout=0) is None
