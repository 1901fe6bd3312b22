from __future__ import annotations

import io
import json
import resource
import zlib

import fastavro
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from currents_ingest import avro, schemas
from currents_ingest.errors import CorruptObjectError, HeaderCutError
from tests.avro_files import SYNC, by_hand, container, encoded, number, record

SCHEMA = record(
    name=["null", "string"],
    price=["null", "float"],
    big="long",
    double="double",
    yes=["null", "boolean"],
    list=["null", {"type": "array", "items": ["null", "string"]}],
)
OTHER_TYPES = record(
    kind={"type": "enum", "name": "Kind", "symbols": ["a", "b"]},
    raw="bytes",
    map={"type": "map", "values": "long"},
    any=["null", "string", "int"],
    inner={"type": "record", "name": "In", "fields": [{"name": "x", "type": "int"}]},
)


def row(n):
    return {
        "id": f"id-{n}",
        "time": 1_700_000_000 + n,
        "name": None if n % 2 else f"né {n} 😀 \x00",
        "price": 3.14,
        "big": 2**62 + n,
        "double": n / 3,
        "yes": n % 3 == 0 or None,
        "list": [None, f"a{n}", 'q"\\'] if n % 2 else None,
    }


def rows(count, start=0):
    return [row(n) for n in range(start, start + count)]


def other(n):
    return {
        "id": f"id-{n}",
        "time": n,
        "kind": "b",
        "raw": b"\xff\x00",
        "map": {"k": n},
        "any": [None, "text", 5][n % 3],
        "inner": {"x": n},
    }


values = st.fixed_dictionaries(
    {
        "id": st.text(min_size=1),
        "time": st.integers(-(2**31), 2**31 - 1),
        "name": st.none() | st.text(),
        "price": st.none() | st.floats(width=32, allow_nan=False),
        "big": st.integers(-(2**63), 2**63 - 1),
        "double": st.floats(allow_nan=False),
        "yes": st.none() | st.booleans(),
        "list": st.none() | st.lists(st.none() | st.text()),
    }
)


@given(st.lists(st.lists(values, min_size=1, max_size=5), min_size=1, max_size=4))
def test_spliced_files_decode_to_what_fastavro_reads_from_each(files):
    bodies = [container(SCHEMA, records) for records in files]
    decoded = avro.decode([avro.walk(body) for body in bodies]).to_dicts()
    wanted = [one for body in bodies for one in fastavro.reader(io.BytesIO(body))]
    for found in decoded:
        found["list"] = found["list"] and json.loads(found["list"])
    for one in wanted:
        one["list"] = one["list"] or (None if one["list"] is None else "[]")
    for found in decoded:
        found["list"] = "[]" if found["list"] == [] else found["list"]
    assert decoded == wanted


@given(st.lists(values, min_size=1, max_size=6))
def test_both_decoders_agree_on_flat_schemas(records):
    walked = avro.walk(container(SCHEMA, records))
    by_row = avro.decode_any(walked)
    assert by_row[avro.BAD_TEXT].null_count() == by_row.height
    assert_frame_equal(avro.decode_flat([walked]), by_row.drop(avro.BAD_TEXT))


def test_types_that_arrow_does_not_take_come_as_json_text():
    frame = avro.decode([avro.walk(container(OTHER_TYPES, [other(0), other(1)]))])
    assert frame.select("kind", "raw", "map", "any", "inner").row(1) == (
        '"b"',
        '"ÿ\\u0000"',
        '{"k":1}',
        '"text"',
        '{"x":1}',
    )


def test_without_the_arrow_decoder_the_result_is_the_same(monkeypatch):
    walked = [
        avro.walk(container(SCHEMA, rows(5))),
        avro.walk(container(SCHEMA, rows(2))),
    ]
    fast = avro.decode(walked)
    monkeypatch.setattr(avro, "AvroSource", None)
    assert_frame_equal(avro.decode(walked).drop(avro.BAD_TEXT), fast)


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy"])
def test_rows_are_counted_from_the_block_headers(codec):
    walked = avro.walk(container(SCHEMA, rows(500), codec=codec, sync_interval=1000))
    assert (walked.rows, len(walked.blocks) > 1) == (500, True)
    assert avro.decode([walked])["id"].to_list() == [f"id-{n}" for n in range(500)]


