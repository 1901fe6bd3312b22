"""Unified feeds, held against a plain recomputation and Amperity's documented rules."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from currents_ingest import api, avro, config, conform, schemas, unify
from currents_ingest.contracts import raw_contract
from currents_ingest.selection import select
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.store import Store
from currents_ingest.verify import verify
from tests import naive_feeds as naive
from tests.amperity_rules import RAW, UNIFIED, broken, broken_in_one
from tests.avro_files import container, key, record
from tests.campaign import KILLED, Place, finish, folder, run_and_kill_at_work

OPTIONAL = {
    name: ["null", "string"]
    for name in ("email_address", "phone_number", "channel", "channel_identifier")
}
GLOBAL = "users.behaviors.subscription.GlobalStateChange"
GROUP = "users.behaviors.subscriptiongroup.StateChange"
NOON = int(datetime(2026, 9, 15, 12, tzinfo=UTC).timestamp())


def settings_for(source, feeds, /, **sections):
    given = {
        "source": {"url": str(source), "reconcile": "0s"},
        "feeds": {
            "url": str(feeds),
            "include": ["raw", *UNIFIED],
            "max_reject_share": 1,
        },
        "ledger": {"cache": ":memory:", "lease": "0s"},
    }
    for name, values in sections.items():
        given[name] = given.get(name, {}) | values
    return config.read(**given)


# What lies in the feeds, read by others


def objects(feeds):
    """Return every published object, by key."""
    paths = sorted(Path(feeds).rglob("*.parquet"))
    keys = {path.relative_to(feeds).as_posix(): path for path in paths}
    return {at: path.read_bytes() for at, path in keys.items() if at[0] != "_"}


def rows_of(feeds, feed):
    found = []
    for path in sorted((Path(feeds) / feed).rglob("*.parquet")):
        found += pq.read_table(io.BytesIO(path.read_bytes())).to_pylist()
    return found


def reasons(feeds, feed):
    """Return the rejects of a feed: reason by file and row."""
    found = {}
    for path in (Path(feeds) / "_rejects" / feed).rglob("*.jsonl"):
        for line in path.read_text("utf-8").splitlines():
            one = json.loads(line)
            assert (one["file"], one["row"]) not in found
            found[one["file"], one["row"]] = one["reason"]
    return found


def seen(feeds, feed):
    """Return what Amperity has after upserts: the row of highest last-updated."""
    table = UNIFIED[feed]
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows_of(feeds, feed):
        at = tuple(row[column] for column in table.key)
        other = rows.get(at)
        if other and other[table.last_updated] == row[table.last_updated]:
            assert other == row, "two rows of a key are equally new"
        if not other or other[table.last_updated] < row[table.last_updated]:
            rows[at] = row
    return rows


def differences(found, wanted):
    """Return what tells two tables apart, by key and column: the first few."""
    told = [f"{at}: extra" for at in found if at not in wanted]
    told += [f"{at}: missing" for at in wanted if at not in found]
    for at in found.keys() & wanted.keys():
        if found[at] != wanted[at]:
            names = found[at].keys() | wanted[at].keys()
            told += [
                f"{at} {name}: {found[at].get(name)!r}, not {wanted[at].get(name)!r}"
                for name in sorted(names)
                if found[at].get(name, "-") != wanted[at].get(name, "-")
            ]
    return [len(told), *told[:8]] if told else []


# A month that came late, twice and out of order


@dataclass(frozen=True)
class Month:
    """A month of Currents as it was delivered, and what came of it."""

    source: Path
    feeds: Path
    groups: list[list[str]]
    asked: naive.Asked
    aside: int

    def events(self):
        return naive.delivered(self.source, self.groups)


def simulated(root):
    """Write a month: five mornings of all events, consent in between, redeliveries."""
    aside = set()
    for n in range(5):
        part = root / f"part{n}"
        simulate(
            str(part),
            Simulation(
                seed=n,
                versions="all" if n == 0 else "latest",
                end=datetime(2026, 9, 3 + 6 * n, 12, tzinfo=UTC),
                hours=2,
                files_per_hour=1,
                rows=12,
                late=0.2,
                torn=2,
                bad_rows=0.01,
            ),
        )
        shutil.copytree(part / "currents", root / "all", dirs_exist_ok=True)
        told = json.loads((part / "expected.json").read_text())
        aside |= {one["key"] for one in told["set_aside"]}
    put_consent(Store.open(str(root / "all")), random.Random(5))
    found = (root / "all").rglob("*.avro")
    keys = sorted(path.relative_to(root / "all").as_posix() for path in found)
    return [*keys, *redelivered(root / "all", keys, aside)], aside


def put_consent(store, rng):
    """Write consent of few people that often changes, sometimes twice a second."""
    events = consent(rng, 900)
    for number in range(0, len(events), 90):
        day = f"2026-09-{3 + number // 60:02}-{rng.randrange(24):02}"
        for event_type in (GLOBAL, GROUP):
            rows = [
                row for kind, row in events[number : number + 90] if kind == event_type
            ]
            body = container(consent_schema(event_type), rows)
            store.put(key(event_type, hour=day, offset=number), body)


def redelivered(source, keys, aside):
    """Deliver every ninth file once more, queued a day later."""
    again = [one for one in keys[::9] if one not in aside]
    for one in again:
        day = re.search(r"date=(\d{4}-\d\d-\d\d)-", one)[1]
        later = (date.fromisoformat(day) + timedelta(days=1)).isoformat()
        other = one.replace(f"date={day}", f"date={later}")
        (source / other).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / one, source / other)
        yield other


def asked_for(source, keys):
    """Choose brands for some workspaces and domains that there are."""
    events = naive.delivered(source, [keys])
    groups = sorted({e.fields.get("app_group_id") or "" for e in events} - {""})
    programs = sorted({e.fields.get("subscription_group_id") or "" for e in events})
    names = dict.fromkeys(groups[::3], "acme") | dict.fromkeys(groups[1::3], "bolt")
    names |= {"mail.example.com": "mailers"} | dict.fromkeys(programs[1::7], "club")
    return naive.Asked(
        brand="house",
        brands=names,
        region="EU",
        regions=dict.fromkeys(groups[::4], "US"),
    )


def brands(asked):
    return {
        "default": asked.brand,
        "names": dict(asked.brands),
        "region": asked.region,
        "regions": dict(asked.regions),
    }


def in_groups(keys, order, count=5):
    """Split keys into those that come together, in one of two orders."""
    keys = sorted(keys, key=lambda one: re.search(r"date=([^/]+)", one)[1])
    if order == "shuffled":
        random.Random(order).shuffle(keys)
    if order == "newest first":
        keys.reverse()
    size = -(-len(keys) // count)
    return [keys[at : at + size] for at in range(0, len(keys), size)]


def deliver(here, there, keys):
    for one in keys:
        (there / one).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here / one, there / one)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("written")
    keys, aside = simulated(root)
    readable = [one for one in keys if one not in aside]
    return root / "all", keys, aside, asked_for(root / "all", readable)


def alone(order):
    """Keep what one order makes with one worker: it takes half a minute to make."""
    return pytest.param(order, marks=pytest.mark.xdist_group(order))


@pytest.fixture(scope="module", params=[alone("newest first"), alone("shuffled")])
def month(request, written, tmp_path_factory):
    source, keys, aside, asked = written
    root = tmp_path_factory.mktemp("month")
    settings = settings_for(root / "source", root / "feeds", brands=brands(asked))
    groups = in_groups(keys, request.param)
    for group in groups:
        deliver(source, root / "source", group)
        api.poll(settings)
    assert verify(settings).differences == ()
    readable = [[one for one in group if one not in aside] for group in groups]
    return Month(source, root / "feeds", readable, asked, len(aside))


def assert_equal(month, feed):
    """Compare a feed of events with the plain recomputation, column by column."""
    wanted = naive.feed(feed, month.events(), month.asked)
    assert len(wanted.rows) > 8
    rows = rows_of(month.feeds, feed)
    assert all(row.pop("feed_updated_at") for row in rows)
    found = {row["event_id"]: row for row in rows}
    assert len(found) == len(rows)
    assert differences(found, {row["event_id"]: row for row in wanted.rows}) == []


def assert_latest(month, feed):
    """Compare a table of states with the latest state of each key."""
    rows = naive.feed(feed, month.events(), month.asked).rows
    wanted = naive.latest(feed, rows)
    found = seen(month.feeds, feed)
    for at, row in found.items():
        version = row.pop("state_version")
        assert version.replace(microsecond=0) == row["state_changed_at"].replace(
            microsecond=0
        )
        assert row in wanted.get(at, [row])
    assert contradicted(feed, rows, wanted) > 1
    assert differences(found, {at: found.get(at, {}) for at in wanted}) == []


def assert_rejects(month, feed):
    wanted = naive.feed(feed, month.events(), month.asked).rejects
    assert reasons(month.feeds, feed).keys() == wanted


EVENT_FEEDS = sorted(UNIFIED.keys() - naive.STATES.keys())


@pytest.mark.parametrize("feed", EVENT_FEEDS)
def test_a_feed_of_events_equals_what_plain_python_makes_of_all_of_them(month, feed):
    assert_equal(month, feed)


@pytest.mark.parametrize("feed", naive.STATES)
def test_a_reader_of_a_consent_table_sees_the_latest_state_of_each_key(month, feed):
    assert_latest(month, feed)


@pytest.mark.parametrize("feed", UNIFIED)
def test_what_a_feed_cannot_take_is_in_its_rejects_by_file_and_row(month, feed):
    assert_rejects(month, feed)


def test_every_object_of_every_feed_keeps_amperitys_rules(month):
    published = objects(month.feeds)
    assert {at.split("/")[0] for at in published} > UNIFIED.keys()
    assert broken(published) == []


# The same with processes that are killed

TOML = """
[source]
reconcile = "0s"
[feeds]
include = {include}
max_reject_share = 1
[brands]
default = "house"
region = "EU"
names = {names}
regions = {regions}
"""


def configured(place: Place, asked):
    """Write the settings file that a killed process and its successor both read."""
    place.disk.mkdir(parents=True)
    names = ", ".join(f'"{name}" = "{to}"' for name, to in asked.brands.items())
    regions = ", ".join(f'"{name}" = "{to}"' for name, to in asked.regions.items())
    text = TOML.format(
        include=json.dumps(["raw", *UNIFIED]),
        names=f"{{{names}}}",
        regions=f"{{{regions}}}",
    )
    (place.disk / "currents.toml").write_text(text, "utf-8")


@pytest.fixture(scope="module")
def killed(written, tmp_path_factory):
    source, keys, aside, asked = written
    root = tmp_path_factory.mktemp("killed")
    place = replace(folder(root, lease="0s"), source=str(root / "source"))
    configured(place, asked)
    groups, rng, kills = in_groups(keys, "shuffled", count=3), random.Random(3), 0
    for group in groups:
        deliver(source, root / "source", group)
        for _ in range(3):
            ended = run_and_kill_at_work(place, ["poll"], rng.uniform(0, 2))
            kills += ended.status == KILLED
        finish(place, "poll")
    assert kills > 3
    readable = [[one for one in group if one not in aside] for group in groups]
    return Month(source, root / "feeds", readable, asked, len(aside))


@pytest.mark.xdist_group("killed")
@pytest.mark.parametrize("feed", UNIFIED)
def test_kills_change_nothing(killed, feed):
    (assert_latest if feed in naive.STATES else assert_equal)(killed, feed)
    assert_rejects(killed, feed)


@pytest.mark.xdist_group("killed")
def test_objects_that_kills_left_keep_amperitys_rules_too(killed):
    assert broken(objects(killed.feeds)) == []


# The rules themselves

STAMP = pa.array([datetime(2026, 9, 15, tzinfo=UTC)], pa.timestamp("us", "UTC"))
GOOD = {"id": pa.array(["a"]), "n": pa.array([1]), "ingested_at": STAMP}


def written_by_pyarrow(columns, **options):
    out = io.BytesIO()
    given = {"compression": "snappy", "data_page_version": "1.0", **options}
    pq.write_table(pa.table(columns), out, **given)
    return out.getvalue()


@pytest.mark.parametrize(
    ("columns", "options", "told"),
    [
        ({}, {}, None),
        ({"d": pa.array([Decimal("1.5")], pa.decimal128(38, 6))}, {}, None),
        ({}, {"compression": "zstd"}, "compressed with ZSTD"),
        ({}, {"data_page_version": "2.0"}, "no data page of version 1"),
        ({}, {"use_deprecated_int96_timestamps": True}, "ingested_at is INT96"),
        ({"u": pa.array([1], pa.uint64())}, {}, "u is INT64"),
        ({"i": pa.array([1], pa.int32())}, {}, "i is INT32"),
        ({"f": pa.array([1.0], pa.float32())}, {}, "f is FLOAT"),
        ({"b": pa.array([b"x"])}, {}, "b is BYTE_ARRAY"),
        ({"l": pa.array([["x"]])}, {}, "l.list.element is"),
        ({"s": pa.array([{"x": 1}])}, {}, "s.x is"),
        ({"t": pa.array([1], pa.timestamp("ns", "UTC"))}, {}, "t is INT64"),
        ({"t": pa.array([1], pa.timestamp("us"))}, {}, "t is INT64"),
        ({"d": pa.array([Decimal(1)], pa.decimal128(9, 2))}, {}, "d is"),
        ({"_n": pa.array([1])}, {}, "_n is no column name"),
        ({"a b": pa.array([1])}, {}, "a b is no column name"),
        ({"Order": pa.array([1])}, {}, "Order is a reserved word"),
        ({"N": pa.array([1])}, {}, "n is there 2 times"),
        ({"id": pa.array([None], pa.string())}, {}, "id has 1 nulls"),
        ({"ingested_at": pa.array([date(2026, 9, 15)])}, {}, "is a date, which"),
        ({"ingested_at": pa.array(["now"])}, {}, "is a string, which"),
    ],
)
def test_the_check_of_amperitys_rules_finds_what_breaks_one(columns, options, told):
    body = written_by_pyarrow(GOOD | columns, **options)
    found = list(broken_in_one(body, RAW))
    assert any(told in one for one in found) if told else found == []


def test_the_check_of_amperitys_rules_looks_at_keys_and_schemas():
    good, twice = GOOD, {name: [*column, *column] for name, column in GOOD.items()}
    assert list(broken_in_one(written_by_pyarrow(pa.table(twice)), RAW)) == [
        "1 keys are there more than once"
    ]
    other = written_by_pyarrow(good | {"n": pa.array(["1"])})
    published = {
        "a/2026/09/15/a-1.parquet": written_by_pyarrow(good),
        "a/2026/09/15/a-2.parquet": other,
        "a/2026/09/15/b-3.parquet": other,
    }
    assert broken(published) == [
        "a/2026/09/15/b-3.parquet: no courier finds it",
        "a: its objects have 2 schemas",
    ]


# Consent, whatever the order


def consent_schema(event_type):
    needed = {"user_id": "string", "subscription_status": "string"}
    if event_type == GROUP:
        needed["subscription_group_id"] = "string"
    return record(event_type, **needed, **OPTIONAL)


def consent(rng, count):
    """Return events of few people, groups and seconds: contradictions are many."""
    made = []
    for number in range(count):
        channel = rng.choice([None, "", "email", "EMAIL", "sms", "SMS", "ios_push"])
        row = {
            "id": f"{rng.getrandbits(64):016x}-{number}",
            "time": NOON - 86_400 * rng.choice([0, 0, 9]) + rng.randrange(3),
            "user_id": f"u{rng.randrange(3)}",
            "subscription_status": rng.choice(
                ["Subscribed", "subscribed", "Unsubscribed", "Opted In", "Perhaps"]
            ),
            "channel": channel,
            "email_address": rng.choice([None, " A@x.org", "a@X.org ", "b@x.org"]),
            "phone_number": rng.choice([None, None, "+12025550001", "+12025550002"]),
            "channel_identifier": rng.choice([None, "c@x.org"]),
        }
        event_type = rng.choice([GLOBAL, GROUP])
        if event_type == GROUP:
            row["subscription_group_id"] = rng.choice(["g1", "g2"])
        made.append((event_type, row))
        if rng.random() < 0.5:  # and at once the contrary
            said = row["subscription_status"] == "Unsubscribed"
            other = "Subscribed" if said else "Unsubscribed"
            row = row | {"id": row["id"] + "'", "subscription_status": other}
            made.append((event_type, row))
    return made


def conformed(event_type, rows):
    """Return rows as the middle of the product has them."""
    walked = avro.walk(container(consent_schema(event_type), rows))
    known = [version.writer for version in schemas.known()[event_type]]
    queued = datetime(2026, 9, 15, 10, tzinfo=UTC)
    origin = conform.Origin(file="f", rows=len(rows), queued_at=queued)
    return conform.conform(
        avro.decode([walked]),
        walked.schema,
        raw_contract(event_type, known),
        [origin],
        queued,
    ).rows


def united(rows, kind, contract, decided):
    """Return what rows of one event type become in a unified feed."""
    return unify.unify(rows, contract, contract.sources_of(kind), decided).rows


@pytest.mark.parametrize("feed", naive.STATES)
def test_a_thousand_orders_of_the_same_events_give_the_same_consent(feed, tmp_path):
    selection = select(settings_for(tmp_path, tmp_path))
    contract, decided = selection.contracts[feed], selection.decided(feed)
    every = contract.model_copy(update={"latest": False})
    rng = random.Random(feed)
    events = consent(rng, 150)
    raw = {
        kind: conformed(kind, [row for one, row in events if one == kind])
        for kind in (GLOBAL, GROUP)
        if contract.sources_of(kind)
    }
    states = {kind: united(rows, kind, every, decided) for kind, rows in raw.items()}
    seen_of = Counter()
    for number in range(1000):
        if number % 10:  # from the states on, which is much quicker
            made = [unify.newest(one, contract) for _, one in batches(states, rng)]
        else:
            made = [
                united(one, kind, contract, decided) for kind, one in batches(raw, rng)
            ]
        last = unify.newest(pl.concat(made), contract)
        seen_of[json.dumps(last.to_dicts(), default=str)] += 1
    assert list(seen_of.values()) == [1000]
    assert_naive(
        feed, events, last.rows_by_key(contract.key, named=True, include_key=True)
    )


def batches(frames, rng):
    """Deliver all rows in an order of chance, some of them in several batches."""
    made = []
    for kind, rows in frames.items():
        order = rng.sample(range(rows.height), rows.height)
        for _ in range(rng.randint(0, 2)):
            at = rng.randrange(rows.height)
            made.append((kind, rows[order[at:]]))
            order = order[: at + rng.randint(1, 5)]  # a few are delivered twice
        made.append((kind, rows[rng.sample(order, len(order))]))
    rng.shuffle(made)
    return made


def contradicted(feed, rows, wanted):
    """Return of how many keys the last second says yes and no."""
    key_columns, state = naive.STATES[feed]
    last = {at: ones[0]["state_changed_at"] for at, ones in wanted.items()}
    told = {
        (at, row[state])
        for row in rows
        if last[at := tuple(row[one] for one in key_columns)] == row["state_changed_at"]
    }
    return len(told) - len(last)


def assert_naive(feed, events, told):
    plain = [naive.Event(kind, "f", n, row) for n, (kind, row) in enumerate(events)]
    rows = naive.feed(feed, plain).rows
    wanted = naive.latest(feed, rows)
    assert contradicted(feed, rows, wanted) > 1
    _, state = naive.STATES[feed]
    assert len(wanted) > 3
    found = {at: (row[state], row["state_changed_at"]) for at, [row] in told.items()}
    assert found == {
        at: (rows[0][state], rows[0]["state_changed_at"]) for at, rows in wanted.items()
    }
    for at, [row] in told.items():
        assert row["event_id"] in {one["event_id"] for one in wanted[at]}


def test_of_two_events_that_say_the_same_at_once_always_the_same_is_seen(tmp_path):
    selection = select(settings_for(tmp_path, tmp_path))
    feed = "email_opt_status"
    contract, decided = selection.contracts[feed], selection.decided(feed)

    def told(ids, *, of_one):
        rows = [
            dict.fromkeys(OPTIONAL)
            | {"id": one, "time": NOON, "user_id": "u", "channel": "email"}
            | {"subscription_status": "subscribed"}
            | {"email_address": "a@x.org" if of_one else f"{one}@x.org"}
            for one in ids
        ]
        frame = conformed(GLOBAL, rows)
        return united(frame, GLOBAL, contract, decided)

    first = told(map(str, range(3000)), of_one=False)
    alike = (
        first.group_by("state_version")
        .agg("event_id")
        .filter(pl.col("event_id").list.len() > 1)
    )
    for pair in alike["event_id"].to_list():
        assert told(pair, of_one=True).equals(told(pair[::-1], of_one=True))


# Amperity's words


@pytest.fixture
def place(tmp_path):
    """A source to write to, and a poll of it that returns a feed's rows by id."""
    (tmp_path / "source").mkdir()
    store = Store.open(str(tmp_path / "source"))

    def put(event_type, rows, **fields):
        kinds = {
            name: _avro([row.get(name) for row in rows])
            for name in dict.fromkeys(name for row in rows for name in row)
            if name not in ("id", "time")
        }
        rows = [{"time": NOON} | dict.fromkeys(kinds) | row for row in rows]
        body = container(record(event_type, **kinds, **fields), rows)
        store.put(key(event_type), body)

    def poll(feed="email_events", **sections):
        settings = settings_for(tmp_path / "source", tmp_path / "feeds", **sections)
        api.poll(settings)
        assert verify(settings).differences == ()
        assert broken(objects(tmp_path / "feeds")) == []
        by = "event_id" if feed in UNIFIED else "id"
        return {row[by]: row for row in rows_of(tmp_path / "feeds", feed)}

    return put, poll, tmp_path / "feeds"


