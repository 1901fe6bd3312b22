"""`run`: polls, audiences and pages in one process, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from currents_ingest import config, service, verify
from currents_ingest.audiences import sync
from currents_ingest.audiences.gathering import Target
from currents_ingest.errors import SettingsError
from currents_ingest.service import Service, shared
from currents_ingest.session import begin
from currents_ingest.simulate import Simulation, simulate
from tests.audience_campaign import (
    KEY,
    PATIENCE,
    Place,
    end,
    held,
    rows,
    start,
    take_in,
    toml,
    write_csv,
)
from tests.sandbox_server import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

OPEN = "users.messages.email.Open"
TREE = Simulation(events=("users.messages.email.*",), hours=3, bad_rows=0.001, torn=1)


def write_settings(place: Place, **more: Any) -> None:
    """Write settings with a source, to which *more* adds sections."""
    whole = {
        "source": {"url": str(place.root / "in" / "currents")},
        "feeds": {"url": str(place.kept)},
        "braze": {"url": place.braze, "rate": "100000/1s"},
        "run": {"poll_every": "1s", "listen": "127.0.0.1:0"},
        **more,
    }
    text = "".join(f"{name} = {toml(one)}\n" for name, one in whole.items())
    (place.root / "currents.toml").write_text(text)


def vips(place: Place, **more: Any) -> dict[str, Any]:
    return {"vips": {"source": str(place.export), "settle": "0s", **more}}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("BRAZE_API_KEY", KEY)


def read(place: Place):
    return config.read(place.root / "currents.toml")


def ask(address: str, path: str) -> tuple[int, bytes]:
    with closing(HTTPConnection(address, timeout=PATIENCE)) as connection:
        connection.request("GET", path)
        got = connection.getresponse()
        return got.status, got.read()


def samples(text: bytes) -> dict[tuple[str, frozenset[str]], float]:
    """Return metrics by name and label values."""
    return {
        (one.name, frozenset(one.labels.values())): one.value
        for family in text_string_to_metric_families(text.decode())
        for one in family.samples
    }


# As a process.


@dataclass(frozen=True, slots=True)
class Running:
    """A process that says in JSON what it does."""

    process: Any

    def lines(self) -> list[dict[str, Any]]:
        """Return what it has logged so far; a last line may be half written."""
        text = os.pread(self.process.stderr.fileno(), 1 << 24, 0).decode()
        return [json.loads(one) for one in text.splitlines() if one.endswith("}")]

    def until(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait until something was logged so often."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            found = [one for one in self.lines() if one["event"] == event]
            if len(found) >= count:
                return found[count - 1]
            time.sleep(0.02)
        raise AssertionError(f"never {event!r}: {self.lines()}")

    @property
    def address(self) -> str:
        return self.until("listening")["address"]


@contextmanager
def running(place: Place, **more: str) -> Iterator[Running]:
    process = start(place, "--log-format", "json", "run", **more)
    try:
        yield Running(process)
    finally:
        if not process.stderr.closed:
            process.kill()
            end(process)


def test_one_process_polls_syncs_and_answers_and_ends_within_the_work_in_hand(place):
    simulated = simulate(str(place.root / "in"), TREE)
    people = list(rows(range(30_000)))
    write_csv(place.export, people)
    slow = {"url": place.braze, "rate": "60/1s", "concurrency": 2}
    write_settings(place, braze=slow, audiences=vips(place, every="1s"))
    with running(place) as one:
        address = one.address
        one.until("polled", 2)  # while the audience is sent: neither waits
        one.until("audience told")
        assert ask(address, "/healthz")[0] == 200
        assert ask(address, "/readyz") == (200, b'{"status": "ok"}\n')
        assert ask(address, "/report")[0] == 200
        found = samples(ask(address, "/metrics")[1])
        one.process.send_signal(signal.SIGTERM)
        ended = end(one.process)
    assert ended.status == 0
    assert ended.stdout == ""
    assert found["currents_ready", frozenset()] == 1
    assert found["currents_task_running", frozenset({"audience vips"})] == 1
    rows_in = sum(
        n for (name, _), n in found.items() if name == "currents_rows_in_total"
    )
    assert rows_in == simulated.rows
    quarantines = "currents_quarantines_total"
    assert sum(n for (name, _), n in found.items() if name == quarantines) == 1

    told = [json.loads(line) for line in ended.stderr.splitlines()]
    assert not [one for one in told if one["event"] == "another run is at work"]
    (synced,) = (one for one in told if one["event"] == "synced")
    assert synced["state"] == "stopped"
    assert told[-1]["event"] == "ended"
    polled = [one["run"] for one in told if one["event"] == "polled"]
    assert len(set(polled)) == len(polled) >= 2
    settings = read(place)
    assert verify.verify(settings, None, None).differences == ()

    # What was left goes on with the next start: nobody is told twice.
    write_settings(place, audiences=vips(place, every="1h"))
    with running(place) as one:
        again = one.until("synced")
        one.process.send_signal(signal.SIGINT)
        assert end(one.process).status == 0
    assert again["state"] == "done"
    assert synced["acknowledged"] + again["acknowledged"] == len(people)


def test_while_it_ends_it_is_not_ready_and_a_second_signal_ends_it_at_once(tmp_path):
    with sandbox(fault_kinds="hang_after", faults=1, hang=60) as silent:
        place = Place(root=tmp_path, braze=silent.url)
        write_csv(place.export, rows(range(10)))
        braze = {"url": silent.url, "timeout": "60s"}
        write_settings(place, braze=braze, audiences=vips(place, every="1h"))
        with running(place) as one:
            until(silent.taken)
            one.process.send_signal(signal.SIGTERM)
            assert "audience vips" in one.until("ending")["in_hand"]
            status, body = ask(one.address, "/readyz")
            assert (status, json.loads(body)["reasons"][0]) == (503, "ending")
            assert ask(one.address, "/healthz")[0] == 200
            one.process.send_signal(signal.SIGTERM)
            assert end(one.process).status == -signal.SIGTERM


@pytest.mark.parametrize(
    ("more", "variables", "told"),
    [
        pytest.param({}, {"BRAZE_API_KEY": ""}, "BRAZE_API_KEY holds no", id="no key"),
        pytest.param({"braze": {}}, {}, "instance", id="no instance"),
        pytest.param(
            {"run": {"listen": "192.0.2.1:9464"}},
            {},
            "run.listen: cannot listen on 192.0.2.1:9464",
            id="an address of others",
        ),
        pytest.param(
            {"feeds": {"url": "out", "include": ["nothing_such"]}},
            {},
            "nothing_such",
            id="a feed that there is not, which the first poll finds",
        ),
        pytest.param(
            {"run": {"poll_cron": "61 * * * *"}},
            {},
            "run.poll_cron: '61' is no minute",
            id="cron",
        ),
        pytest.param(
            {"run": {"time_zone": "Europe/Atlantis"}}, {}, "is no time zone", id="zone"
        ),
        pytest.param(
            {
                "audiences": {
                    "vips": {"source": "x", "every": "1h", "cron": "0 6 * * *"}
                }
            },
            {},
            "every and cron both say when",
            id="two schedules",
        ),
    ],
)
def test_settings_that_cannot_be_used_end_it_with_2(place, more, variables, told):
    write_settings(place, **{"audiences": vips(place, every="1h")} | more)
    ended = end(start(place, "run", **variables))
    assert ended.status == 2
    assert told in ended.stderr


# Within this process.


@contextmanager
def served(one: Service) -> Iterator[list[dict[str, Any]]]:
    """Run a service beside the test; yields what it logs."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            one.run()
        except BaseException as error:  # noqa: BLE001 (the test sees it)
            failed.append(error)

    with capture_logs() as logs:
        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield logs
        finally:
            one.inbox.put(signal.SIGTERM)
            thread.join(PATIENCE)
    assert not thread.is_alive()
    assert failed == []


