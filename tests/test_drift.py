"""Schemas that change under a running pipeline: nothing lost, nothing by itself."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from currents_ingest import api, config, feeds, registry, schemas
from currents_ingest.compatibility import changes
from currents_ingest.contracts import ADDED, feed_name
from currents_ingest.errors import NotThereError
from currents_ingest.ledger import Ledger
from currents_ingest.status import status
from currents_ingest.store import Store
from currents_ingest.verify import verify
from tests.avro_files import OPEN, container, key, record

FEED = "messages_email_open"
ROW = {"id": "a", "time": 1_700_000_000}
HISTORIES = (
    "users.messages.email.Click",
    "users.messages.pushnotification.Send",  # a field in the middle
    "users.behaviors.pushnotification.TokenStateChange",  # reordered
    "users.messages.sms.InboundReceive",  # optional now
    "users.messages.contentcard.Click",  # a field came and went
)


class Place:
    """A source and feeds in folders, and a folder of schemas that alone count."""

    def __init__(self, root: Path, *known: dict, shipped: bool = False) -> None:
        for name in ("source", "schemas"):
            (root / name).mkdir()
        self.source = Store.open(str(root / "source"))
        self.settings = config.read(
            source={"url": str(root / "source")},
            feeds={"url": str(root / "feeds")},
            schemas={"urls": [str(root / "schemas")], "shipped": shipped},
            ledger={"cache": ":memory:", "lease": "0s"},
        )
        for number, schema in enumerate(known, 1):
            name = schemas.read(schema).name.removeprefix("dataexport.S3.inner.")
            folder = root / "schemas" / name
            folder.mkdir(exist_ok=True)
            (folder / f"{number:03}.avsc").write_text(json.dumps(schema))

    def put(self, schema, rows, **about):
        name = key(**about)
        self.source.put(name, container(schema, rows))
        return name

    def look(self):
        return Ledger.look(Store.open(self.settings.feeds.url), Path(":memory:"))

    def poll(self):
        return api.poll(self.settings)

    def learn(self, name):
        known = registry.open_registry(self.settings.schemas)
        url = f"{self.settings.source.url}/{name}"
        (target,) = self.settings.schemas.urls
        day = datetime(2026, 9, 15, tzinfo=UTC).date()
        return registry.learn(known, url, target, day)

    def read(self, feed, columns="*"):
        """Return a feed's rows, objects of all contract versions together."""
        with duckdb.connect() as connection:
            connection.execute("set timezone = 'UTC'")
            found = connection.execute(
                f"select {columns} from read_parquet("
                f"'{self.settings.feeds.url}/{feed}/*/*/*/*.parquet', "
                "union_by_name = true) order by currents_file, currents_row"
            )
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def objects(self, feed):
        """Return the columns of each object, in order of publication."""
        paths = sorted(Path(self.settings.feeds.url, feed).rglob("*.parquet"))
        return [tuple(pl.read_parquet_schema(path)) for path in paths]


@pytest.fixture
def place(tmp_path):
    return lambda *known, **more: Place(tmp_path, *known, **more)


def avsc(version):
    """Return a shipped version as Braze wrote it."""
    root = schemas.schemas_root() / version.event_type
    schema = json.loads((root / f"{version.number:03}.avsc").read_text())
    return {name: schema[name] for name in ("type", "name", "namespace", "fields")}


def value(field, number):
    """Return a value of a field that no other row has, where its type has so many."""
    return {
        "string": f"{field.name} {number}",
        "int": number,
        "long": number,
        "float": number + 0.5,
        "double": number + 0.5,
        "boolean": number % 2 == 0,
        "array": [f"{field.name} {number}", "é"],
    }[field.type]


def row_of(writer, number, hour):
    """Return a full row; every other one has null wherever it may."""
    row = {
        field.name: None if field.nullable and number % 2 else value(field, number)
        for field in writer.fields
    }
    return row | {"id": str(number), "time": int(hour.timestamp())}


def days(versions):
    """Return the first hour of each month to September 2026, and of each version."""
    at = datetime.fromisoformat(versions[0].first_seen).replace(tzinfo=UTC)
    found = {datetime.fromisoformat(v.first_seen).replace(tzinfo=UTC) for v in versions}
    while (at := next_month(at)) <= datetime(2026, 9, 1, tzinfo=UTC):
        found.add(at)
    return sorted(found)