def _avro(values):
    kinds = {bool: "boolean", int: "int"}
    return [
        "null",
        next((kinds[type(v)] for v in values if type(v) in kinds), "string"),
    ]


def email(word):
    return f"users.messages.email.{word}"


MAIL = {"email_address": "a@x.org", "user_id": "u"}
DELIVERIES = {
    "dispatch": {"dispatch_id": "d", "send_id": None, "campaign_id": "c"},
    "send": {"dispatch_id": None, "send_id": "s", "campaign_id": "c"},
    "campaign": {"dispatch_id": None, "send_id": None, "campaign_id": "c"},
    "step": {"campaign_id": None, "canvas_step_id": "t"},
}


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_what_was_sent_opened_and_clicked_have_one_send_id(place, delivery):
    put, poll, _ = place
    for word in ("Send", "Open", "Click"):
        rows = [
            {"id": f"{word} {u}"} | MAIL | DELIVERIES[delivery] | {"user_id": u}
            for u in ("u1", "u2")
        ]
        put(email(word), rows)
    found = poll()
    ids = {
        u: {found[f"{word} {u}"]["send_id"] for word in ("Send", "Open", "Click")}
        for u in ("u1", "u2")
    }
    assert [len(one) for one in ids.values()] == [1, 1]
    assert ids["u1"] != ids["u2"]  # a dispatch goes to many


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_send_id_lasts_longer_than_a_day(place, delivery):
    put, poll, _ = place
    for word, hours in (("Send", 0), ("Open", 24)):
        row = {"id": word, "time": NOON + 3600 * hours}
        row |= {"send_time": NOON} if word == "Open" else {}
        put(email(word), [row | MAIL | DELIVERIES[delivery]])
    assert len({row["send_id"] for row in poll().values()}) == 1