def until(fact, *arguments):
    deadline = time.monotonic() + PATIENCE
    while not (found := fact(*arguments)):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found


def now():
    return datetime.now(UTC)


def runs(one: Service, task: str, result: str) -> float:
    found = samples(one.metrics.text())
    return found["currents_task_runs_total", frozenset({task, result})]


def test_a_bucket_that_cannot_be_reached_is_tried_again_and_told(place):
    write_settings(place)
    place.kept.write_text("in the way of the feeds")
    one = Service(settings=read(place), inbox=SimpleQueue())
    with served(one):
        until(lambda: runs(one, "poll", "retry") >= 2)
        reasons = one.health.unready(now())
        assert [told for told in reasons if told.startswith("poll: could not ")]
        assert one.health.dead() == []
        place.kept.unlink()
        until(lambda: runs(one, "poll", "ok") >= 1)
        until(lambda: not [x for x in one.health.unready(now()) if "poll" in x])
    assert one.health.unready(now())[0] == "ending"


class Odd(Service):
    """One whose polls fail as nobody foresaw."""

    def _poll(self):
        raise KeyError("jane@example.com")


class Panic(BaseException):
    """What Polars raises when Rust panics: no Exception."""


class Panicking(Service):
    def _poll(self):
        raise Panic("jane@example.com")


