from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from currents_ingest import avro, conform, schemas
from currents_ingest.compatibility import Verdict, compare
from currents_ingest.conform import Origin
from currents_ingest.contracts import raw_contract
from currents_ingest.errors import BreakingDriftError
from tests.avro_files import OPEN, by_hand, container, encoded, record

QUEUED = datetime(2026, 9, 15, 10, tzinfo=UTC)
PLANNED = datetime(2026, 9, 15, 11, 5, 6, 789, tzinfo=UTC)
ROW = {"id": "a", "time": 1_700_000_000}


def conformed(schema, rows, contract=None, *, body=None):
    walked = avro.walk(body or container(schema, rows))
    contract = contract or raw_contract(OPEN, [schemas.read(schema)])
    origins = [Origin(file="f", rows=walked.rows, queued_at=QUEUED)]
    try:
        frame = avro.decode([walked])
    except avro.CorruptObjectError:
        frame = avro.decode_any(walked)
    return conform.conform(frame, walked.schema, contract, origins, PLANNED)


@pytest.mark.parametrize(
    ("field", "kind", "value", "wanted"),
    [
        pytest.param("x", "float", 3.14, 3.14, id="shortest text of 32 bits"),
        pytest.param("x", "float", 1e-7, 1e-7, id="small float"),
        pytest.param("x", "double", 3.140000104904175, 3.140000104904175, id="double"),
        pytest.param("price", "float", 12.34, Decimal("12.340000"), id="money"),
        pytest.param("price", ["null", "float"], None, None, id="no money"),
        pytest.param("price", "float", 1e20, Decimal(10**20), id="much money"),
        pytest.param("price", "float", 0.1234567, Decimal("0.123457"), id="rounded"),
        pytest.param("price", "long", 5, Decimal(5), id="whole money"),
        pytest.param("x", "int", -(2**31), -(2**31), id="int"),
        pytest.param("x", "long", 2**63 - 1, 2**63 - 1, id="long"),
        pytest.param("x", "boolean", False, False, id="boolean"),
        pytest.param("x", ["null", "string"], None, None, id="null stays null"),
        pytest.param("x", "string", "", "", id="empty stays empty"),
        pytest.param("x", "string", "é😀\n\x00", "é😀\n\x00", id="any text"),
        pytest.param(
            "x",
            {"type": "array", "items": ["null", "string"]},
            ["a", None, '"'],
            '["a",null,"\\""]',
            id="array as JSON text",
        ),
        pytest.param(
            "x", {"type": "array", "items": "string"}, [], "[]", id="no items"
        ),
        pytest.param(
            "x", {"type": "map", "values": "int"}, {"k": 1}, '{"k":1}', id="map"
        ),
    ],
)
def test_a_value_becomes_its_columns_value(field, kind, value, wanted):
    found = conformed(record(**{field: kind}), [ROW | {field: value}])
    assert found.rows[field].to_list() == [wanted]
    assert found.rejects.height == 0


def test_every_row_says_where_it_came_from_and_when():
    walked = [
        avro.walk(container(record(), [ROW | {"id": f"{file}{n}"} for n in range(2)]))
        for file in "ab"
    ]
    contract = raw_contract(OPEN, [walked[0].schema])
    origins = [Origin(file=f"{f}.avro", rows=2, queued_at=QUEUED) for f in "ab"]
    found = conform.conform(
        avro.decode(walked), walked[0].schema, contract, origins, PLANNED
    )
    assert found.rows.row(3, named=True) == {
        "id": "b1",
        "time": 1_700_000_000,
        "event_datetime": datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
        "currents_event_type": OPEN,
        "currents_schema": walked[0].schema.fingerprint,
        "currents_file": "b.avro",
        "currents_row": 1,
        "currents_queued_at": QUEUED,
        "ingested_at": PLANNED,
        "unmapped_fields": None,
    }


@pytest.mark.parametrize(
    ("time", "millis", "wanted"),
    [
        pytest.param(5, None, datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC), id="seconds"),
        pytest.param(
            5, 5_123, datetime(1970, 1, 1, 0, 0, 5, 123000, tzinfo=UTC), id="time_ms"
        ),
        pytest.param(
            5, 2**62, datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC), id="absurd time_ms"
        ),
        pytest.param(0, None, datetime(1970, 1, 1, tzinfo=UTC), id="the first second"),
    ],
)
def test_event_datetime_comes_from_time_ms_where_present(time, millis, wanted):
    schema = record(time_ms=["null", "long"])
    found = conformed(schema, [{"id": "a", "time": time, "time_ms": millis}])
    assert found.rows["event_datetime"].to_list() == [wanted]


