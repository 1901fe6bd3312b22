from __future__ import annotations

import ast
import json
import math

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from currents_ingest.audience_config import Audience
from currents_ingest.audiences import cells
from currents_ingest.audiences.columns import layout
from currents_ingest.audiences.mapping import ID, PART, map_people
from currents_ingest.audiences.tables import ROW
from currents_ingest.errors import MappingError

NOTHING = object()
"""Not sent at all."""


def mapped(cells_, *, typed=False, **settings):
    frame = cells_ if isinstance(cells_, pl.DataFrame) else pl.DataFrame(cells_)
    audience = Audience(source="x", **settings)
    found = layout("vip", audience, dict(frame.schema), typed=typed)
    numbered = frame.with_columns(
        pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).alias(ROW),
        pl.lit(0, pl.UInt32).alias(PART),
    )
    return map_people(numbered, found, audience)


def sent(texts, name="value", *, typed=False, **settings):
    """Return what becomes of a column's values: parsed JSON, or why not."""
    ids = [f"u{at}" for at in range(len(texts))]
    series = (
        texts if isinstance(texts, pl.Series) else pl.Series(texts, dtype=pl.String)
    )
    frame = pl.DataFrame({"external_id": ids, name: series})
    result = mapped(frame, typed=typed, **settings)
    (column,) = [one for one in result.rows.columns if not one.startswith("__")]
    found = {
        int(id_[1:]): NOTHING if cell is None else json.loads(cell)
        for id_, cell in result.rows.select(ID, column).iter_rows()
    }
    told = dict(result.rejects.select(ROW, "reason").iter_rows())
    return [found[at] if at in found else told[at + 1] for at in range(len(ids))]


def lambda_value(text):
    """Return what Braze's CSV Lambda sends for a cell, as its behaviour was observed.

    Source: braze-inc/growth-shares-lambda-user-csv-import 0.2.5, README and runs of it.
    """
    bare = text.strip()
    words = {"": NOTHING, "null": None, "true": True, "false": False}
    if bare.lower() in words:
        return words[bare.lower()]
    leads = bare.startswith("0") and len(bare) > 1 and not bare.startswith("0.")
    if not leads and set(bare) <= set("0123456789.-"):
        for read in (int, float):
            try:
                return read(bare)
            except ValueError:
                continue
    if bare.startswith("[") and bare.endswith("]"):
        try:
            return ast.literal_eval(bare)
        except (ValueError, SyntaxError):
            return text
    return text


def same(one, other):
    if isinstance(one, float) and isinstance(other, float):
        return one == other or math.isclose(one, other, rel_tol=1e-15)
    return type(one) is type(other) and one == other


CELLS = st.one_of(
    st.text(st.sampled_from("0123456789.-"), max_size=12),
    st.text(st.sampled_from("0123456789.-+eE _"), max_size=10),
    st.sampled_from(
        ["null", "NULL", " true", "False ", "nan", "inf", "1e5", "00", "0"]
    ),
    st.lists(st.sampled_from(["a", "Bc", "ü"]), max_size=3).map(repr),
    st.lists(st.integers(-9, 999), max_size=3).map(repr),
    st.text(max_size=20).filter(lambda text: "[" not in text),
)


@given(st.lists(CELLS, min_size=1, max_size=8))
@example(
    [
        "-05",
        "-0",
        "1.",
        ".5",
        "-.5",
        "--1",
        "1-2",
        "1.2.3",
        "0.10",
        "12345678901234567890",
    ]
)
@example(["1982", "578"])
@example(["1.50", "2.25"])
@example(["true", "false"])
@example(["Solomon", "Hunter-Hayes"])
@example([" padded text ", "\u00a01"])
def test_a_cell_whose_type_is_found_out_is_what_the_lambda_sends(texts):
    for text, found in zip(texts, sent(texts), strict=True):
        expected = lambda_value(text)
        assert same(found, expected) or expected is NOTHING is found, (text, found)


