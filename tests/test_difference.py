from __future__ import annotations

from types import SimpleNamespace

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from currents_ingest.audience_config import Audience
from currents_ingest.audiences import blocks, journal
from currents_ingest.audiences.blocks import Blocks, in_range
from currents_ingest.audiences.difference import difference, unsent
from currents_ingest.audiences.journal import merged
from currents_ingest.audiences.mapping import AT, GONE, ID, PART, PERSON, WHAT
from currents_ingest.audiences.tables import ROW

NAMES = ("a", "b", "email")
CELL = st.one_of(st.none(), st.sampled_from(['"x"', '"y"', "1", "null", "true"]))
IDS = st.sampled_from(["u1", "u2", "u3", "u4"])
ROWS = st.lists(st.tuples(IDS, st.tuples(CELL, CELL, CELL)), max_size=6)
STATE = st.dictionaries(IDS, st.tuples(CELL, CELL, CELL), max_size=4)


def export(rows):
    found = [
        {ID: id_, PERSON: id_, PART: 0, ROW: at, **dict(zip(NAMES, cells, strict=True))}
        for at, (id_, cells) in enumerate(rows, 1)
    ]
    schema = {ID: pl.String, PERSON: pl.String, PART: pl.UInt32, ROW: pl.UInt32}
    return pl.DataFrame(found, schema | dict.fromkeys(NAMES, pl.String))


def snapshot(state):
    found = [
        {ID: id_, **dict(zip(NAMES, one, strict=True))} for id_, one in state.items()
    ]
    frame = pl.DataFrame(found, {ID: pl.String} | dict.fromkeys(NAMES, pl.String))
    return frame.sort(ID) if state else None


def told(found):
    return {
        row[ID]: (row[WHAT], {n: row[n] for n in NAMES if row.get(n) is not None})
        for row in found.send.iter_rows(named=True)
    }


def naive(state, rows, *, whole=False):
    last = dict(rows)
    found = {}
    for id_, cells in last.items():
        old = state.get(id_, (None, None, None))
        new = {n: c for n, c in zip(NAMES, cells, strict=True) if c is not None}
        kept = dict(zip(NAMES, old, strict=True))
        changed = {n: c for n, c in new.items() if kept[n] != c}
        if changed:
            why = "changed" if id_ in state else "new"
            found[id_] = why, new if whole else changed
    return found


@given(STATE, ROWS, st.booleans())
def test_what_is_sent_is_what_braze_does_not_have(state, rows, whole):
    audience = Audience(source="x", changed="rows" if whole else "attributes")
    found = difference(snapshot(state), export(rows), audience)
    assert told(found) == naive(state, rows, whole=whole)
    assert found.people == len(dict(rows))
    assert found.repeated == len(rows) - len(dict(rows))


@given(STATE, ROWS)
def test_a_second_sync_of_the_same_export_sends_nothing(state, rows):
    audience = Audience(source="x")
    first = difference(snapshot(state), export(rows), audience).send
    now = {id_: list(cells) for id_, cells in state.items()}
    for row in first.iter_rows(named=True):
        kept = now.setdefault(row[ID], [None, None, None])
        for at, name in enumerate(NAMES):
            kept[at] = row[name] if row[name] is not None else kept[at]
    again = difference(snapshot(now), export(rows), audience)
    assert told(again) == {}


@given(STATE, ROWS)
def test_mirror_takes_custom_attributes_from_those_who_left(state, rows):
    audience = Audience(source="x", mode="mirror")
    found = told(difference(snapshot(state), export(rows), audience))
    stayed = dict(rows)
    expected = naive(state, rows)
    for id_, cells in state.items():
        gone = {
            name: "null"
            for name, cell in zip(NAMES, cells, strict=True)
            if name != "email" and cell not in {None, "null"}
        }
        if id_ not in stayed and gone:
            expected[id_] = "left", gone
    assert found == expected


def test_mirror_with_membership_tells_leavers_once_that_they_are_out():
    audience = Audience(source="x", mode="mirror", membership="a")
    state = {"u1": ("true", '"x"', None), "u2": ("false", None, None)}
    found = difference(snapshot(state), None, audience)
    assert told(found) == {"u1": ("left", {"a": "false"})}