@pytest.mark.parametrize("kind", [Odd, Panicking])
def test_an_error_that_nobody_foresaw_ends_nothing_and_is_seen(place, kind):
    write_settings(place)
    one = kind(settings=read(place), inbox=SimpleQueue())
    with served(one) as logs:
        until(lambda: runs(one, "poll", "failed") >= 2)
        assert one.health.dead() == []
        told = one.health.unready(now())
    name = "KeyError" if kind is Odd else "Panic"
    assert told == [f"poll: unexpected {name}"]
    assert "failed unexpectedly" in {entry["event"] for entry in logs}


def test_another_run_at_work_is_no_error(place):
    write_settings(place)
    settings = read(place)
    with begin(settings):
        one = Service(settings=settings, inbox=SimpleQueue())
        with served(one):
            until(lambda: runs(one, "poll", "held") >= 1)
            assert one.health.unready(now()) == []
    assert runs(one, "poll", "failed") == runs(one, "poll", "retry") == 0


def test_an_audience_that_fails_is_counted_and_named_and_polls_go_on(place):
    write_settings(place, audiences=vips(place, every="1s"))
    place.export.write_text("no_such_identifier\n1\n")
    one = Service(settings=read(place), inbox=SimpleQueue())
    with served(one):
        until(lambda: runs(one, "audience vips", "failed") >= 1)
        until(lambda: runs(one, "poll", "ok") >= 1)
        (told,) = one.health.unready(now())
    assert told.startswith("audience vips: the export does not fit vips")


def test_what_a_run_of_an_audience_did_is_counted(place, box):
    write_settings(place, audiences=vips(place, every="1h"))
    people = list(rows(range(500)))
    write_csv(place.export, people)
    one = Service(settings=read(place), inbox=SimpleQueue())
    with served(one):
        until(lambda: runs(one, "audience vips", "ok"))
    found = samples(one.metrics.text())
    name = "currents_audience_objects_total"
    assert found[name, frozenset({"vips", "acknowledged"})] == 500
    assert found[name, frozenset({"vips", "failed"})] == 0
    assert found["currents_audience_rows_total", frozenset({"vips", "new"})] == 500
    assert found["currents_audience_requests_total", frozenset({"vips"})] == 7
    want: dict[str, Any] = {}
    take_in(want, people)
    assert held(box) == want


def test_what_failed_half_way_is_counted_from_its_summary(place, box):
    braze = {"url": place.braze, "patience": "0.5s"}
    write_settings(place, braze=braze, audiences=vips(place, every="1h"))
    write_csv(place.export, rows(range(150)))
    box.faults(share=1.0, kinds=["500"])
    one = Service(settings=read(place), inbox=SimpleQueue())
    try:
        with served(one):
            until(lambda: runs(one, "audience vips", "retry"))
            assert not [x for x in one.health.unready(now()) if "vips" in x]
    finally:
        box.faults(share=0.0)
    found = samples(one.metrics.text())
    assert found["currents_audience_requests_total", frozenset({"vips"})] >= 2
    objects = "currents_audience_objects_total"
    assert found[objects, frozenset({"vips", "acknowledged"})] == 0


# When audiences are due.