def next_month(at):
    return at.replace(year=at.year + at.month // 12, month=at.month % 12 + 1, day=1)


def whole(row):
    """Put a delivered row back together, without what we added to it."""
    plain = {name: row[name] for name in row if name not in {c.name for c in ADDED}}
    out = {name: value for name, value in plain.items() if value is not None}
    for name, held in out.items():
        if isinstance(held, str) and held.startswith("["):
            out[name] = json.loads(held)
    return out | json.loads(row["unmapped_fields"] or "{}")


@pytest.mark.parametrize("event", HISTORIES)
def test_a_bucket_goes_through_its_whole_history_and_loses_nothing(place, event):
    versions = schemas.versions(event)
    at = place(avsc(versions[0]))
    feed, written, reported = feed_name(event), {}, []
    for number, hour in enumerate(days(versions)):
        today = hour.date().isoformat()
        version = [one for one in versions if one.first_seen <= today][-1]
        row = row_of(version.writer, number, hour)
        written[row["id"]] = {n: v for n, v in row.items() if v is not None}
        name = at.put(
            avsc(version), [row], event=event, hour=f"{hour:%Y-%m-%d-%H}", offset=number
        )
        outcome = at.poll()
        assert (outcome.rows_out, outcome.quarantined) == (1, ())
        for drift in outcome.drift:
            assert drift.key == name
            reported.append((hour, drift.fingerprint, drift.differences))
    # Each change on the day it came, and once.
    expected = []
    for old, version in pairwise(versions):
        told = list(map(str, changes(old.writer, version.writer)))
        if old is versions[0]:  # nothing was met yet beside the registry
            told = [
                re.sub(r"^(\w+) added (.*)", r"field \1 \2 is new", one) for one in told
            ]
        came = datetime.fromisoformat(version.first_seen).replace(tzinfo=UTC)
        expected.append((came, version.writer.fingerprint, tuple(told)))
    assert [(*one[:2], sorted(one[2])) for one in reported] == [
        (*one[:2], sorted(one[2])) for one in expected
    ]
    # No column came by itself, and no row and no value is missing.
    assert set(at.objects(feed)) == {at.objects(feed)[0]}
    rows = at.read(feed)
    assert {row["id"]: whole(row) for row in rows} == written
    assert verify(at.settings).differences == ()

    before = at.objects(feed)
    for drift in status(at.settings).drift:
        assert at.learn(drift.key).written
    assert at.poll().drift == ()
    assert feeds.upgrade(at.settings, feed).after == 2
    assert status(at.settings).drift == ()
    newest = versions[-1]
    hour = datetime(2026, 10, 1, tzinfo=UTC)
    row = row_of(newest.writer, 1000, hour)
    at.put(avsc(newest), [row], event=event, hour="2026-10-01-00")
    at.poll()
    assert at.objects(feed)[: len(before)] == before
    last = at.read(feed)[-1]
    assert (whole(last), last["unmapped_fields"]) == (row, None)

    refilled = feeds.refill(at.settings, feed)
    again = at.read(refilled.feed)
    held = {one["id"] for one in rows if one["unmapped_fields"]}
    assert {one["id"] for one in again} == held
    assert all(one["unmapped_fields"] is None for one in again)
    assert all(whole(one) == written[one["id"]] for one in again)
    assert set(at.objects(refilled.feed)) <= {at.objects(feed)[-1]}
    assert verify(at.settings).differences == ()


def test_every_history_ends_with_every_value_in_a_column():
    """What the months above show of five event types holds for the rest."""
    for versions in schemas.known().values():
        first = registry.schemas.Registry({versions[0].event_type: versions}, False)
        names = {f.name for version in versions for f in version.writer.fields}
        from currents_ingest.contracts import raw_contract

        grown = raw_contract(versions[0].event_type, [versions[0].writer]).grown(
            first.writers(versions[0].event_type)
        )
        assert {column.source for column in grown.own} == names


def test_a_breaking_schema_is_learned_upgraded_and_retried(place):
    old, new = record(n="int"), record(n="string", more=["null", "int"])
    at = place(old)
    at.put(old, [ROW | {"n": 1}])
    at.poll()
    names = [
        at.put(new, [ROW | {"id": f"b{n}", "n": "x", "more": 5}], offset=10 + n)
        for n in range(3)
    ]
    with capture_logs() as logs:
        outcome = at.poll()
    difference = "field n is string and not int64"
    assert [one.key for one in outcome.quarantined] == names
    assert {one.reason for one in outcome.quarantined} == {
        f"the schema breaks the feed's contract: {difference}"
    }
    warnings = [one for one in logs if one["log_level"] == "warning"]
    assert [(one["event"], one["verdict"]) for one in warnings] == [
        ("drift", "breaking")
    ]
    (drift,) = status(at.settings).drift
    assert (drift.verdict, drift.differences) == ("breaking", (difference,))

    assert len(api.retry(at.settings, []).quarantined) == 3  # still breaking
    assert at.learn(names[0]).version.number == 2
    upgrade = feeds.preview(at.settings, FEED)
    assert [(one.name, one.type, one.field) for one in upgrade.columns] == [
        ("n_string", "string", "n"),
        ("more", "int64", ""),
    ]
    assert feeds.upgrade(at.settings, FEED) == upgrade
    outcome = api.retry(at.settings, [])
    assert (outcome.rows_out, outcome.quarantined) == (3, ())
    at.put(old, [ROW | {"id": "c", "n": 2}], offset=20)
    at.poll()
    assert at.read(FEED, "id, n, n_string, more, unmapped_fields") == [
        {"id": "a", "n": 1, "n_string": None, "more": None, "unmapped_fields": None},
        *(
            {
                "id": f"b{n}",
                "n": None,
                "n_string": "x",
                "more": 5,
                "unmapped_fields": None,
            }
            for n in range(3)
        ),
        {"id": "c", "n": 2, "n_string": None, "more": None, "unmapped_fields": None},
    ]
    assert status(at.settings).drift == ()
    assert verify(at.settings).differences == ()


def test_drift_is_warned_of_once_for_each_schema_however_many_files(place):
    at = place(record())
    new = record(extra=["null", "int"])
    for n in range(30):
        at.put(new, [ROW | {"id": str(n), "extra": n}], offset=n)
    with capture_logs() as logs:
        at.poll()
    assert [one["event"] for one in logs if one["log_level"] == "warning"] == ["drift"]
    at.put(new, [ROW | {"id": "x", "extra": 1}], offset=40)
    with capture_logs() as logs:
        assert at.poll().drift == ()
    assert [one for one in logs if one["log_level"] == "warning"] == []


def test_a_newer_registry_adds_no_column_by_itself(tmp_path):
    old, new = schemas.versions(OPEN)[0], schemas.versions(OPEN)[-1]
    at = Place(tmp_path, avsc(old))
    hour = datetime(2026, 9, 1, tzinfo=UTC)
    at.put(avsc(old), [row_of(old.writer, 0, hour)], offset=0)
    at.poll()
    newer = at.settings.model_copy(
        update={"schemas": at.settings.schemas.model_copy(update={"shipped": True})}
    )
    at.put(avsc(new), [row_of(new.writer, 2, hour)], offset=1)
    (drift,) = api.poll(newer).drift
    assert drift.verdict == "additive"
    assert len(set(at.objects(FEED))) == 1
    found = feeds.show(newer, FEED)
    assert found.pinned
    assert {one.name for one in found.new} == {
        field.name for field in new.writer.fields
    } - {field.name for field in old.writer.fields} | {
        field.name
        for version in schemas.versions(OPEN)
        for field in version.writer.fields
    } - {field.name for field in old.writer.fields}


def test_upgrades_at_the_same_time_make_one_version(place):
    at = place(record(), record(extra="int"))
    at.put(record(), [ROW])
    one = at.settings.schemas
    alone = at.settings.model_copy(
        update={"schemas": one.model_copy(update={"urls": ()})}
    )
    api.poll(alone)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: feeds.upgrade(at.settings, FEED), range(4)))
    assert [one.after for one in found] == [2] * 4
    assert feeds.show(at.settings, FEED).contract.version == 2
    assert sum(bool(one.columns) for one in found) >= 1
    entries = status(at.settings).entries
    assert feeds.upgrade(at.settings, FEED).columns == ()
    assert status(at.settings).entries == entries
    assert verify(at.settings).differences == ()


