"""Verdicts, held against what fastavro does with the same schemas and data."""

from __future__ import annotations

import io
import json
from collections import Counter
from itertools import combinations, permutations
from pathlib import Path

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from currents_ingest import schemas
from currents_ingest.compatibility import (
    Change,
    Comparison,
    Verdict,
    changes,
    compare,
    judge,
)
from currents_ingest.contracts import AVRO_TYPES, raw_contract
from tests.avro_files import OPEN, record

FACTS = Path(__file__).parents[2] / "shared" / "currents" / "writer_schemas.json"
PLAIN = {"string": "x", "int": 7, "long": 2**40, "float": 0.5, "double": 0.1}
PLAIN |= {"boolean": True, "null": None, "bytes": b"x"}


def read(schema):
    return schemas.read(json.loads(json.dumps(schema)))


def fastavro_reads(writer, reader, rows):
    """Read rows as another schema; None if fastavro refuses one."""
    parsed = fastavro.parse_schema(json.loads(json.dumps(writer)))
    wanted = fastavro.parse_schema(json.loads(json.dumps(reader)))
    found = []
    for row in rows:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, row)
        out.seek(0)
        try:
            found.append(fastavro.schemaless_reader(out, parsed, wanted))
        except fastavro.read.SchemaResolutionError:
            return None
    return found


def values(kind):
    """Return a value of each branch of a type."""
    if isinstance(kind, list):
        return [value for branch in kind for value in values(branch)]
    if isinstance(kind, dict):
        return [values(kind["items"])]
    return [PLAIN[kind]]


def array(items):
    return {"type": "array", "items": items}


# Every schema that Braze ever wrote


def written(version):
    root = schemas.schemas_root() / version.event_type
    return json.loads((root / f"{version.number:03}.avsc").read_text())


def shipped_histories():
    return {e: [written(v) for v in vs] for e, vs in schemas.known().items()}


def historical():
    found: dict = {}
    for one in json.loads(FACTS.read_text()):
        found.setdefault(one["event_type"], []).append(one["schema"])
    return found


def ordered_pairs(histories):
    for event_type, held in histories.items():
        for writer, reader in permutations(held, 2):
            yield event_type, writer, reader


HISTORIES = [
    pytest.param(
        historical,
        1024,
        id="300 real schemas",
        marks=pytest.mark.skipif(
            not FACTS.exists(), reason="the facts are not part of the project"
        ),
    ),
    pytest.param(shipped_histories, 1174, id="shipped, v11 and v12 among them"),
]


@pytest.mark.parametrize(("histories", "count"), HISTORIES)
def test_the_verdict_on_every_pair_is_what_fastavro_does(histories, count):
    seen = 0
    for event_type, writer, reader in ordered_pairs(histories()):
        check_verdict(event_type, writer, reader, two_rows(writer))
        seen += 1
    assert seen == count


def two_rows(schema):
    """Return a row with null in every nullable field, and a full one."""
    nulls, full = {}, {}
    for field in schema["fields"]:
        found = values(field["type"])
        full[field["name"]] = next(one for one in found if one is not None)
        nulls[field["name"]] = None if None in found else full[field["name"]]
    return nulls, full


def as_reader(contract, writer):
    """Return the Avro schema as which a contract reads a writer's rows."""
    fields = []
    written = {each["name"]: each["type"] for each in writer["fields"]}
    for column in contract.own:
        kind = AVRO_TYPES.get(column.type)
        if column.type == "json":
            kind = array("string")
            for branch in _branches(written.get(column.source)):
                kind = branch if isinstance(branch, dict) else kind
        field = {"name": column.source, "type": ["null", kind]}
        if column.name not in ("id", "time"):
            field["default"] = None
        fields.append(field)
    return {"type": "record", "name": writer["name"], "fields": fields} | (
        {"namespace": writer["namespace"]} if "namespace" in writer else {}
    )


def _branches(kind):
    return kind if isinstance(kind, list) else [kind]


