"""What each word of a contract does to rows, and what the settings may choose."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from decimal import Decimal

import polars as pl
import pytest

from currents_ingest import config
from currents_ingest.conform import Origin, conform, hidden
from currents_ingest.contracts import raw_contract
from currents_ingest.errors import SettingsError
from currents_ingest.schemas import read
from currents_ingest.selection import in_force, select
from currents_ingest.unified import UnifiedContract
from currents_ingest.unify import Decided, unify
from tests.avro_files import OPEN, record
from tests.test_unified_toml import GOOD

NOW = datetime(2026, 9, 15, 12, tzinfo=UTC)
FIELDS = {
    "a": ["null", "string"],
    "b": ["null", "string"],
    "n": ["null", "long"],
    "flag": ["null", "boolean"],
    "price": ["null", "float"],
    "properties": ["null", "string"],
    "app_group_id": ["null", "string"],
    "from_domain": ["null", "string"],
}


def raw(rows, known=FIELDS):
    """Return rows as a raw feed has them; fields beside *known* have no column."""
    writer = read(record(OPEN, **FIELDS))
    contract = raw_contract(OPEN, [read(record(OPEN, **known))])
    whole = [
        dict.fromkeys(FIELDS) | {"id": f"i{n}", "time": 1_789_466_400 + n} | row
        for n, row in enumerate(rows)
    ]
    types = {"id": pl.String, "time": pl.Int32, "n": pl.Int64, "flag": pl.Boolean}
    types |= {"price": pl.Float32}
    frame = pl.DataFrame(
        whole, schema={name: types.get(name, pl.String) for name in whole[0]}
    ).select([field.name for field in writer.fields])
    origin = Origin(file="f", rows=len(rows), queued_at=NOW)
    return conform(frame, writer, contract, [origin], NOW).rows


def made(column, rows, sources=None, known=FIELDS, **decided):
    """Return the values of one column, beside a key, and the rejects."""
    contract = UnifiedContract.model_validate(
        {
            "feed": "f",
            "description": "d",
            "key": "k",
            "last_updated": "u",
            "sources": sources or [{"event": OPEN}],
            "columns": [
                {"name": "k", "from": "id", "required": True},
                {"name": "x", **column},
                {"name": "u", "type": "datetime", "from": "ingested_at"},
            ],
        }
    )
    chosen = Decided(**{"brand": "B", **decided})
    found = unify(raw(rows, known), contract, contract.sources_of(OPEN), chosen)
    assert found.rows.height + found.rejects.height + found.passed_over == len(rows)
    return found.rows["x"].to_list(), found.rejects.rows()


@pytest.mark.parametrize(
    ("column", "rows", "values"),
    [
        (
            {"from": "a"},
            [{"a": "x"}, {"a": ""}, {"a": "[REDACTED]"}, {}],
            ["x", *[None] * 3],
        ),
        ({"from": ["a", "b"]}, [{"a": "", "b": "y"}, {"a": "x", "b": "y"}], ["y", "x"]),
        (
            {"from": [["a", "b"], "b"]},
            [{"a": "x", "b": "y"}, {"b": "y"}, {"a": "x"}],
            ["x:y", "y", None],
        ),
        ({"from": ["a", "n"]}, [{"n": 5}, {"a": "x", "n": 5}], ["5", "x"]),
        ({"constant": "c"}, [{}], ["c"]),
        ({"from": "a", "constant": "c"}, [{"a": "x"}, {}], ["x", "c"]),
        (
            {"which": {"a": "first", "b": "second"}},
            [{"a": "1", "b": "2"}, {"b": "2"}, {}],
            ["first", "second", None],
        ),
        ({"from": "a", "trim": True, "lower": True}, [{"a": " Xy\t"}], ["xy"]),
        (
            {"from": "a", "lower": True, "type": "boolean", "values": {"yes": True}},
            [{"a": "YES"}, {"a": "no"}],
            [True, None],
        ),
        (
            {"from": "a", "sha256": True},
            [{"a": " A@B.example "}],
            [hashlib.sha256(b"a@b.example").hexdigest()],
        ),
        (
            {"from": "a", "sha256": True},
            [{"a": ""}, {"a": "[REDACTED]"}, {}],
            [None, None, None],
        ),
        (
            {"from": "properties", "pick": "$.o.t"},
            [
                {"properties": '{"o":{"t":"x"}}'},
                {"properties": "{}"},
                {"properties": "{"},
            ],
            ["x", None, None],
        ),
        (
            {"from": "properties", "pick": "$.n", "type": "integer"},
            [{"properties": '{"n": 7}'}],
            [7],
        ),
        (
            {"from": "properties", "pick": "$.b", "type": "boolean"},
            [{"properties": '{"b": false}'}],
            [False],
        ),
        (
            {"from": "n", "type": "datetime", "unit": "ms"},
            [{"n": 1_789_466_400_123}],
            [datetime(2026, 9, 15, 10, 0, 0, 123_000, tzinfo=UTC)],
        ),
        (
            {"from": "n", "type": "datetime", "unit": "s"},
            [{"n": 1_789_466_400}],
            [datetime(2026, 9, 15, 10, tzinfo=UTC)],
        ),
        ({"from": "n", "type": "float"}, [{"n": 2}], [2.0]),
        ({"from": "flag", "type": "boolean"}, [{"flag": False}, {}], [False, None]),
        ({"from": "flag"}, [{"flag": True}], ["true"]),
        (
            {"from": "price", "type": "decimal"},
            [{"price": 3.14}],
            [Decimal("3.140000")],
        ),
        ({"from": "@send_day"}, [{}], ["20260915"]),
        ({"from": "@event_name"}, [{}], ["Open"]),
        ({"from": "@brand"}, [{}], ["B"]),
    ],
)
def test_a_column_has_what_its_contract_says(column, rows, values):
    assert made(column, rows) == (values, [])


@pytest.mark.parametrize(
    ("column", "row", "value"),
    [
        ({"from": "a"}, {"a": "x"}, "x"),
        ({"from": "n", "type": "integer"}, {"n": 7}, 7),
        ({"from": "flag", "type": "boolean"}, {"flag": True}, True),
        ({"from": "price", "type": "decimal"}, {"price": 3.14}, Decimal("3.140000")),
        (
            {"from": "n", "type": "datetime", "unit": "s"},
            {"n": 0},
            datetime(1970, 1, 1, tzinfo=UTC),
        ),
    ],
)
def test_a_field_without_a_column_comes_from_the_unmapped_ones(column, row, value):
    assert made(column, [row, {}], known={}) == ([value, None], [])


def test_what_does_not_fit_or_is_missing_is_rejected():
    amount = {"from": "properties", "pick": "$.n", "type": "decimal"}
    rows = [{"properties": '{"n": "many"}'}, {"properties": '{"n": 1.5}'}, {}]
    values, rejects = made(amount, rows)
    assert values == [Decimal("1.5"), None]
    assert rejects == [("f", 0, "x does not fit the type Decimal(38,6)")]
    values, rejects = made({"from": "a", "required": True}, [{"a": ""}, {"a": "x"}])
    assert (values, rejects) == (["x"], [("f", 0, "x is missing")])


@pytest.mark.parametrize(
    ("when", "taken"),
    [
        ({"a": "x"}, "X x"),
        ({"a": ["x", "y"]}, "X x y"),
        ({"a": "*"}, "X x y z"),
        ({"a": ""}, "null empty"),
        ({"a": ["", "z"]}, "z null empty"),
        ({"a": "x", "b": "1"}, "x"),
        ([{"b": "1"}, {"a": "y"}], "x y"),
        ({"flag": "true"}, "z"),
        ({"unknown": ""}, "X x y z null empty"),
    ],
)
def test_a_source_takes_the_rows_that_its_tests_ask_for(when, taken):
    rows = {
        "X": {"a": "X"},
        "x": {"a": "x", "b": "1"},
        "y": {"a": "y"},
        "z": {"a": "z", "flag": True},
        "null": {},
        "empty": {"a": ""},
    }
    named = [{**row, "id": name} for name, row in rows.items()]
    found, _ = made({"from": "id"}, named, [{"event": OPEN, "when": when}])
    assert found == taken.split()
    left, _ = made({"from": "id"}, named, [{"event": OPEN, "unless": when}])
    assert left == [name for name in rows if name not in taken.split()]


def test_the_first_source_that_takes_a_row_sets_its_constants():
    sources = [
        {"event": OPEN, "when": {"a": "x"}, "set": {"x": "first"}},
        {"event": "users.messages.email.*", "when": {"b": "*"}, "set": {"x": "second"}},
        {"event": OPEN, "when": {"n": "1"}},
    ]
    rows = [{"a": "x", "b": "1"}, {"b": "1"}, {"n": 1}, {}]
    found, _ = made({"constant": "none"}, rows, sources)
    assert found == ["first", "second", "none"]


def test_brands_and_regions_come_from_app_group_or_domain():
    names = {"g1": "One", "mail.two.example": "Two"}
    rows = [
        {"app_group_id": "G1", "from_domain": "mail.two.example"},
        {"from_domain": "Mail.Two.example", "app_group_id": "g9"},
        {},
    ]
    assert made({"from": "@brand"}, rows, brands=names)[0] == ["One", "Two", "B"]
    regions, _ = made({"from": "@region"}, rows, regions={"g1": "EU"}, region="US")
    assert regions == ["EU", "US", "US"]
    assert made({"from": "@region"}, [{}])[0] == [None]


def test_personal_data_is_left_hashed_or_dropped():
    hashed = hashlib.sha256(b"x").hexdigest()
    for choice, value in (("keep", " X"), ("hash", hashed), ("drop", None)):
        assert made({"from": "a"}, [{"a": " X"}], privacy={"a": choice})[0] == [value]
    for text in ("", "[REDACTED]"):
        assert made({"from": "a"}, [{"a": text}], privacy={"a": "hash"})[0] == [None]
    # Tests ask for what a field holds, whatever becomes of it.
    sources = [{"event": OPEN, "when": {"a": "*"}}]
    found, _ = made({"from": "a"}, [{"a": "x"}, {}], sources, privacy={"a": "drop"})
    assert found == [None]


def test_unmapped_fields_are_hidden_too():
    inside = '"a":1'
    rows = raw([{"a": "X ", "n": 5}, {"n": 5}, {}, {"b": inside}], known={})
    digest = hashlib.sha256(b"x").hexdigest()
    for choices, wanted in (
        ({}, [{"a": "X ", "n": 5}, {"n": 5}, None, {"b": inside}]),
        ({"a": "hash"}, [{"a": digest, "n": 5}, {"n": 5}, None, {"b": inside}]),
        ({"a": "drop", "n": "drop", "b": "drop"}, [None, None, None, None]),
    ):
        texts = hidden(rows, choices)["unmapped_fields"]
        assert [json.loads(text) if text else None for text in texts] == wanted


def test_a_field_whose_name_json_escapes_is_hidden_too():
    rows = pl.DataFrame({"unmapped_fields": [json.dumps({"pré": "x"}), None]})
    assert hidden(rows, {"pré": "drop"})["unmapped_fields"].to_list() == [None, None]


# What the settings may choose


def chosen(**more):
    feeds = {"url": "y", **more.pop("feeds", {})}
    return select(config.read(source={"url": "x"}, feeds=feeds, **more))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"feeds": {"include": ["email_event"]}}, "there is no feed email_event"),
        (
            {"feeds": {"options": {"email_events": {"opens": "drop"}}}},
            "feeds.options.email_events.opens: there is no such option",
        ),
        (
            {"feeds": {"options": {"email_events": {"machine_opens": "no"}}}},
            "'no' is none of keep, drop",
        ),
        ({"privacy": {"fields": {"emial": "drop"}}}, "no event has such a field"),
        ({"privacy": {"fields": {"id": "drop"}}}, "no event can be delivered without"),
        ({"privacy": {"fields": {"latitude": "hash"}}}, "it is no text"),
        ({"privacy": {"feeds": {"no_such": {}}}}, "there is no such feed"),
    ],
)
def test_a_setting_that_names_nothing_is_refused(more, reason):
    with pytest.raises(SettingsError, match=reason):
        chosen(**more)


def test_include_chooses_feeds_by_glob():
    selection = chosen(feeds={"include": ["messages_sms_*", "*_status"]})
    assert [one.feed for one in selection.included()] == [
        "email_opt_status",
        "sms_opt_status",
    ]
    assert selection.writes_raw("messages_sms_send")
    assert not selection.writes_raw("messages_email_open")


def test_a_users_contract_is_read_and_takes_the_place_of_a_shipped_one(tmp_path):
    (tmp_path / "opens.toml").write_text(GOOD)
    own = GOOD.replace('feed = "opens"', 'feed = "purchases"')
    (tmp_path / "purchases.toml").write_text(own)
    selection = chosen(feeds={"contracts": [str(tmp_path)], "include": ["*"]})
    assert selection.contracts["opens"].description == "Opens"
    assert selection.contracts["purchases"].description == "Opens"
    with pytest.raises(SettingsError, match=r"holds no \.toml file"):
        chosen(feeds={"contracts": [str(tmp_path / "none")]})


def test_a_contract_that_changes_needs_a_new_version(tmp_path):
    (tmp_path / "opens.toml").write_text(GOOD)
    feeds = {"contracts": [str(tmp_path)], "include": ["opens"]}
    before = chosen(feeds=feeds).contracts["opens"]
    (tmp_path / "opens.toml").write_text(GOOD.replace('"Opens"', '"All opens"'))
    assert in_force(chosen(feeds=feeds), {"opens": before}) == {"opens": before}
    changed = GOOD.replace('kind = "Open"', 'kind = "Opened"')
    (tmp_path / "opens.toml").write_text(changed)
    with pytest.raises(SettingsError, match="give it version 2"):
        in_force(chosen(feeds=feeds), {"opens": before})
    newer = changed.replace("key =", "version = 2\nkey =")
    (tmp_path / "opens.toml").write_text(newer)
    assert in_force(chosen(feeds=feeds), {"opens": before}) == {"opens": before}


@pytest.mark.parametrize("kind", ["string", "double"])
def test_a_time_that_is_no_integer_stops_nothing(kind):
    value = "2026-09-15T10:00:00Z" if kind == "string" else 1.5
    frame = pl.DataFrame(
        {"id": ["i"], "time": [1_789_466_400], "send_time": [value]},
        schema_overrides={"time": pl.Int32},
    )
    writer = read(record(OPEN, send_time=["null", kind]))
    contract = raw_contract(OPEN, [read(record(OPEN))])
    origin = [Origin(file="f", rows=1, queued_at=NOW)]
    rows = conform(frame, writer, contract, origin, NOW).rows
    opens = select(config.read(source={"url": "x"}, feeds={"url": "y"}))
    contract = opens.contracts["message_events"]
    day = contract.columns[0].model_copy(update={"sources": (("@send_day",),)})
    sent = contract.columns[1].model_copy(
        update={"sources": (("send_time",),), "unit": "s", "required": False}
    )
    columns = (day, sent, *contract.columns[2:])
    made = contract.model_copy(update={"columns": columns})
    found = unify(rows, made, [contract.sources[0]], Decided(brand="b"))
    assert found.rows[day.name].to_list() == ["20260915"]
    assert found.rows[sent.name].to_list() == [None]