def test_the_examples_of_brazes_amperity_page_give_the_same_values():
    result = mapped(
        {
            "external_id": ["abc123", "def456"],
            "Loyalty Points": ["1982", "578"],
            "Last Brand Purchased": ["Solomon", "Hunter-Hayes"],
            "Brands": ["['Value1', 'Value2']", None],
        }
    )
    assert result.rows.drop(PART, ROW, "__person__").rows() == [
        ("abc123", "1982", '"Solomon"', '["Value1","Value2"]'),
        ("def456", "578", '"Hunter-Hayes"', None),
    ]


@pytest.mark.parametrize(
    ("text", "lambdas", "ours"),
    [
        pytest.param('["a", true]', '["a", true]', ["a", True], id="JSON booleans"),
        pytest.param(
            "['a', null]", "['a', null]", "['a', null]", id="neither language"
        ),
        pytest.param('["a", null]', '["a", null]', ["a"], id="null in an array"),
        pytest.param("['a', None]", ["a", None], ["a"], id="None in an array"),
    ],
)
def test_where_the_lambda_is_unsound_we_differ_as_documented(text, lambdas, ours):
    assert lambda_value(text) == lambdas
    assert sent([text]) == [ours]


def test_an_identifier_is_text_whatever_it_looks_like():
    result = mapped({"external_id": ["123", "1.50", "007", " a "], "v": ["x"] * 4})
    assert result.rows[ID].to_list() == ["123", "1.50", "007", "a"]


def test_rows_without_identifier_are_rejected_with_their_number():
    result = mapped({"external_id": [None, "null", "  ", "a", "NULL"], "v": ["x"] * 5})
    assert result.rows[ID].to_list() == ["a"]
    assert result.rejects[ROW].to_list() == [1, 2, 3, 5]
    assert result.rejects["reason"].unique().to_list() == [
        "no external_id, or none that Braze takes"
    ]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        pytest.param("string", "0130", "0130", id="string keeps zeros"),
        pytest.param("string", "12", "12", id="string of digits"),
        pytest.param("string", " x ", " x ", id="string keeps blanks"),
        pytest.param("string", "null", None, id="null removes"),
        pytest.param("string", "Null", "Null", id="Null is a name"),
        pytest.param("string", "x" * 255, "x" * 255, id="255 characters"),
        pytest.param("integer", "12.0", 12, id="a whole number with a point"),
        pytest.param("integer", "+7", 7, id="plus"),
        pytest.param("integer", "007", 7, id="leading zeros"),
        pytest.param("integer", " 7 ", 7, id="blanks"),
        pytest.param("float", "12", 12.0, id="float"),
        pytest.param("decimal", "1.10", 1.1, id="decimal"),
        pytest.param("float", "1e3", 1000.0, id="exponent"),
        pytest.param("boolean", "Yes", True, id="yes"),
        pytest.param("boolean", "0", False, id="nought"),
        pytest.param("date", "2026-01-31 00:00:00.00000", "2026-01-31", id="date"),
        pytest.param("date", "01/31/2026", "2026-01-31", id="American"),
        pytest.param("datetime", "2026-01-31", "2026-01-31T00:00:00Z", id="day"),
        pytest.param(
            "datetime", "2026-01-31 12:30:00.25000", "2026-01-31T12:30:00.250Z", id="ms"
        ),
        pytest.param(
            "datetime", "2026-01-31T12:30:00+02:00", "2026-01-31T10:30:00Z", id="zone"
        ),
        pytest.param(
            "datetime", "2026-01-31T12:30:00-0130", "2026-01-31T14:00:00Z", id="-0130"
        ),
        pytest.param("array", "['a', 'b']", ["a", "b"], id="array"),
        pytest.param(
            "object",
            '{"a":{"$time":"2026-01-31"}}',
            {"a": {"$time": "2026-01-31"}},
            id="object",
        ),
    ],
)
def test_a_forced_type_is_kept(kind, text, value):
    assert sent([text], types={"value": kind}) == [value]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("string", "x" * 256),
        ("integer", "12.5"),
        ("integer", "x"),
        ("float", "nan"),
        ("float", "1e999"),
        ("boolean", "maybe"),
        ("date", "2026-02-30"),
        ("datetime", "noon"),
        ("array", "a,b"),
        ("array", json.dumps(["x"] * 501)),
        ("array", '[["nested"]]'),
        ("object", "[1]"),
        ("object", '{"a b": 1}'),
        ("object", '{"a.b": 1}'),
        ("object", '{"$x": 1}'),
        ("object", json.dumps({"a": ["x" * 250] * 450})),
        ("object", "{1: 2}"),
        ("object", '{"a":' * 900 + "1" + "}" * 900),
        ("object", '{"a": 1e999}'),
        ("array", "[1e999]"),
    ],
)
def test_what_does_not_fit_a_forced_type_is_rejected_without_its_value(kind, text):
    (told,) = sent([text], types={"value": kind})
    assert told == f"value: not {cells.WANTED[kind]}"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("given_name", "123", "123"),
        ("surname", "Null", "Null"),
        ("birthdate", "1990-01-31 00:00:00", "1990-01-31"),
        ("birthdate", "1990-01-31T00:00:00Z", "1990-01-31"),
        ("gender", "female", "F"),
        ("gender", "P", "P"),
        ("gender", "unknown", None),
        ("country", "usa", "US"),
        ("country", "Germany", "DE"),
        ("language", "en-US", "en"),
        ("time_zone", "Europe/Berlin", "Europe/Berlin"),
        ("email", " a.b+c@example.com ", "a.b+c@example.com"),
        ("phone", "+4930901820", "+4930901820"),
        ("phone", "+49 (30) 901820", "+4930901820"),
        (
            "current_location",
            '{"longitude": 1.5, "latitude": 2}',
            {"longitude": 1.5, "latitude": 2},
        ),
        ("email_open_tracking_disabled", "true", True),
    ],
)
def test_profile_fields_are_written_as_braze_takes_them(name, text, value):
    assert sent([text], name) == [value]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("birthdate", "yesterday"),
        ("gender", "X"),
        ("country", "Atlantis"),
        ("language", "zz"),
        ("time_zone", "Mars/Olympus"),
        ("email", "a@b"),
        ("email", "a..b@example.com"),
        ("phone", "030 901820"),
        ("phone", "+1"),
        ("image_url", "x" * 1025),
        ("first_name", "x" * 256),
        ("current_location", '{"longitude": "1", "latitude": 2}'),
    ],
)
def test_profile_fields_that_braze_would_not_take_are_rejected(name, text):
    (told,) = sent([text], name)
    assert told.startswith(f"{name}: not ")
    assert text not in told


