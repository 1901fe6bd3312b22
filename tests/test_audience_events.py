from __future__ import annotations

import json

import polars as pl
import pytest

from currents_ingest.audience_config import Audience
from currents_ingest.audiences import events
from currents_ingest.audiences.columns import layout
from currents_ingest.audiences.mapping import ID, OBJECT, PART
from currents_ingest.audiences.tables import ROW
from currents_ingest.errors import MappingError


def mapped(rows, kind="events", **settings):
    frame = pl.DataFrame(rows).with_columns(pl.col(pl.Null).cast(pl.String))
    audience = Audience(source="x", kind=kind, **settings)
    found = layout("vip", audience, dict(frame.schema), typed=False)
    events.check("vip", found, audience)
    numbered = frame.with_columns(
        pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).alias(ROW),
        pl.lit(0, pl.UInt32).alias(PART),
    )
    result = events.map_events(numbered, found, audience, "d1")
    objects = [json.loads(one) for one in result.rows[OBJECT]]
    return objects, result.rows[ID].to_list(), result.rejects["reason"].to_list()


EVENT = {"external_id": "u1", "name": "opened", "time": "2026-01-31T12:00:00Z"}
PURCHASE = {
    "external_id": "u1",
    "product_id": "p1",
    "currency": "usd",
    "price": "9.90",
    "purchase_time": "2026-01-31",
}


def test_other_columns_are_properties_with_their_types():
    row = EVENT | {"colour": "red", "count": "3", "properties.big": "true", "no": None}
    objects, ids, rejects = mapped([row])
    properties = {"colour": "red", "count": 3, "big": True}
    assert objects == [EVENT | {"properties": properties}]
    assert ids == ["d1:0:1"]
    assert rejects == []


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-01-31", "2026-01-31T00:00:00Z"),
        ("2026-01-31 12:00:00", "2026-01-31T12:00:00Z"),
        ("2026-01-31T12:00:00+02:00", "2026-01-31T10:00:00Z"),
        ("1769860800", "2026-01-31T12:00:00Z"),
        ("1769860800000", "2026-01-31T12:00:00Z"),
    ],
)
def test_times_are_written_in_utc(text, time):
    objects, _, _ = mapped([EVENT | {"time": text}])
    assert objects[0]["time"] == time


def test_an_event_is_known_by_the_column_that_dedupes():
    rows = [EVENT | {"event_id": one} for one in ("a", "b", None)]
    objects, ids, rejects = mapped(rows, dedupe="event_id")
    assert ids == ["a", "b"]
    assert rejects == ["no event_id"]
    assert objects == [EVENT] * 2


def test_amperitys_names_for_name_and_time_are_known():
    row = {"external_id": "u1", "event_name": "x", "event_datetime": "2026-01-31"}
    objects, _, _ = mapped([row])
    assert objects[0]["name"] == "x"
    assert objects[0]["time"] == "2026-01-31T00:00:00Z"


def test_a_name_may_be_the_same_for_all():
    row = {"external_id": "u1", "time": "2026-01-31"}
    objects, _, _ = mapped([row], constants={"name": "seen"})
    assert objects[0]["name"] == "seen"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"time": "noon"}, "time: no time, as in 2026-01-31T12:00:00Z"),
        ({"time": None}, "time: no time, as in 2026-01-31T12:00:00Z"),
        ({"name": None}, "name: no name of at most 255 characters"),
        ({"external_id": None}, "no external_id, or none that Braze takes"),
        ({"p": "x" * 256}, "p: not a text of at most 255 characters"),
    ],
)
def test_what_braze_would_not_take_is_rejected(change, reason):
    objects, _, rejects = mapped([EVENT | {"p": "1"} | change, EVENT | {"p": "1"}])
    assert len(objects) == 1
    assert rejects == [reason]


@pytest.mark.parametrize("name", ["event_name", "$x", "properties."])
def test_reserved_names_of_properties_stop_before_anything_is_read(name):
    with pytest.raises(MappingError, match="is no name for a property"):
        mapped([EVENT | {name: "1"}])


