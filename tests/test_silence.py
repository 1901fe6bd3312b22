"""The sentinel: silences of simulated years, and of real buckets."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, bisect_right
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from random import Random
from uuid import uuid4

import pytest

from currents_ingest import api, config, rhythm, silence
from currents_ingest.ledger import Ledger
from currents_ingest.store import Store
from tests.avro_files import OPEN
from tests.campaign import s3_environment
from tests.histories import NOW, OFFICE, Week, commit, hour_of, put, time_of

CLICK, PUSH = "users.messages.email.Click", "users.messages.pushnotification.Send"
HOUR = hour_of(NOW)
YEAR = 52 * rhythm.WEEK
RARE = Week(peak=0)


# The rule, over simulated years: hours counted from a Thursday.


def sparse(share, hours):
    """Return one row in a random share of the hours."""

    def make(random):
        return {hour: 1 for hour in range(hours) if random.random() < share}

    return make


def bursts(random):
    """Return activity that goes on and off for a day or so, as campaigns do."""
    found, on = {}, True
    for hour in range(YEAR):
        on ^= random.random() < 1 / 30
        if on and random.random() < 0.9:
            found[hour] = 5
    return found


def of(week):
    return lambda random: week.rows(0, YEAR, random)


def unusual(rows):
    """Return how many silences of a year would have been told."""
    hours = sorted(rows)
    return sum(
        rhythm.silence(
            before(rows, hours, last), last, following + rhythm.GRACE
        ).unusual
        for last, following in pairwise(hours)
        if following - last > 3 and last > rhythm.LEARNT
    )


def before(rows, hours, last):
    kept = hours[bisect_left(hours, last - 36 * 24) : bisect_right(hours, last)]
    return {hour: rows[hour] for hour in kept}


@pytest.mark.parametrize(
    ("make", "most"),
    [
        pytest.param(of(Week()), 0, id="nights and weekends are low"),
        pytest.param(of(Week(night=0)), 0, id="nights are silent"),
        pytest.param(of(OFFICE), 0, id="nights and weekends are silent"),
        pytest.param(of(Week(peak=2, night=0)), 0, id="a few rows an hour"),
        pytest.param(of(Week(campaigns=3)), 0, id="campaigns on top"),
        pytest.param(of(Week(peak=1.4, night=0, campaigns=2)), 0, id="mostly spikes"),
        pytest.param(sparse(0.95, YEAR), 0, id="one hour in twenty has nothing"),
        pytest.param(sparse(0.5, YEAR), 0, id="every other hour"),
        pytest.param(sparse(1 / 24, YEAR), 0, id="about once a day"),
        pytest.param(sparse(1 / 200, YEAR), 0, id="about once a week"),
        pytest.param(bursts, 3, id="on and off without any rhythm"),
    ],
)
def test_a_year_of_usual_silences_is_not_told(make, most):
    assert sum(unusual(make(Random(seed))) for seed in range(2)) <= most


@pytest.mark.parametrize(
    ("week", "stopped", "hours"),
    [
        pytest.param(Week(), 10, 5, id="always on, by day"),
        pytest.param(Week(), 26, 5, id="always on, by night"),
        pytest.param(Week(night=0), 10, 9, id="by day alone, in the morning"),
        pytest.param(Week(night=0), 20, 18, id="by day alone, in the evening"),
        pytest.param(OFFICE, 9, 26, id="office hours, in the morning"),
    ],
)
def test_a_real_silence_is_told_within_hours(week, stopped, hours):
    monday = 20 * rhythm.WEEK + 4 * 24  # 1970 began on a Thursday
    end = monday + 24 + stopped
    rows = week.rows(0, YEAR, Random(1))
    known = {hour: n for hour, n in rows.items() if end - 900 < hour < end}
    newest = max(known)
    told = [
        now - end
        for now in range(end, end + 60)
        if rhythm.silence(known, newest, now).unusual
    ]
    assert told[0] <= hours
    assert told == list(range(told[0], 60))  # and it goes on being told


def test_an_outage_of_last_month_does_not_hide_todays():
    rows = Week().rows(0, 6 * rhythm.WEEK, Random(1))
    newest = 6 * rhythm.WEEK - 100
    gone = {*range(701, 730), 500}
    known = {h: n for h, n in rows.items() if h <= newest and h not in gone}
    assert rhythm.silence(known, newest, newest + 8).unusual


def test_what_is_expected_is_the_median_week():
    rows = dict.fromkeys(range(5 * rhythm.WEEK), 10)
    rows |= dict.fromkeys(range(2 * rhythm.WEEK, 3 * rhythm.WEEK), 10**6)  # a campaign
    newest = 5 * rhythm.WEEK - 1
    found = rhythm.silence(rows, newest, newest + 6)
    assert (found.hours, found.expected) == (4, 40)


@pytest.mark.parametrize("days", [1, 13, 14, 35])
def test_two_weeks_of_history_are_enough_and_less_is_not(days):
    rows = dict.fromkeys(range(24 * days), 5)
    found = rhythm.silence(rows, 24 * days - 1, 24 * days + 48)
    assert (found.known, found.unusual) == (days >= 14, days >= 14)


# The sentinel, over a ledger and a bucket.


class Place:
    """A source and feeds with five weeks behind them, up to some hours ago."""

    def __init__(self, url, cache, feeds="", **source):
        self.settings = config.read(
            source={"url": f"{url}/in", **source},
            feeds={"url": feeds or f"memory://{uuid4()}", "include": ["raw"]},
            ledger={"cache": str(cache), "lease": "0s"},
        )
        self.source = Store.open(self.settings.source.url)

    def remember(self, silent=None, weeks=5, **weeks_of):
        """Commit what came until each type went silent, hours ago."""
        first = HOUR - weeks * rhythm.WEEK
        rows = {
            name: week.rows(first, HOUR - (silent or {}).get(name, 1), Random(name))
            for name, week in weeks_of.items()
        }
        named = {"opens": OPEN, "clicks": CLICK, "pushes": PUSH}
        return self.commit({named[name]: one for name, one in rows.items()})

    def commit(self, rows, **more):
        cache = self.settings.ledger.cache
        ledger = Ledger.open(Store.open(self.settings.feeds.url), cache)
        commit(ledger, rows, **more)
        ledger.close()
        return self

    def watch(self, **later):
        found = silence.watch(self.settings, NOW + timedelta(**later))
        return found, {one.event_type: one for one in found.types}


@pytest.fixture
def place(tmp_path):
    return Place(str(tmp_path), tmp_path / "cache.db")


def test_all_is_well_as_long_as_files_come(place):
    place.remember(opens=Week(), clicks=Week(), pushes=OFFICE)
    found, types = place.watch()
    assert (found.source, found.needs_a_look, found.at) == ("ok", False, NOW)
    assert found.told == "Braze last wrote for 2026-09-16 13:00 UTC, as usual."
    assert [one.verdict for one in types.values()] == ["ok", "ok", "ok"]
    assert types[OPEN].newest == time_of(HOUR - 1)
    assert types[OPEN].told == "as usual at this hour of the week"


def test_one_type_that_went_quiet_is_told_and_what_was_expected(place):
    place.remember({"clicks": 9}, opens=Week(), clicks=Week(), pushes=OFFICE)
    found, types = place.watch()
    assert (found.source, found.needs_a_look) == ("ok", True)
    assert found.told.endswith("as usual, but 1 event types have gone quiet.")
    assert [types[one].verdict for one in (OPEN, CLICK, PUSH)] == ["ok", "quiet", "ok"]
    assert 2000 < types[CLICK].expected < 8000
    assert types[CLICK].told == (
        "nothing queued since 2026-09-16 05:00 UTC (7 h), when about "
        f"{types[CLICK].expected:,} rows are usual"
    )


def test_when_braze_stopped_it_is_told_how_long_events_are_kept(place):
    place.remember(dict.fromkeys(("opens", "pushes"), 9), opens=Week(), pushes=OFFICE)
    found, _ = place.watch()
    assert (found.source, found.needs_a_look) == ("stopped", True)
    start = "Braze has stopped: nothing was queued since 2026-09-16 05:00 UTC (7 h), "
    assert found.told.startswith(start + "when about ")
    assert "renew the connector's key or role" in found.told
    ends = "drops events for good from 2026-09-21 06:00 UTC on: 4 d 15 h left."
    assert found.told.endswith(ends)
    later, _ = place.watch(days=6)
    ends = "has been dropping events for good since 2026-09-21 06:00 UTC; renew them "
    assert later.source == "stopped"
    assert later.told.endswith(ends + "now.")


@pytest.mark.parametrize("days", [5, 20, 30, 90])
def test_a_silence_goes_on_being_told_when_the_rhythm_is_forgotten(place, days):
    place.remember(opens=Week())
    assert place.watch(days=days)[0].source == "stopped"


def test_azure_keeps_events_for_two_days_only(place):
    place.remember({"opens": 9}, opens=Week())
    silent = rhythm.silence({HOUR - 9: 1}, HOUR - 9, HOUR)
    told = silence.stopped("az://box/currents", time_of(HOUR - 9), silent, NOW)
    assert told.endswith("from 2026-09-18 06:00 UTC on: 39 h left.")


def test_a_quiet_night_and_weekend_are_no_alarm(place):
    saturday = 24 * 3 + 12
    place.remember(opens=OFFICE)
    cut = hour_of(NOW) + 3  # the office ends its day
    rows = OFFICE.rows(HOUR, cut + 55, Random(3))
    place.commit({OPEN: rows})
    for later in (9, 24, saturday, saturday + 24):
        found, types = place.watch(hours=later)
        assert (found.source, types[OPEN].verdict) == ("ok", "ok"), later
    assert place.watch(days=6)[0].source == "stopped"


def test_a_type_too_rare_or_too_new_is_never_quiet(place):
    place.remember({"clicks": 30}, opens=Week(), clicks=Week(peak=0.7, night=0.1))
    weekly = {HOUR - week * rhythm.WEEK - 20: 5 for week in range(1, 5)}
    place.commit({PUSH: weekly, "users.new": {HOUR - 72 + n: 9 for n in range(40)}})
    found, types = place.watch()
    assert not found.needs_a_look
    assert types[PUSH].told == "comes too rarely for a rhythm"
    assert types["users.new"].verdict == "new"
    assert types["users.new"].told.startswith("1 of 14 days of history are too few")


def test_a_young_source_is_no_alarm_until_it_was_silent_for_days(place):
    place.remember(opens=Week(), weeks=1)
    found, types = place.watch()
    assert (found.source, types[OPEN].verdict) == ("ok", "new")
    assert "7 of 14 days of history" in found.told
    assert place.watch(days=2)[0].source == "ok"
    assert place.watch(days=4, hours=2)[0].source == "stopped"


def test_we_are_behind_if_files_lie_there_that_the_ledger_does_not_hold(
    place, tmp_path
):
    place.remember({"opens": 9}, opens=Week(), clicks=Week())
    put(place.source, HOUR - 2, offset=1)
    put(place.source, HOUR - 2, offset=2)
    old = (NOW - timedelta(hours=14)).timestamp()
    for path in (tmp_path / "in").rglob("*.avro"):
        os.utime(path, (old, old))
    found, types = place.watch()
    assert (found.source, types[OPEN].verdict) == ("behind", "behind")
    assert types[OPEN].newest == time_of(HOUR - 2)
    assert types[OPEN].told == "2 files wait, the first since 2026-09-16 00:20 UTC"
    assert types[CLICK].verdict == "ok"
    assert found.told.startswith(
        "We are behind: 2 files of 1 event types wait in the bucket, the first since "
        "2026-09-16 00:20 UTC."
    )
    api.poll(place.settings)
    assert place.watch()[0].source == "ok"


def test_files_that_have_just_come_wait_for_the_next_poll_and_break_the_silence(
    place, tmp_path
):
    place.remember({"opens": 9}, opens=Week())
    put(place.source, HOUR - 1)
    for path in (tmp_path / "in").rglob("*.avro"):
        os.utime(path, (NOW.timestamp() - 600, NOW.timestamp() - 600))
    found, types = place.watch()
    assert (found.source, types[OPEN].verdict) == ("ok", "ok")


def test_who_polls_once_a_day_is_not_behind_after_an_hour(place, tmp_path):
    rows = Week().rows(HOUR - 5 * rhythm.WEEK, HOUR - 20, Random(1))
    place.commit({OPEN: rows}, every=24)
    put(place.source, HOUR - 2)
    for path in (tmp_path / "in").rglob("*.avro"):
        os.utime(path, (NOW.timestamp() - 8000, NOW.timestamp() - 8000))
    assert place.watch()[0].source == "ok"
    assert place.watch(days=3)[0].types[0].verdict == "behind"


def test_event_types_that_are_not_asked_for_are_not_watched(tmp_path):
    place = Place(str(tmp_path), tmp_path / "cache.db", events=["*.email.*"])
    place.remember({"opens": 9}, opens=Week(), pushes=Week())
    put(place.source, HOUR - 300, PUSH)
    found, types = place.watch()
    assert (found.source, list(types)) == ("stopped", [OPEN])


def test_an_empty_source_is_told_as_unknown(place):
    found, _ = place.watch()
    assert (found.source, found.types) == ("unknown", ())
    assert "Check source.url" in found.told


def test_a_look_changes_nothing(tmp_path):
    place = Place(str(tmp_path), tmp_path / "cache.db", str(tmp_path / "out"))
    place.remember({"opens": 9}, opens=Week())
    put(place.source, HOUR - 2)
    before = state(tmp_path)
    place.watch()
    assert state(tmp_path) == before


def state(folder):
    return {
        one: (one.stat().st_mtime_ns, one.is_file() and one.read_bytes())
        for one in folder.rglob("*")
    }


# Against S3.


@pytest.fixture
def s3_place(s3, tmp_path):
    return Place(f"{s3.url}/acme", tmp_path / "cache.db")


def test_it_costs_a_listing_an_event_type_and_one_small_read(s3_place):
    s3_place.remember(opens=Week(), clicks=Week(), weeks=1)
    for hours in range(1, 40):
        put(s3_place.source, HOUR - hours)
    put(s3_place.source, HOUR - 1, CLICK)
    api.poll(s3_place.settings)
    asked = Counting(s3_place.source)
    with silence.looking(s3_place.settings) as (_, ledger):
        found = silence.history.history(ledger.cache)
        told = silence.judged(s3_place.settings, asked, ledger, found, NOW)
    assert told.source == "ok"
    assert (asked.folders_, asked.pages, asked.listed) == (2, 2, 2)
    assert asked.read == 4


class Counting:
    """A store that counts."""

    def __init__(self, store):
        self.store = store
        self.folders_ = self.pages = self.listed = self.read = 0

    def folders(self, *prefix):
        self.folders_ += 1
        return self.store.folders(*prefix)

    def listing(self, *args, **more):
        for page in self.store.listing(*args, **more):
            self.pages += 1
            self.listed += len(page)
            yield page

    def heads(self, objects, size):
        found = self.store.heads(objects, size)
        self.read += sum(map(len, found))
        return found


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        pytest.param((403, "AccessDenied"), "refused", id="no right"),
        pytest.param((403, "InvalidAccessKeyId"), "refused", id="no such key"),
        pytest.param((400, "ExpiredToken"), "refused", id="expired"),
        pytest.param((404, "NoSuchBucket"), "refused", id="no such bucket"),
        pytest.param((501, "NotImplemented"), "unknown", id="something else"),
    ],
)
def test_a_bucket_that_refuses_is_told_from_braze_that_stopped(
    tmp_path, monkeypatch, answer, source
):
    monkeypatch.setattr("currents_ingest.repeating.ATTEMPTS", 1)
    place = Place(str(tmp_path), tmp_path / "cache.db").remember(opens=Week())
    with refusing(*answer) as endpoint:
        for name, value in s3_environment(endpoint).items():
            monkeypatch.setenv(name, value)
        away = place.settings.source.model_copy(update={"url": "s3://acme/currents"})
        place.settings = place.settings.model_copy(update={"source": away})
        found, types = place.watch()
    assert (found.source, found.needs_a_look) == (source, True)
    assert found.told.startswith("s3://acme/currents/ ")
    assert types[OPEN].verdict == "ok"
    if source == "refused":
        assert "refuses us" in found.told
        assert "check our credentials" in found.told


def test_files_that_may_be_listed_but_not_read_are_refused(s3_place):
    put(s3_place.source, HOUR - 1)
    s3_place.remember(opens=Week(), weeks=1)
    with silence.looking(s3_place.settings) as (source, ledger):
        found = silence.history.history(ledger.cache)
        asked = Counting(source)
        denied = silence.RefusedError("read", "s3://acme/a.avro", "403 Forbidden")
        asked.heads = lambda *_: [denied]
        told = silence.judged(s3_place.settings, asked, ledger, found, NOW)
    assert told.source == "refused"
    assert told.told.startswith("s3://acme/a.avro refuses us (403 Forbidden)")


def test_feeds_that_refuse_are_told_as_well(tmp_path, monkeypatch):
    place = Place(str(tmp_path), tmp_path / "cache.db")
    with refusing(403, "AccessDenied") as endpoint:
        for name, value in s3_environment(endpoint).items():
            monkeypatch.setenv(name, value)
        away = place.settings.feeds.model_copy(update={"url": "s3://acme/feeds"})
        place.settings = place.settings.model_copy(update={"feeds": away})
        found, types = place.watch()
    assert (found.source, types) == ("refused", {})
    assert found.told.startswith("s3://acme/feeds/")


class refusing:  # noqa: N801 (a context manager)
    """An S3 that answers everything alike."""

    def __init__(self, status, code):
        body = f'<?xml version="1.0"?>\n<Error><Code>{code}</Code></Error>'.encode()

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