def check_verdict(event_type, writer, other, rows):
    contract = raw_contract(event_type, [read(other)])
    mine = read(writer)
    read_rows = fastavro_reads(writer, as_reader(contract, writer), rows)
    for registered in ((), [mine]):
        verdict = compare(mine, contract, registered).verdict
        if read_rows is None:
            assert verdict is Verdict.BREAKING
        elif set(rows[0]) - set(read_rows[0]):
            assert verdict is Verdict.ADDITIVE
        else:
            wanted = Verdict.KNOWN if registered else Verdict.COMPATIBLE
            assert verdict is wanted
    return verdict


FLAT = st.sampled_from(["string", "int", "long", "float", "double", "boolean"])
FLAT |= FLAT.map(lambda kind: ["null", kind])
FLAT |= st.sampled_from([array("string"), ["null", array(["null", "string"])]])


WIDER = {"int": "long", "long": "double", "float": "double"}


@st.composite
def drifts(draw):
    """Return a writer's fields, and those of a contract that are much like them."""
    other = draw(st.dictionaries(st.sampled_from("abcdef"), FLAT, max_size=5))
    steps = ["same"] * 12 + ["new"] * 4 + ["drop", "optional", "wider", "any"]
    mine = draw(st.sampled_from([{}] * 12 + NEEDED_DRIFTS))
    for name, kind in draw(st.permutations([*other.items()])):
        step = draw(st.sampled_from(steps))
        if step == "optional":
            mine |= {name: kind if isinstance(kind, list) else [kind, "null"]}
        elif step == "wider":
            mine |= {name: WIDER.get(kind, kind) if isinstance(kind, str) else kind}
        elif step == "new":
            mine |= {name: kind, f"{name}_new": draw(FLAT)}
        elif step != "drop":
            mine |= {name: kind if step == "same" else draw(FLAT)}
    return mine, other


NEEDED_DRIFTS = [
    {"id": None},
    {"time": None},
    {"id": "int"},
    {"time": "string"},
    {"time": "double"},
    {"id": ["null", "string"], "time": ["long", "null"]},
    {"id": ["int", "null"]},
]


def test_the_verdict_on_any_drift_is_what_fastavro_does():
    verdicts = Counter()

    @given(drifts())
    @settings(deadline=None, max_examples=400)
    def law(drift):
        mine, other = (record(OPEN, **fields) for fields in drift)
        verdicts[check_verdict(OPEN, mine, other, two_rows(mine))] += 1

    law()
    for verdict in (Verdict.KNOWN, Verdict.ADDITIVE, Verdict.BREAKING):
        assert verdicts[verdict] > 0.05 * verdicts.total()


# Cases


def contract(**fields):
    return raw_contract(OPEN, [read(record(**fields))])


@pytest.mark.parametrize(
    ("fields", "verdict", "differences"),
    [
        pytest.param({"a": "string"}, "compatible", (), id="the same fields"),
        pytest.param({}, "compatible", (), id="a field is gone"),
        pytest.param({"a": ["null", "string"]}, "compatible", (), id="optional now"),
        pytest.param({"time": "long"}, "compatible", (), id="promoted"),
        pytest.param(
            {"id": ["null", "string"]}, "compatible", (), id="an id that may be null"
        ),
        pytest.param(
            {"b": "int", "c": ["null", array("string")]},
            "additive",
            ("field b (int) is new", "field c (null or array) is new"),
            id="new fields",
        ),
        pytest.param(
            {"a": "int"},
            "breaking",
            ("field a is int and not string",),
            id="another type",
        ),
        pytest.param(
            {"a": array("string")},
            "breaking",
            ("field a is array and not string",),
            id="text that became an array",
        ),
        pytest.param(
            {"a": {"type": "enum", "name": "E", "symbols": ["A"]}},
            "breaking",
            ("field a is complex and not string",),
            id="text that became an enum",
        ),
        pytest.param(
            {"a": "bytes"},
            "breaking",
            ("field a is complex and not string",),
            id="bytes are no text, whatever Avro says",
        ),
        pytest.param(
            {"id": None, "time": "string", "a": "int", "b": "int"},
            "breaking",
            (
                "field id is gone",
                "field time is string and not int64",
                "field a is int and not string",
            ),
            id="all at once",
        ),
    ],
)
def test_each_case_has_its_verdict_and_says_why(fields, verdict, differences):
    found = compare(read(record(**fields)), contract(a="string"))
    assert found == Comparison(Verdict(verdict), differences)


