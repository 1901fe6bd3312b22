"""What the cache keeps of the last weeks, and that it can be found out again."""

from __future__ import annotations

from datetime import timedelta
from random import Random
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from currents_ingest import history, ledger, pace
from currents_ingest.ledger import Ledger
from currents_ingest.manifest import Entry, Share
from currents_ingest.store import Store
from tests.avro_files import OPEN
from tests.histories import NOW, Week, aside, commit, hour_of, manifest, time_of

CLICK = "users.messages.email.Click"
HOUR = hour_of(NOW)


@pytest.fixture
def store():
    return Store.open(f"memory://{uuid4()}")


@pytest.fixture
def opened(store, tmp_path):
    return Ledger.open(store, tmp_path / "cache.db")


def test_rows_stand_at_their_queued_hour_and_the_rest_at_the_commit(opened):
    share = Share(
        feed="email_events", contract_version=1, rows=1, rejects=4, passed_over=0
    )
    batch = manifest(OPEN, NOW, {HOUR - 30: 5, HOUR - 1: 7}, duplicates=2, rejects=1)
    batch = batch.model_copy(update={"shares": (share,)})
    for _ in range(2):
        opened.commit(Entry(at=NOW, run="run", batches=(batch,)))
    found = history.history(opened.cache)
    past = found.of(OPEN)
    assert past.queued == {HOUR - 30: 10, HOUR - 1: 14}
    assert past.read == {HOUR: 24}
    assert past.duplicates == {HOUR: 4}
    assert (past.rejects, past.unfit) == ({HOUR: 2}, {HOUR: 8})
    assert history.within(past.queued, HOUR - 24, HOUR) == 14
    assert found.of(CLICK) == history.Past()
    assert found.watermarks == {OPEN: time_of(HOUR - 1)}


def test_quarantine_is_counted_by_reason(opened):
    asides = aside(OPEN, 1), aside(OPEN, 2), aside(CLICK, 1)
    opened.commit(Entry(at=NOW, run="run", set_aside=asides))
    found = history.history(opened.cache).quarantine
    assert found == {(CLICK, asides[0].reason): 1, (OPEN, asides[0].reason): 2}


def test_delay_runs_from_the_middle_of_an_hour_to_the_commit(opened):
    at = time_of(HOUR) + timedelta(minutes=5)
    opened.commit(Entry(at=at, run="r", batches=(manifest(OPEN, at, {HOUR - 1: 10}),)))
    past = history.history(opened.cache).of(OPEN)
    assert 30 < past.typical("delay", 0.5) < 60
    opened.commit(Entry(at=at, run="r", batches=(manifest(OPEN, at, {HOUR - 5: 90}),)))
    past = history.history(opened.cache).of(OPEN)
    assert 240 < past.typical("wait", 0.5) < 360
    assert past.typical("wait", 0.05) < 60
    assert past.on("delay", HOUR // 24, 0.5) == past.typical("delay", 0.5)
    assert past.typical("delay", 0.5, HOUR // 24 + 1) is None


def test_a_commit_in_the_hour_itself_has_no_negative_delay(opened):
    opened.commit(Entry(at=NOW, run="r", batches=(manifest(OPEN, NOW, {HOUR: 3}),)))
    assert 0 <= history.history(opened.cache).of(OPEN).typical("delay", 1) <= 30


def test_what_is_older_than_five_weeks_goes(opened):
    for days in (60, 37, 36, 35, 0):
        at = NOW - timedelta(days=days)
        rows = {hour_of(at): 1}
        opened.commit(Entry(at=at, run="r", batches=(manifest(OPEN, at, rows),)))
    old = {HOUR - 24 * 300: 1000}  # a load of history
    opened.commit(Entry(at=NOW, run="r", batches=(manifest(OPEN, NOW, old),)))
    past = history.history(opened.cache).of(OPEN)
    assert sorted(past.queued) == [HOUR - 24 * 35, HOUR]
    assert past.read[HOUR] == 1001


def test_a_cache_rebuilt_from_entries_or_a_checkpoint_says_the_same(
    store, opened, tmp_path, monkeypatch
):
    monkeypatch.setattr(ledger, "CHECKPOINT_EVERY", 8)
    random = Random(7)
    first = HOUR - 40 * 24
    types = {
        OPEN: Week(night=0).rows(first, HOUR, random),
        CLICK: Week(campaigns=3).rows(first, HOUR, random),
    }
    entries = Ledger.look(store, tmp_path / "none.db")
    commit(opened, types, spoil=lambda _, rows: {"duplicates": rows // 50})
    assert opened.fold("run", NOW)
    at = NOW + timedelta(hours=1)
    batch = manifest(OPEN, at, {HOUR + 1: 5}, rejects=1)
    opened.commit(Entry(at=at, run="run", batches=(batch,)))
    for number, entry in enumerate(opened.entries(), 1):
        entries.cache.apply(entry, str(number))
    folded = Ledger.look(store, tmp_path / "other.db")
    assert folded.cache.base == opened.cache.head - 1
    whole = opened.cache.table("pace")
    assert whole == folded.cache.table("pace") == entries.cache.table("pace")
    assert len(whole) == 2 * 36
    found = history.history(folded.cache)
    assert found == history.history(opened.cache)
    assert (
        found.whole.queued[HOUR - 3] == types[OPEN][HOUR - 3] + types[CLICK][HOUR - 3]
    )


@given(st.lists(st.dictionaries(st.integers(0, 23), st.integers(0, 10**9))))
def test_counts_add_up_and_are_written_short(more):
    text = ""
    for one in more:
        text = pace.added(text, one)
    for place in range(24):
        found = dict(enumerate(pace.counts(text)))
        assert found.get(place, 0) == sum(one.get(place, 0) for one in more)
    assert not text.endswith(",0")


@pytest.mark.parametrize(
    ("counts", "share", "minutes"),
    [
        pytest.param([], 0.5, None, id="no rows"),
        pytest.param([10], 0.5, 15, id="half of the first slot"),
        pytest.param([0, 10], 1, 60, id="all of the second"),
        pytest.param([50, 0, 0, 50], 0.75, 105, id="slots without rows are passed"),
        pytest.param([0] * 11 + [5], 0.5, 10080, id="beyond the last bound"),
    ],
)
def test_a_share_of_the_rows_was_there_within_so_many_minutes(counts, share, minutes):
    assert pace.minutes(counts, share) == minutes