def test_a_phone_without_plus_is_of_the_configured_country():
    assert sent(["(212) 555-0123"], "phone", phone_region="US") == ["+12125550123"]


def test_a_blank_cell_leaves_the_attribute_alone_unless_it_is_said_to_remove():
    assert sent([None, " ", "x"]) == [NOTHING, NOTHING, "x"]
    assert sent([None, " ", "x"], remove_when_empty=["value"]) == [None, None, "x"]


@pytest.mark.parametrize(
    ("operation", "text", "value"),
    [
        ("inc", "5", {"inc": 5}),
        ("inc", "-5", {"inc": -5}),
        ("add", "a", {"add": ["a"]}),
        ("add", "['a','b']", {"add": ["a", "b"]}),
        ("remove", "7", {"remove": [7]}),
    ],
)
def test_operations_change_what_braze_holds(operation, text, value):
    assert sent([text], operations={"value": operation}) == [value]


def test_an_increment_that_is_no_whole_number_is_rejected():
    assert sent(["1.5"], operations={"value": "inc"}) == ["value: not a whole number"]


TYPED = [
    pytest.param(pl.Series([True, None]), [True, NOTHING], id="boolean"),
    pytest.param(pl.Series([1, None]), [1, NOTHING], id="integer"),
    pytest.param(pl.Series([1.5, float("nan")]), [1.5, NOTHING], id="float"),
    pytest.param(
        pl.Series(["12.30"]).cast(pl.Decimal(10, 2)), [12.3], id="decimal is a number"
    ),
    pytest.param(pl.Series(["2026-01-31"]).str.to_date(), ["2026-01-31"], id="date"),
    pytest.param(
        pl.Series(["2026-01-31 12:00"]).str.to_datetime(),
        ["2026-01-31T12:00:00Z"],
        id="datetime without zone is UTC",
    ),
    pytest.param(pl.Series(["0130", "12"]), ["0130", "12"], id="text stays text"),
    pytest.param(pl.Series(["['a']", "null"]), [["a"], None], id="array, null"),
    pytest.param(pl.Series([["a", None, "b"]]), [["a", "b"]], id="list"),
    pytest.param(pl.Series([{"a": 1, "b": None}]), [{"a": 1}], id="object"),
]


