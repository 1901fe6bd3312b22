from __future__ import annotations

import io
import json
from itertools import pairwise

import fastavro
import pytest
from fastavro.schema import parse_schema

from currents_ingest import schemas
from currents_ingest.errors import CorruptObjectError
from tests.avro_files import OPEN, encoded, record

FILES = sorted(schemas.schemas_root().glob("*/*.avsc"))
NEIGHBOURS = [
    (older, newer)
    for versions in schemas.known().values()
    for older, newer in pairwise(versions)
]


def test_every_event_type_and_version_through_v12_is_there():
    assert len(FILES) == 328
    assert len(schemas.known()) == 106
    newest = {v[-1].currents_version for v in schemas.known().values()}
    assert {f"v{n}" for n in range(1, 13)} - newest == set()
    click = schemas.known()["users.messages.email.Click"][-1]
    assert (click.currents_version, click.first_seen) == ("v12", "2026-09-02")
    assert {"send_time", "has_url_parameters", "link_aliasing_enabled"} <= {
        field.name for field in click.writer.fields
    }


@pytest.mark.parametrize(
    "path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_file_parses_and_is_of_its_event_type(path):
    schema = json.loads(path.read_text("utf-8"))
    parse_schema(schema)
    assert schemas.read(schema).is_of(path.parent.name)
    assert {"currents_version", "first_seen"} <= schema.keys()


def test_every_version_has_a_fingerprint_of_its_own():
    found = {v.writer.fingerprint for each in schemas.known().values() for v in each}
    assert len(found) == len(FILES)


def test_versions_are_numbered_without_a_gap_and_dated_in_order():
    for versions in schemas.known().values():
        assert [v.number for v in versions] == list(range(1, len(versions) + 1))
        assert [v.first_seen for v in versions] == sorted(
            v.first_seen for v in versions
        )


@pytest.mark.parametrize(
    ("older", "newer"),
    NEIGHBOURS,
    ids=[f"{newer.event_type} {newer.number}" for _, newer in NEIGHBOURS],
)
def test_every_version_reads_what_its_predecessor_wrote(older, newer):
    example = {"string": "x", "boolean": True, "array": ["x"]}
    row = {f.name: example.get(f.type, 1) for f in older.writer.fields}
    writer, reader = (json.loads(v.writer.canonical) for v in (older, newer))
    source = _full(newer)
    data = encoded(writer, [row])
    read = fastavro.schemaless_reader(io.BytesIO(data), writer, source)
    assert read["id"] == "x"
    assert reader["name"] == writer["name"]


def _full(version):
    path = schemas.schemas_root() / version.event_type / f"{version.number:03}.avsc"
    schema = json.loads(path.read_text("utf-8"))
    for field in schema["fields"]:  # 24 nullable fields had no default at first
        if "null" in field["type"]:
            field["default"] = None
    return schema


def test_the_fingerprint_sees_names_types_order_and_defaults_and_nothing_else():
    plain = record(a="string", b=["null", "int"])
    same = plain | {"doc": "words", "owner": "a team"}
    assert schemas.read(plain).fingerprint == schemas.read(same).fingerprint
    others = [
        record(a="string", c=["null", "int"]),
        record(a="string", b=["null", "long"]),
        record(b=["null", "int"], a="string"),
        record("users.messages.email.Click", a="string", b=["null", "int"]),
    ]
    with_default = json.loads(json.dumps(plain))
    with_default["fields"][-1]["default"] = None
    prints = {schemas.read(one).fingerprint for one in [plain, *others, with_default]}
    assert len(prints) == 6
    assert all(len(one) == 16 for one in prints)


@pytest.mark.parametrize(
    ("kind", "name", "nullable"),
    [
        ("string", "string", False),
        (["null", "long"], "long", True),
        (["float", "null"], "float", True),
        ({"type": "long", "logicalType": "timestamp-millis"}, "long", False),
        (["null", {"type": "array", "items": ["null", "string"]}], "array", True),
        (
            {"type": "array", "items": {"type": "array", "items": "int"}},
            "complex",
            False,
        ),
        (["null", "int", "string"], "complex", True),
        (["string"], "complex", False),
        ("bytes", "complex", False),
        ({"type": "map", "values": "int"}, "complex", False),
    ],
)
def test_a_field_is_known_by_its_plain_type(kind, name, nullable):
    field = schemas.read(record(x=kind)).fields[-1]
    assert (field.type, field.nullable) == (name, nullable)


def test_the_record_name_must_end_in_the_event_type():
    schema = schemas.read(record(OPEN))
    assert schema.is_of(OPEN)
    assert not schema.is_of("users.messages.email.Send")
    assert not schema.is_of("il.Open")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"type":"record"}',
        b"\xff",
        b"nul",
        rb'{"type":"record","name":"\ud800","fields":[]}',
        rb'{"type":"record","name":"R","fields":[{"name":"^a$","type":"int"}]}',
        rb'{"type":"record","name":"R","fields":[{"name":"a","type":["null","R"]}]}',
    ],
)
def test_what_is_no_schema_is_corrupt(text):
    with pytest.raises(CorruptObjectError):
        schemas.parse(text)


EMPTY = {"type": "record", "name": "E", "fields": []}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"x": "null"}, "take no bytes"),
        ({"x": EMPTY}, "take no bytes"),
        ({"x": {"type": "fixed", "name": "F", "size": 0}}, "take no bytes"),
        ({"x": {"type": "map", "values": "null"}}, "take no bytes"),
        ({"x": ["null", EMPTY], "y": {"type": "array", "items": "E"}}, "no bytes"),
        ({"x": {"type": "array", "items": {**EMPTY, "name": "O"}}}, "take no bytes"),
        ({"n" * 256: "int"}, "more than 255 characters"),
    ],
)
def test_a_schema_that_would_make_much_of_few_bytes_is_refused(fields, reason):
    with pytest.raises(CorruptObjectError, match=reason):
        schemas.parse(json.dumps(record(**fields)))


def test_a_branch_of_a_union_may_take_no_bytes():
    fields = schemas.parse(json.dumps(record(x=["null", "int", EMPTY]))).fields
    assert fields[-1].type == "complex"


def test_two_fields_of_one_name_are_refused():
    schema = record()
    schema["fields"] += [{"name": "x", "type": kind} for kind in ("int", "string")]
    with pytest.raises(CorruptObjectError, match="two fields of the same name"):
        schemas.parse(json.dumps(schema))


def test_names_that_stand_for_ever_more_names_are_checked_once_each():
    """Each record has the next twice: a million million paths to the last."""
    kind = "int"
    for n in range(40):
        both = [{"name": "a", "type": kind}, {"name": "b", "type": f"R{n - 1}"}]
        kind = {"type": "record", "name": f"R{n}", "fields": both if n else both[:1]}
    assert schemas.parse(json.dumps(record(x=kind))).fields[-1].type == "complex"