@pytest.mark.parametrize("choice", ["hash", "drop"])
def test_a_send_id_is_shared_whatever_becomes_of_personal_data(place, choice):
    put, poll, _ = place
    for word in ("Send", "Open", "Click"):
        put(email(word), [{"id": word} | MAIL | DELIVERIES["dispatch"]])
    found = poll(privacy={"fields": {"user_id": choice}})
    assert len({row["send_id"] for row in found.values()}) == 1


def every_email_event(put):
    for word in ("Send", "Delivery", "Deferral", "Abort", "Retry", "MarkAsSpam"):
        put(email(word), [{"id": word} | MAIL])
    for word in ("SoftBounce", "Unsubscribe"):
        put(email(word), [{"id": word} | MAIL])
    machine = ("true", "TRUE", None, "", "maybe")
    put(
        email("Open"),
        [{"id": f"Open {one}", "machine_open": one} | MAIL for one in machine],
    )
    bot = (True, False, None)
    put(
        email("Click"),
        [{"id": f"Click {one}", "is_suspected_bot_click": one} | MAIL for one in bot],
    )
    put(
        email("Bounce"), [{"id": f"Bounce {one}", "is_drop": one} | MAIL for one in bot]
    )
    states = ("Opted In", "subscribed", "Unsubscribed", "other")
    put(
        GLOBAL,
        [
            {"id": f"{state} {channel}", "subscription_status": state} | MAIL | changed
            for state in states
            for channel, changed in {
                "email": {"channel": "Email"},
                "push": {"channel": "ios_push"},
                "any": {"channel": None},
            }.items()
        ],
    )