def test_a_registered_schema_is_known_if_every_field_has_a_column():
    writer = read(record(a="string"))
    held = [writer]
    assert compare(writer, contract(a="string"), held).verdict == "known"
    assert compare(writer, contract(), held).verdict == "additive"
    odd = read(record(_x="int", Time="int", ingested_at="int"))
    assert compare(odd, contract(), [odd]).verdict == "known"
    assert compare(odd, contract()).verdict == "additive"


@pytest.mark.parametrize(
    ("old", "new", "verdict", "differences"),
    [
        pytest.param(
            {"n": "int"}, {"n": "long"}, "compatible", (), id="every integer is long"
        ),
        pytest.param(
            {"x": "double"}, {"x": "long"}, "compatible", (), id="integer to double"
        ),
        pytest.param(
            {"n": "int"},
            {"n": "float"},
            "breaking",
            ("field n is float and not int64",),
            id="double to integer",
        ),
        pytest.param(
            {"price": "float"},
            {"price": ["null", "double"]},
            "compatible",
            (),
            id="money with more digits",
        ),
        pytest.param(
            {"price": "float"},
            {"price": "string"},
            "breaking",
            ("field price is string and not decimal(38,6)",),
            id="money as text",
        ),
        pytest.param(
            {"tags": array("string")},
            {"tags": ["null", array(["null", "int"])]},
            "compatible",
            (),
            id="an array of something else",
        ),
        pytest.param(
            {"tags": array("string")},
            {"tags": {"type": "map", "values": "int"}},
            "compatible",
            (),
            id="an object for an array",
        ),
        pytest.param(
            {"tags": array("string")},
            {"tags": "string"},
            "breaking",
            ("field tags is string and not json",),
            id="text for an array",
        ),
        pytest.param(
            {"a": "string"},
            {"A": "string"},
            "additive",
            ("field A (string) is new",),
            id="another case",
        ),
        pytest.param(
            {"a": "string"},
            {"a": "int", "b": "int"},
            "breaking",
            ("field a is int and not string",),
            id="what breaks goes before what is new",
        ),
        pytest.param(
            {"a": "string", "b": "int"},
            {"id": None, "b": "int", "time": None, "a": "string"} | {"id": "string"},
            "breaking",
            ("field time is gone",),
            id="the time alone is gone",
        ),
    ],
)
def test_what_a_column_takes_decides(old, new, verdict, differences):
    found = compare(read(record(**new)), contract(**old))
    assert found == Comparison(Verdict(verdict), differences)


def test_a_field_of_a_third_type_is_held_against_the_first_column():
    grown = contract(n="int").grown([read(record(n="string"))])
    third = read(record(n="boolean"))
    assert compare(third, grown) == Comparison(
        Verdict.BREAKING, ("field n is boolean and not int64",)
    )
    again = grown.grown([third])
    assert again.version == 3
    assert [(c.name, c.type, c.field) for c in again.own[2:]] == [
        ("n", "int64", ""),
        ("n_string", "string", "n"),
        ("n_boolean", "boolean", "n"),
    ]
    for kind in ("int", "string", "boolean"):
        found = compare(read(record(n=kind)), again)
        assert found == Comparison(Verdict.COMPATIBLE, ())


def test_a_field_named_like_a_grown_column_is_not_what_the_column_takes():
    grown = contract(n="int").grown([read(record(n="string"))])
    assert compare(read(record(n="int", n_string="string")), grown) == Comparison(
        Verdict.ADDITIVE, ("field n_string (string) is new",)
    )


