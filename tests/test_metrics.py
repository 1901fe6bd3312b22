"""What metrics say, held against what a run itself says it did."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from currents_ingest import api, config
from currents_ingest.audiences.work import Run
from currents_ingest.metrics import METRICS, RESULTS, Metrics
from currents_ingest.session import looking_at_feeds
from currents_ingest.silence import Rhythm, Sentinel
from currents_ingest.simulate import Simulation, simulate

OPEN = "users.messages.email.Open"
NOW = datetime(2026, 9, 15, 12, 30, tzinfo=UTC)
CALM = Sentinel(at=NOW, source="ok", told="", types=())


def samples(metrics):
    """Return metrics by name and label values, in the order of their names."""
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for one in family.samples
    }


def summed(found, name):
    return sum(value for (metric, *_), value in found.items() if metric == name)


@pytest.fixture
def settings(tmp_path):
    simulation = Simulation(
        events=("users.messages.email.*",), hours=3, bad_rows=0.002, torn=2, foreign=1
    )
    simulate(str(tmp_path / "in"), simulation)
    return config.read(
        source={"url": str(tmp_path / "in" / "currents")},
        feeds={"url": str(tmp_path / "out")},
        ledger={"cache": str(tmp_path / "cache.db")},
    )


def looked(metrics, settings, sentinel=CALM):
    with looking_at_feeds(settings) as ledger:
        metrics.looked(ledger.cache, sentinel, NOW)


def test_counters_are_what_the_poll_says_it_did(settings):
    metrics = Metrics([], [])
    outcome = api.poll(settings, seen=metrics.committed)
    metrics.polled(outcome)
    found = samples(metrics)
    assert outcome.quarantined
    assert outcome.rejects
    assert {
        name: summed(found, f"currents_{name}_total")
        for name in (
            "files",
            "read_bytes",
            "rows_in",
            "rows_out",
            "duplicates",
            "rejects",
            "unified_rejects",
            "quarantines",
            "drifts",
        )
    } == {
        "files": outcome.files,
        "read_bytes": outcome.bytes_in,
        "rows_in": outcome.rows_in,
        "rows_out": outcome.rows_out,
        "duplicates": outcome.duplicates,
        "rejects": outcome.rejects,
        "unified_rejects": outcome.unified_rejects,
        "quarantines": len(outcome.quarantined),
        "drifts": len(outcome.drift),
    }
    for event_type, count in Counter(x.event_type for x in outcome.quarantined).items():
        assert found["currents_quarantines_total", event_type] == count
    assert found["currents_delivery_delay_seconds_count",] == 11
    newest = found["currents_newest_event_timestamp_seconds", OPEN]
    assert NOW - timedelta(hours=2) < datetime.fromtimestamp(newest, UTC) < NOW


def test_gauges_are_what_the_ledger_says_whoever_delivered(settings):
    outcome = api.poll(settings)
    metrics = Metrics([], [])
    assert "currents_ledger_entries" not in {name for name, *_ in samples(metrics)}
    looked(metrics, settings)
    found = samples(metrics)
    assert found["currents_ledger_entries",] == outcome.entries[-1] + 1  # reconciled
    assert found["currents_ledger_read_timestamp_seconds",] == NOW.timestamp()
    hour = datetime(2026, 9, 15, 11, tzinfo=UTC).timestamp()
    assert found["currents_newest_queued_hour_timestamp_seconds", OPEN] == hour
    committed = found["currents_last_commit_timestamp_seconds", OPEN]
    ago = datetime.now(UTC) - datetime.fromtimestamp(committed, UTC)
    assert timedelta() <= ago < timedelta(minutes=5)
    assert summed(found, "currents_rejected_rows") == outcome.rejects
    quarantined = summed(found, "currents_quarantined_files")
    assert quarantined == len(outcome.quarantined)
    assert found["currents_rejects_total", OPEN] == 0  # so that a rise is seen


def test_the_sentinel_is_told_by_states_of_which_one_is_1(settings):
    api.poll(settings)
    types = (
        Rhythm(event_type=OPEN, verdict="quiet", newest=NOW, expected=9, told=""),
        Rhythm(
            event_type="users.Other", verdict="new", newest=None, expected=0, told=""
        ),
    )
    metrics = Metrics([], [])
    looked(metrics, settings, Sentinel(at=NOW, source="stopped", told="", types=types))
    found = samples(metrics)
    source = {
        key[1]: n for key, n in found.items() if key[0] == "currents_source_state"
    }
    assert source == {"ok": 0, "stopped": 1, "refused": 0, "behind": 0, "unknown": 0}
    states = {
        key[1:]: n for key, n in found.items() if key[0] == "currents_event_type_state"
    }
    assert {key for key, n in states.items() if n} == {
        (OPEN, "quiet"),
        ("users.Other", "new"),
    }
    assert len(states) == 8
    looked(metrics, settings)  # what is no longer said is gone
    assert not [key for key in samples(metrics) if "event_type_state" in key[0]]


def test_runs_of_audiences_add_up():
    metrics = Metrics([], ["vip"])
    assert samples(metrics)["currents_audience_objects_total", "vip", "failed"] == 0
    for number in (1, 2):
        metrics.synced(
            Run(
                run="r",
                audience="vip",
                destination="d",
                taken=10,
                failed=2,
                unknown=1,
                undecided=number,
                new=7,
                changed=5,
                left=1,
                rejected=4,
                requests=3,
            )
        )
    found = samples(metrics)
    assert {key[1:]: n for key, n in found.items() if "audience_objects" in key[0]} == {
        ("vip", "acknowledged"): 20,
        ("vip", "failed"): 4,
        ("vip", "unknown"): 2,
    }
    rows = "currents_audience_rows_total"
    assert {key[1:]: n for key, n in found.items() if key[0] == rows} == {
        ("vip", "new"): 14,
        ("vip", "changed"): 10,
        ("vip", "left"): 2,
    }
    assert found["currents_audience_rejected_rows_total", "vip"] == 8
    assert found["currents_audience_requests_total", "vip"] == 6
    assert found["currents_audience_undecided_objects", "vip"] == 2


def test_runs_of_tasks_are_counted_from_0_by_how_they_ended():
    metrics = Metrics(["poll"], [])
    for result in RESULTS:
        assert samples(metrics)["currents_task_runs_total", result, "poll"] == 0
    metrics.ended("poll", "retry", 12.5, NOW)
    metrics.overran("poll")
    found = samples(metrics)
    assert found["currents_task_runs_total", "retry", "poll"] == 1
    assert found["currents_task_duration_seconds_sum", "retry", "poll"] == 12.5
    last = "currents_task_last_end_timestamp_seconds"
    assert found[last, "retry", "poll"] == NOW.timestamp()
    assert found["currents_task_overruns_total", "poll"] == 1


def test_names_keep_to_the_conventions_of_prometheus():
    for one in METRICS:
        assert re.fullmatch(r"currents(_[a-z]+)+", one.name)
        assert not one.name.endswith(("_total", "_count", "_sum", "_bucket", "_info"))
        assert not {"job", "instance", "le", "key", "id"} & set(one.labels)
        assert one.told.endswith(".")
        if "time" in one.name or "seconds" in one.name:
            assert one.name.endswith("_seconds")
        assert bool(one.buckets) == (one.kind == "histogram")
    assert len({one.name for one in METRICS}) == len(METRICS)


def test_what_is_exposed_is_the_table_and_nothing_else():
    metrics = Metrics(["poll"], ["vip"])
    found = {
        family.name: family.type
        for family in metrics.registry.collect()
        if not family.name.startswith("process_")
    }
    kinds = {"ledger": "gauge"}
    assert found == {one.name: kinds.get(one.kind, one.kind) for one in METRICS}
