from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from currents_ingest import batch, dedupe, parquet
from currents_ingest.reading import Read

START = datetime(2026, 9, 15, tzinfo=UTC)
A, B = "00000000000a", "00000000000b"
ids = st.lists(st.sampled_from([*"abcxyz", f"1-{A}", f"2-{A}", f"1-{B}", A, "-a"]))
"""Some end alike, and some in no number."""


def rows(names, hour=0):
    times = [START + timedelta(hours=hour, minutes=n) for n, _ in enumerate(names)]
    return pl.DataFrame(
        {"id": list(names), "event_datetime": times, "n": range(len(names))},
        schema={
            "id": pl.String,
            "event_datetime": pl.Datetime("us", "UTC"),
            "n": pl.Int64,
        },
    )


@given(ids)
def test_each_id_is_kept_once_at_its_first_place(names):
    kept = dedupe.deduplicate(rows(names), [])
    assert kept.rows["id"].to_list() == list(dict.fromkeys(names))
    assert kept.rows["n"].to_list() == sorted(names.index(n) for n in set(names))
    assert kept.duplicates == len(names) - len(set(names))


@given(ids, st.lists(ids))
def test_what_was_delivered_is_dropped(names, delivered):
    earlier = [dedupe.index_of(rows(one)) for one in delivered]
    kept = dedupe.deduplicate(rows(names), [one.select for one in earlier])
    known = {name for one in delivered for name in one}
    assert kept.rows["id"].to_list() == [
        n for n in dict.fromkeys(names) if n not in known
    ]


@given(ids, ids)
def test_twice_is_once(first, second):
    once = dedupe.deduplicate(rows(first), [])
    again = dedupe.deduplicate(rows([*first, *second]), [once.index.select])
    delivered = once.rows["id"].to_list() + again.rows["id"].to_list()
    assert sorted(delivered) == sorted(set(first) | set(second))


def test_the_index_is_sorted_by_event_hour_and_else_in_the_rows_order():
    both = pl.concat([rows("b", hour=1), rows(["x", f"1-{A}"])])
    hour = int(START.timestamp()) // 3600
    assert dedupe.deduplicate(both, []).index.rows() == [
        ("x", hour, None),
        (f"1-{A}", hour, 10),
        ("b", hour + 1, 11),
    ]


def test_ids_are_read_only_where_two_end_alike():
    asked = []
    held = dedupe.index_of(rows([f"1-{A}", "x"]))

    def look(column):
        asked.append(column)
        return held.select(column)

    assert dedupe.deduplicate(rows([f"1-{B}"]), [look]).rows.height == 1
    assert asked == ["id_end"]
    assert dedupe.deduplicate(rows([f"2-{A}"]), [look]).rows.height == 1
    assert asked == ["id_end", "id_end", "id"]


class Decoded:
    """A batch as a decoder gives it: all columns have one owner."""

    def __init__(self, batch):
        self.batch = batch

    def __arrow_c_array__(self, requested_schema=None):
        return self.batch.__arrow_c_array__(requested_schema)


def test_the_index_keeps_no_rows_in_memory():
    before = pa.total_allocated_bytes()
    names = [f"id-{n:040}" for n in range(1000)]
    columns = {
        "id": names,
        "event_datetime": [START] * 1000,
        "wide": ["x" * 500] * 1000,
    }
    rows = pl.DataFrame(Decoded(pa.record_batch(columns)))
    index = dedupe.deduplicate(rows, []).index
    assert pa.total_allocated_bytes() > before
    del rows
    assert index["id"].to_list() == names
    assert pa.total_allocated_bytes() == before


def test_index_objects_are_read_a_few_at_a_time():
    asked = []

    class Feeds:
        def gather(self, keys):
            asked.append(len(keys))
            found = (dedupe.index_of(rows(key)) for key in keys)
            return [parquet.index_to_bytes(one) for one in found]

    nothing = pl.DataFrame()
    some = {"inputs": (None,), "set_aside": (), "unread": (), "drift": ()}
    read = Read(contract=None, rows=rows("axyz"), rejects=nothing, **some)
    hour = int(START.timestamp()) // 3600
    earlier = [
        batch.Index(token=one, ids=dedupe.index_of(rows(one))) for one in "bcdfy"
    ]
    kept = batch.keep(read, [hour], Feeds(), list("abcdefghijklx"), *earlier)
    assert kept.rows["id"].to_list() == ["z"]
    assert kept.after == tuple("bcdfy")
    assert sum(asked) == 13
    assert max(asked) <= 8