def test_verdicts_are_ordered_from_harmless_to_worst():
    ordered = ["known", "compatible", "additive", "breaking"]
    assert sorted(Verdict, key=lambda one: one.rank) == ordered


def test_judging_says_what_changed_since_the_closest_schema():
    old, near = read(record(a="string", b="int")), read(record(a="string"))
    new = read(record(a=["null", "string"], c="int"))
    held = raw_contract(OPEN, [old])
    assert judge(new, held, [old, near]) == Comparison(
        Verdict.ADDITIVE, ("field c (int) is new", "a made optional")
    )
    before = read(record(a=["null", "string"]))
    assert judge(new, held, [old], [before]) == Comparison(
        Verdict.ADDITIVE, ("c added (int)",)
    )
    assert judge(new, None, []) == Comparison(
        Verdict.ADDITIVE, ("the event type is new",)
    )
    gone = read(record(id=None))
    assert judge(gone, None, []) == Comparison(Verdict.BREAKING, ("field id is gone",))


def test_judging_adds_nothing_to_what_is_known_or_breaks():
    old, new = read(record(a="string", b="int")), read(record(a="string", b="string"))
    held = raw_contract(OPEN, [old])
    for seen in ([], [old]):
        assert judge(old, held, [old], seen) == Comparison(Verdict.KNOWN, ())
        assert judge(new, held, [old], seen) == Comparison(
            Verdict.BREAKING, ("field b is string and not int64",)
        )
    less = read(record(a="string"))
    assert judge(less, held, [less, old]) == Comparison(Verdict.KNOWN, ())
    assert judge(less, held, [old]) == Comparison(
        Verdict.COMPATIBLE, ("b removed (int)",)
    )


# Growing


def test_a_contract_grows_by_columns_alone():
    first = contract(n="int", s="string")
    writer = read(record(n="string", s=["null", "string"], t=array("int"), _x="int"))
    grown = first.grown([writer])
    assert grown.version == 2
    assert [(c.name, c.type, c.field) for c in grown.own] == [
        ("id", "string", ""),
        ("time", "int64", ""),
        ("n", "int64", ""),
        ("s", "string", ""),
        ("n_string", "string", "n"),
        ("t", "json", ""),
    ]
    assert grown.columns[-len(first.columns) + 4 :] == first.columns[4:]
    assert compare(writer, first).verdict == "breaking"
    assert compare(writer, grown).differences == ("field _x (int) is new",)
    assert grown.grown([writer]) is grown
    assert first.grown([read(record(n="long"))]) is first


def test_an_event_has_no_second_id_and_no_second_time():
    first = contract()
    assert first.grown([read(record(id="int", time="string"))]) is first


def test_money_that_was_text_gets_a_column_of_its_own():
    grown = contract(price="string").grown([read(record(price="float"))])
    assert [(c.name, c.type, c.field) for c in grown.own[2:]] == [
        ("price", "string", ""),
        ("price_decimal", "decimal(38,6)", "price"),
    ]


def test_of_new_fields_that_differ_in_case_the_first_gets_the_column():
    grown = contract().grown([read(record(Ab="int", aB="string"))])
    assert [(c.name, c.type) for c in grown.own[2:]] == [("Ab", "int64")]


def test_a_field_goes_into_one_column_the_oldest_that_takes_it():
    first = contract(n="int")
    grown = first.grown([read(record(n="double"))])
    assert list(grown.placed(read(record(n="long")))) == ["id", "time", "n"]
    assert list(grown.placed(read(record(n="float")))) == ["id", "time", "n_double"]


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), FLAT, max_size=4), max_size=4))
@settings(deadline=None, max_examples=100)
def test_a_grown_contract_takes_every_schema_and_keeps_every_column(history):
    writers = [read(record(**fields)) for fields in history]
    first = contract(a="int")
    grown = first.grown(writers)
    assert first.own == grown.own[: len(first.own)]
    for writer in writers:
        found = compare(writer, grown, [writer])
        assert found == Comparison(Verdict.KNOWN, ())
    fresh = raw_contract(OPEN, writers)
    assert fresh.version == 1
    for writer in writers:
        assert compare(writer, fresh, [writer]).verdict == "known"