ALL_WORDS = {
    "Send": "Sent",
    "SoftBounce": "Bounce",
    "Unsubscribe": "Unsubscribe",
    **{f"Open {one}": "Open" for one in ("true", "TRUE", None, "", "maybe")},
    **{f"Click {one}": "Click" for one in (True, False, None)},
    **{f"Bounce {one}": "Bounce" for one in (True, False, None)},
    **{
        f"{s} {c}": "Optin"
        for s in ("Opted In", "subscribed")
        for c in ("email", "any")
    },
    **{f"Unsubscribed {c}": "Unsubscribe" for c in ("email", "any")},
}


@pytest.mark.parametrize(
    ("options", "without", "more"),
    [
        ({}, (), {}),
        ({"machine_opens": "drop"}, ("Open true", "Open TRUE"), {}),
        ({"suspected_bot_clicks": "drop"}, ("Click True",), {}),
        ({"soft_bounces": "drop"}, ("SoftBounce",), {}),
        ({"spam_complaints": "unsubscribe"}, (), {"MarkAsSpam": "Unsubscribe"}),
        (
            {"state_changes": "drop"},
            [one for one in ALL_WORDS if one.endswith((" email", " any"))],
            {},
        ),
    ],
)
def test_email_events_are_amperitys_words_and_options_leave_some_out(
    place, options, without, more
):
    put, poll, _ = place
    every_email_event(put)
    rows = poll(feeds={"options": {"email_events": options}})
    found = {at: row["event_type"] for at, row in rows.items()}
    wanted = {at: word for at, word in ALL_WORDS.items() if at not in without}
    assert found == wanted | more


