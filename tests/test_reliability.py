"""The promises of reliability, tried on the real command in real processes."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import pytest

from currents_ingest.simulate import Simulation
from tests.campaign import (
    FEED_OBJECT,
    FIRST,
    KILLED,
    Campaign,
    Ended,
    Place,
    Watch,
    add_files,
    bucket,
    campaign,
    end,
    feed_ids,
    finish,
    folder,
    forget,
    forget_cache,
    hashes,
    judge,
    judge_feeds,
    judge_leftovers,
    judge_rows,
    run,
    set_aside,
    start,
    stored,
    wait_until_at_work,
)
from tests.servers import Fault, Request, faulty, proxied

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tests.conftest import Bucket

    Moment = Callable[[Request], bool]
    MakePlace = Callable[..., Place]

EVERYTHING = ("--since", "2026-09-01", "--until", "2026-10-01")
ENTRY = re.compile(r"/_ledger/\d{10}\.json$")


def staging(request: Request) -> bool:
    """Tell the writing of a staging object."""
    return request.writes and not request.copies and "/_staging/" in request.path


def commit(request: Request) -> bool:
    """Tell the creation of a ledger entry."""
    return request.writes and bool(ENTRY.search(request.path))


def publish(request: Request) -> bool:
    """Tell the appearance of a feed's object."""
    return (
        request.writes
        and request.path.endswith(".parquet")
        and "/_" not in request.path
    )


