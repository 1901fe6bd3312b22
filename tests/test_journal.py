from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from currents_ingest.audiences.journal import Journal, Step
from currents_ingest.audiences.mapping import ID
from currents_ingest.errors import LedgerBrokenError, LedgerConflictError
from currents_ingest.store import Store

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    name = request.node.name.replace("[", "-").replace("]", "")
    url = str(tmp_path / "vip") if request.param == "folder" else f"memory://{name}"
    return Store.open(url)


def tell(journal, cells, kind="told", **fields):
    frame = pl.DataFrame({ID: list(cells), "a": list(cells.values())})
    name = journal.write(f"{kind}/{journal.head + 1}.parquet", frame)
    unknown = (name,) if kind == "intent" else ()
    step = Step(at=NOW, run="r", kind=kind, objects=(name,), unknown=unknown, **fields)
    return journal.commit(step)


def known(journal):
    with journal.snapshot(10**6) as snapshot:
        frames = list(snapshot.frames())
    return dict(pl.concat(frames).select(ID, "a").iter_rows()) if frames else {}


def test_what_was_told_is_read_back(store):
    journal = Journal.open(store)
    assert known(journal) == {}
    tell(journal, {"u1": "1", "u2": "2"})
    tell(journal, {"u2": "3"})
    assert known(Journal.open(store)) == {"u1": "1", "u2": "3"}


def test_who_comes_second_stops_and_has_changed_nothing(store):
    one, other = Journal.open(store), Journal.open(store)
    tell(one, {"u1": "1"})
    with pytest.raises(LedgerConflictError):
        other.commit(Step(at=NOW, run="other", kind="begin"))
    assert known(Journal.open(store)) == {"u1": "1"}


def test_folding_changes_nothing_that_is_known(store):
    journal = Journal.open(store)
    tell(journal, {"u1": "1", "u2": "2"})
    journal.fold("r", NOW, 10**6)
    tell(journal, {"u1": "9", "u3": "3"})
    journal.fold("r", NOW, 10**6)
    tell(journal, {"u4": "4"})
    expected = {"u1": "9", "u2": "2", "u3": "3", "u4": "4"}
    assert known(journal) == expected
    assert known(Journal.open(store)) == expected


def test_a_fold_whose_mark_was_not_written_counts(store):
    journal = Journal.open(store)
    tell(journal, {"u1": "1"})
    journal.fold("r", NOW, 10**6)
    store.delete(["_ledger/folded/0000000002"])
    assert known(Journal.open(store)) == {"u1": "1"}


def test_objects_that_a_fold_replaced_go_with_the_next_one(store):
    journal = Journal.open(store)
    tell(journal, {"u1": "1"})
    journal.fold("r", NOW, 10**6)
    assert store.stat("told/1.parquet")
    tell(journal, {"u2": "2"})
    journal.fold("r", NOW, 10**6)
    assert store.stat("told/1.parquet") is None
    assert known(Journal.open(store)) == {"u1": "1", "u2": "2"}


def test_an_intent_without_outcome_stays_until_it_is_settled(store):
    journal = Journal.open(store)
    intent = tell(journal, {"e1": "1"}, kind="intent")
    tell(journal, {"e1": "2"})
    for _ in range(3):
        journal.fold("r", NOW, 10**6)
        journal = Journal.open(store)
        assert list(journal.undecided) == [intent.number]
        assert journal.read(intent.unknown[0])[ID].to_list() == ["e1"]
        assert known(journal) == {"e1": "2"}
    journal.commit(Step(at=NOW, run="r", kind="told", settles=(intent.number,)))
    assert Journal.open(store).undecided == {}


def test_what_the_last_run_said_survives_a_fold(store):
    journal = Journal.open(store)
    journal.commit(Step(at=NOW, run="r", kind="end", about={"accepted": 7}))
    tell(journal, {"u1": "1"})
    journal.fold("r", NOW, 10**6)
    assert Journal.open(store).last == {"accepted": 7}


def test_a_damaged_step_stops_everything(store):
    journal = Journal.open(store)
    tell(journal, {"u1": "1"})
    store.put("_ledger/0000000001.json", b"{}")
    with pytest.raises(LedgerBrokenError, match="it is no step of an audience"):
        Journal.open(store)