def due(place: Place, moment: datetime, **schedule: Any):
    """Return when an audience is due first, and then, for a start at *moment*."""
    write_settings(place, audiences=vips(place, **schedule))
    settings = read(place)
    target = Target("vips", settings.audiences["vips"])
    when, first = service.audience_times(settings, target, moment)
    return first, when.after(moment)


def synced(place: Place, stop=lambda: False):
    write_settings(place, audiences=vips(place))
    settings = read(place)
    target = Target("vips", settings.audiences["vips"])
    found = sync.sync(settings, target, KEY, stop=stop)
    return found, datetime.fromisoformat(found.began)


def test_a_period_begins_at_once_and_goes_on_from_the_last_run(place):
    moment = now()
    assert due(place, moment, every="1h") == (moment, moment + timedelta(hours=1))
    write_csv(place.export, rows(range(10)))
    _, began = synced(place)
    soon, late = began + timedelta(minutes=10), began + timedelta(minutes=200)
    assert due(place, soon, every="1h") == (None, began + timedelta(hours=1))
    assert due(place, late, every="1h") == (late, began + timedelta(hours=4))


def test_a_cron_time_that_passed_while_nothing_ran_is_made_up(place):
    moment = now()
    nightly = f"{(moment + timedelta(hours=3)):%M %H} * * *"
    assert due(place, moment, cron=nightly)[0] is None
    write_csv(place.export, rows(range(10)))
    _, began = synced(place)
    assert due(place, began + timedelta(hours=2), cron=nightly)[0] is None
    late = began + timedelta(hours=4)
    assert due(place, late, cron=nightly)[0] == late
    again = began + timedelta(days=9)
    assert due(place, again, cron=nightly)[0] == again


def test_what_was_stopped_before_its_end_goes_on_at_once(place):
    write_csv(place.export, rows(range(10)))
    found, began = synced(place, stop=lambda: True)
    assert found.state == "stopped"
    soon = began + timedelta(minutes=1)
    assert due(place, soon, every="1h")[0] == soon
    assert due(place, soon, cron="0 0 1 1 *")[0] == soon


# Settings of lanes; readiness.


def test_memory_is_shared_only_if_audiences_have_a_schedule(place):
    limits = {"memory": "2GB"}
    write_settings(place, limits=limits, audiences=vips(place))
    assert shared(read(place)).limits.memory == 2 * 10**9
    write_settings(place, limits=limits, audiences=vips(place, cron="0 6 * * *"))
    assert shared(read(place)).limits.memory == 10**9
    write_settings(place, limits={"memory": "256MB"}, audiences=vips(place, every="1h"))
    assert shared(read(place)).limits.memory == 256 * 10**6


def test_it_is_ready_until_two_polls_and_a_minute_were_missed(place):
    write_settings(place, run={"poll_every": "5m", "listen": ""})
    one = Service(settings=read(place), inbox=SimpleQueue())
    began = one.schedule.jobs["poll"].first
    assert one.health.unready(began) == ["the first poll has not ended"]
    one.health.standing["poll"].fresh = began + timedelta(minutes=1)
    latest = began + timedelta(minutes=11)
    assert one.health.unready(latest) == []
    assert one.health.unready(latest + timedelta(minutes=65)) == [
        "a poll that ends well is overdue by 1 h 5 min"
    ]
    assert "look" not in one.schedule.jobs


def test_it_is_dead_if_its_schedule_stands_still(place):
    write_settings(place)
    one = Service(settings=read(place), inbox=SimpleQueue())
    with served(one):
        until(lambda: runs(one, "poll", "ok"))
        assert one.health.dead() == []
    one.ending.clear()
    assert sorted(one.health.dead()) == [
        f"the thread of {lane} has ended" for lane in ("look", "polls")
    ]
    one.health._beat -= 100  # noqa: SLF001 (nobody waits for a minute)
    assert re.fullmatch(r"the schedule has not turned for \d+ s", one.health.dead()[-1])


def test_polls_that_never_worked_for_their_settings_end_it(place):
    write_settings(place, feeds={"url": str(place.kept), "include": ["nothing_such"]})
    with capture_logs(), pytest.raises(SettingsError, match="nothing_such"):
        service.serve(read(place), SimpleQueue())
