"""Whole runs, judged by other readers: fastavro on one side, DuckDB on the other."""

from __future__ import annotations

import asyncio
import io
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import duckdb
import fastavro
import pytest

from currents_ingest import (
    api,
    config,
    engine,
    keys,
    pipeline,
    schemas,
)
from currents_ingest import (
    ledger as ledger_module,
)
from currents_ingest.contracts import ADDED, MONEY, feed_name
from currents_ingest.errors import NotThereError, SettingsError
from currents_ingest.session import begin
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.store import Store
from currents_ingest.validate import validate
from currents_ingest.verify import verify
from tests.avro_files import OPEN, by_hand, container, encoded, key, record

FEED = "messages_email_open"
ROW = {"id": "a", "time": 1_700_000_000}


def settings_for(source, feeds, **feed_options):
    return config.read(
        source={"url": str(source)},
        feeds={"url": str(feeds), **feed_options},
        ledger={"cache": ":memory:", "lease": "0s"},
    )


@pytest.fixture
def place(tmp_path):
    """Source and feeds in folders: a store to write to, and settings."""
    (tmp_path / "source").mkdir()
    settings = settings_for(tmp_path / "source", tmp_path / "feeds")
    return Store.open(settings.source.url), settings


def query(feeds, feed, columns="*"):
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        found = connection.execute(
            f"select {columns} from read_parquet('{feeds}/{feed}/*/*/*/*.parquet') "
            "order by currents_file, currents_row"
        )
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def opens(settings, columns="id"):
    found = query(settings.feeds.url, FEED, columns)
    return [one["id"] for one in found] if columns == "id" else found