def removal(request: Request) -> bool:
    """Tell the removal of staging: one DELETE each, or a POST for many."""
    return request.method == "DELETE" or (
        request.method == "POST" and "delete" in request.path
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulate a bucket with doubled, late and torn events; tests only read it."""
    place = folder(tmp_path_factory.mktemp("simulated"))
    simulate(place, seed=7)
    return place.tree


def simulate(place: Place, *, seed: int, end: datetime = FIRST) -> None:
    """Add files of three event types, some torn, with doubled and late events."""
    simulation = Simulation(
        seed=seed,
        events=(
            "users.messages.email.Open",
            "users.messages.email.Click",
            "users.behaviors.Purchase",
        ),
        end=end,
        hours=3,
        files_per_hour=3,
        rows=300,
        torn=2,
        redelivered=0.05,
    )
    add_files(place, simulation)


@pytest.fixture(params=["folder", "s3"])
def make_place(request: pytest.FixtureRequest, tmp_path: Path, tree: Path) -> MakePlace:
    """Say how to make a place: in a folder, and in S3."""
    if request.param == "folder":
        return lambda lease="60s": folder(tmp_path, tree=tree, lease=lease)
    s3: Bucket = request.getfixturevalue("s3")
    return lambda lease="60s": bucket(
        tmp_path, s3.endpoint, s3.name, tree=tree, lease=lease
    )


def on_another_machine(place: Place, name: str = "other") -> Place:
    """Return the same feeds, seen by a process with a disk of its own."""
    return replace(place, disk=place.disk.with_name(name))


def verified(place: Place) -> list[str]:
    """Return the differences that `verify` finds."""
    ended = run(place, "verify", "--json")
    differences: list[str] = json.loads(ended.stdout)["differences"]
    assert ended.status == (1 if differences else 0), ended.told()
    return differences


@dataclass(slots=True)
class Interrupted:
    """A poll that was sent a signal at one of its requests, which is held."""

    reached: Event = field(default_factory=Event)
    released: Event = field(default_factory=Event)
    fault: Fault | None = None
    process: subprocess.Popen[str] | None = None

    def let_go(self, fault: Fault | None = None) -> None:
        """Forward the request after all, or do with it what *fault* says."""
        self.fault = fault
        self.released.set()


@contextmanager
def interrupted(place: Place, moment: Moment, signum: int) -> Iterator[Interrupted]:
    """Send a poll *signum* the first time that *moment* knows its request."""
    held = Interrupted()

    def decide(request: Request) -> Fault | None:
        if held.reached.is_set() or not moment(request):
            return None
        assert held.process
        held.process.send_signal(signum)
        held.reached.set()
        held.released.wait()
        return held.fault

    with (
        proxied(place.endpoint, decide) as proxy,
        running(replace(place, endpoint=proxy.endpoint), "poll") as held.process,
    ):
        try:
            assert held.reached.wait(30), "the moment never came"
            yield held
        finally:
            held.released.set()


@contextmanager
def running(place: Place, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command and leave nothing of it running, whatever the test does."""
    process = start(place, *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def stopped_at_work(place: Place) -> Iterator[subprocess.Popen[str]]:
    """Stop a poll (SIGSTOP) over folders once it has written to staging."""
    with running(place, "poll") as process:
        wait_until_at_work(process, place)
        stop(process)
        yield process


def stop(process: subprocess.Popen[str]) -> None:
    """Stop it (SIGSTOP), and wait until all its threads stand still."""
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)


def assert_clean(place: Place) -> None:
    """Compare with what was simulated, and let `verify` do the same in its way."""
    assert judge(place) == []
    assert verified(place) == []


def assert_clean_after_a_poll(place: Place) -> None:
    """Poll once more, with the lease that it takes to tidy up after the dead."""
    finish(replace(place, lease="60s"), "poll")
    assert judge(place) == []


@pytest.mark.parametrize("empty_disk", [False, True], ids=["cache kept", "empty disk"])
def test_killed_at_any_moment_every_event_is_delivered_once(
    tmp_path: Path, *, empty_disk: bool
) -> None:
    asked = Campaign(
        kills=12,
        rng=random.Random(11),
        empty_disk=empty_disk,
        leases=("1s",) if empty_disk else ("0s",),
    )
    figures = campaign(asked, folder(tmp_path))
    assert figures.differences == []
    assert figures.kills >= 12


@pytest.mark.parametrize(
    ("moment", "fault"),
    [
        pytest.param(staging, Fault.REFUSED, id="before the first staging object"),
        pytest.param(commit, Fault.REFUSED, id="before the commit"),
        pytest.param(commit, None, id="after the commit, before any copy"),
        pytest.param(publish, None, id="among the copies"),
        pytest.param(removal, None, id="before staging is removed"),
    ],
)
def test_killed_between_two_writes_the_next_start_ends_what_was_begun(
    tmp_path: Path, s3: Bucket, tree: Path, moment: Moment, fault: Fault | None
) -> None:
    place = bucket(tmp_path, s3.endpoint, s3.name, tree=tree, lease="0s")
    watch = Watch(place)
    with interrupted(place, moment, signal.SIGKILL) as held:
        held.let_go(fault)
        assert held.process
        assert end(held.process).status == KILLED
    assert watch.look() == []
    forget(place)
    assert_clean_after_a_poll(place)
    assert watch.look() == []
    assert verified(place) == []


def test_what_a_reader_sees_while_a_poll_works_is_whole_and_stays(
    tmp_path: Path, tree: Path
) -> None:
    place = folder(tmp_path, tree=tree)
    watch = Watch(place)
    with running(place, "poll") as process:
        while process.poll() is None:
            assert watch.look() == []
        assert end(process).status == 0
    assert watch.look() == []
    assert judge(place) == []


def test_files_that_were_spoilt_are_in_quarantine_and_no_others(
    ingested: Place,
) -> None:
    listed = json.loads(run(ingested, "quarantine", "list", "--json").stdout)
    assert sorted(one["key"] for one in listed) == set_aside(ingested)


def test_a_second_poll_says_who_is_at_work_and_since_when(
    tmp_path: Path, tree: Path
) -> None:
    place = folder(tmp_path, tree=tree)
    with stopped_at_work(place) as first:
        before = stored(place)
        second = run(on_another_machine(place), "poll")
        assert second.status == 1, second.told()
        assert_names_the_holder(second, first.pid)
        assert stored(place) == before
        first.send_signal(signal.SIGCONT)
        assert end(first).status == 0
    assert judge(place) == []


def assert_names_the_holder(second: Ended, pid: int) -> None:
    """Find the machine, the process and a time in what it told."""
    assert socket.gethostname() in second.stderr, second.told()
    assert re.search(rf"\b{pid}\b", second.stderr), second.told()
    assert re.search(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d", second.stderr), second.told()
    assert "Traceback" not in second.stderr, second.told()


def test_a_process_paused_past_its_lease_publishes_nothing_and_says_so(
    tmp_path: Path, tree: Path
) -> None:
    place = folder(tmp_path, tree=tree, lease="2s")
    with stopped_at_work(place) as first:
        finish(on_another_machine(place), "poll")
        before = published(place)
        first.send_signal(signal.SIGCONT)
        assert_gave_up(end(first))
    assert published(place) == before
    assert_clean_after_a_poll(place)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(staging, id="before its first staging object"),
        pytest.param(commit, id="as it commits"),
    ],
)
def test_a_process_paused_past_its_lease_on_s3_publishes_nothing_and_says_so(
    tmp_path: Path, s3: Bucket, tree: Path, moment: Moment
) -> None:
    place = bucket(tmp_path, s3.endpoint, s3.name, tree=tree, lease="2s")
    with interrupted(place, moment, signal.SIGSTOP) as held:
        assert held.process
        finish(on_another_machine(place), "poll")
        before = published(place)
        held.let_go()
        held.process.send_signal(signal.SIGCONT)
        assert_gave_up(end(held.process))
    assert published(place) == before
    assert_clean_after_a_poll(place)