def test_a_look_at_an_upgrade_or_a_refill_changes_nothing(place):
    at = place(record())
    at.put(record(extra="int"), [ROW | {"extra": 1}])
    at.poll()
    at.learn(key())

    def everything():
        root = Path(at.settings.feeds.url)
        return {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}

    before = everything()
    assert feeds.preview(at.settings, FEED).after == 2
    assert feeds.preview_refill(at.settings, FEED).objects == 0
    assert everything() == before
    feeds.upgrade(at.settings, FEED)
    before = everything()
    assert feeds.preview_refill(at.settings, FEED).rows == 1
    assert everything() == before


def test_a_refill_goes_on_where_it_stopped_and_does_nothing_twice(place, monkeypatch):
    monkeypatch.setattr("currents_ingest.feeds._OBJECTS_PER_ENTRY", 2)
    at = place(record())
    for n in range(5):
        at.put(record(extra="int"), [ROW | {"id": str(n), "extra": n}], offset=n)
        at.poll()
    at.learn(key(offset=0))
    feeds.upgrade(at.settings, FEED)
    made, commit = [], feeds._commit  # noqa: SLF001

    def dying(*arguments):
        if made:
            raise KeyboardInterrupt
        made.append(commit(*arguments))

    monkeypatch.setattr("currents_ingest.feeds._commit", dying)
    with pytest.raises(KeyboardInterrupt):
        feeds.refill(at.settings, FEED)
    monkeypatch.setattr("currents_ingest.feeds._commit", commit)
    assert len(at.read(f"{FEED}_refill")) == 2
    assert feeds.refill(at.settings, FEED).objects == 3
    assert feeds.refill(at.settings, FEED).objects == 0
    assert [one["extra"] for one in at.read(f"{FEED}_refill")] == [0, 1, 2, 3, 4]
    assert verify(at.settings).differences == ()


