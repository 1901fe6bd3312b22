from __future__ import annotations

import threading
import time
from collections import Counter
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from currents_ingest import api, config, discover, pipeline
from currents_ingest import ledger as ledger_module
from currents_ingest.discover import Window
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.store import Store
from tests.avro_files import container, key, record
from tests.servers import proxied

TYPES = tuple(f"users.messages.email.{one}" for one in ("Open", "Click", "Send"))


@given(st.lists(st.lists(st.integers(), max_size=4), max_size=6), st.integers(1, 4))
@settings(max_examples=30)
def test_what_is_read_ahead_comes_in_the_order_asked_for(lists, threads):
    found = discover.ahead([iter(one) for one in lists], threads, threading.Event())
    assert list(found) == [item for one in lists for item in one]


def test_no_more_is_read_ahead_than_one_item_of_so_many():
    taken, most = Counter(), []

    def items(name):
        for n in range(50):
            taken[name] += 1
            yield name, n

    given_ = Counter()
    names = range(20)
    pages = discover.ahead([items(name) for name in names], 3, threading.Event())
    for name, _ in pages:
        given_[name] += 1
        most.append(sum(taken.values()) - sum(given_.values()))
    assert max(most) <= 3
    assert sum(given_.values()) == 50 * 20


def test_who_stops_reading_waits_for_no_more_than_a_page():
    stop = threading.Event()

    def endless():
        while not stop.is_set():
            time.sleep(0.001)
        yield 0

    pages = discover.ahead([iter([1, 2]), endless()], 2, stop)
    assert next(pages) == 1
    pages.close()
    assert stop.is_set()


def test_an_error_in_one_folder_ends_the_listing():
    def broken():
        raise OSError("refused")
        yield 0

    pages = discover.ahead([iter([1]), broken()], 2, threading.Event())
    with pytest.raises(OSError, match="refused"):
        list(pages)


@pytest.fixture
def counted(s3):
    """A bucket behind a proxy that counts list requests, by folder."""
    lists, at_once, most = Counter(), Counter(), Counter()
    lock = threading.Lock()

    def decide(request):
        asked = parse_qs(urlsplit(request.path).query)
        if "list-type" in asked:
            with lock:
                lists[asked.get("prefix", [""])[0]] += 1
                at_once["now"] += 1
                most["lists"] = max(most["lists"], at_once["now"])
            time.sleep(0.02)
            with lock:
                at_once["now"] -= 1

    with proxied(s3.endpoint, decide) as proxy:
        yield s3, proxy, lists, most


def settings_of(s3, tmp_path, **limits):
    return config.read(
        source={"url": f"{s3.url}/currents"},
        feeds={"url": f"{s3.url}/feeds"},
        ledger={"cache": str(tmp_path / "cache.db"), "lease": "0s"},
        limits=limits,
    )


def test_a_poll_with_nothing_new_lists_no_more_than_three_times_an_event_type(
    counted, tmp_path, monkeypatch
):
    s3, proxy, lists, most = counted
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    made = settings_of(s3, tmp_path)
    names = ("Open", "Click", "Send", "Bounce", "Delivery", "Unsubscribe")
    events = tuple(f"users.messages.email.{one}" for one in names)
    made_up = Simulation(events=events, hours=8, files_per_hour=2, rows=2, layout="new")
    simulate(s3.url, made_up)
    monkeypatch.setattr(ledger_module, "CHECKPOINT_EVERY", 1)
    assert api.poll(made).files == 8 * 2 * len(events)
    for disk in ("cache.db", "empty.db"):
        lists.clear()
        again = settings_of(s3, tmp_path)
        ledger = again.ledger.model_copy(update={"cache": tmp_path / disk})
        assert api.poll(again.model_copy(update={"ledger": ledger})).files == 0
        assert sum(lists.values()) <= 3 * len(events)
        assert {n for one, n in lists.items() if "event_type=" in one} == {1}
    assert most["lists"] > 1


def test_no_more_list_requests_are_in_flight_than_limits_concurrency(
    counted, tmp_path, monkeypatch
):
    s3, proxy, lists, most = counted
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    made = settings_of(s3, tmp_path, concurrency=2)
    simulate(s3.url, Simulation(hours=1, files_per_hour=1, rows=1))
    source = Store.open(made.source.url)
    ledger = ledger_module.Ledger.look(source, tmp_path / "none")
    lists.clear()
    most.clear()
    found = list(
        discover.new_files(source, ledger, ["*"], lambda _: Window(), at_once=2)
    )
    assert [one.event_type for one in found] == sorted(one.event_type for one in found)
    assert len(found) > 50
    assert most["lists"] <= 2


def test_pages_of_an_event_type_stay_together_and_in_order(tmp_path):
    source = Store.open(str(tmp_path / "source"))
    for event_type in TYPES:
        for n in range(30):
            source.put(key(event_type, offset=n), b"x")
    ledger = ledger_module.Ledger.look(source, tmp_path / "none")
    source.__class__ = Small
    found = list(discover.new_files(source, ledger, ["*"], lambda _: Window()))
    listed = [file.key.key for one in found for file in one.files]
    assert listed == sorted(listed)
    assert len(found) == 3 * 6


class Small(Store):
    """Has small pages."""

    def listing(self, prefix="", *, after=""):
        for page in super().listing(prefix, after=after):
            yield from (page[at : at + 5] for at in range(0, len(page), 5))


def test_a_load_is_folded_on_its_way(tmp_path, monkeypatch):
    monkeypatch.setattr(discover, "MAX_FILES", 1)
    monkeypatch.setattr(pipeline, "COMMIT_EVERY", 0.0)
    monkeypatch.setattr(ledger_module, "CHECKPOINT_EVERY", 3)
    source = Store.open(str(tmp_path / "source"))
    for n in range(8):
        row = {"id": str(n), "time": 1_700_000_000}
        source.put(key(offset=n), container(record(), [row]))
    made = config.read(
        source={"url": str(tmp_path / "source")},
        feeds={"url": str(tmp_path / "feeds")},
        ledger={"cache": ":memory:", "lease": "0s"},
    )
    commits = []

    def seen(committed):
        commits.append(committed)
        if len(commits) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.poll(made, seen=seen)
    feeds = Store.open(made.feeds.url)
    fresh = ledger_module.Ledger.look(feeds, tmp_path / "none")
    assert (fresh.cache.base, fresh.cache.head) == (3, 5)