# Row for row, column for column


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Every event type in every schema version, polled."""
    root = tmp_path_factory.mktemp("everything")
    simulate(str(root), Simulation(versions="all", rows=8, hours=4, torn=6, foreign=3))
    settings = settings_for(root / "currents", root / "feeds")
    return root, settings, api.poll(settings)


def originals(root):
    """Every row that fastavro can read, by event type, first delivery of an id only."""
    found: dict[str, dict[str, dict]] = {}
    aside = {
        one["key"]
        for one in json.loads((root / "expected.json").read_text())["set_aside"]
    }
    paths = [
        path.relative_to(root / "currents") for path in root.glob("currents/**/*.avro")
    ]
    files = [
        keys.parse(path.as_posix()) for path in paths if path.as_posix() not in aside
    ]
    for file in sorted(files, key=lambda one: one.order):
        body = (root / "currents" / file.key).read_bytes()
        reader = fastavro.reader(io.BytesIO(body))
        writer = schemas.read(reader.writer_schema)
        for number, row in enumerate(reader):
            found.setdefault(file.event_type, {}).setdefault(
                row["id"], (file, number, writer, row)
            )
    return found


def wanted(file, number, writer, row, columns):
    """What a feed must hold of one record, worked out with plain Python."""
    floats = {field.name for field in writer.fields if field.type == "float"}
    out = dict.fromkeys(columns)
    for name, value in row.items():
        if value is None:
            continue
        out[name] = value
        if name in MONEY:
            out[name] = Decimal(shortest(value)).quantize(Decimal("0.000001"))
        elif name in floats:
            out[name] = float(shortest(value))
        elif isinstance(value, list):
            out[name] = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    seconds, millis = row["time"], row.get("time_ms")
    micros = millis * 1000 if millis is not None else seconds * 10**6
    return out | {
        "event_datetime": datetime(1970, 1, 1, tzinfo=UTC)
        + timedelta(microseconds=micros),
        "currents_event_type": file.event_type,
        "currents_schema": writer.fingerprint,
        "currents_file": file.key,
        "currents_row": number,
        "currents_queued_at": file.hour,
        "unmapped_fields": None,
    }


def shortest(value):
    """The shortest text that is the same 32-bit float."""
    import struct

    for digits in range(1, 18):
        text = f"{value:.{digits}g}"
        if struct.pack("f", float(text)) == struct.pack("f", value):
            return text
    raise AssertionError


def test_a_poll_equals_what_fastavro_reads_from_the_same_files(everything):
    root, settings, outcome = everything
    sources = originals(root)
    assert sources.keys() == schemas.known().keys()
    fingerprints = set()
    for event_type, events in sources.items():
        found = query(settings.feeds.url, feed_name(event_type))
        columns = list(found[0])
        assert [one.pop("ingested_at") is not None for one in found] == [True] * len(
            found
        )
        columns.remove("ingested_at")
        expected = [wanted(*event, columns) for event in events.values()]
        expected.sort(key=lambda one: (one["currents_file"], one["currents_row"]))
        assert found == expected
        fingerprints |= {one["currents_schema"] for one in found}
    known = [version for versions in schemas.known().values() for version in versions]
    assert fingerprints == {version.writer.fingerprint for version in known}
    assert outcome.rows_out == sum(map(len, sources.values()))


def test_each_feed_has_its_contracts_columns_in_every_object(everything):
    root, _, _ = everything
    for event_type, versions in schemas.known().items():
        feed = feed_name(event_type)
        fields = dict.fromkeys(f.name for v in versions for f in v.writer.fields)
        with duckdb.connect() as connection:
            for path in (root / "feeds" / feed).rglob("*.parquet"):
                described = connection.execute(f"describe from '{path}'").fetchall()
                assert [one[0] for one in described] == [
                    *fields,
                    *(column.name for column in ADDED),
                ]


def test_a_second_poll_finds_nothing_and_verify_neither(everything):
    _, settings, first = everything
    assert api.poll(settings) == api.Outcome()
    assert len(first.quarantined) == 9
    found = verify(settings)
    assert found.differences == ()
    assert (found.pending, found.quarantined) == (0, 9)
    assert found.rows == first.rows_out


# Once, whatever comes


def test_redelivered_events_are_dropped_across_polls_and_within_one(place):
    source, settings = place
    body = container(record(), [ROW, ROW | {"id": "b"}, ROW])
    source.put(key(offset=1), body)
    assert api.poll(settings).duplicates == 1
    source.put(key(hour="2026-09-15-11"), body)
    second = api.poll(settings)
    assert (second.rows_in, second.rows_out, second.duplicates) == (3, 0, 3)
    assert opens(settings) == ["a", "b"]
    assert verify(settings).differences == ()


def test_the_first_delivery_in_braze_order_is_the_one_kept(place):
    source, settings = place
    for hour, offset in [
        ("2026-09-15-11", 1),
        ("2026-09-15-10", 20),
        ("2026-09-15-10", 3),
    ]:
        source.put(key(hour=hour, offset=offset), container(record(), [ROW]))
    api.poll(settings)
    assert [one["currents_file"] for one in opens(settings, "currents_file")] == [
        key(hour="2026-09-15-10", offset=3)
    ]


def test_a_key_written_again_is_read_again_and_its_old_rows_are_duplicates(place):
    source, settings = place
    source.put(key(), container(record(), [ROW]))
    api.poll(settings)
    source.put(key(), container(record(), [ROW, ROW | {"id": "b"}]))
    second = api.poll(settings)
    assert (second.rows_in, second.rows_out, second.duplicates) == (2, 1, 1)
    assert opens(settings) == ["a", "b"]


def test_a_load_of_old_history_is_deduplicated_by_queued_time(place):
    source, settings = place
    source.put(key(hour="2020-01-01-10"), container(record(), [ROW]))
    source.put(key(hour="2020-01-20-10"), container(record(), [ROW, ROW | {"id": "b"}]))
    for day in (date(2020, 1, 1), date(2020, 1, 20)):
        api.load(settings, day, day + timedelta(days=1))
    assert opens(settings) == ["a", "b"]


def test_two_deliveries_further_apart_than_the_horizon_are_two_events(place):
    source, settings = place
    source.put(key(hour="2020-01-01-10"), container(record(), [ROW]))
    source.put(key(hour="2020-03-01-10"), container(record(), [ROW]))
    api.load(settings, date(2020, 1, 1), date(2020, 1, 2))
    api.load(settings, date(2020, 3, 1), date(2020, 3, 2))
    assert opens(settings) == ["a", "a"]  # a batch of its own: feeds.dedupe_horizon


def test_batches_in_work_at_the_same_time_deliver_an_event_once(place, monkeypatch):
    source, settings = place
    monkeypatch.setattr("currents_ingest.discover.MAX_FILES", 1)
    for offset in range(30):
        rows = [ROW | {"id": f"shared {n % 5}"} for n in range(3)]
        source.put(
            key(offset=offset), container(record(), [*rows, ROW | {"id": f"{offset}"}])
        )
    outcome = api.poll(settings)
    assert sorted(opens(settings)) == sorted(
        [f"shared {n}" for n in range(3)] + [f"{n}" for n in range(30)]
    )
    assert outcome.rows_in == outcome.rows_out + outcome.duplicates == 120
    assert verify(settings).differences == ()


# What is listed


def test_a_poll_lists_from_the_look_back_on_and_reconciles_now_and_then(place):
    source, settings = place
    source.put(key(hour="2026-09-15-10"), container(record(), [ROW]))
    api.poll(settings)
    source.put(key(hour="2026-09-13-10"), container(record(), [ROW | {"id": "late"}]))
    source.put(
        key(hour="2026-09-13-09"), container(record(), [ROW | {"id": "too late"}])
    )
    assert api.poll(settings).rows_out == 1
    assert sorted(opens(settings)) == ["a", "late"]
    every = settings.source.model_copy(update={"reconcile": timedelta(0)})
    assert api.poll(settings.model_copy(update={"source": every})).rows_out == 1
    assert sorted(opens(settings)) == ["a", "late", "too late"]


def test_a_load_takes_its_days_only_and_goes_on_where_it_stopped(place):
    source, settings = place
    for day in (14, 15, 16):
        for hour in ("00", "23"):
            name = f"2026-09-{day}-{hour}"
            source.put(key(hour=name), container(record(), [ROW | {"id": name}]))
    days = date(2026, 9, 15), date(2026, 9, 16)
    assert api.survey(settings, *days).files == 2
    assert api.load(settings, *days).files == 2
    assert api.survey(settings, *days).files == 0
    assert api.load(settings, *days).files == 0
    assert sorted(opens(settings)) == ["2026-09-15-00", "2026-09-15-23"]


def test_only_the_event_types_asked_for_are_read(place):
    source, settings = place
    for event in (OPEN, "users.messages.email.Click"):
        source.put(key(event), container(record(event), [ROW]))
    asked = settings.source.model_copy(update={"events": ("*.Click",)})
    assert api.poll(settings.model_copy(update={"source": asked})).files == 1
    assert verify(settings).pending == 1


def test_several_connectors_and_both_layouts_meet_in_one_feed(place):
    source, settings = place
    new = key()
    old = new.replace("version=12/us-01", "42/a").replace("0123456789", "9999999999")
    oldest = f"x/event_type={OPEN}/date=2026-09-15-10/1/a/x+2+0000035465.avro".replace(
        "x/event", "dataexport.S3.integration.5f/event", 1
    )
    plain = new.split("/", 1)[1].replace("+0+1", "+0+7")
    for n, name in enumerate([new, old, oldest, plain]):
        source.put(name, container(record(), [ROW | {"id": str(n)}]))
    assert api.poll(settings).files == 4
    assert sorted(opens(settings)) == ["0", "1", "2", "3"]


def test_a_large_load_is_committed_in_many_entries(place, monkeypatch):
    source, settings = place
    monkeypatch.setattr("currents_ingest.discover.MAX_FILES", 2)
    monkeypatch.setattr(pipeline, "COMMIT_EVERY", 0.0)
    monkeypatch.setattr(ledger_module, "CHECKPOINT_EVERY", 3)
    for n in range(20):
        source.put(key(offset=n), container(record(), [ROW | {"id": str(n)}]))
    outcome = api.poll(settings)
    assert len(outcome.entries) > 3
    assert len(opens(settings)) == 20
    assert api.poll(settings).files == 0
    assert verify(settings).differences == ()


def test_a_stop_ends_after_the_batches_in_hand_and_the_next_run_goes_on(
    place, monkeypatch
):
    source, settings = place
    monkeypatch.setattr("currents_ingest.discover.MAX_FILES", 1)
    for n in range(60):
        source.put(key(offset=n), container(record(), [ROW | {"id": str(n)}]))
    asked = iter([False] * 20)
    first = api.poll(settings, stop=lambda: next(asked, True))
    assert first.stopped
    assert 0 < first.files < 60
    assert verify(settings).differences == ()
    assert first.files + api.poll(settings).files == 60
    assert len(opens(settings)) == 60


# Bad input


BAD_FILES = [
    pytest.param(b"", "the object is empty", id="empty object"),
    pytest.param(b"id\n1\n", "the object is no Avro file", id="text named .avro"),
    pytest.param(container(record(), [ROW])[:60], "the header is cut", id="cut header"),
    pytest.param(container(record(), [ROW])[:-20], " is cut: ", id="cut in a block"),
    pytest.param(
        by_hand(record(), encoded(record(), [ROW]), 1, sync=bytes(16)),
        "wrong sync marker",
        id="wrong sync marker",
    ),
    pytest.param(
        by_hand(record(), encoded(record(), [ROW]), -1),
        "claims -1 rows",
        id="negative count",
    ),
    pytest.param(
        by_hand(record(), encoded(record(), [ROW]), 2**40),
        "more than",
        id="absurd count",
    ),
    pytest.param(
        by_hand(record(), encoded(record(), [ROW, ROW]), 1),
        "left over after the 1 rows promised",
        id="count too small",
    ),
    pytest.param(by_hand(b'"int"', b"\x02", 1), "not that of a record", id="no record"),
    pytest.param(
        container(record("users.messages.email.Click"), [ROW]),
        f"the key says {OPEN}, the record inside is named "
        "dataexport.S3.inner.users.messages.email.Click",
        id="name contradicts key",
    ),
    pytest.param(
        container(record(id=None), [ROW]), "field id is gone", id="id not in the schema"
    ),
    pytest.param(
        container(record(timezone="int"), [ROW | {"timezone": 1}]),
        "field timezone is int and not string",
        id="breaking drift",
    ),
]


@pytest.mark.parametrize(("body", "reason"), BAD_FILES)
def test_a_bad_file_goes_to_quarantine_and_its_neighbours_do_not_notice(
    place, body, reason
):
    source, settings = place
    source.put(key(offset=1), container(record(), [ROW]))
    source.put(key(offset=2), body)
    source.put(key(offset=3), container(record(), [ROW | {"id": "b"}]))
    outcome = api.poll(settings)
    assert opens(settings) == ["a", "b"]
    assert [one.key for one in outcome.quarantined] == [key(offset=2)]
    assert reason in outcome.quarantined[0].reason
    assert outcome.needs_a_look
    assert api.poll(settings).quarantined == ()
    assert verify(settings).differences == ()


def test_all_bad_files_at_once_leave_the_good_ones_alone(place):
    source, settings = place
    for n, case in enumerate(BAD_FILES):
        source.put(key(offset=2 * n), case.values[0])
        source.put(key(offset=2 * n + 1), container(record(), [ROW | {"id": str(n)}]))
    outcome = api.poll(settings)
    assert (outcome.files, len(outcome.quarantined)) == (len(BAD_FILES), len(BAD_FILES))
    assert sorted(opens(settings)) == sorted(map(str, range(len(BAD_FILES))))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("with space", id="space"),
        pytest.param("pl+us", id="plus"),
        pytest.param("per%cent%20", id="percent"),
        pytest.param("üñí😀", id="unicode"),
    ],
)
def test_odd_keys_are_read_like_any_other(place, name):
    source, settings = place
    odd = key().replace("us-01", name)
    source.put(odd, container(record(), [ROW]))
    api.poll(settings)
    assert opens(settings, "currents_file") == [{"currents_file": odd}]
    assert verify(settings).differences == ()


def test_keys_with_dots_are_quarantined_and_never_read_as_paths(s3, tmp_path):
    import boto3

    settings = settings_for(f"{s3.url}/currents", tmp_path / "feeds")
    client = boto3.client("s3")
    good, up, double = (
        key(),
        key().replace("us-01", ".."),
        key().replace("/us-01", "//us-01"),
    )
    for name in (good, up, double):
        body = container(record(), [ROW])
        client.put_object(Bucket=s3.name, Key=f"currents/{name}", Body=body)
    outcome = api.poll(settings)
    assert outcome.rows_out == 1
    assert {one.key for one in outcome.quarantined} == {up, double}
    assert {one.reason for one in outcome.quarantined} == {
        "the key has an empty, '.' or '..' segment, so it is not read"
    }
    assert api.poll(settings).quarantined == ()
    assert verify(settings).differences == ()


def test_rejected_rows_are_written_aside_with_file_row_and_reason(place):
    source, settings = place
    rows = [ROW | {"id": str(n)} for n in range(200)]
    rows[7] |= {"id": ""}
    source.put(key(), container(record(), rows))
    outcome = api.poll(settings)
    assert (outcome.rows_in, outcome.rows_out, outcome.rejects) == (200, 199, 1)
    (path,) = Path(settings.feeds.url).glob(f"_rejects/{FEED}/*/*/*/*.jsonl")
    assert json.loads(path.read_text()) == {
        "file": key(),
        "row": 7,
        "reason": "id is missing",
    }
    assert verify(settings).differences == ()


def test_too_many_rejects_hold_their_files_back_and_no_others(place):
    source, settings = place
    source.put(key(offset=1), container(record(), [ROW]))
    source.put(
        key(offset=2), container(record(), [ROW | {"id": ""}, ROW | {"id": "b"}])
    )
    outcome = api.poll(settings)
    assert opens(settings) == ["a"]
    assert outcome.rejects == 0
    (aside,) = outcome.quarantined
    assert aside.reason == (
        "held back: 1 of its 2 rows break a rule (id is missing), and its batch has "
        "more such rows than feeds.max_reject_share allows"
    )
    allowed = settings.feeds.model_copy(update={"max_reject_share": 1.0})
    again = api.retry(settings.model_copy(update={"feeds": allowed}), [key(offset=2)])
    assert (again.rows_out, again.rejects) == (1, 1)
    assert opens(settings) == ["a", "b"]
    assert verify(settings).differences == ()


def test_a_file_larger_than_memory_allows_says_so(place, monkeypatch):
    source, settings = place
    monkeypatch.setattr("currents_ingest.engine.max_bytes_in_work", lambda _: 100)
    source.put(key(), container(record(), [ROW]))
    (aside,) = api.poll(settings).quarantined
    assert "limits.memory leaves room for 100 at once; raise" in aside.reason


# Quarantine


def test_a_mended_file_is_new_and_the_torn_one_can_be_discarded(place):
    source, settings = place
    source.put(key(), container(record(), [ROW])[:-3])
    api.poll(settings)
    source.put(key(), container(record(), [ROW]))
    assert api.poll(settings).rows_out == 1
    assert api.discard(settings, [key()]) == 1
    assert api.quarantine(settings) == []
    assert verify(settings).differences == ()


def test_retry_reads_again_and_puts_back_what_is_still_bad(place):
    source, settings = place
    source.put(key(offset=1), b"not avro")
    source.put(key(offset=2), b"")
    api.poll(settings)
    Path(settings.source.url, key(offset=2)).unlink()
    outcome = api.retry(settings, [])
    assert {one.key: one.reason for one in outcome.quarantined} == {
        key(offset=1): "the object is no Avro file (it does not start as one)",
        key(offset=2): "the object is no longer in the bucket",
    }
    assert len(api.quarantine(settings)) == 2


def test_a_released_file_is_read_by_the_next_poll_if_the_retry_died(place):
    source, settings = place
    source.put(key(hour="2020-01-01-00"), b"not avro")
    api.poll(settings)
    with begin(settings) as session:
        files = api._chosen(session, [])  # noqa: SLF001
        session.ledger.commit(api._decision(session, released=files))  # noqa: SLF001
    assert len(api.poll(settings).quarantined) == 1
    assert api.poll(settings).quarantined == ()


def test_a_key_that_is_not_in_quarantine_cannot_be_retried(place):
    _, settings = place
    with pytest.raises(NotThereError, match="there is no object 'x' in quarantine"):
        api.retry(settings, ["x"])


# Contracts and drift


def test_a_new_field_goes_to_unmapped_fields_and_is_reported_once(place):
    source, settings = place
    new = record(brand_new=["null", "string"])
    for n, value in enumerate(["x", None]):
        rows = [ROW | {"id": str(n), "brand_new": value}]
        source.put(key(offset=n), container(new, rows))
        drift = api.poll(settings).drift
        told = [(d.fingerprint, d.verdict, d.differences[0], d.key) for d in drift]
        difference = "field brand_new (null or string) is new"
        print_ = schemas.read(new).fingerprint
        first = [(print_, "additive", difference, key(offset=0))]
        assert told == (first if n == 0 else [])
    assert [one["unmapped_fields"] for one in opens(settings, "unmapped_fields")] == [
        '{"brand_new":"x"}',
        None,
    ]


def test_an_unknown_event_type_gets_a_contract_from_its_first_schema(place):
    source, settings = place
    event = "users.new.Thing"
    first, second = record(event, a="string"), record(event, a="string", b="int")
    source.put(key(event, offset=1), container(first, [ROW | {"a": "1"}]))
    api.poll(settings)
    rows = [ROW | {"id": "b", "a": "2", "b": 5}]
    source.put(key(event, offset=2), container(second, rows))
    api.poll(settings)
    assert query(settings.feeds.url, "new_thing", "id, a, unmapped_fields") == [
        {"id": "a", "a": "1", "unmapped_fields": None},
        {"id": "b", "a": "2", "unmapped_fields": '{"b":5}'},
    ]
    assert verify(settings).differences == ()


def test_batches_of_an_unknown_event_type_in_work_together_share_a_contract(
    place, monkeypatch
):
    source, settings = place
    monkeypatch.setattr("currents_ingest.discover.MAX_FILES", 1)
    event = "users.new.Thing"
    for n in range(8):
        schema = record(event, **{f"field_{n}": "int"})
        rows = [ROW | {"id": str(n), f"field_{n}": n}]
        source.put(key(event, offset=n), container(schema, rows))
    api.poll(settings)
    found = query(settings.feeds.url, "new_thing", "id, field_0, unmapped_fields")
    assert [one["unmapped_fields"] for one in found] == [
        None,
        *(f'{{"field_{n}":{n}}}' for n in range(1, 8)),
    ]
    assert verify(settings).differences == ()


def test_two_event_types_never_share_a_feed(place):
    source, settings = place
    twin = OPEN.removeprefix("users.")
    source.put(key(OPEN), container(record(OPEN), [ROW]))
    api.poll(settings)
    source.put(key(twin), container(record(twin), [ROW | {"id": "b"}]))
    (aside,) = api.poll(settings).quarantined
    assert aside.reason == (
        f"the feed messages_email_open belongs to the event type {OPEN}"
    )
    assert opens(settings) == ["a"]


def test_several_schemas_in_one_batch_keep_the_files_order(place):
    source, settings = place
    for n in range(6):
        schema = record(extra=["null", "int"]) if n % 2 else record()
        rows = [ROW | {"id": f"{n}{m}", "extra": m} for m in range(3)]
        source.put(key(offset=n), container(schema, rows))
    api.poll(settings)
    (path,) = Path(settings.feeds.url, FEED).rglob("*.parquet")
    with duckdb.connect() as connection:
        found = connection.execute(f"select id from '{path}'").fetchall()
    assert [one[0] for one in found] == [f"{n}{m}" for n in range(6) for m in range(3)]


# Memory


def test_compressed_files_that_unpack_to_much_take_turns(place):
    source, settings = place
    schema = record(text="string")
    names = [key(offset=n) for n in range(4)]
    for n, name in enumerate(names[:3]):
        row = {**ROW, "id": str(n), "text": "x" * (30 << 20)}
        source.put(name, container(schema, [row], codec="deflate"))
    source.put(names[3], container(schema, [{**ROW, "id": "3", "text": "small"}]))
    first = api.poll(settings)
    assert (first.files, len(first.unread)) == (3, 1)
    assert "the next run takes it" in first.unread[0]
    assert opens(settings) == ["0", "1", "3"]
    second = api.poll(settings)
    assert (second.files, second.unread) == (1, ())
    assert sorted(opens(settings)) == ["0", "1", "2", "3"]
    found = validate(settings, deep=True)
    assert (found.schemas[0].data.rows, found.troubles) == (4, ())


def test_less_memory_means_smaller_batches(place, monkeypatch):
    source, settings = place
    for n in range(10):
        source.put(key(offset=n), container(record(), [ROW | {"id": str(n)}]))
    size = len(container(record(), [ROW | {"id": "0"}]))
    monkeypatch.setattr(
        "currents_ingest.engine.max_bytes_in_work",
        lambda _: 3 * size * engine.WORKERS,
    )
    assert api.poll(settings).objects == 4
    assert len(opens(settings)) == 10


# Other stores


def test_memory_and_s3_give_what_a_folder_gives(s3, tmp_path):
    results = []
    for url in (str(tmp_path), s3.url, f"memory://{uuid4()}"):
        source = url if url.startswith("memory") else f"{url}/currents"
        simulate(str(tmp_path / "made"), Simulation(events=("*.email.*",), hours=2))
        store = Store.open(source)
        for path in sorted((tmp_path / "made" / "currents").rglob("*.avro")):
            name = path.relative_to(tmp_path / "made" / "currents").as_posix()
            store.put(name, path.read_bytes())
        feeds = f"memory://{uuid4()}" if url.startswith("memory") else f"{url}/feeds"
        settings = settings_for(source, feeds)
        outcome = api.poll(settings)
        assert api.poll(settings).files == 0
        assert verify(settings).differences == ()
        results.append((outcome.rows_in, outcome.rows_out, outcome.objects))
    assert results[0] == results[1] == results[2]
    assert results[0][1] > 100


def test_a_notebook_may_call_it_from_within_its_event_loop(place):
    source, settings = place
    source.put(key(), container(record(), [ROW]))

    async def cell():
        return api.poll(settings).rows_out, verify(settings).differences

    assert asyncio.run(cell()) == (1, ())


def test_an_empty_source_is_nothing_new(place):
    _, settings = place
    assert api.poll(settings).files == 0


def test_a_load_of_no_days_is_refused(place):
    with pytest.raises(SettingsError, match="is not before"):
        api.load(place[1], date(2026, 9, 15), date(2026, 9, 15))


def test_an_id_is_recognised_on_an_empty_disk_after_a_load_of_months(
    place, monkeypatch
):
    """A batch that spans months lies under its last day in a checkpoint."""
    source, settings = place
    monkeypatch.setattr(ledger_module, "CHECKPOINT_EVERY", 1)
    row = {"id": "x", "time": 1_751_320_000}  # 2025-06-30 21:46
    source.put(key(hour="2025-06-30-22"), container(record(), [row]))
    source.put(key(hour="2025-12-20-10"), container(record(), [ROW]))
    assert api.poll(settings).rows_out == 2
    source.put(key(hour="2025-07-01-02"), container(record(), [row]))
    since, until = date(2025, 7, 1), date(2025, 7, 2)
    outcome = api.load(settings, since, until)
    assert (outcome.rows_out, outcome.duplicates) == (0, 1)