# Changes


def fields(**kinds):
    return read(
        {
            "type": "record",
            "name": "R",
            "fields": [
                {
                    "name": name,
                    **(
                        kind
                        if isinstance(kind, dict)
                        and "type" in kind
                        and kind["type"] != "array"
                        else {"type": kind}
                    ),
                }
                for name, kind in kinds.items()
            ],
        }
    )


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({"a": "int"}, {"a": "int"}, []),
        ({"a": "int"}, {"a": "int", "b": "string"}, ["b added (string)"]),
        ({"a": "int", "b": "int"}, {"a": "int"}, ["b removed (int)"]),
        ({"a": "int"}, {"a": "long"}, ["a retyped: int to long"]),
        ({"a": "int"}, {"a": ["null", "int"]}, ["a made optional"]),
        ({"a": ["null", "int"]}, {"a": "int"}, ["a made required"]),
        (
            {"a": ["null", "int"]},
            {"a": {"type": ["null", "int"], "default": None}},
            ["a default changed: none to null"],
        ),
        (
            {"a": "int", "b": "int", "c": "int", "d": "int"},
            {"d": "int", "a": "int", "x": "int", "b": "int", "c": "int"},
            ["x added (int)", "d reordered"],
        ),
        (
            {"a": array("string")},
            {"a": array("int")},
            [f"a retyped: {json.dumps(array('string'))} to {json.dumps(array('int'))}"],
        ),
    ],
)
def test_what_changed_is_named_field_by_field(old, new, told):
    assert list(map(str, changes(fields(**old), fields(**new)))) == told


OPTIONAL = ["null", "int"]


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        pytest.param({}, {"a": OPTIONAL}, [("added", "a", "", "null or int")], id="+"),
        pytest.param({"a": "int"}, {}, [("removed", "a", "int", "")], id="-"),
        pytest.param(
            {"a": "int"},
            {"a": ["null", "long"]},
            [("retyped", "a", "int", "long"), ("made optional", "a", "", "")],
            id="two changes of one field",
        ),
        pytest.param(
            {"a": {"type": OPTIONAL, "default": None}},
            {"a": {"type": "int", "default": 0}},
            [("made required", "a", "", ""), ("default changed", "a", "null", "0")],
            id="required, with another default",
        ),
        pytest.param(
            {"a": {"type": "string", "default": ""}},
            {"a": "string"},
            [("default changed", "a", '""', "none")],
            id="an empty default is one",
        ),
        pytest.param(
            {"a": "int", "b": "int", "c": "int", "d": "int"},
            {"d": "string", "b": "int", "e": "int", "c": "int"},
            [
                ("removed", "a", "int", ""),
                ("retyped", "d", "int", "string"),
                ("added", "e", "", "int"),
                ("reordered", "d", "", ""),
            ],
            id="removed, then as in the new one, then reordered",
        ),
    ],
)
def test_a_change_has_a_kind_a_field_and_what_it_was(old, new, found):
    assert changes(fields(**old), fields(**new)) == tuple(Change(*one) for one in found)


@given(drifts())
@settings(deadline=None, max_examples=100)
def test_nothing_changes_from_a_schema_to_itself_and_what_is_added_was_removed(drift):
    one, other = (fields(**found) for found in map(without_none, drift))
    assert changes(one, one) == ()
    there, back = changes(one, other), changes(other, one)
    for kind, opposite in (
        ("added", "removed"),
        ("made optional", "made required"),
        ("retyped", "retyped"),
        ("default changed", "default changed"),
    ):
        assert {c.field for c in there if c.kind == kind} == {
            c.field for c in back if c.kind == opposite
        }


def without_none(kinds):
    return {name: kind for name, kind in kinds.items() if kind is not None}


