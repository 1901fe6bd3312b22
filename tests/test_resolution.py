"""Avro's schema resolution, held against what fastavro does with the same data."""

from __future__ import annotations

import io
import json
from collections import Counter
from functools import cache
from itertools import permutations
from pathlib import Path

import fastavro
import pytest
from fastavro.read import SchemaResolutionError
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from currents_ingest import schemas
from currents_ingest.resolution import reads

FACTS = Path(__file__).parents[2] / "shared" / "currents" / "writer_schemas.json"
PLAIN = {
    "null": None,
    "boolean": True,
    "int": 7,
    "long": 2**40,
    "float": 0.5,
    "double": 0.1,
    "string": "é",
    "bytes": b"x",  # as any bytes that are UTF-8: others are no text
}
# Avro 1.12, "Schema Resolution"
PROMOTIONS = {
    ("int", "long"),
    ("int", "float"),
    ("int", "double"),
    ("long", "float"),
    ("long", "double"),
    ("float", "double"),
    ("string", "bytes"),
    ("bytes", "string"),
}


def array(items):
    return {"type": "array", "items": items}


def mapping(values):
    return {"type": "map", "values": values}


def enum(*symbols, name="E", **more):
    return {"type": "enum", "name": name, "symbols": list(symbols), **more}


def fixed(size, name="F"):
    return {"type": "fixed", "name": name, "size": size}


def nested(*fields, name="R", **more):
    return {"type": "record", "name": name, "fields": list(fields), **more}


def field(name, kind, **more):
    return {"name": name, "type": kind, **more}


def resolved(writer, reader, rows):
    """Read rows with a reader schema as fastavro does; None if it refuses one."""
    writer, reader = fastavro.parse_schema(writer), fastavro.parse_schema(reader)
    found = []
    for row in rows:
        body = io.BytesIO()
        fastavro.schemaless_writer(body, writer, row)
        body.seek(0)
        try:
            found.append(fastavro.schemaless_reader(body, writer, reader))
        except SchemaResolutionError:
            return None
    return found


def samples(schema):
    """Return rows that between them take every branch, every symbol and an item."""
    types: dict = {}
    parsed = fastavro.parse_schema(schema, types)
    return values(parsed, types, ())


def values(kind, types, within):
    """Return values of one type, by the types that have names.

    A record within itself twice has none: its reference to itself has been written.
    """
    if isinstance(kind, list):
        return [(tag(one), v) for one in kind for v in values(one, types, within)]
    if isinstance(kind, str):
        return values(types[kind], types, within) if kind in types else [PLAIN[kind]]
    match kind["type"]:
        case "array":
            found = [values(kind["items"], types, within)]
        case "map":
            held = values(kind["values"], types, within)
            found = [{f"key {n}": value for n, value in enumerate(held)}]
        case "enum":
            found = kind["symbols"]
        case "fixed":
            found = [b"x" * kind["size"]]
        case "record":
            found = rows_of(kind, types, (*within, kind["name"]))
        case logical:
            found = [PLAIN[logical]]
    return found


def rows_of(record, types, within):
    """Return as many rows as the column with the most values needs."""
    if within.count(record["name"]) > 2:
        return []
    columns = {f["name"]: values(f["type"], types, within) for f in record["fields"]}
    most = max(map(len, columns.values()), default=1) if all(columns.values()) else 0
    return [
        {name: found[n % len(found)] for name, found in columns.items()}
        for n in range(most)
    ]


def tag(kind):
    """Return what fastavro calls a branch of a union."""
    return kind if isinstance(kind, str) else kind.get("name", kind["type"])


def form(schema):
    return schemas.read(schema).form


