"""Conversions get the email address of the send before them, and nothing twice."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import duckdb
import polars as pl
import pytest

from currents_ingest import api, config, joining, merging
from currents_ingest.errors import SettingsError
from currents_ingest.manifest import Entry, Joined
from currents_ingest.session import begin
from currents_ingest.store import Store
from currents_ingest.unified import Join
from currents_ingest.verify import verify
from tests.avro_files import container, key, record

SEND = "users.messages.email.Send"
CAMPAIGN, CANVAS = "users.campaigns.Conversion", "users.canvas.Conversion"
T = 1_789_466_400
TEXT = ["null", "string"]
FIELDS = {
    SEND: {
        "user_id": "string",
        "email_address": "string",
        "campaign_id": TEXT,
        "canvas_id": TEXT,
        "dispatch_id": TEXT,
    },
    CAMPAIGN: {"user_id": "string", "campaign_id": "string"},
    CANVAS: {"user_id": "string", "canvas_id": "string"},
}


@pytest.fixture
def place(tmp_path):
    """A source to write to, and settings that keep conversions."""
    source = Store.open(str(tmp_path / "source"))

    def settings(*, keep="keep", include=("raw", "email_events"), **more):
        return config.read(
            source={"url": source.url},
            feeds={
                "url": str(tmp_path / "feeds"),
                "include": include,
                "options": {"email_events": {"conversions": keep}},
            },
            ledger={"cache": str(tmp_path / "cache.db"), "lease": "0s"},
            **more,
        )

    return source, settings


def put(source, event, offset, *rows):
    body = [
        dict.fromkeys(FIELDS[event]) | {"id": f"{event}-{offset}-{n}"} | row
        for n, row in enumerate(rows)
    ]
    source.put(
        key(event, offset=offset), container(record(event, **FIELDS[event]), body)
    )


def sent(time, user="u", campaign="c", email="A@example.com", **more):
    row = {"time": time, "user_id": user, "email_address": email}
    return {**row, "campaign_id": campaign, "dispatch_id": f"d{time}", **more}


def converted(time, user="u", campaign="c"):
    return {"time": time, "user_id": user, "campaign_id": campaign}


def join(settings, after=timedelta(hours=2)):
    """Join as a poll would some time later."""
    with begin(settings) as session:
        return joining.join_what_waits(session, datetime.now(UTC) + after)


def conversions(settings):
    path = Path(settings.feeds.url, "email_events", "*", "*", "*", "*.parquet")
    found = duckdb.sql(
        "select event_id, email, send_id, epoch(event_datetime)::bigint, campaign_id "
        f"from read_parquet('{path}') where event_type = 'Converted' order by 1"
    )
    return found.fetchall()


def test_a_conversion_gets_the_last_send_before_it(place):
    source, settings = place
    keeps = settings()
    put(source, CAMPAIGN, 1, converted(T + 50), converted(T + 5), converted(T - 5))
    put(source, SEND, 1, sent(T), sent(T + 20, email="b@example.com"), sent(T + 60))
    api.poll(keeps)
    assert conversions(keeps) == []  # it has to wait for sends that come later
    assert join(keeps) == 2
    assert conversions(keeps) == [
        (f"{CAMPAIGN}-1-0", "b@example.com", f"d{T + 20}:u", T + 50, "c"),
        (f"{CAMPAIGN}-1-1", "a@example.com", f"d{T}:u", T + 5, "c"),
    ]
    assert verify(keeps).differences == ()
    assert join(keeps) == 0
    assert len(conversions(keeps)) == 2


def test_a_send_that_comes_in_a_later_poll_is_found(place):
    source, settings = place
    keeps = settings()
    put(source, SEND, 1, sent(T, user="someone else"))
    put(source, CAMPAIGN, 1, converted(T + 5))
    api.poll(keeps)
    assert join(keeps, timedelta(minutes=59)) == 0
    put(source, SEND, 2, sent(T))
    api.poll(keeps)
    assert join(keeps) == 1
    assert verify(keeps).differences == ()


def test_canvases_are_joined_by_canvas(place):
    source, settings = place
    keeps = settings()
    put(source, SEND, 1, sent(T, campaign=None, canvas_id="k"), sent(T, user="v"))
    put(source, CANVAS, 1, {"time": T + 9, "user_id": "u", "canvas_id": "k"})
    api.poll(keeps)
    assert join(keeps) == 1
    assert conversions(keeps) == [
        (f"{CANVAS}-1-0", "a@example.com", f"d{T}:u", T + 9, "k")
    ]


def test_without_the_option_there_are_none(place):
    source, settings = place
    drops = settings(keep="drop")
    put(source, SEND, 1, sent(T))
    put(source, CAMPAIGN, 1, converted(T + 5))
    api.poll(drops)
    assert join(drops) == 0
    assert conversions(drops) == []


def test_the_raw_feeds_must_be_made(place):
    _, settings = place
    lacks = settings(include=("email_events", "messages_email_send"))
    with pytest.raises(SettingsError, match="needs the raw feed campaigns_conversion"):
        api.poll(lacks)


def test_what_the_raw_feed_hashed_is_not_hashed_again(place):
    source, settings = place
    hashes = settings(privacy={"fields": {"email_address": "hash", "user_id": "hash"}})
    put(source, SEND, 1, sent(T))
    put(source, CAMPAIGN, 1, converted(T + 5))
    api.poll(hashes)
    assert join(hashes) == 1
    ((_, email, send_id, _, _),) = conversions(hashes)
    assert email == hashlib.sha256(b"a@example.com").hexdigest()
    assert send_id == f"d{T}:{hashlib.sha256(b'u').hexdigest()}"


def test_what_waits_is_known_on_an_empty_disk(place):
    source, settings = place
    keeps = settings()
    put(source, SEND, 1, sent(T))
    put(source, CAMPAIGN, 1, converted(T + 5))
    api.poll(keeps)
    elsewhere = keeps.model_copy(
        update={"ledger": config.LedgerSettings(cache=Path(":memory:"), lease="0s")}
    )
    assert join(elsewhere) == 1
    assert join(keeps) == 0
    assert verify(keeps).differences == ()


JOIN = Join(event=SEND, on=("campaign_id", "user_id"), take=("email_address",), days=30)


@pytest.mark.parametrize("seed", range(30))
def test_a_join_is_what_a_loop_finds(seed):
    rng = Random(seed)
    day = 86_400

    def some(count, **more):
        return pl.DataFrame(
            {
                "id": [f"{n:04}" for n in range(count)],
                "campaign_id": [rng.choice("ab") for _ in range(count)],
                "user_id": [rng.choice("xyz") for _ in range(count)],
                "time": [rng.randrange(60 * day) for _ in range(count)],
            }
            | {name: [make(n) for n in range(count)] for name, make in more.items()}
        ).with_columns(
            pl.from_epoch("time").dt.replace_time_zone("UTC").alias("event_datetime")
        )

    rows, sends = some(40), some(60, email_address=str)
    found = joining.joined(rows, sends.drop("time"), JOIN)
    wanted = {}
    for row in rows.to_dicts():
        before = [
            one
            for one in sends.to_dicts()
            if (one["campaign_id"], one["user_id"])
            == (row["campaign_id"], row["user_id"])
            and 0 <= row["time"] - one["time"] <= 30 * day
        ]
        if before:
            last = max(before, key=lambda one: (one["time"], one["id"]))
            wanted[row["id"]] = last["email_address"]
    assert dict(found.select("id", "email_address").iter_rows()) == wanted


@pytest.mark.parametrize("nobody", ["", "[REDACTED]"])
def test_what_names_nobody_is_not_joined(place, nobody):
    source, settings = place
    keeps = settings()
    put(source, SEND, 1, sent(T, user=nobody))
    put(source, CAMPAIGN, 1, converted(T + 5, user=nobody))
    api.poll(keeps)
    assert join(keeps) == 0


def test_a_joined_row_that_does_not_fit_is_rejected(place):
    source, settings = place
    keeps = settings()
    put(source, SEND, 1, sent(T, email=""))
    put(source, CAMPAIGN, 1, converted(T + 5))
    api.poll(keeps)
    assert join(keeps) == 0
    lines = "".join(
        path.read_text()
        for path in Path(keeps.feeds.url, "_rejects", "email_events").rglob("*.jsonl")
    )
    assert CAMPAIGN in lines
    assert "email is missing" in lines
    assert verify(keeps).differences == ()


def test_a_feed_of_joined_rows_alone_is_pinned(place):
    source, settings = place
    api.poll(settings(include=["raw"], keep="drop"))
    put(source, SEND, 1, sent(T))
    api.poll(settings(include=["raw"], keep="drop"))
    put(source, CAMPAIGN, 1, converted(T + 5))
    keeps = settings()
    api.poll(keeps)
    assert join(keeps) == 1
    with begin(keeps) as session:
        assert "email_events" in session.ledger.cache.unified()
    assert verify(keeps).differences == ()


def test_batches_of_a_feed_that_is_not_made_go_on_waiting(place):
    source, settings = place
    keeps = settings()
    put(source, SEND, 1, sent(T))
    put(source, CAMPAIGN, 1, converted(T + 5))
    api.poll(keeps)
    assert join(settings(include=["raw"], keep="drop")) == 0
    assert join(settings(keep="drop")) == 0
    assert join(keeps) == 1


def test_a_raw_object_that_is_gone_stops_nothing(place):
    source, settings = place
    put(source, SEND, 1, sent(T))
    api.poll(settings(include=["email_events"], keep="drop"))  # no raw object of it
    put(source, SEND, 2, sent(T + 1))
    put(source, CAMPAIGN, 1, converted(T + 5))
    keeps = settings()
    api.poll(keeps)
    assert join(keeps) == 1
    assert [one[2] for one in conversions(keeps)] == [f"d{T + 1}:u"]


@pytest.mark.parametrize(
    "privacy",
    [
        {"fields": {"user_id": "drop"}},
        {"feeds": {"messages_email_send": {"user_id": "hash"}}},
    ],
)
def test_what_is_joined_by_must_be_alike(place, privacy):
    _, settings = place
    with pytest.raises(SettingsError, match="user_id must be kept or hashed alike"):
        api.poll(settings(privacy=privacy))


def test_a_choice_for_the_unified_feed_counts_for_joined_rows(place):
    source, settings = place
    feeds = {
        "campaigns_conversion": {"email_address": "drop"},
        "email_events": {"email_address": "hash"},
    }
    hashes = settings(privacy={"feeds": feeds})
    put(source, SEND, 1, sent(T))
    put(source, CAMPAIGN, 1, converted(T + 5))
    api.poll(hashes)
    assert join(hashes) == 1
    ((_, email, _, _, _),) = conversions(hashes)
    assert email == hashlib.sha256(b"a@example.com").hexdigest()


def test_verify_sees_a_batch_that_was_joined_twice(place):
    source, settings = place
    keeps = settings()
    put(source, SEND, 1, sent(T))
    put(source, CAMPAIGN, 1, converted(T + 5))
    api.poll(keeps)
    later = datetime.now(UTC) + timedelta(hours=2)
    with begin(keeps) as session:
        cache = session.ledger.cache
        waiting = cache.unjoined(later)
        joining.join_what_waits(session, later)
        contract = cache.unified()["email_events"]
        found = joining._found(session, contract, waiting)  # noqa: SLF001
        store = session.ledger.store
        made = merging.late(found, contract, store, "_staging/again", later)
        done = (Joined(feed="email_events", index=waiting[0]["object"]),)
        entry = Entry(at=later, run="again", deliveries=made, joined=done)
        session.ledger.commit(entry)
    told = [one.what for one in verify(keeps).differences]
    assert told == ["went into email_events twice", "1 keys are delivered twice"]