def test_bounces_say_of_which_class_they_are(place):
    put, poll, _ = place
    every_email_event(put)
    found = {at: row["bounce_class"] for at, row in poll().items()}
    assert {at: one for at, one in found.items() if one} == {
        "Bounce True": "drop",
        "Bounce False": "hard",
        "Bounce None": "hard",
        "SoftBounce": "soft",
    }


@pytest.mark.parametrize(
    ("fields", "brand", "region"),
    [
        ({}, "house", None),
        ({"app_group_id": "A1"}, "acme", "US"),
        ({"app_group_id": "a1"}, "acme", "US"),
        ({"from_domain": "Mail.Bolt.com"}, "bolt", None),
        ({"app_group_id": "A1", "from_domain": "mail.bolt.com"}, "acme", "US"),
        ({"app_group_id": "other", "from_domain": "mail.bolt.com"}, "bolt", None),
        ({"app_group_id": "", "from_domain": "bolt.com"}, "house", None),
    ],
)
def test_the_brand_comes_from_the_table_of_app_groups_and_domains(
    place, fields, brand, region
):
    put, poll, _ = place
    put(email("Send"), [{"id": "a"} | MAIL | fields])
    table = {
        "default": "house",
        "names": {"A1": "acme", "mail.bolt.com": "bolt"},
        "regions": {"a1": "US"},
    }
    row = poll(brands=table)["a"]
    assert (row["brand"], row["region"]) == (brand, region)


