"""One screen that says what needs a look, and the report's figures behind it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta

import pytest

from currents_ingest import config, report, silence, status
from currents_ingest.audiences.gathering import Target
from currents_ingest.audiences.sync import sync
from currents_ingest.errors import RefusedError
from currents_ingest.ledger import Ledger
from currents_ingest.manifest import Entry
from currents_ingest.output import show_status
from currents_ingest.store import Store
from tests.avro_files import OPEN
from tests.histories import NOW, aside, hour_of, manifest, put, world

HOUR = hour_of(NOW)
FULL_SCREEN = 40


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "export.csv").write_text("external_id,points\nu1,5\nu2,6\n")
    return config.read(
        source={"url": str(tmp_path / "in")},
        feeds={"url": str(tmp_path / "out"), "include": ["raw"]},
        ledger={"cache": str(tmp_path / "cache.db"), "lease": "0s"},
        audiences={"vips": {"source": str(tmp_path / "export.csv"), "settle": "0s"}},
        braze={"url": "http://127.0.0.1:9"},
    )


@pytest.fixture
def ledger(settings):
    ledger = Ledger.open(Store.open(settings.feeds.url), settings.ledger.cache)
    yield ledger
    ledger.close()


def shown(capsys, found, **more):
    show_status(found, **more)
    return capsys.readouterr().out.splitlines()


def test_a_line_an_event_type_with_its_last_day(settings, ledger, capsys):
    old = manifest(OPEN, NOW - timedelta(days=8), {HOUR - 192: 1000})
    now = manifest(OPEN, NOW, {HOUR - 1: 90, HOUR - 23: 10}, duplicates=4, rejects=2)
    ledger.commit(Entry(at=NOW - timedelta(days=8), run="r", batches=(old,)))
    ledger.commit(Entry(at=NOW, run="r", batches=(now,), set_aside=(aside(OPEN, 1),)))
    found = status.status(settings, NOW)
    (feed,) = found.feeds
    assert (feed.rows_24h, feed.duplicates_24h, feed.rejects_24h) == (100, 4, 2)
    assert (feed.quarantined, feed.verdict, feed.files) == (1, "new", 3)
    assert 30 < feed.delay < 60
    lines = shown(capsys, found)
    head = "event type newest hour rows 24 h delay duplicates rejects aside"
    assert " ".join(lines[2].split()) == head
    row = f"{OPEN} 2026-09-16 13:00 100 {feed.delay:.0f} min 4 2 1 new"
    assert " ".join(lines[3].split()) == row
    assert "never sent" in lines[6]
    assert lines[-2:] == [f"needs a look: {told}" for told in found.look]
    assert found.look[0].startswith("1 files in quarantine: ")
    assert found.look[1].startswith("2 rows rejected in the last 24 hours: ")


def test_106_event_types_fit_a_screen_and_all_shows_every_one(settings, ledger, capsys):
    world(ledger, NOW, every=24, days=20)
    found = status.status(settings, NOW)
    assert len(found.feeds) == 106
    lines = shown(capsys, found)
    assert len(lines) <= FULL_SCREEN
    table = [line for line in lines if line.startswith("users.")]
    assert [line.split()[0].removeprefix("users.messages.") for line in table[:3]] == [
        "sms.Delivery",
        "sms.Send",
        "email.Click",
    ]
    others = 106 - len(table)
    assert any(line.startswith(f"{others} others (--all)") for line in lines)
    (total,) = (line.split() for line in lines if line.startswith("106 in all"))
    assert f"{sum(one.rows_24h for one in found.feeds):,}" in total
    every = shown(capsys, found, whole=True)
    assert sum(line.endswith(("ok", "quiet", "new")) for line in every) == 106
    late = status.status(settings, NOW + timedelta(days=3))
    assert late.sentinel.source == "stopped"
    assert len(shown(capsys, late)) <= FULL_SCREEN
    assert "event types are quiet: " in " ".join(late.look)


def test_an_audiences_last_run_is_one_line_and_its_trouble_is_told(
    settings, box, capsys
):
    settings = settings.model_copy(
        update={"braze": settings.braze.model_copy(update={"url": box.url})}
    )
    target = Target("vips", settings.audiences["vips"])
    run = sync(settings, target, "made-up key")
    assert (run.state, run.taken, run.data_points) == ("done", 2, 2)
    found = status.status(settings, NOW)
    (last,) = found.audiences
    assert [one.run for one in last.runs] == [run.run]
    assert last.trouble == ""
    (line,) = (one for one in shown(capsys, found) if one.startswith("vips"))
    assert line.split()[3:] == ["done", "2", "0", "0"]
    page = report.gathered(settings, NOW)
    assert page.audiences[0].runs[0].data_points == 2


def test_an_audience_whose_instance_is_not_set_stops_nothing(settings):
    braze = settings.braze.model_copy(update={"url": "", "instance": ""})
    found = status.status(settings.model_copy(update={"braze": braze}), NOW)
    assert found.audiences[0].told
    assert any(one.startswith("audience vips: ") for one in found.look)


def test_status_says_it_when_the_source_refuses(settings, ledger, monkeypatch):
    ledger.commit(Entry(at=NOW, run="r", batches=(manifest(OPEN, NOW, {HOUR: 1}),)))

    def refuse(*_):
        raise RefusedError("list", "s3://acme", "403 Forbidden")

    monkeypatch.setattr(silence.discover, "event_folders", refuse)
    found = status.status(settings, NOW)
    assert found.sentinel.source == "refused"
    assert found.look[0].startswith("s3://acme refuses us (403 Forbidden)")
    assert found.feeds[0].rows_24h == 1
    assert "Refused." in report.page(settings, NOW)


def test_the_reports_days_add_up_to_what_was_committed(settings, ledger):
    for day in range(3):
        at = NOW - timedelta(days=day)
        rows = {hour_of(at) - 2: 100, hour_of(at) - 1: 50}
        batch = manifest(OPEN, at, rows, duplicates=5, rejects=1)
        ledger.commit(Entry(at=at, run="r", batches=(batch,)))
    page = report.gathered(settings, NOW)
    assert [
        (one.queued, one.read, one.duplicates, one.rejects) for one in page.days
    ] == [(150, 150, 5, 1)] * 3
    assert page.duplicate_share == 10 / 300
    assert [one.rows_7d for one in page.rows] == [450]
    assert (page.first, page.others) == (page.rows, ())
    assert 60 < page.days[0].delay < 150


def test_an_empty_ledger_is_a_page_too(settings):
    text = report.page(settings, NOW)
    assert "Nothing was delivered in the last five weeks." in text
    assert "no Currents file was ever found below" in text


def run(settings, tmp_path, *arguments):
    toml = tmp_path / "currents.toml"
    source, feeds = settings.source.url, settings.feeds.url
    toml.write_text(
        f'source = {{ url = "{source}" }}\nfeeds = {{ url = "{feeds}" }}\n'
        f'ledger = {{ cache = "{settings.ledger.cache}" }}\n'
    )
    command = [sys.executable, "-m", "currents_ingest", *arguments]
    return subprocess.run(
        [*command, "--config", str(toml)], capture_output=True, text=True, check=False
    )


def test_strict_ends_with_3_as_long_as_something_needs_a_look(
    settings, ledger, tmp_path
):
    hour = hour_of(datetime.now(NOW.tzinfo)) - 1
    put(Store.open(settings.source.url), hour)
    at = datetime.now(NOW.tzinfo)
    batch = manifest(OPEN, at, {hour: 1})
    ledger.commit(Entry(at=at, run="r", batches=(batch,)))
    assert run(settings, tmp_path, "status", "--strict").returncode == 0
    ledger.commit(Entry(at=at, run="r", set_aside=(aside(OPEN, 7),)))
    ended = run(settings, tmp_path, "status", "--strict", "--json")
    assert ended.returncode == 3
    told = json.loads(ended.stdout)
    assert told["look"] == [
        "1 files in quarantine: see `currents-ingest quarantine list`"
    ]
    assert told["sentinel"]["source"] == "ok"
    assert told["sentinel"]["types"][0]["verdict"] == "new"
    assert run(settings, tmp_path, "status").returncode == 0


def test_report_writes_a_page_and_says_where(settings, tmp_path):
    path = tmp_path / "out.html"
    ended = run(settings, tmp_path, "report", "-o", str(path))
    assert (ended.returncode, ended.stdout) == (0, f"wrote {path}\n")
    assert path.read_text().startswith("<!doctype html>")
    shown = run(settings, tmp_path, "report", "-o", "-")
    assert shown.stdout.startswith("<!doctype html>")