def test_a_file_cut_anywhere_but_between_blocks_is_found_before_decoding():
    body = container(SCHEMA, rows(40), sync_interval=400)
    ends = {n + 16 for n in range(len(body)) if body[n : n + 16] == SYNC}
    header, *block_ends = sorted(ends)
    for cut in range(len(body)):
        if cut in block_ends:
            assert avro.walk(body[:cut]).rows < 40  # what no reader can see
            continue
        with pytest.raises(CorruptObjectError) as caught:
            avro.walk(body[:cut])
        assert ("no rows" in str(caught.value)) is (cut == header)


BOMB = zlib.compressobj(9, zlib.DEFLATED, -15)
DEFLATED_BOMB = BOMB.compress(bytes(1 << 20) * 300) + BOMB.flush()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(
            b"", "the object is empty; Currents writes no empty file", id="empty"
        ),
        pytest.param(
            b"id,time\n1,2\n",
            "the object is no Avro file (it does not start as one)",
            id="text",
        ),
        pytest.param(
            by_hand(SCHEMA, encoded(SCHEMA, rows(2)), 2, sync=bytes(16)),
            "ends with a wrong sync marker",
            id="wrong sync marker",
        ),
        pytest.param(
            by_hand(SCHEMA, encoded(SCHEMA, rows(2)), -2),
            "claims -2 rows in",
            id="negative count",
        ),
        pytest.param(
            by_hand(SCHEMA, encoded(SCHEMA, rows(2)), 2, size=-1),
            "claims 2 rows in -1 bytes",
            id="negative size",
        ),
        pytest.param(
            by_hand(SCHEMA, encoded(SCHEMA, rows(2)), 2, size=1 << 40),
            "is cut: ",
            id="absurd size",
        ),
        pytest.param(
            by_hand(SCHEMA, encoded(SCHEMA, rows(2)), 1 << 40),
            "promise 1099511627776 rows, more than the bytes can hold",
            id="absurd count",
        ),
        pytest.param(
            by_hand(SCHEMA, b"", 0),
            "the file has a header but no rows; Currents writes no empty file, so its "
            "end was lost",
            id="no rows",
        ),
        pytest.param(
            by_hand(SCHEMA, DEFLATED_BOMB, 1, codec=b"deflate"),
            "the file's blocks unpack to more than 64 MiB",
            id="deflate bomb",
        ),
        pytest.param(
            by_hand(SCHEMA, b"\xff\xff", 1, codec=b"deflate"),
            "a deflate block does not unpack",
            id="damaged deflate",
        ),
        pytest.param(
            by_hand(SCHEMA, zlib.compress(b"x" * 99)[2:-8], 1, codec=b"deflate"),
            "a deflate block is cut short",
            id="cut deflate",
        ),
        pytest.param(
            by_hand(SCHEMA, b"\xff\xff\xff\xff\x0f" + b"x" * 9, 1, codec=b"snappy"),
            "the file's blocks unpack to more than 64 MiB",
            id="snappy bomb",
        ),
        pytest.param(
            by_hand(SCHEMA, b"\x04\x0cabcd" + b"\0\0\0\0", 1, codec=b"snappy"),
            "a snappy block's checksum does not fit its content",
            id="snappy checksum",
        ),
        pytest.param(
            by_hand(SCHEMA, b"x", 1, codec=b"xz"),
            "the codec 'xz' is not supported (null, deflate and snappy are)",
            id="codec",
        ),
        pytest.param(
            by_hand(b"{", b"x", 1),
            "the schema in the header is no Avro schema (JSONDecodeError)",
            id="no JSON",
        ),
        pytest.param(
            by_hand(b'"string"', b"x", 1),
            "the schema in the header is not that of a record",
            id="no record",
        ),
        pytest.param(
            by_hand(b'{"type":"record","name":"x","fields":[{"name":"a"}]}', b"x", 1),
            "the schema in the header is no Avro schema",
            id="field without a type",
        ),
        pytest.param(
            by_hand(record(x={"type": "array", "items": "null"}), b"x", 1),
            "the schema has a type whose values take no bytes, outside a union",
            id="array of nulls",
        ),
        pytest.param(
            b"Obj\x01" + number(1) + number(-5),
            "the header claims a text of -5 bytes",
            id="negative text",
        ),
        pytest.param(
            b"Obj\x01" + b"\xff" * 20, "the header is cut or damaged", id="long varint"
        ),
    ],
)
def test_a_damaged_file_is_refused_with_its_reason(body, reason):
    with pytest.raises(CorruptObjectError) as caught:
        avro.walk(body)
    assert reason in str(caught.value)