@pytest.mark.parametrize("address", [None, "", "  ", "[REDACTED]"])
def test_an_email_event_without_an_address_is_a_reject(place, address):
    put, poll, feeds = place
    put(email("Open"), [{"id": "a"} | MAIL, {"id": "b", "email_address": address}])
    assert list(poll()) == ["a"]
    assert reasons(feeds, "email_events") == {
        (key(email("Open")), 1): "email is missing"
    }


@pytest.mark.parametrize(
    ("event_type", "feed"),
    [
        ("users.messages.kakao.Send", "message_events"),
        ("users.behaviors.geofence.RecordEvent", "behavior_events"),
        ("users.canvas.sendtodestination.Sent", "canvas_campaign_events"),
    ],
)
def test_an_event_type_that_comes_later_is_in_its_family_too(place, event_type, feed):
    put, poll, _ = place
    put(event_type, [{"id": "a", "user_id": "u"}])
    assert list(poll(feed)) == ["a"]


# Personal data

CHOICES = {"email_address": "hash", "external_user_id": "drop", "user_id": "hash"}


def hashed(text):
    return hashlib.sha256(text.strip().lower().encode()).hexdigest()


def everything_below(feeds):
    """Return all that can be read below a folder, as one text."""
    texts = []
    for path in Path(feeds).rglob("*"):
        if path.suffix == ".parquet":
            texts.append(json.dumps(pq.read_table(path).to_pylist(), default=str))
            texts.append(str(pq.read_metadata(path).metadata))
        elif path.is_file():
            texts.append(path.read_text("utf-8"))
    return "\n".join(texts)