OF_NULLS = nested(field("a", ["null", "int"]), field("b", "int"))
NODE = nested(field("value", "int"), field("next", ["null", "R"]))
TREE = nested(field("value", "long"), field("many", array("R")))
TABLE = [
    *(pytest.param(kind, kind, True, id=f"{kind} is itself") for kind in PLAIN),
    *(
        pytest.param(one, other, (one, other) in PROMOTIONS, id=f"{one} to {other}")
        for one, other in permutations(PLAIN, 2)
    ),
    pytest.param("int", ["null", "int"], True, id="optional now"),
    pytest.param("int", ["null", "double"], True, id="promoted and optional now"),
    pytest.param(["null", "int"], "int", False, id="required now"),
    pytest.param(["null", "int"], ["int", "null"], True, id="null goes last"),
    pytest.param(["null", "int"], ["null", "long"], True, id="optional and promoted"),
    pytest.param(["null", "int"], ["null", "string"], False, id="optional and retyped"),
    pytest.param(["null", "int"], "null", False, id="only null now"),
    pytest.param("null", ["null", "int"], True, id="more than null now"),
    pytest.param(["int"], "int", True, id="a union of one taken off"),
    pytest.param("int", ["int"], True, id="a union of one put on"),
    pytest.param("int", ["string", "boolean"], False, id="no branch takes it"),
    pytest.param(["int", "string"], "long", False, id="one branch is not taken"),
    pytest.param(["int", "long"], "double", True, id="each branch promotes"),
    pytest.param(
        ["int", "string"], ["bytes", "float", "null"], True, id="branches promote"
    ),
    pytest.param(
        ["int", "string"], ["int", "null"], False, id="a branch has been removed"
    ),
    pytest.param(array("int"), array("long"), True, id="items promote"),
    pytest.param(array("int"), array("string"), False, id="items retyped"),
    pytest.param(array("int"), "int", False, id="an array to its item"),
    pytest.param("int", array("int"), False, id="an item to its array"),
    pytest.param(array("int"), mapping("int"), False, id="an array to a map"),
    pytest.param(
        array("string"), array(["null", "string"]), True, id="items optional now"
    ),
    pytest.param(
        array(["null", "string"]), array("string"), False, id="items required now"
    ),
    pytest.param(
        ["null", array("int")],
        [array("float"), "null"],
        True,
        id="an optional array promotes",
    ),
    pytest.param(
        array(array(["null", "int"])),
        array(array("int")),
        False,
        id="items of items required now",
    ),
    pytest.param(mapping("int"), mapping("double"), True, id="values promote"),
    pytest.param(mapping("int"), mapping("boolean"), False, id="values retyped"),
    pytest.param(mapping(["null", "int"]), mapping("int"), False, id="values required"),
    pytest.param(enum("a", "b"), enum("b", "a"), True, id="symbols reordered"),
    pytest.param(enum("a"), enum("a", "b"), True, id="a symbol more"),
    pytest.param(enum("a", "b"), enum("a"), False, id="a symbol less"),
    pytest.param(
        enum("a", "b"), enum("a", default="a"), True, id="a symbol less and a default"
    ),
    pytest.param(
        enum("a", "b", default="a"), enum("a"), False, id="the writer's default"
    ),
    pytest.param(enum("a"), enum("a", name="F"), False, id="an enum named otherwise"),
    pytest.param(enum("a"), enum("a", name="ns.E"), True, id="another namespace"),
    pytest.param(
        enum("a"), enum("a", name="F", aliases=["E"]), True, id="an alias of an enum"
    ),
    pytest.param(
        enum("a", name="n.E"),
        enum("a", name="n.F", aliases=["n.E"]),
        True,
        id="an alias with a namespace",
    ),
    pytest.param(
        enum("a", aliases=["F"]), enum("a", name="F"), False, id="the writer's own"
    ),
    pytest.param(
        nested(field("a", "int")),
        nested(field("a", "long"), name="S", aliases=["R"]),
        True,
        id="an alias of a record",
    ),
    pytest.param(enum("a"), "string", False, id="an enum to text"),
    pytest.param("string", enum("x"), False, id="text to an enum"),
    pytest.param(fixed(2), fixed(2), True, id="the same size"),
    pytest.param(fixed(2), fixed(3), False, id="a larger size"),
    pytest.param(fixed(2), fixed(2, name="G"), False, id="a fixed named otherwise"),
    pytest.param(fixed(2), "bytes", False, id="fixed to bytes"),
    pytest.param(
        {"type": "long", "logicalType": "timestamp-millis"},
        "long",
        True,
        id="a logical type is the type under it",
    ),
    pytest.param(
        [enum("a"), fixed(2), "null"],
        ["null", fixed(2), enum("a", "b")],
        True,
        id="named branches reordered",
    ),
    pytest.param(
        ["null", enum("a", "b")],
        [enum("a"), "null", "string"],
        False,
        id="a branch has a symbol less",
    ),
    pytest.param(
        OF_NULLS,
        nested(field("b", "int"), field("a", ["null", "int"])),
        True,
        id="fields reordered",
    ),
    pytest.param(OF_NULLS, nested(field("b", "int")), True, id="a field removed"),
    pytest.param(
        OF_NULLS, nested(field("a", "int")), False, id="an optional field required"
    ),
    pytest.param(OF_NULLS, nested(name="S"), False, id="a record named otherwise"),
    pytest.param(OF_NULLS, nested(), True, id="every field removed"),
    pytest.param(nested(), OF_NULLS, False, id="a field added to none"),
    pytest.param(
        nested(field("a", "int")),
        nested(field("a", "int"), field("b", "int", default=0)),
        True,
        id="a field added with a default",
    ),
    pytest.param(
        nested(field("a", "int")),
        nested(field("a", "int"), field("b", ["null", "int"], default=None)),
        True,
        id="a field added with null as its default",
    ),
    pytest.param(
        nested(field("a", "int")),
        nested(field("a", "int"), field("b", ["null", "int"])),
        False,
        id="an optional field added without a default",
    ),
    pytest.param(
        nested(field("a", "string")),
        nested(field("a", "int", default=0)),
        False,
        id="a default is not for a field that was written",
    ),
    pytest.param(
        nested(field("a", "int")),
        nested(field("b", "long", aliases=["z", "a"])),
        True,
        id="renamed, with an alias",
    ),
    pytest.param(
        nested(field("a", "int")),
        nested(field("b", "string", aliases=["a"], default="")),
        False,
        id="renamed and retyped",
    ),
    pytest.param(
        nested(field("b", "int", aliases=["a"])),
        nested(field("a", "int")),
        False,
        id="the writer's alias",
    ),
    pytest.param(
        nested(field("a", nested(field("b", "int"), name="S"))),
        nested(
            field("a", nested(field("c", "int", default=0), name="S")),
        ),
        True,
        id="a field added inside with a default",
    ),
    pytest.param(
        array(nested(field("b", "int"), name="S")),
        array(nested(field("b", "int"), field("c", "int"), name="S")),
        False,
        id="a field added inside without a default",
    ),
    pytest.param(
        ["null", nested(field("b", "int"), name="S")],
        nested(field("b", "int"), name="S"),
        False,
        id="an optional record required",
    ),
    pytest.param(
        nested(field("a", enum("x", "y")), field("b", ["null", "E"])),
        nested(field("b", ["null", enum("x", "y")]), field("a", "E")),
        True,
        id="a name is where the definition was",
    ),
    pytest.param(
        nested(field("a", enum("x", "y")), field("b", array("E"))),
        nested(field("b", array(enum("x")))),
        False,
        id="a definition where the name was has a symbol less",
    ),
    pytest.param(
        nested(field("a", enum("x", "y"))),
        nested(field("new", enum("x"), default="x"), field("a", "E")),
        False,
        id="a name of the reader's is the reader's definition",
    ),
    pytest.param(
        enum("x", "y"),
        [enum("x", name="n.E"), enum("x", "y")],
        False,
        id="the first branch that matches is taken though it fails",
    ),
    pytest.param(
        enum("x", "y"),
        [enum("x", "y"), enum("x", name="n.E")],
        True,
        id="the branch after the one that matches is not looked at",
    ),
    pytest.param(
        array("int"),
        [array("string"), array("long")],
        True,
        id="the first array whose items match is taken",
    ),
    pytest.param(
        array(["null", "int"]),
        [array("int"), array(["null", "int"])],
        False,
        id="any array matches one of a union, though it fails",
    ),
    pytest.param(NODE, NODE, True, id="a list of records"),
    pytest.param(
        NODE,
        nested(field("next", ["R", "null"]), field("value", "double")),
        True,
        id="a list whose values promote",
    ),
    pytest.param(
        NODE,
        nested(field("next", ["null", "R"]), field("value", "string")),
        False,
        id="a list whose values are retyped",
    ),
    pytest.param(
        NODE, nested(field("next", "R")), False, id="a list that has to go on"
    ),
    pytest.param(
        NODE,
        nested(field("next", ["null", nested(field("value", "long"), name="S.R")])),
        True,
        id="a list of two is read",
    ),
    pytest.param(
        NODE,
        nested(field("next", ["null", nested(field("value", "string"), name="S.R")])),
        False,
        id="a list whose second value is retyped",
    ),
    pytest.param(TREE, TREE, True, id="a tree of records"),
    pytest.param(
        TREE,
        nested(field("value", "int"), field("many", array("R"))),
        False,
        id="a tree whose values are retyped",
    ),
]