def test_a_process_paused_as_it_commits_never_names_what_others_tidied_away(
    tmp_path: Path, s3: Bucket, tree: Path
) -> None:
    place = bucket(tmp_path, s3.endpoint, s3.name, tree=tree, lease="1s")
    with interrupted(place, commit, signal.SIGSTOP) as held:
        assert held.process
        time.sleep(1.5)
        with interrupted(on_another_machine(place), staging, signal.SIGKILL) as other:
            other.let_go(Fault.REFUSED)
        held.let_go()
        held.process.send_signal(signal.SIGCONT)
        assert_gave_up(end(held.process))
    assert_clean_after_a_poll(place)


def test_a_process_paused_among_its_copies_disturbs_nobody_when_it_wakes(
    tmp_path: Path, s3: Bucket, tree: Path
) -> None:
    place = bucket(tmp_path, s3.endpoint, s3.name, tree=tree, lease="2s")
    with interrupted(place, publish, signal.SIGSTOP) as held:
        assert held.process
        finish(on_another_machine(place), "poll")
        before = stored(place, FEED_OBJECT)
        assert judge(place) == []
        held.let_go()
        held.process.send_signal(signal.SIGCONT)
        ended = end(held.process)
        assert ended.status in {0, 1}, ended.told()
    assert stored(place, FEED_OBJECT) == before
    assert judge(place) == []


def test_an_entry_whose_author_dies_while_another_reads_the_ledger_is_finished(
    tmp_path: Path, s3: Bucket
) -> None:
    place = bucket(tmp_path, s3.endpoint, s3.name, lease="0s")
    simulate(place, seed=1)
    finish(place, "poll")
    simulate(place, seed=2, end=FIRST + timedelta(hours=6))
    entries = sum(bool(ENTRY.search(f"/{key}")) for key in stored(place))

    def next_entry(request: Request) -> bool:
        wanted = request.path.endswith(f"/_ledger/{entries + 1:010}.json")
        return wanted and not request.writes

    reader = on_another_machine(place)
    with interrupted(reader, next_entry, signal.SIGCONT) as held:
        half_published(place)
        held.let_go()
        assert held.process
        assert end(held.process).status == 0
    assert_clean_after_a_poll(reader)


def published(place: Place) -> dict[str, bytes]:
    """Return the feeds' objects and the ledger's entries."""
    return {
        key: body
        for key, body in stored(place).items()
        if not key.startswith("_") or ENTRY.search(f"/{key}")
    }


def assert_gave_up(ended: Ended) -> None:
    """Check that a run failed because others may be at work, and said so."""
    assert ended.status == 1, ended.told()
    assert re.search(r"lease|another process", ended.stderr), ended.told()
    assert "Traceback" not in ended.stderr, ended.told()


def test_eight_processes_racing_without_a_lease_deliver_every_event_once(
    make_place: MakePlace,
) -> None:
    place = make_place(lease="0s")
    watch = Watch(place)
    racers = [on_another_machine(place, f"machine {n}") for n in range(8)]
    for _ in range(10):
        racers = losers(racers, watch)
        if not racers:
            break
    assert racers == []
    assert_clean(place)


def test_two_polls_with_one_cache_and_no_lease_deliver_every_event_once(
    tmp_path: Path, s3: Bucket, tree: Path
) -> None:
    place = bucket(tmp_path, s3.endpoint, s3.name, tree=tree, lease="0s")
    with interrupted(place, staging, signal.SIGCONT) as held:
        finish(place, "poll")
        held.let_go()
        assert held.process
        ended = end(held.process)
        assert ended.status in {0, 1}, ended.told()
    finish(place, "poll")
    assert_clean(place)