@pytest.mark.parametrize(
    ("schema", "row", "reason"),
    [
        pytest.param(
            record(id=["null", "string"]), {"id": None}, "id is missing", id="null id"
        ),
        pytest.param(record(), {"id": ""}, "id is missing", id="empty id"),
        pytest.param(
            record(time=["null", "int"]), {"time": None}, "time is missing", id="time"
        ),
        pytest.param(
            record(time="long"),
            {"time": 1_700_000_000_000},
            "time is not between 1970 and 2100, as seconds",
            id="milliseconds for seconds",
        ),
        pytest.param(
            record(time="long"),
            {"time": 2**63 - 1},
            "time is not between 1970 and 2100, as seconds",
            id="the largest long",
        ),
        pytest.param(
            record(),
            {"time": -1},
            "time is not between 1970 and 2100, as seconds",
            id="before 1970",
        ),
        pytest.param(
            record(price="float"),
            {"price": 3e38},
            "price does not fit a DECIMAL(38,6)",
            id="too much money",
        ),
        pytest.param(
            record(price="float"),
            {"price": float("nan")},
            "price does not fit a DECIMAL(38,6)",
            id="money that is no number",
        ),
    ],
)
def test_a_row_that_breaks_a_rule_is_rejected_alone(schema, row, reason):
    good = ROW | {"price": 1.0}
    found = conformed(schema, [good | {"id": "b"}, good | row, good | {"id": "c"}])
    assert found.rows["id"].to_list() == ["b", "c"]
    assert found.rejects.rows() == [("f", 1, reason)]


def test_text_that_is_not_utf8_rejects_its_row_alone():
    schema = record(x="string")
    data = encoded(schema, [ROW | {"id": i, "x": f"text-{i}"} for i in "abc"])
    body = by_hand(schema, data.replace(b"text-b", b"text\xff\xfe"), 3)
    found = conformed(schema, [], body=body)
    assert found.rows["id"].to_list() == ["a", "c"]
    assert found.rejects.rows() == [("f", 1, "the text in field x is not UTF-8")]


def test_fields_that_the_contract_does_not_know_become_json():
    old, new = (
        record(a="string"),
        record(
            a="string",
            f=["null", "float"],
            t=["null", "string"],
            l=["null", {"type": "array", "items": "int"}],
            b=["null", "boolean"],
            ingested_at=["null", "int"],
            currents_row=["null", "long"],
        ),
    )
    contract = raw_contract(OPEN, [schemas.read(old)])
    nothing = {"f": None, "t": None, "l": None, "b": None}
    nothing |= {"ingested_at": None, "currents_row": None, "a": "x"}
    rows = [
        ROW | nothing | {"id": "1", "f": 3.14, "t": 'q"é\n', "l": [1, 2], "b": True},
        ROW | nothing | {"id": "2", "ingested_at": 7, "currents_row": 2**60},
        ROW | nothing | {"id": "3"},
    ]
    found = conformed(new, rows, contract).rows["unmapped_fields"].to_list()
    assert [text and json.loads(text) for text in found] == [
        {"f": 3.14, "t": 'q"é\n', "l": [1, 2], "b": True},
        {"ingested_at": 7, "currents_row": 2**60},
        None,
    ]


def test_no_name_of_a_field_is_taken_for_one_of_ours():
    contract = raw_contract(OPEN, [schemas.read(record())])
    new = record(**{"row of file": "string", "currents_file": "string"})
    row = ROW | {"row of file": "x", "currents_file": "y"}
    found = conformed(new, [row], contract).rows
    assert found["currents_row"].to_list() == [0]
    assert found["currents_file"].to_list() == ["f"]
    assert [json.loads(text) for text in found["unmapped_fields"]] == [
        {"row of file": "x", "currents_file": "y"}
    ]


def test_a_field_that_the_writer_does_not_have_is_null():
    contract = raw_contract(OPEN, [schemas.read(record(a="string", price="float"))])
    found = conformed(record(), [ROW], contract).rows
    assert found.select("a", "price").row(0) == (None, None)


@pytest.mark.parametrize(
    ("writer", "differences"),
    [
        pytest.param(record(id=None), ("field id is gone",), id="no id"),
        pytest.param(record(time=None), ("field time is gone",), id="no time"),
        pytest.param(
            record(id="int", time="string"),
            (
                "field id is int and not string",
                "field time is string and not int64",
            ),
            id="other types",
        ),
        pytest.param(
            record(n="string"), ("field n is string and not int64",), id="text"
        ),
        pytest.param(
            record(n="double"), ("field n is double and not int64",), id="narrow"
        ),
        pytest.param(record(n=["null", "long"]), (), id="wider and optional"),
        pytest.param(record(x="int"), (), id="int to double"),
        pytest.param(record(more="int"), (), id="additive"),
        pytest.param(
            record(s={"type": "array", "items": "string"}),
            ("field s is array and not string",),
            id="list",
        ),
    ],
)
def test_breaking_drift_is_told_from_harmless(writer, differences):
    contract = raw_contract(
        OPEN, [schemas.read(record(n="int", x="double", s="string"))]
    )
    found = compare(schemas.read(writer), contract)
    assert (found.verdict is Verdict.BREAKING) == bool(differences)
    if differences:
        assert found.differences == differences


def test_breaking_drift_stops_conforming():
    contract = raw_contract(OPEN, [schemas.read(record(n="int"))])
    with pytest.raises(BreakingDriftError) as caught:
        conformed(record(n="string"), [ROW | {"n": "x"}], contract)
    assert str(caught.value) == (
        "the file's schema breaks the contract of messages_email_open: field n is "
        "string and not int64. Nothing of the file was delivered"
    )