@pytest.mark.parametrize(("writer", "reader", "result"), TABLE)
def test_one_type_is_read_as_another_as_avro_says(writer, reader, result):
    outer = [nested(field("it", kind), name="Outer") for kind in (writer, reader)]
    inner = [form(schema)["fields"][0]["type"] for schema in outer]
    assert reads(*inner) is result
    assert (resolved(*outer, samples(outer[0])) is not None) is result


def test_the_rows_of_a_schema_take_every_branch_symbol_and_item():
    schema = nested(
        field("e", enum("x", "y", "z")),
        field("u", ["null", "int", "E"]),
        field("m", mapping(array(["null", "string"]))),
        field("next", ["null", "R"]),
    )
    rows = samples(schema)
    assert [row["e"] for row in rows[:3]] == ["x", "y", "z"]
    assert [row["u"] for row in rows[:5]] == [
        ("null", None),
        ("int", 7),
        *(("E", symbol) for symbol in "xyz"),
    ]
    assert rows[0]["m"] == {"key 0": [("null", None), ("string", "é")]}
    (deep,) = {json.dumps(row["next"]) for row in rows if row["next"][0] == "null"}
    assert deep == '["null", null]'
    assert [row["next"][1]["next"][0] for row in rows if row["next"][0] == "R"] != []