def losers(racers: list[Place], watch: Watch) -> list[Place]:
    """Let all poll at once, watched; return those who lost and have to try again.

    Eight interpreters start seconds apart on two cores, so each is stopped as soon as
    it has made its cache, and all go on together.
    """
    with ExitStack() as stack:
        processes = []
        for racer in racers:
            forget(racer)
            processes.append(stack.enter_context(running(racer, "poll")))
        starting = dict(zip(processes, racers, strict=True))
        while starting:
            for process, racer in list(starting.items()):
                if (racer.disk / "cache" / "cache.db").exists():
                    stop(process)
                    del starting[process]
                assert process.poll() is None, end(process).told()
            time.sleep(0.001)
        for process in processes:
            process.send_signal(signal.SIGCONT)
        while any(process.poll() is None for process in processes):
            assert watch.look() == []
            time.sleep(0.05)
        ended = [end(process) for process in processes]
    assert watch.look() == []
    for one in ended:
        assert one.status in {0, 1}, one.told()
        assert "Traceback" not in one.stderr, one.told()
    return [racer for racer, one in zip(racers, ended, strict=True) if one.status]


def test_a_store_that_fails_every_tenth_request_changes_nothing(
    tmp_path: Path, s3: Bucket, tree: Path
) -> None:
    place = bucket(tmp_path, s3.endpoint, s3.name, tree=tree, lease="3s")
    with faulty(s3.endpoint, 0.1, seed=5) as proxy:
        behind = replace(place, endpoint=proxy.endpoint)
        finish(behind, "poll")
        assert verified(behind) == []
    assert set(proxy.injected) == set(Fault)
    assert_clean(place)


def test_a_cache_deleted_at_work_loses_nothing(tmp_path: Path, tree: Path) -> None:
    place = folder(tmp_path, tree=tree)
    with stopped_at_work(place) as process:
        forget_cache(place)
        process.send_signal(signal.SIGCONT)
        ended = end(process)
    assert ended.status in {0, 1}, ended.told()
    assert "Traceback" not in ended.stderr, ended.told()
    assert_clean_after_a_poll(place)