def plain_values(source, names):
    """Return what the source holds in these fields and in no other one."""
    found, elsewhere = set(), set()
    keys = [path.relative_to(source).as_posix() for path in source.rglob("*.avro")]
    for event in naive.delivered(source, [keys]):
        for name, value in event.fields.items():
            (found if name in names else elsewhere).add(str(value))
    return {one for one in found - elsewhere if one and len(one) > 3}


def test_no_plain_value_of_a_hashed_or_dropped_field_is_anywhere(tmp_path):
    simulate(str(tmp_path), Simulation(versions="all", hours=2, rows=5, late=0.3))
    source = tmp_path / "currents"
    settings = settings_for(source, tmp_path / "feeds", privacy={"fields": CHOICES})
    api.poll(settings)
    text = everything_below(tmp_path / "feeds")
    values = plain_values(source, CHOICES)
    assert len(values) > 300
    hidden = [json.dumps(one)[1:-1] for one in values]
    # What a connector hashed stays as it is; redacted says nothing.
    shown = [one for one in hidden if one in text and one != naive._HIDDEN]  # noqa: SLF001
    assert [one for one in shown if not re.fullmatch("[0-9a-f]{64}", one)] == []


SECRET = {
    "email_address": " Ann@Secret.org ",
    "external_user_id": "Customer-77",
    "user_id": "5F1E",
}