@pytest.mark.parametrize("claimed", [1, 9, 11, 12])
@pytest.mark.parametrize("schema", [SCHEMA, OTHER_TYPES], ids=["flat", "any"])
def test_a_count_that_is_not_the_rows_held_is_found_and_never_hangs(schema, claimed):
    records = rows(10) if schema is SCHEMA else [other(n) for n in range(10)]
    walked = avro.walk(by_hand(schema, encoded(schema, records), claimed))
    with pytest.raises(CorruptObjectError):
        avro.decode([walked])


def test_text_that_is_not_utf8_is_named_by_its_row():
    data = encoded(SCHEMA, rows(3)).replace(b"id-1", b"id\xff1")
    walked = avro.walk(by_hand(SCHEMA, data, 3))
    with pytest.raises(CorruptObjectError):
        avro.decode_flat([walked])
    assert avro.decode_any(walked)[avro.BAD_TEXT].to_list() == [None, "id", None]


def test_a_number_too_large_for_its_type_is_corrupt():
    data = encoded(record(), [{"id": "a", "time": 0}])[:-1] + number(2**40)
    for decode in (lambda one: avro.decode_flat([one]), avro.decode_any):
        with pytest.raises(CorruptObjectError):
            decode(avro.walk(by_hand(record(), data, 1)))


@settings(max_examples=300)
@given(st.data())
def test_a_mutated_file_decodes_or_is_corrupt_and_nothing_else(data):
    body = bytearray(container(SCHEMA, rows(3)))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        walked = avro.walk(bytes(body))
        frame = avro.decode([walked])
    except CorruptObjectError as error:
        assert str(error)
    else:
        assert isinstance(frame, pl.DataFrame)
        assert frame.height == walked.rows


def test_bytes_left_over_are_refused_without_decoding_them_all():
    body = by_hand(SCHEMA, bytes(4_000_000), 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptObjectError, match=r"left over|hold more"):
        avro.decode([avro.walk(body)])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000  # kB


# The head alone


def test_a_head_is_read_from_any_prefix_that_holds_it():
    body = container(record(), [{"id": "a", "time": 1}] * 3, codec="deflate")
    whole = avro.read_head(body)
    assert (whole.codec, whole.schema) == ("deflate", schemas.read(record()))
    length = body.index(SYNC) + len(SYNC)
    for size in range(len(body)):
        if size >= length:
            assert avro.read_head(body[:size]) == whole
        elif size >= 4:
            with pytest.raises(HeaderCutError):
                avro.read_head(body[:size])
        else:
            with pytest.raises(CorruptObjectError):
                avro.read_head(body[:size])


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_a_damaged_head_is_read_or_refused_and_nothing_else(data):
    body = bytearray(container(record(a=["null", "string"]), [{"id": "a", "time": 1}]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "delete"]))
        if kind == "flip":
            body[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del body[at + 1 :]
        elif kind == "insert":
            body[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif len(body) > 1:
            del body[at]
    try:
        head = avro.read_head(bytes(body))
    except CorruptObjectError as error:
        assert str(error)
    else:
        assert head.schema.fields is not None