@given(st.sets(IDS), st.lists(IDS, max_size=6))
def test_an_event_is_sent_unless_its_id_was(sent, ids):
    old = pl.DataFrame({ID: sorted(sent)}, {ID: pl.String}) if sent else None
    rows = export([(id_, (None, None, None)) for id_ in ids])
    found = unsent(old, rows)
    assert sorted(found.send[ID]) == sorted(set(ids) - sent)


STEP = st.tuples(IDS, st.booleans(), st.tuples(CELL, CELL, CELL))


@given(
    STATE,
    st.lists(st.lists(STEP, max_size=3, unique_by=lambda one: one[0]), max_size=4),
)
def test_what_was_said_later_counts(state, steps):
    frames, expected = [], {id_: list(cells) for id_, cells in state.items()}
    for number, step in enumerate(steps):
        for id_, gone, cells in step:
            row = {ID: id_, GONE: gone or None, AT: number}
            kept = [None] * 3 if gone else list(cells)
            frames.append(row | dict(zip(NAMES, kept, strict=True)))
            if gone:
                expected.pop(id_, None)
                continue
            held = expected.setdefault(id_, [None] * 3)
            expected[id_] = [
                old if new is None else new
                for old, new in zip(held, cells, strict=True)
            ]
    schema = {ID: pl.String, GONE: pl.Boolean, AT: pl.Int64}
    since = (
        pl.DataFrame(frames, schema | dict.fromkeys(NAMES, pl.String))
        if frames
        else None
    )
    found = merged(snapshot(state), since)
    rows = [] if found is None else found.select(ID, *NAMES).rows()
    assert {one[0]: list(one[1:]) for one in rows} == expected
    assert [one[0] for one in rows] == sorted(expected)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(blocks, "_ROWS", 8)
    monkeypatch.setattr(blocks, "_SAMPLE", 4)
    monkeypatch.setattr(blocks, "_RUN", 2000)
    monkeypatch.setattr(blocks, "RANGE", 16)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("memory", [0, 10**9], ids=["on disk", "in memory"])
def test_blocks_give_back_every_row_once_range_by_range(memory):
    kept = Blocks(memory)
    ids = [f"{(at * 7919) % 1009:04}" for at in range(500)]
    for at in range(0, 500, 50):
        kept.add(pl.DataFrame({ID: ids[at : at + 50], "n": range(at, at + 50)}))
    ranges = list(kept.ranges())
    assert ranges[0][0] is None
    assert ranges[-1][1] is None
    assert [upto for _, upto in ranges[:-1]] == [after for after, _ in ranges[1:]]
    found = [kept.between(span) for span in ranges]
    rows = pl.concat([one for one in found if one is not None])
    assert len(ranges) > 5
    assert sorted(rows.rows()) == sorted(zip(ids, range(500), strict=True))
    for span, one in zip(ranges, found, strict=True):
        assert one is None or one.filter(~in_range(span)).is_empty()
    kept.close()


@given(
    st.lists(st.integers(0, 60), max_size=60, unique=True),
    st.lists(st.integers(0, 60), max_size=60, unique=True),
    st.integers(1, 20),
)
def test_a_snapshot_beside_an_export_covers_both(in_parts, in_rows, part):
    held = sorted(f"{one:03}" for one in in_parts)
    parts = [held[at : at + part] for at in range(0, len(held), part)]

    objects = {str(at): pl.DataFrame({ID: one}) for at, one in enumerate(parts)}
    fake = SimpleNamespace(parts=tuple(objects), read=objects.__getitem__)

    export_ = Blocks(10**6)
    export_.add(pl.DataFrame({ID: [f"{one:03}" for one in in_rows]}, {ID: pl.String}))
    seen_old, seen_new, last = [], [], None
    for span, old in journal.Snapshot(fake, Blocks(0)).beside(export_):
        assert span[0] == last
        last = span[1]
        seen_old += [] if old is None else old[ID].to_list()
        new = export_.between(span)
        seen_new += [] if new is None else new[ID].to_list()
        assert all((span[1] is None or one <= span[1]) for one in seen_old)
    assert last is None
    assert seen_old == held
    assert sorted(seen_new) == sorted(f"{one:03}" for one in in_rows)
    export_.close()