def test_verify_finds_a_refill_that_was_changed(place):
    at = place(record())
    at.put(record(extra="int"), [ROW | {"extra": 1}])
    at.poll()
    at.learn(key())
    feeds.upgrade(at.settings, FEED)
    feeds.refill(at.settings, FEED)
    (path,) = Path(at.settings.feeds.url, f"{FEED}_refill").rglob("*.parquet")
    body = path.read_bytes()
    path.write_bytes(body[:-1] + b"x")
    (found,) = verify(at.settings).differences
    assert found.what == "is not what was published: checksum"
    path.unlink()
    (found,) = verify(at.settings).differences
    assert found.what == "is missing"


def test_verify_finds_what_was_refilled_twice(place, monkeypatch):
    at = place(record())
    at.put(record(extra="int"), [ROW | {"extra": 1}])
    at.poll()
    at.learn(key())
    feeds.upgrade(at.settings, FEED)
    (source,) = feeds._sources(at.look(), feeds.show(at.settings, FEED).contract)  # noqa: SLF001
    monkeypatch.setattr("currents_ingest.feeds._sources", lambda *_: [source])
    for _ in range(2):
        feeds.refill(at.settings, FEED)
    (found,) = verify(at.settings).differences
    assert (found.about, found.what) == (source, "was refilled twice for version 2")


def test_what_has_not_published_cannot_grow_or_be_refilled(place):
    at = place(record())
    for work in (feeds.preview, feeds.upgrade, feeds.refill, feeds.preview_refill):
        with pytest.raises(NotThereError, match="among the feeds that have published"):
            work(at.settings, FEED)


VALUES = {
    "string": st.text(st.characters(exclude_categories=["Cs"])),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "double": st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
    "array": st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
}


@given(st.data())
@settings(deadline=None, max_examples=25)
def test_a_refill_gives_what_the_new_contract_would_have_given(tmp_path_factory, data):
    kinds = data.draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4))
    named = {f"f{n}": kind for n, kind in enumerate(kinds)}
    fields = {
        name: ["null", {"type": "array", "items": "string"} if k == "array" else k]
        for name, k in named.items()
    }
    row = st.fixed_dictionaries(
        {name: st.none() | VALUES[kind] for name, kind in named.items()}
    )
    rows = [
        {"id": str(n), "time": 1_700_000_000, **found}
        for n, found in enumerate(data.draw(st.lists(row, min_size=1, max_size=5)))
    ]
    new = record(**fields)
    late = Place(tmp_path_factory.mktemp("late"), record())
    late.put(new, rows)
    late.poll()
    late.learn(key())
    feeds.upgrade(late.settings, FEED)
    feeds.refill(late.settings, FEED)
    early = Place(tmp_path_factory.mktemp("early"), record(), new)
    early.put(new, rows)
    early.poll()
    names = ", ".join(["id", *named, "unmapped_fields", "currents_file, currents_row"])
    wanted = early.read(FEED, names)
    if all(row[name] is None for row in rows for name in named):
        assert not Path(late.settings.feeds.url, f"{FEED}_refill").exists()
        return
    found = {one["id"]: one for one in late.read(f"{FEED}_refill", names)}
    for one in wanted:
        if any(one[name] is not None for name in named):
            assert found.pop(one["id"]) == one
    assert found == {}