@pytest.mark.parametrize(("values", "expected"), TYPED)
def test_values_of_typed_files_keep_their_types(values, expected):
    assert sent(values, typed=True) == expected


def test_nested_times_are_wrapped():
    series = pl.Series([{"at": "2026-01-31T00:00:00"}]).struct.rename_fields(["at"])
    frame = pl.DataFrame({"v": series}).select(
        pl.struct(pl.col("v").struct.field("at").str.to_datetime())
    )
    assert sent(frame["at"], typed=True) == [{"at": {"$time": "2026-01-31T00:00:00"}}]


ODD = st.one_of(
    CELLS, st.sampled_from(["", " ", "x" * 256, "a\x00b", '"', "\\", "2026-01-31"])
)


@given(
    st.lists(st.one_of(st.none(), ODD), min_size=1, max_size=6),
    st.sampled_from(
        [{}, {"types": {"value": "string"}}, {"types": {"value": "float"}}]
    ),
)
def test_what_a_column_has_in_common_changes_no_cell(texts, settings):
    alone = [sent([text], **settings)[0] for text in texts]
    assert all(
        same(one, other) or (one is other)
        for one, other in zip(sent(texts, **settings), alone, strict=True)
    )


def test_a_setting_names_a_column_exactly_before_it_ignores_case():
    frame = {"external_id": ["a"], "Email": ["x"], "email": ["a@example.com"]}
    assert mapped(frame, columns={"Email": ""}).rows["email"].to_list() == [
        '"a@example.com"'
    ]
    alone = {"external_id": ["a"], "Loyalty": ["5"]}
    assert "points" in mapped(alone, columns={"loyalty": "points"}).rows.columns


@pytest.mark.parametrize(
    "name",
    ["__id__", "__gone__", "_merge_objects", "_update_existing_only", "$x", "bio"],
)
def test_names_that_mean_something_else_are_no_attributes(name):
    with pytest.raises(MappingError, match="no name that a custom attribute may have"):
        mapped({"external_id": ["a"], name: ["1"]})


@pytest.mark.parametrize("name", ["external_id", "$x", "email", "__id__", "value"])
def test_membership_is_a_custom_attribute_of_its_own(name):
    with pytest.raises(MappingError, match="membership"):
        mapped({"external_id": ["a"], "value": ["1"]}, membership=name)


def test_rejected_rows_that_name_somebody_are_known():
    found = mapped({"external_id": ["a", None], "email": ["nonsense", "x"]})
    assert found.there[ID].to_list() == ["a"]


def test_every_problem_of_a_file_is_told_at_once():
    with pytest.raises(MappingError) as told:
        mapped(
            {"id": ["a"], "braze_id": ["b"], "email_subscribe": ["x"], "x": ["1"]},
            columns={"gone": "y"},
            types={"also_gone": "string"},
            operations={"X": "inc"},
        )
    problems = "\n".join(told.value.problems)
    for word in ("'gone'", "'also_gone'", "'X'", "'braze_id'", "email_subscribe"):
        assert word in problems
    assert "there is no column 'external_id'" in problems


def test_a_look_alike_of_a_profile_field_is_a_warning():
    frame = pl.DataFrame({"external_id": ["a"], "birthday": ["x"], "Email": ["y"]})
    audience = Audience(source="x")
    found = layout("vip", audience, dict(frame.schema), typed=False)
    assert ["dob" in found.warnings[0], "'email'" in found.warnings[1]] == [True, True]
