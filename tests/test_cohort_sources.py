"""Where cohorts come from: a file each, several in one, names and ids to be mapped."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from currents_ingest.audiences import sync
from currents_ingest.errors import CurrentsError, GuardError
from tests.audience_campaign import Place, chosen, write_csv
from tests.partner_server import ENVIRONMENT, USER, Partner, partner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from currents_ingest.audiences.gathering import Target
    from currents_ingest.config import Settings

BY_COLUMN = {"cohort_column": "treatment"}
BY_FILE = {"cohort_file": "campaign-{cohort}-*.csv"}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def braze() -> Iterator[Partner]:
    with partner() as found:
        yield found


@pytest.fixture
def place(tmp_path: Path, braze: Partner) -> Place:
    return Place(root=tmp_path, braze=braze.url)


def cohorts(place: Place, **more: Any) -> tuple[Settings, Target]:
    quick = {"patience": "5s"}
    return chosen(place, braze=quick, **{"kind": "cohort", **more})


def synced(place: Place, *, force: bool = False, **more: Any) -> sync.Run:
    given = cohorts(place, **more)
    return sync.sync(*given, sync.key(*given), force=force)


def by_treatment(place: Place, **ids: str) -> None:
    """Write one file with ids, parted by blanks, of several cohorts."""
    found = [
        {"external_id": one, "treatment": name.replace("_", " ")}
        for name, listed in ids.items()
        for one in listed.split()
    ]
    write_csv(place.export, sorted(found, key=lambda row: row["external_id"]))


def folder(place: Place, round_: int = 0, **ids: str) -> dict[str, Any]:
    """Write a folder with a file for each cohort, some minutes after the last one."""
    where = place.root / "exports"
    where.mkdir(exist_ok=True)
    for name, listed in ids.items():
        path = where / f"{name}.csv"
        write_csv(path, [{"external_id": one} for one in listed.split()])
        moment = time.time() - 40_000 + 4000 * round_
        os.utime(path, (moment, moment))
    return {"source": str(where)}


def held(braze: Partner) -> dict[str, str]:
    """Return ids by cohort, parted by blanks."""
    assert {kind for ids in braze.members.values() for kind, _ in ids} <= {USER}
    return {
        name: " ".join(sorted(one for _, one in ids))
        for name, ids in braze.members.items()
    }


# Several cohorts in one file.


def test_a_column_names_the_cohort_of_each_row(place, braze):
    by_treatment(place, A="u1 u2", B="u3", Not_yet="u2")
    found = synced(place, **BY_COLUMN)
    assert held(braze) == {"A": "u1 u2", "B": "u3", "Not yet": "u2"}
    assert {one["cohort_id"]: one["name"] for one in braze.definitions} == {
        name: name for name in ("A", "B", "Not yet")
    }
    assert (found.new, found.cohorts) == (
        4,
        {"A": [2, 0], "B": [1, 0], "Not yet": [1, 0]},
    )


def test_who_changes_cohort_leaves_one_and_joins_the_other(place, braze):
    by_treatment(place, A="u1 u2", B="u3")
    synced(place, **BY_COLUMN)
    by_treatment(place, A="u1", B="u2 u3")
    found = synced(place, **BY_COLUMN)
    assert held(braze) == {"A": "u1", "B": "u2 u3"}
    assert (found.new, found.left) == (1, 1)


def test_a_cohort_that_is_gone_from_the_file_has_lost_all_members(place, braze):
    by_treatment(place, A="u1 u2 u3", B="u4")
    synced(place, **BY_COLUMN)
    by_treatment(place, A="u1 u2 u3")
    assert synced(place, **BY_COLUMN).left == 1
    assert held(braze) == {"A": "u1 u2 u3", "B": ""}


def test_a_cohort_that_comes_back_is_the_one_it_was(place, braze):
    by_treatment(place, A="u1 u2 u3", B="u4")
    synced(place, **BY_COLUMN)
    by_treatment(place, A="u1 u2 u3")
    synced(place, **BY_COLUMN)
    braze.forget()
    by_treatment(place, A="u1 u2 u3", B="u5")
    synced(place, cohort_id="amperity-{name}", **BY_COLUMN)
    assert held(braze) == {"A": "u1 u2 u3", "B": "u5"}
    assert braze.definitions == []


def test_the_guard_is_for_the_export_as_a_whole(place):
    by_treatment(place, A="u1 u2 u3 u4", B="u5 u6 u7 u8")
    synced(place, **BY_COLUMN)
    by_treatment(place, A="u1 u2 u3 u4")
    with pytest.raises(GuardError, match="4 people, and the one before had 8"):
        synced(place, max_shrink=0.4, **BY_COLUMN)
    assert synced(place, max_shrink=0.5, **BY_COLUMN).left == 4


def test_what_the_column_says_can_be_mapped_to_names_or_left_out(place, braze):
    by_treatment(place, a="u1", control="u2 u3", b="u4")
    names = {"a": "Churn, offer A", "control": ""}
    found = synced(place, cohorts=names, **BY_COLUMN)
    assert held(braze) == {"Churn, offer A": "u1", "b": "u4"}
    assert (found.new, found.rows, found.rejected) == (2, 4, 0)


def test_a_mapped_name_that_changes_renames(place, braze):
    by_treatment(place, a="u1", b="u2")
    synced(place, cohorts={"a": "One"}, **BY_COLUMN)
    braze.forget()
    synced(place, cohorts={"a": "Uno"}, **BY_COLUMN)
    told = [(one["cohort_id"], one["name"]) for one in braze.definitions]
    assert (told, braze.sent) == ([("One", "Uno")], [])


def test_a_cohort_that_is_left_out_from_now_on_loses_its_members(place, braze):
    by_treatment(place, a="u1", b="u2")
    synced(place, **BY_COLUMN)
    synced(place, cohorts={"b": ""}, **BY_COLUMN)
    assert held(braze) == {"a": "u1", "b": ""}


@pytest.mark.parametrize("null", ["", " ", "NULL"])
def test_a_row_without_a_cohort_is_skipped_and_counted(place, braze, null):
    rows = [("u1", "A"), ("u2", null), ("", "A"), ("u3", "A")]
    write_csv(
        place.export, [{"external_id": one, "treatment": two} for one, two in rows]
    )
    found = synced(place, max_reject_share=0, **BY_COLUMN)
    assert held(braze) == {"A": "u1 u3"}
    assert (found.skipped, found.rejected) == (2, 0)


def test_ids_and_cohorts_can_come_from_columns_of_any_name(place, braze):
    rows = [{"Customer ID": "u1", "Group": "A", "external": "x"}]
    write_csv(place.export, rows)
    ids = {"Customer ID": "external_id"}
    synced(place, columns=ids, cohort_column="Group")
    assert held(braze) == {"A": "u1"}


def test_a_cohort_column_that_is_not_there_is_refused_by_name(place, braze):
    by_treatment(place, A="u1")
    with pytest.raises(CurrentsError, match="grp"):
        synced(place, cohort_column="grp")
    assert braze.stub.got == []


def test_typed_columns_name_ids_and_cohorts_too(place, braze):
    path = place.root / "export.parquet"
    frame = {"external_id": [7, 8, None], "treatment": [1, 2, 2]}
    pl.DataFrame(frame).write_parquet(path)
    found = synced(place, source=str(path), **BY_COLUMN)
    assert held(braze) == {"1": "7", "2": "8"}
    assert found.skipped == 1


@pytest.mark.parametrize(
    "name", ["Ünïcode ✓", 'a "b"', "a/b", "a.b", "amperity-x", "0"]
)
def test_cohorts_may_be_called_anything(place, braze, name):
    write_csv(place.export, [{"external_id": "u1", "treatment": name}])
    synced(place, cohort_id="amperity-{name}", **BY_COLUMN)
    assert held(braze) == {f"amperity-{name}": "u1"}
    assert braze.definitions[0]["name"] == name
    write_csv(place.export, [{"external_id": "u2", "treatment": name}])
    synced(place, **BY_COLUMN)
    assert held(braze) == {f"amperity-{name}": "u2"}


# A file for each cohort.


def test_a_files_name_names_the_cohort_of_its_rows(place, braze):
    files = {"campaign-A-20260901": "u1 u2", "campaign-B-20260901": "u2 u3"}
    found = synced(place, **folder(place, **files), **BY_FILE)
    assert held(braze) == {"A": "u1 u2", "B": "u2 u3"}
    assert (found.rows, found.cohorts) == (4, {"A": [2, 0], "B": [2, 0]})


def test_a_newer_delivery_takes_the_place_of_the_last(place, braze):
    first = {"campaign-A-20260901": "u1 u2", "campaign-B-20260901": "u3"}
    synced(place, **folder(place, **first), **BY_FILE)
    second = {"campaign-A-20260902": "u2", "campaign-B-20260902": "u3 u4"}
    found = synced(place, **folder(place, 1, **second), **BY_FILE)
    assert held(braze) == {"A": "u2", "B": "u3 u4"}
    assert (found.new, found.left) == (1, 1)


def test_a_file_that_is_missing_says_nothing_of_its_cohort(place, braze):
    first = {"campaign-A-20260901": "u1 u2", "campaign-B-20260901": "u3"}
    synced(place, **folder(place, **first), **BY_FILE)
    synced(place, **folder(place, 1, **{"campaign-A-20260902": "u2 u4"}), **BY_FILE)
    assert held(braze) == {"A": "u2 u4", "B": "u3"}


def test_names_of_files_can_be_mapped_or_left_out(place, braze):
    files = {"campaign-a-1": "u1", "campaign-control-1": "u2"}
    names = {"a": "Offer A", "control": ""}
    synced(place, cohorts=names, **folder(place, **files), **BY_FILE)
    assert held(braze) == {"Offer A": "u1"}


def test_other_files_of_the_folder_are_left_alone(place, braze):
    files = {"campaign-A-1": "u1", "readme": "x1"}
    synced(place, **folder(place, **files), **BY_FILE)
    assert held(braze) == {"A": "u1"}


def test_a_folder_without_such_files_is_no_export(place, braze):
    with pytest.raises(CurrentsError, match="exports"):
        synced(place, **folder(place, other="u1"), **BY_FILE)
    assert braze.stub.got == []


def test_a_preview_of_several_cohorts_counts_each(place, braze):
    by_treatment(place, A="u1 u2", B="u3")
    synced(place, **BY_COLUMN)
    asked = len(braze.stub.got)
    by_treatment(place, A="u1", B="u3 u4", C="u5")
    told = sync.preview(*cohorts(place, **BY_COLUMN)).figures
    assert told.cohorts == {"A": [0, 1], "B": [1, 0], "C": [1, 0]}
    assert (told.new, told.left, len(braze.stub.got)) == (2, 1, asked)
    assert synced(place, **BY_COLUMN).cohorts == told.cohorts