def test_a_hash_is_that_of_the_trimmed_lower_case_text(place):
    put, poll, feeds = place
    put(email("Open"), [{"id": "a", "dispatch_id": "d"} | SECRET])
    row = poll(privacy={"fields": CHOICES})["a"]
    raw = rows_of(feeds, "messages_email_open")[0]
    assert row["email"] == raw["email_address"] == hashed("ann@secret.org")
    assert row["braze_id"] == raw["user_id"] == hashed("5f1e")
    assert row["send_id"] == f"d:{hashed('5f1e')}"
    assert (row["external_id"], raw["external_user_id"]) == (None, None)


def test_the_choice_for_one_feed_counts_more(place):
    put, poll, feeds = place
    put(email("Open"), [{"id": "a", "dispatch_id": "d"} | SECRET])
    row = poll(
        privacy={
            "fields": CHOICES,
            "feeds": {
                "email_events": {"email_address": "keep", "external_user_id": "hash"},
                "messages_email_open": {"email_address": "drop", "user_id": "keep"},
            },
        }
    )["a"]
    raw = rows_of(feeds, "messages_email_open")[0]
    assert (row["email"], row["external_id"], row["braze_id"]) == (
        "ann@secret.org",
        hashed("customer-77"),
        hashed("5f1e"),
    )
    assert (raw["email_address"], raw["external_user_id"], raw["user_id"]) == (
        None,
        None,
        "5F1E",
    )


@pytest.mark.parametrize("address", [None, "", "  ", "[REDACTED]"])
def test_the_hash_of_no_address_is_no_address(place, address):
    put, poll, feeds = place
    put(email("Open"), [{"id": "a"} | MAIL, {"id": "b", "email_address": address}])
    assert list(poll(privacy={"fields": CHOICES})) == ["a"]
    assert reasons(feeds, "email_events") == {
        (key(email("Open")), 1): "email is missing"
    }


@pytest.mark.parametrize("nobody", ["", "[REDACTED]"])
def test_the_hash_of_no_person_is_no_person(place, nobody):
    put, poll, _ = place
    hidden = {"user_id": nobody, "external_user_id": nobody, "dispatch_id": "d"}
    put(email("Open"), [{"id": "a"} | MAIL | hidden])
    row = poll(privacy={"fields": {"user_id": "hash", "external_user_id": "hash"}})["a"]
    assert (row["braze_id"], row["external_id"]) == (None, None)
    assert row["send_id"] == "d:a@x.org"


def test_a_field_without_a_column_of_its_own_is_hashed_once(place):
    put, poll, feeds = place
    put(email("Unsubscribe"), [{"id": "a", "url": "https://x.org/Ann"} | MAIL])
    row = poll(privacy={"fields": {"url": "hash"}})["a"]
    wanted = hashed("https://x.org/ann")
    raw = rows_of(feeds, "messages_email_unsubscribe")[0]
    assert json.loads(raw["unmapped_fields"]) == {"url": wanted}
    assert row["url"] == wanted


def test_the_choice_for_one_feed_counts_for_such_a_field_too(place):
    put, poll, _ = place
    put(email("Unsubscribe"), [{"id": "a", "url": "https://x.org/Ann"} | MAIL])
    chosen = {"fields": {"url": "drop"}, "feeds": {"email_events": {"url": "keep"}}}
    assert poll(privacy=chosen)["a"]["url"] == "https://x.org/Ann"


def test_a_table_of_states_and_its_rejects_hold_no_plain_address_either(place):
    put, poll, feeds = place
    row = {"channel": "email", "subscription_group_id": "g"} | SECRET
    for event_type in (GROUP, GLOBAL):
        put(event_type, [row | {"id": "a", "subscription_status": "Subscribed"}])
    put(email("Send"), [{"id": "x"} | SECRET | {"email_address": ""}])
    poll(privacy={"fields": CHOICES})
    states = rows_of(feeds, "email_opt_status")
    assert {one["email"] for one in states} == {hashed("ann@secret.org")}
    assert {one["email_program"] for one in states} == {"g", "global"}
    assert "ann@secret.org" not in everything_below(feeds).lower()


@pytest.mark.parametrize("address", ["", "  ", "[REDACTED]"])
def test_nobody_consents_for_the_hash_of_no_address(place, address):
    put, poll, feeds = place
    row = {"id": "a", "channel": "email", "subscription_status": "Subscribed"}
    put(GLOBAL, [row | {"email_address": address, "user_id": "u"}])
    poll(privacy={"fields": CHOICES})
    assert rows_of(feeds, "email_opt_status") == []
