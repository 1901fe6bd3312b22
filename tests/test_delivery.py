"""How much goes into an object, and what lies beside it for couriers."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from currents_ingest import api, config, quiet
from currents_ingest.errors import SettingsError
from currents_ingest.session import begin
from currents_ingest.store import Store
from currents_ingest.verify import verify
from tests.avro_files import OPEN, container, key, record

CLICK = "users.messages.email.Click"
ROW = {"time": 1_700_000_000, "email_address": "a@example.com"}
FEEDS = ("messages_email_open", "email_events")


@pytest.fixture
def place(tmp_path):
    """A source to write to, its folder, and settings with given feed options."""
    source = tmp_path / "source"
    source.mkdir()

    def settings(**options):
        return config.read(
            source={"url": str(source)},
            feeds={"url": str(tmp_path / "feeds"), **options},
            ledger={"cache": str(tmp_path / "cache.db"), "lease": "0s"},
        )

    return Store.open(str(source)), source, settings


def put(source, offset, rows=1, event=OPEN, first=0):
    schema = record(event, email_address="string")
    numbers = range(first, first + rows)
    body = [{"id": f"{event}-{offset}-{n}", **ROW} for n in numbers]
    source.put(key(event, offset=offset), container(schema, body))


def objects(settings, feed):
    found = Path(settings.feeds.url, feed).rglob("*.parquet")
    return [pq.read_metadata(path).num_rows for path in sorted(found)]


def first_poll(settings):
    """Poll once: the first poll lists everything, so it holds nothing back."""
    assert api.poll(settings).waiting == 0


def test_small_files_wait_for_more_of_their_event_type(place):
    source, folder, settings = place
    waits = settings(max_wait="1h", target_size="1MB")
    put(source, 0)
    first_poll(waits)
    put(source, 1)
    put(source, 2)
    put(source, 1, event=CLICK)
    outcome = api.poll(waits)
    assert (outcome.files, outcome.waiting) == (0, 3)
    assert verify(waits).pending == 3
    written = time.time() - 3700
    os.utime(folder / key(offset=1), (written, written))
    outcome = api.poll(waits)
    assert (outcome.files, outcome.waiting) == (2, 1)
    assert objects(waits, "messages_email_open") == [1, 2]


def test_files_that_fill_the_target_size_do_not_wait(place):
    source, _, settings = place
    waits = settings(max_wait="1h", target_size="1MB")
    put(source, 0)
    first_poll(waits)
    put(source, 1, rows=8_000)
    assert api.poll(waits).waiting == 1
    put(source, 2, rows=20_000)
    outcome = api.poll(waits)
    assert (outcome.files, outcome.waiting) == (2, 0)


def test_a_batch_holds_no_more_than_the_target_size(place):
    source, _, settings = place
    for offset in range(4):
        put(source, offset, rows=10_000)
    size = sum(one.size for page in source.listing() for one in page) // 4
    assert 500_000 < size < 1_000_000
    api.poll(settings(target_size="1MB"))
    assert objects(settings(), "messages_email_open") == [10_000] * 4


def test_a_retried_file_does_not_wait(place):
    source, _, settings = place
    waits = settings(max_wait="1h")
    source.put(key(offset=9), b"torn")
    first_poll(waits)
    assert api.retry(waits, []).quarantined


def test_waiting_longer_than_the_lookback_is_refused(place):
    _, _, settings = place
    with pytest.raises(SettingsError, match=r"shorter than source\.lookback"):
        settings(max_wait="48h")


def test_many_event_types_make_one_object_of_a_unified_feed(place):
    source, _, settings = place
    for number, event in enumerate((OPEN, CLICK, "users.messages.email.Bounce")):
        put(source, number, rows=3, event=event)
    made = settings()
    api.poll(made)
    assert objects(made, "email_events") == [9]
    assert verify(made).differences == ()


def test_a_quiet_day_gets_an_object_without_rows(place):
    source, _, settings = place
    made = settings(empty_objects=True)
    put(source, 0)
    api.poll(made)
    assert [objects(made, feed) for feed in FEEDS] == [[1], [1]]
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    with begin(made) as session:
        entry = quiet.fill(session, tomorrow)
        assert {one.feed for one in entry.deliveries} == set(FEEDS)
        assert quiet.fill(session, tomorrow) is None
    for feed in FEEDS:
        folder = Path(made.feeds.url, feed, f"{tomorrow:%Y/%m/%d}")
        (path,) = folder.glob(f"{feed}-*.parquet")
        (before,) = Path(made.feeds.url, feed).rglob("*-0000000001-*")
        assert pq.read_metadata(path).num_rows == 0
        assert pq.read_schema(path).equals(pq.read_schema(before))
    assert verify(made).differences == ()
    assert api.poll(made).entries == ()


def test_a_feed_that_is_not_made_any_more_gets_no_empty_object(place):
    source, _, settings = place
    put(source, 0)
    api.poll(settings())
    with begin(settings(include=["raw"])) as session:
        entry = quiet.fill(session, datetime.now(UTC) + timedelta(days=1))
    assert [one.feed for one in entry.deliveries] == ["messages_email_open"]


def test_each_day_can_be_a_directory_too(place):
    source, _, settings = place
    made = settings(daily_copy=True)
    put(source, 0, rows=5)
    api.poll(made)
    today = datetime.now(UTC)
    for feed in FEEDS:
        (own,) = Path(made.feeds.url, feed).rglob("*.parquet")
        day = Path(made.feeds.url, f"{feed}_{today:%Y-%m-%d}.parquet")
        (copy,) = day.iterdir()
        assert copy.name == own.name
        assert copy.read_bytes() == own.read_bytes()
    assert verify(made).differences == ()
    copy.unlink()
    (difference,) = verify(made).differences
    assert difference.what == "is missing"