# Pairs of schemas: named types in a table, so that each can be edited by itself, be
# used in several places and hold itself. A name in a type is written out where it is
# met first.

NAMED = ("E0", "E1", "F0")
RECORDS = ("R0", "R1", "R2")


@st.composite
def tables(draw):
    """Return named types by name; what a record has to hold comes after it."""
    table = {
        name: enum(*draw(st.permutations("abc"))[: draw(st.integers(1, 3))], name=name)
        for name in NAMED[:2]
    } | {"F0": fixed(draw(st.integers(1, 2)), name="F0")}
    for n, name in enumerate(RECORDS):
        kinds = draw(st.lists(kinds_in(RECORDS[n + 1 :]), min_size=1, max_size=3))
        fields = [field(f"{name}_{n}", kind) for n, kind in enumerate(kinds)]
        table[name] = nested(*fields, name=name)
    return table


@cache
def kinds_in(held):
    """Return the types of fields of a record that may hold other records for sure."""
    plain = st.sampled_from(sorted(PLAIN.keys() - {"null"}))
    some = plain | st.sampled_from([*NAMED, *RECORDS])
    union = st.lists(some, max_size=2, unique=True).flatmap(
        lambda others: (
            (plain | st.just("null"))
            .filter(lambda one: one not in others)
            .flatmap(lambda one: st.permutations([one, *others]))
        )
    )
    many = st.builds(lambda hold, kind: hold(kind), HOLDERS, some | union)
    deep = st.builds(lambda hold, kind: hold(kind), HOLDERS, many)
    optional = (many | some).map(lambda kind: ["null", kind])
    sure = st.sampled_from([*NAMED, *held])
    return st.one_of(plain, plain, sure, union, optional, many, deep)


HOLDERS = st.sampled_from([array, mapping])


@st.composite
def readers(draw, table):
    """Edit a table: now and then a lot, now and then not at all."""
    often = draw(st.sampled_from([0, 1, 1, 2, 4]))

    def edits():
        return draw(st.integers(0, 19)) < often

    found = {}
    for name, one in table.items():
        if one["type"] == "record":
            fields = [f for each in one["fields"] for f in edited(draw, edits, each)]
            if edits():
                fields = draw(st.permutations(fields))
            fields = fields or [field("only", "int", default=0)]
            found[name] = one | {"fields": fields}
        elif one["type"] == "enum":
            more = {"default": one["symbols"][0]} if edits() else {}
            symbols = one["symbols"][: 1 if edits() else 3]
            symbols = [*(["d"] if edits() else []), *symbols]
            found[name] = enum(*symbols, name=name, **more)
        else:
            found[name] = one | {"size": one["size"] + edits()}
    return found


def edited(draw, edits, each):
    """Return the fields that a reader has where the writer has one."""
    more = {}
    if edits():
        return []
    if edits():
        more = {"name": f"{each['name']}_renamed", "aliases": [each["name"]]}
    yes = [each | {"type": retyped(draw, edits, each["type"])} | more]
    if edits():
        default = {"default": None} if draw(st.booleans()) else {}
        yes.append(field(f"{each['name']}_new", ["null", "int"], **default))
    return yes