def test_properties_may_be_one_json_column_but_not_beside_others():
    objects, _, _ = mapped([EVENT | {"properties": '{"a": {"b": 1}}'}])
    assert objects[0]["properties"] == {"a": {"b": 1}}
    with pytest.raises(MappingError, match="others besides"):
        mapped([EVENT | {"properties": "{}", "other": "1"}])


@pytest.mark.parametrize("text", ['[{"a":1}]', '{"time": 1}', '{"$x": 1}', "x"])
def test_properties_that_braze_would_not_take_are_rejected(text):
    _, _, rejects = mapped([EVENT | {"properties": text}, EVENT | {"properties": "{}"}])
    assert rejects == ["properties: no JSON object"]


def test_properties_may_have_names_that_nested_ones_may_not():
    row = EVENT | {"properties": '{"order id": 1, "a.b": 2}'}
    assert mapped([row])[0][0]["properties"] == {"order id": 1, "a.b": 2}


def test_one_property_of_two_columns_stops_before_anything_is_read():
    with pytest.raises(MappingError, match="would become property 'colour'"):
        mapped([EVENT | {"colour": "a", "properties.colour": "b"}])


def test_a_missing_name_or_time_says_what_to_do():
    with pytest.raises(MappingError, match="there is no column 'name'"):
        mapped([{"external_id": "u1", "time": "2026-01-31"}])


PRODUCTS = (
    '[{"product_id":"p","product_name":"n","variant_id":"v","quantity":1,"price":2}]'
)
PLACED = EVENT | {
    "name": "ecommerce.order_placed",
    "order_id": "o1",
    "total_value": "2.00",
    "currency": "USD",
    "products": PRODUCTS,
    "source": "web",
}


def test_ecommerce_events_are_sent_with_nested_products():
    objects, _, rejects = mapped([PLACED])
    assert rejects == []
    assert objects[0]["properties"]["products"] == json.loads(PRODUCTS)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"order_id": None, "source": None},
            "properties: ecommerce.order_placed needs order_id, source",
        ),
        (
            {"name": "Ecommerce.Order_Placed"},
            "name: begins as an e-commerce event's and is none of Braze's six",
        ),
        (
            {"name": "ecommerce.order_place"},
            "name: begins as an e-commerce event's and is none of Braze's six",
        ),
    ],
)
def test_ecommerce_events_that_braze_would_drop_silently_are_rejected(change, reason):
    _, _, rejects = mapped([PLACED | change, PLACED])
    assert rejects == [reason]


def test_purchases_are_written_as_braze_takes_them():
    objects, _, _ = mapped([PURCHASE | {"size": "L"}], kind="purchases")
    assert objects == [
        {
            "external_id": "u1",
            "product_id": "p1",
            "currency": "USD",
            "price": 9.9,
            "time": "2026-01-31T00:00:00Z",
            "properties": {"size": "L"},
        }
    ]


@pytest.mark.parametrize(
    ("quantity", "pieces"),
    [("1", [1]), ("100", [100]), ("101", [100, 1]), ("7500", [100] * 75)],
)
def test_more_than_a_hundred_of_a_product_become_several_purchases(quantity, pieces):
    row = PURCHASE | {"quantity": quantity, "id": "x"}
    objects, ids, _ = mapped([row], kind="purchases", dedupe="id")
    assert [one["quantity"] for one in objects] == pieces
    assert ids == ["x", *(f"x#{at}" for at in range(2, len(pieces) + 1))]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"currency": "XXZ"}, "currency: no currency (ISO 4217)"),
        ({"price": "free"}, "price: no number"),
        ({"quantity": "0"}, "quantity: not between 1 and 10,000"),
        ({"quantity": "1.5"}, "quantity: no whole number"),
        ({"quantity": "50000"}, "quantity: not between 1 and 10,000"),
        ({"product_id": "x" * 256}, "product_id: no text of at most 255 characters"),
    ],
)
def test_purchases_that_braze_would_not_take_are_rejected(change, reason):
    good = PURCHASE | {"quantity": "1"}
    objects, _, rejects = mapped([good | change, good], kind="purchases")
    assert len(objects) == 1
    assert rejects == [reason]
