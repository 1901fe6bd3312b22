"""A unified feed that is made later gets what raw feeds published before it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pytest

from currents_ingest import api, backfill, config
from currents_ingest.errors import SettingsError
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.verify import verify

FEEDS = ("email_events", "email_opt_status", "message_events")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    events = ("users.messages.email.*", "users.messages.sms.*", "*StateChange")
    simulate(str(root), Simulation(events=events, rows=30, hours=4, torn=2))
    return root / "currents"


def settings_for(tree, root, *include, lease="0s", **more):
    return config.read(
        source={"url": str(tree)},
        feeds={"url": str(root / "feeds"), "include": include},
        ledger={"cache": ":memory:", "lease": lease},
        **more,
    )


def rows(settings, feed):
    """Return the rows that a reader ends up with, without when they were delivered."""
    path = Path(settings.feeds.url, feed, "*", "*", "*", "*.parquet")
    state = feed.endswith("_status")
    newest = (
        "qualify row_number() over (partition by email, brand, email_program "
        "order by state_version desc) = 1"
    )
    found = duckdb.sql(
        f"select * exclude ({'source_file' if state else 'feed_updated_at'}) "
        f"from read_parquet('{path}') {newest if state else ''}"
    )
    return sorted(map(str, found.fetchall()))


@pytest.mark.parametrize("feed", FEEDS)
def test_a_backfill_gives_what_the_feed_would_have_had(tree, tmp_path, feed):
    direct = settings_for(tree, tmp_path / "direct", "raw", feed)
    api.poll(direct)
    late = settings_for(tree, tmp_path / "late", "raw")
    api.poll(late)
    made = settings_for(tree, tmp_path / "late", "raw", feed)
    ahead = backfill.preview(made, feed)
    done = backfill.backfill(made, feed)
    assert done == ahead or feed == "email_opt_status"  # objects are merged
    assert (done.objects, done.rejects) == (ahead.objects, ahead.rejects)
    assert rows(made, feed) == rows(direct, feed) != []
    assert verify(made).differences == ()
    assert backfill.backfill(made, feed).objects == 0
    assert api.poll(made).files == 0


def test_what_was_delivered_already_is_not_delivered_again(tree, tmp_path):
    half = settings_for(tree, tmp_path, "raw", "email_events").model_copy(
        update={"source": config.Source(url=str(tree), events=("*Open",))}
    )
    api.poll(half)
    api.poll(settings_for(tree, tmp_path, "raw"))
    made = settings_for(tree, tmp_path, "raw", "email_events")
    backfill.backfill(made, "email_events")
    found = rows(made, "email_events")
    assert len(found) == len(set(found))
    api.poll(settings_for(tree, tmp_path / "direct", "raw", "email_events"))
    direct = settings_for(tree, tmp_path / "direct", "raw", "email_events")
    assert found == rows(direct, "email_events")
    assert verify(made).differences == ()


def test_backfills_at_the_same_time_deliver_once(tree, tmp_path):
    api.poll(settings_for(tree, tmp_path, "raw"))
    made = settings_for(tree, tmp_path, "raw", "email_events")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: backfill.backfill(made, "email_events"), range(3)))
    found = rows(made, "email_events")
    assert len(found) == len(set(found)) > 0
    assert verify(made).differences == ()


def test_what_the_raw_feed_hashed_is_not_hashed_again(tree, tmp_path):
    privacy = {"fields": {"email_address": "hash"}}
    api.poll(settings_for(tree, tmp_path, "raw", privacy=privacy))
    made = settings_for(tree, tmp_path, "raw", "email_events", privacy=privacy)
    backfill.backfill(made, "email_events")
    path = Path(made.feeds.url)
    emails = {
        one
        for (one,) in duckdb.sql(
            f"select email from read_parquet('{path}/email_events/*/*/*/*.parquet')"
        ).fetchall()
    }
    raw = {
        one
        for (one,) in duckdb.sql(
            "select email_address from "
            f"read_parquet('{path}/messages_email_open/*/*/*/*.parquet')"
        ).fetchall()
    }
    assert raw - {"", "[REDACTED]"} <= emails


def test_only_a_feed_that_is_made_can_be_filled(tree, tmp_path):
    with pytest.raises(SettingsError, match="no unified feed purchases"):
        backfill.preview(settings_for(tree, tmp_path, "raw"), "purchases")


def test_what_was_published_plain_is_hidden_now(tree, tmp_path):
    api.poll(settings_for(tree, tmp_path, "raw"))
    privacy = {"fields": {"email_address": "hash", "user_id": "drop"}}
    made = settings_for(tree, tmp_path, "raw", "email_events", privacy=privacy)
    backfill.backfill(made, "email_events")
    text = "\n".join(rows(made, "email_events"))
    assert "@" not in text
    direct = settings_for(tree, tmp_path / "d", "raw", "email_events", privacy=privacy)
    api.poll(direct)
    assert rows(made, "email_events") == rows(direct, "email_events")