def retyped(draw, edits, kind):
    """Return a type that is often the same, often a wider one."""
    if isinstance(kind, dict):
        inner = "items" if kind["type"] == "array" else "values"
        kind = kind | {inner: retyped(draw, edits, kind[inner])}
    elif isinstance(kind, list):
        kind = draw(st.permutations(kind)) if edits() else kind
        kind = [one for one in kind if not edits()] or kind
        if len(kind) == 1 and kind != ["null"]:
            kind = kind[0]
    wider = [other for one, other in sorted(PROMOTIONS) if one == kind]
    if wider and edits():
        kind = draw(st.sampled_from(wider))
    if edits():
        kind = draw(kinds_in(RECORDS))
    if edits() and "null" not in kind:
        kind = ["null", *(kind if isinstance(kind, list) else [kind])]
    return kind


def written(kind, table, done):
    """Write out the names in a type where they are met first."""
    if isinstance(kind, list):
        return [written(one, table, done) for one in kind]
    if isinstance(kind, str):
        if kind not in table or kind in done:
            return kind
        done.add(kind)
        return written(table[kind], table, done)
    out = dict(kind)
    for inner in {"items", "values"} & out.keys():
        out[inner] = written(out[inner], table, done)
    if "fields" in out:
        out["fields"] = [
            each | {"type": written(each["type"], table, done)}
            for each in out["fields"]
        ]
    return out


@st.composite
def pairs(draw):
    """A writer and a reader: the writer edited, or once in a while another."""
    table = draw(tables())
    other = draw(readers(table)) if draw(st.integers(0, 9)) else draw(tables())
    return written("R0", table, set()), written("R0", other, set())


def test_any_two_schemas_resolve_if_and_only_if_fastavro_reads_every_row():
    outcomes = Counter()

    @given(pairs())
    @settings(deadline=None, max_examples=500)
    def law(pair):
        result = reads(*map(form, pair))
        try:
            rows = resolved(*pair, samples(pair[0]))
        except TypeError:
            # It takes a definition for a name: the writer's record has a name where a
            # union of the reader's has the definition, or the other way around.
            outcomes["tripped"] += 1
            reject()
        outcomes[result] += 1
        assert (rows is not None) is result

    law()
    assert min(outcomes[True], outcomes[False]) > 0.2 * outcomes.total()
    assert outcomes["tripped"] < 0.05 * outcomes.total()


@given(tables())
@settings(deadline=None, max_examples=50)
def test_every_schema_reads_itself(table):
    schema = form(written("R0", table, set()))
    assert reads(schema, schema)


# Every schema that Braze is known to have written


def historical():
    found: dict = {}
    for one in json.loads(FACTS.read_text()):
        found.setdefault(one["event_type"], []).append(one["schema"])
    return found.values()


def shipped():
    files = schemas.schemas_root().glob("*/*.avsc")
    found = {}
    for one in files:
        found.setdefault(one.parent, []).append(json.loads(one.read_text()))
    return list(found.values())


def extremes(schema):
    """Return a row with null wherever it may be, and one without a null."""
    columns = {f["name"]: values(f["type"], {}, ()) for f in schema["fields"]}
    for found in columns.values():
        found.sort(key=lambda one: one != ("null", None))
    nulls = {name: found[0] for name, found in columns.items()}
    return nulls, {name: found[-1] for name, found in columns.items()}


HISTORIES = [
    pytest.param(
        historical,
        {True: 1014, False: 10},
        id="300 historical schemas",
        marks=pytest.mark.skipif(
            not FACTS.exists(), reason="the historical schemas are not in the project"
        ),
    ),
    pytest.param(shipped, {True: 1164, False: 10}, id="shipped schemas to v12"),
]


@pytest.mark.parametrize(("histories", "least"), HISTORIES)
def test_each_version_reads_as_each_other_if_and_only_if_fastavro_reads_it(
    histories, least
):
    found = Counter()
    for history in histories():
        versions = [(form(one), fastavro.parse_schema(one)) for one in history]
        for (mine, writer), (other, reader) in permutations(versions, 2):
            result = reads(mine, other)
            assert (resolved(writer, reader, extremes(writer)) is not None) is result
            found[result] += 1
    assert found >= Counter(least)