def cut_in_half(body: bytes) -> bytes:
    """Lose the end of a file."""
    return body[: len(body) // 2]


def garble(body: bytes) -> bytes:
    """Keep the start of a file, so that it still looks like a database."""
    return body[:100] + b"\xff" * (len(body) - 100)


def make_foreign(_: bytes) -> bytes:
    """Put something else there."""
    return b"This is no database.\n" * 100


@pytest.mark.parametrize("damage", [cut_in_half, garble, make_foreign])
def test_a_damaged_cache_is_rebuilt(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    place = folder(tmp_path)
    simulate(place, seed=1)
    finish(place, "poll")
    simulate(place, seed=2, end=FIRST + timedelta(hours=6))
    cache = place.disk / "cache" / "cache.db"
    cache.write_bytes(damage(cache.read_bytes()))
    ended = run(place, "poll")
    assert ended.status == 0, ended.told()
    assert judge(place) == []


def test_a_poll_that_misses_a_ledger_entry_stops_before_it_doubles_events(
    tmp_path: Path, ingested: Place
) -> None:
    place = replace(ingested, feeds=str(tmp_path / "feeds"), disk=tmp_path / "disk")
    shutil.copytree(ingested.feeds, place.feeds)
    lose_an_entry(Path(place.feeds))
    before = stored(place, FEED_OBJECT)
    ended = run(place, "poll")
    assert ended.status == 1, ended.told()
    assert "_ledger/0000000001.json" in ended.stderr, ended.told()
    assert "Traceback" not in ended.stderr, ended.told()
    assert stored(place, FEED_OBJECT) == before


def test_a_torn_file_that_is_written_again_whole_is_delivered(tmp_path: Path) -> None:
    place = folder(tmp_path)
    simulate(place, seed=1)
    path = min(Path(place.source).rglob("*.avro"), key=lambda one: -one.stat().st_size)
    body = path.read_bytes()
    path.write_bytes(body[:-20])
    finish(place, "poll")
    assert judge_feeds(place) != []
    path.write_bytes(body)
    assert_clean_after_a_poll(place)


def test_sigterm_while_it_waits_ends_poll_with_status_0(
    tmp_path: Path, tree: Path
) -> None:
    place = folder(tmp_path, tree=tree)
    with running(place, "poll", "--every", "1s") as process:
        while judge_feeds(place, tree):
            assert process.poll() is None, end(process).told()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert end(process, timeout=15).status == 0
    assert judge(place) == []


def test_sigterm_at_work_ends_poll_with_status_0_and_nothing_half_done(
    tmp_path: Path, tree: Path
) -> None:
    place = folder(tmp_path, tree=tree)
    with running(place, "poll", "--every", "1s") as process:
        wait_until_at_work(process, place)
        process.send_signal(signal.SIGTERM)
        ended = end(process, timeout=15)
    assert ended.status == 0, ended.told()
    assert judge_leftovers(stored(place)) == []
    assert Watch(place).look() == []
    assert verified(place) == []
    # The lease was given back, so nobody has to wait a minute for it.
    assert run(on_another_machine(place), "poll").status == 0
    assert_clean(place)


def never_run(_: Place) -> None:
    """Leave the feeds as they were before the first run."""


def done_and_cache_lost(place: Place) -> None:
    """Ingest everything, then start on an empty disk."""
    finish(place, "poll")
    forget(place)


def half_published(place: Place) -> None:
    """Die after the commit, when the first copy is asked for."""
    with interrupted(place, publish, signal.SIGKILL) as held:
        held.let_go(Fault.REFUSED)


@pytest.mark.parametrize("make_state", [never_run, done_and_cache_lost, half_published])
def test_a_look_leaves_every_byte_of_state_as_it_was(
    tmp_path: Path, s3: Bucket, tree: Path, make_state: Callable[[Place], None]
) -> None:
    place = bucket(tmp_path, s3.endpoint, s3.name, tree=tree)
    make_state(place)
    assert_looks_change_nothing(place)


def test_a_look_at_a_folder_with_work_left_changes_nothing(tmp_path: Path) -> None:
    place = folder(tmp_path)
    simulate(place, seed=1)
    finish(place, "poll")
    simulate(place, seed=2, end=FIRST + timedelta(hours=6))
    assert_looks_change_nothing(place)


def assert_looks_change_nothing(place: Place) -> None:
    """Take every kind of look at once, and compare all files before and after."""
    place.disk.mkdir(exist_ok=True)
    before = hashes(place)
    looks = [
        start(place, "status", "--json"),
        start(place, "verify", "--json"),
        start(place, "load", *EVERYTHING, "--dry-run"),
        start(place, "quarantine", "list", "--json"),
        start(place, "report", "-o", "-"),
        start(place, "doctor", "--read-only", "--json"),
    ]
    for look in looks:
        ended = end(look)
        assert ended.status in {0, 1}, ended.told()
        assert "Traceback" not in ended.stderr, ended.told()
    assert hashes(place) == before


def delete_an_object(feeds: Path) -> None:
    """Lose one published object."""
    next(feeds.glob("[a-z]*/**/*.parquet")).unlink()


def flip_a_bit(feeds: Path) -> None:
    """Change one published object where no reader would notice."""
    path = next(feeds.glob("[a-z]*/**/*.parquet"))
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def publish_twice(feeds: Path) -> None:
    """Put a second copy of an object under another name."""
    path = next(feeds.glob("[a-z]*/**/*.parquet"))
    shutil.copy(path, path.with_name(path.name.replace("-00000.", "-00099.")))


def lose_an_entry(feeds: Path) -> None:
    """Lose the ledger's first entry."""
    (feeds / "_ledger" / "0000000001.json").unlink()


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Place:
    """Ingest the tree once; tests only read it."""
    place = folder(tmp_path_factory.mktemp("ingested"), tree=tree)
    finish(place, "poll")
    return place


@pytest.mark.parametrize(
    "damage", [delete_an_object, flip_a_bit, publish_twice, lose_an_entry]
)
def test_verify_finds_what_others_did_to_the_feeds(
    tmp_path: Path, ingested: Place, damage: Callable[[Path], None]
) -> None:
    place = replace(ingested, feeds=str(tmp_path / "feeds"), disk=tmp_path / "disk")
    shutil.copytree(ingested.feeds, place.feeds)
    damage(Path(place.feeds))
    ended = run(place, "verify", "--json")
    assert ended.status == 1, ended.told()
    assert "Traceback" not in ended.stderr, ended.told()


def test_the_same_files_under_new_names_add_nothing(tmp_path: Path, tree: Path) -> None:
    place = folder(tmp_path, tree=tree)
    finish(place, "poll")
    before = feed_ids(place)
    again = replace(place, source=str(tmp_path / "again"))
    shutil.copytree(place.source, tmp_path / "again")
    for path in sorted((tmp_path / "again").rglob("*.avro")):
        path.rename(path.with_name(path.name.replace(".avro", "9.avro")))
    finish(again, "poll")
    assert judge_rows(before, feed_ids(place)) == []