@given(st.lists(st.sampled_from("abcdefg"), unique=True), st.randoms())
def test_the_fewest_fields_are_called_reordered(names, rng):
    shuffled = list(names)
    rng.shuffle(shuffled)
    old, new = (fields(**dict.fromkeys(order, "int")) for order in (names, shuffled))
    moved = {one.field for one in changes(old, new)}
    rest = [name for name in shuffled if name not in moved]
    assert rest == [name for name in names if name not in moved]
    longer = combinations(shuffled, len(rest) + 1)
    assert not any(list(run) == [n for n in names if n in run] for run in longer)


@pytest.mark.parametrize(
    ("event", "release", "told"),
    [
        pytest.param(
            "behaviors.pushnotification.TokenStateChange",
            "v8",
            [
                f"{name} reordered"
                for name in (
                    "external_user_id",
                    "sdk_version",
                    "push_token_foreground_push_disabled",
                    "push_token_device_id",
                    "push_token_provisionally_opted_in",
                    "web_push_token_public_key",
                    "web_push_token_user_auth",
                    "push_token_state_change_type",
                    "app_group_id",
                    "app_id",
                    "time_ms",
                )
            ],
            id="reordered and nothing said of it",
        ),
        pytest.param(
            "messages.rcs.InboundReceive",
            "v4",
            ["user_id made optional", "user_id default changed: none to null"],
            id="made optional",
        ),
        pytest.param(
            "messages.contentcard.Dismiss",
            "v1",
            ["dispatch_id removed (null or string)"],
            id="removed",
        ),
        pytest.param(
            "behaviors.Purchase",
            "2024-04-02",
            ["app_id default changed: none to null"],
            id="a default alone",
        ),
    ],
)
def test_what_braze_changed_in_a_release(event, release, told):
    versions = schemas.versions(f"users.{event}")
    (at,) = (n for n, one in enumerate(versions) if one.since() == release)
    old, new = versions[at - 1], versions[at]
    assert list(map(str, changes(old.writer, new.writer))) == told


@pytest.mark.parametrize(("histories", "count"), HISTORIES)
def test_two_versions_that_braze_wrote_always_differ_in_something(histories, count):
    pairs = [(read(old), read(new)) for _, old, new in ordered_pairs(histories())]
    assert sum(bool(changes(old, new)) for old, new in pairs) == count


def test_a_name_that_is_taken_gets_a_number():
    first = contract(n="int", n_string="string")
    writer = read(record(n="string", n_string="string"))
    assert compare(writer, first).verdict is Verdict.BREAKING
    grown = first.grown([writer])
    assert [(c.name, c.type, c.field) for c in grown.own[2:]] == [
        ("n", "int64", ""),
        ("n_string", "string", ""),
        ("n_string_2", "string", "n"),
    ]
    assert list(grown.placed(writer)) == ["id", "time", "n_string", "n_string_2"]


def test_a_field_that_comes_after_a_column_took_its_name_gets_one_too():
    grown = contract(n="int").grown([read(record(n="string"))])
    later = read(record(n="string", n_string="string"))
    again = grown.grown([later])
    assert [(c.name, c.type, c.field) for c in again.own[4:]] == [
        ("n_string_2", "string", "n_string")
    ]
    assert compare(later, again, [later]).verdict is Verdict.KNOWN
    assert again.placed(later)["n_string_2"].name == "n_string"


def test_no_more_than_a_hundred_differences_are_told():
    many = read(record(**{f"f{n}": "int" for n in range(250)}))
    told = judge(many, contract(), [read(record())]).differences
    assert len(told) == 101
    assert told[-1] == "and 150 more"


def test_null_that_moved_and_a_record_that_was_renamed_are_changes():
    before, after = (
        read(record(x=kind)) for kind in (["null", "int"], ["int", "null"])
    )
    assert [str(one) for one in changes(before, after)] == [
        'x retyped: ["null", "int"] to ["int", "null"]'
    ]
    renamed = read(record("users.messages.email.Click"))
    assert [str(one) for one in changes(read(record()), renamed)] == [
        f"the record renamed: {read(record()).name} to {renamed.name}"
    ]
