"""What nobody knows of must not be forgotten: doubts, leases, limits, second tries."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from threading import Event
from typing import Any

import pytest

from currents_ingest.audiences import blocks, journal, sync, telling
from currents_ingest.audiences.journal import Journal
from currents_ingest.errors import (
    BrazeDownError,
    BrazeRefusedError,
    GuardError,
    LeaseLostError,
    StoreError,
)
from currents_ingest.store import Store
from tests.audience_campaign import KEY, Place, chosen, flat, id_of, write_csv
from tests.sandbox_server import Got, Reply, Sandbox, stub

SUCCESS = Reply(201, {"message": "success"})
MIRROR = {"mode": "mirror", "membership": "vip"}
EVENTS = {"kind": "events", "dedupe": "nr"}
QUICK = {"patience": "0s"}


def synced(place: Place, *, force: bool = False, **settings: Any) -> sync.Run:
    return sync.sync(*chosen(place, **settings), KEY, force=force)


def export(place: Place, **people: dict[str, str]) -> None:
    names = sorted({name for one in people.values() for name in one})
    blank = dict.fromkeys(names, "")
    write_csv(
        place.export,
        [{"external_id": id_, **blank, **cells} for id_, cells in people.items()],
    )


def held(box: Sandbox) -> dict[str, Any]:
    return {name: flat(one) for name, one in box.profiles().items()}


def happenings(count: int) -> list[dict[str, str]]:
    return [
        {
            "external_id": id_of(at),
            "name": "visited",
            "time": "2026-09-01T10:00:00Z",
            "nr": str(at),
        }
        for at in range(count)
    ]


@pytest.mark.parametrize("fault", ["500_after", "reset_after", "empty_201"])
def test_what_was_applied_and_never_acknowledged_is_told_again(place, box, fault):
    export(place, a={"c": "1"}, b={"c": "1"})
    synced(place, **MIRROR)
    export(place, a={"c": "2"}, newbie={"c": "1"})
    box.faults(share=1, kinds=[fault])
    with pytest.raises(BrazeDownError):
        synced(place, braze=QUICK, **MIRROR)
    box.faults(share=0)
    export(place, a={"c": "1"}, b={"c": "1"})
    synced(place, **MIRROR)
    found = held(box)
    assert found["a"] == {"c": 1, "vip": True}
    assert found["b"] == {"c": 1, "vip": True}
    assert found["newbie"]["vip"] is False


def test_who_was_rejected_has_not_left(place, box):
    export(place, **{f"u{at}": {"email": f"p{at}@example.com"} for at in range(10)})
    synced(place, **MIRROR)
    export(
        place,
        **{f"u{at}": {"email": f"p{at}@example.com"} for at in range(9)},
        u9={"email": "nonsense"},
    )
    found = synced(place, max_reject_share=0.2, **MIRROR)
    assert (found.rejected, found.left) == (1, 0)
    assert all(one["vip"] for one in held(box).values())


def test_nobody_has_left_while_a_rejected_row_may_be_anybodys(place):
    export(place, a={"c": "1"}, b={"c": "1"}, c={"c": "1"})
    synced(place, **MIRROR)
    export(place, **{"a": {"c": "1"}, "b": {"c": "1"}, "": {"c": "1"}})
    found = synced(place, max_reject_share=0.5, **MIRROR)
    assert (found.rejected, found.left) == (1, 0)
    assert "nobody is told to have left" in " ".join(found.warnings)
    export(place, a={"c": "1"}, b={"c": "1"})
    assert synced(place, **MIRROR).left == 1


def test_who_leaves_a_mirror_loses_counted_attributes_too(place, box):
    counted = {"mode": "mirror", "operations": {"points": "inc"}}
    export(place, a={"points": "5", "c": "1"}, b={"points": "5", "c": "1"})
    synced(place, **counted)
    export(place, a={"points": "5", "c": "1"})
    assert synced(place, **counted).left == 1
    assert held(box) == {"a": {"points": 10, "c": 1}, "b": {}}


def test_whole_rows_repeat_no_increment(place, box):
    settings = {"operations": {"points": "inc"}, "changed": "rows"}
    export(place, a={"points": "1", "c": "1"})
    box.faults(first=["500_after"])
    assert synced(place, **settings).unknown == 1
    synced(place, force=True, **settings)
    assert held(box) == {"a": {"points": 1, "c": 1}}


def test_a_delivery_of_which_something_is_unknown_is_read_again(place, box):
    settings = {"operations": {"points": "inc"}}
    export(place, a={"points": "1", "c": "1"})
    box.faults(first=["500"])
    synced(place, **settings)
    assert synced(place, **settings).state == "done"
    assert held(box) == {"a": {"c": 1}}


def test_unknown_objects_are_decided_whatever_ran_since(place, box):
    settings = {"operations": {"points": "inc"}}
    export(place, a={"points": "1", "c": "1"})
    box.faults(first=["500"])
    first = synced(place, **settings)
    export(place, a={"points": "1", "c": "2"}, b={"points": "1", "c": "1"})
    synced(place, **settings)
    given = chosen(place, **settings)
    with pytest.raises(GuardError, match="a later run tried the people"):
        sync.retry(*given, first.run, KEY)
    sync.retry(*given, first.run, KEY, unknown="send")
    assert held(box)["a"] == {"points": 2, "c": 2}
    assert sync.undecided(*given) == {}


def test_a_failure_to_write_down_loses_no_outcome(place, box, monkeypatch):
    write_csv(place.export, happenings(100))
    commit, failures = Journal.commit, []

    def failing(self, step):
        if step.kind == "told" and not failures:
            failures.append(step)
            raise StoreError("create", "step", "a made-up failure")
        return commit(self, step)

    monkeypatch.setattr(Journal, "commit", failing)
    with suppress(StoreError):  # it raises unless it was the last thing to write
        synced(place, **EVENTS)
    assert failures
    given = chosen(place, **EVENTS)
    assert sync.undecided(*given) == {}
    synced(place, **EVENTS)
    assert sorted(one["external_id"] for one in box.events()) == [
        id_of(at) for at in range(100)
    ]


def test_our_own_step_that_seemed_to_fail_is_no_rivals(place):
    export(place, a={"c": "1"})
    synced(place)
    given = chosen(place)
    where = next(place.ours.rglob("_ledger")).parent
    ledger = Journal.open(Store.open(str(where)))
    last = ledger.head
    step = journal.Step(at="2026-01-01T00:00:00Z", run="mine", kind="begin")
    behind = Journal.open(Store.open(str(where)))
    ledger.commit(step)
    again = step.model_copy(update={"kind": "end"})
    assert behind.commit(again).number == last + 2
    assert sync.runs(*given)


def test_unknown_objects_are_counted_once_though_a_step_only_seemed_to_fail(
    place, box, monkeypatch
):
    write_csv(place.export, happenings(10))
    box.faults(first=["500_after"])
    commit, failures = Journal.commit, []

    def failing(self, step):
        done = commit(self, step)
        if step.kind == "told" and not failures:
            failures.append(done)
            self.head = done.number - 1  # it does not know that it is there
            self.told.remove(done)
            self.undecided.pop(done.number)
            raise StoreError("create", "step", "a made-up failure")
        return done

    monkeypatch.setattr(Journal, "commit", failing)
    with suppress(StoreError):
        synced(place, **EVENTS)
    assert failures
    given = chosen(place, **EVENTS)
    assert sum(sync.undecided(*given).values()) == 10
    found = sync.retry(*given, sync.runs(*given)[0].run, KEY, unknown="send")
    assert (found.taken, len(box.events())) == (10, 20)  # ten arrived the first time


def test_what_is_undecided_is_told_though_nothing_is_new(place, box):
    write_csv(place.export, happenings(10))
    box.faults(first=["500"])
    synced(place, **EVENTS)
    synced(place, **EVENTS)
    found = synced(place, **EVENTS)
    assert (found.state, found.undecided, found.needs_a_look) == (
        "nothing new",
        10,
        True,
    )


def test_another_key_needs_a_word(place):
    export(place, a={"c": "1"})
    synced(place)
    export(place, a={"c": "2"})
    with pytest.raises(GuardError, match="the key is another one"):
        sync.sync(*chosen(place), "another-key-5d1f")
    assert sync.sync(*chosen(place), "another-key-5d1f", force=True).taken == 1
    export(place, a={"c": "3"})
    assert sync.sync(*chosen(place), "another-key-5d1f").taken == 1
    text = "".join(one.read_text() for one in place.ours.rglob("*.json"))
    assert "another-key" not in text


def test_each_workspace_of_a_host_has_its_own_snapshot(place):
    export(place, a={"c": "1"})
    assert synced(place).taken == 1
    assert synced(place, braze={"workspace": "staging"}).taken == 1


def test_a_run_that_lost_its_lease_sends_nothing_more(place, box, monkeypatch):
    export(place, **{f"u{at}": {"c": "1"} for at in range(300)})
    asked = []

    def check(_: Any) -> None:
        asked.append(1)
        if len(asked) > 2:
            raise LeaseLostError(60.0)

    monkeypatch.setattr("currents_ingest.lease.Lease.check", check)
    leased = replace(place, lease="60s")
    with pytest.raises(LeaseLostError):
        synced(leased, braze={"concurrency": 1})
    assert box.objects() == 150
    monkeypatch.undo()
    assert synced(leased).taken == 300
    assert len(held(box)) == 300


@pytest.mark.parametrize("headers", [{"Retry-After": "0"}, {"X-RateLimit-Reset": "1"}])
def test_a_429_is_never_answered_at_once(place, headers):
    export(place, **{f"u{at}": {"c": "1"} for at in range(300)})
    times = []

    def answer(_: Got) -> Reply:
        times.append(time.monotonic())
        return Reply(429, {}, headers) if len(times) <= 4 else SUCCESS

    with stub(answer) as braze:
        assert synced(replace(place, braze=braze.url)).taken == 300
    assert times[-1] - times[0] >= 1.0
    assert len(times) <= 12


def test_what_stops_a_run_stops_those_that_wait(place):
    export(place, **{f"u{at}": {"c": "1"} for at in range(300)})
    first = Event()

    def answer(_: Got) -> Reply:
        if first.is_set():
            return Reply(401, {})
        first.set()
        return Reply(429, {}, {"Retry-After": "30"})

    with stub(answer) as braze:
        started = time.monotonic()
        with pytest.raises(BrazeRefusedError):
            synced(replace(place, braze=braze.url), braze={"concurrency": 8})
    assert time.monotonic() - started < 35


def test_one_object_that_alone_gets_no_answer_is_found(place):
    export(place, **{f"u{at:03}": {"c": "1"} for at in range(200)})

    def answer(got: Got) -> Reply:
        poison = any(one["external_id"] == "u077" for one in got.objects)
        return Reply(500, b"") if poison else SUCCESS

    with stub(answer) as braze:
        here = replace(place, braze=braze.url)
        found = synced(here, braze={"patience": "0.5s"})
    assert (found.taken, found.failed) == (199, 1)
    assert "again and again" in next(iter(found.reasons))


def test_a_run_stops_where_braze_refuses_almost_everything(place, monkeypatch):
    monkeypatch.setattr(telling, "_HOPELESS", 20)
    export(place, **{f"u{at:03}": {"c": "1"} for at in range(600)})
    with (
        stub(lambda _: Reply(400, {"message": "no"})) as braze,
        pytest.raises(BrazeRefusedError, match="it refuses most objects"),
    ):
        synced(replace(place, braze=braze.url), braze={"concurrency": 1})
    assert len(braze.got) < 300


def test_of_a_400_the_objects_that_are_named_go_and_the_others_are_sent(place):
    export(place, **{f"u{at:02}": {"c": "1"} for at in range(40)})

    def answer(got: Got) -> Reply:
        bad = [
            {"type": "EMAIL_BAD_FORMAT", "index": at}
            for at, one in enumerate(got.objects)
            if one["external_id"] in {"u03", "u30"}
        ]
        return Reply(400, {"message": "bad", "errors": bad}) if bad else SUCCESS

    with stub(answer) as braze:
        found = synced(replace(place, braze=braze.url))
    assert (found.taken, found.failed, found.requests) == (38, 2, 2)


def test_parts_of_the_snapshot_have_one_size_whatever_is_folded(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "RANGE", 50)
    monkeypatch.setattr(blocks, "_SAMPLE", 5)
    import polars as pl

    book = Journal.open(Store.open(str(tmp_path / "vip")))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for turn in range(6):
        ids = [f"{turn}-{at:03}" for at in range(30)] + ["z"]
        frame = pl.DataFrame({"__id__": ids, "c": ["1"] * len(ids)})
        key = book.write(f"told/{turn}.parquet", frame)
        book.commit(journal.Step(at=now, run="r", kind="told", objects=(key,)))
        book.fold("r", now, 10**6)
    sizes = [len(book.read(one)) for one in book.parts]
    assert sum(sizes) == 181
    assert all(size == 50 for size in sizes[:-1])
