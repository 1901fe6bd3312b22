"""Named cohorts by joins and leaves, kept against the partner API and the sandbox."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from currents_ingest.audiences import sync
from currents_ingest.commands.audience import app
from currents_ingest.errors import BrazeRefusedError, GuardError, SettingsError
from tests.audience_campaign import KEY, Place, chosen, held, run, write_csv
from tests.partner_server import (
    ALIAS,
    DEVICE,
    ENVIRONMENT,
    USER,
    Partner,
    body_of,
    partner,
)
from tests.sandbox_server import Got, Reply, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from currents_ingest.audiences.gathering import Target
    from currents_ingest.config import Settings

KINDS = {"identifier": "external_id", "otherwise": ["user_alias", "device_id"]}
NOBODY = {"external_id": "", "alias_name": "", "alias_label": "", "device_id": ""}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("BRAZE_API_KEY", raising=False)


@pytest.fixture
def braze() -> Iterator[Partner]:
    with partner() as found:
        yield found


@pytest.fixture
def place(tmp_path: Path, braze: Partner) -> Place:
    return Place(root=tmp_path, braze=braze.url)


def users(*numbers: int) -> list[str]:
    return [f"u{number}" for number in numbers]


def export(place: Place, ids: Iterable[str], **cells: str) -> None:
    """Write people by external id."""
    found = [{"external_id": one, **cells} for one in ids]
    write_csv(place.export, found or [{"external_id": ""}])


def cohort(
    place: Place, *, braze: dict[str, Any] | None = None, **more: Any
) -> tuple[Settings, Target]:
    quick = {"patience": "5s", **(braze or {})}
    return chosen(place, braze=quick, **{"kind": "cohort", **more})


def synced(place: Place, *, force: bool = False, **more: Any) -> sync.Run:
    """Sync the cohort as it is now."""
    given_ = cohort(place, **more)
    return sync.sync(*given_, sync.key(*given_), force=force)


def by_user(*ids: str) -> set[tuple[str, str]]:
    return {(USER, one) for one in ids}


# Create, rename, join, leave.


def test_a_cohort_is_created_before_its_first_members(place, braze):
    export(place, users(1, 2))
    before = datetime.now(UTC) - timedelta(seconds=2)
    found = synced(place, cohort="High Value")
    assert [one.path for one in braze.stub.got] == [
        "/partners/amperity/cohorts",
        "/partners/amperity/cohorts/users",
    ]
    [told] = braze.definitions
    made = datetime.fromisoformat(told.pop("created_at"))
    assert before <= made <= datetime.now(UTC)
    assert told == {"cohort_id": "High Value", "name": "High Value"}
    assert braze.members == {"High Value": by_user("u1", "u2")}
    assert (found.state, found.new, found.left, found.requests) == ("done", 2, 0, 2)


def test_without_a_name_of_its_own_a_cohort_is_called_as_the_audience(place, braze):
    export(place, users(1))
    synced(place)
    assert [one["name"] for one in braze.definitions] == ["vips"]


def test_only_joins_and_leaves_are_sent(place, braze):
    export(place, users(1, 2, 3))
    synced(place)
    braze.forget()
    export(place, users(3, 2, 4))
    found = synced(place)
    [told] = braze.sent
    assert (told.joins, told.leaves) == ([(USER, "u4")], [(USER, "u1")])
    assert braze.definitions == []
    assert (found.new, found.changed, found.left, found.taken) == (1, 0, 1, 2)
    assert found.requests == 1


def test_who_came_back_joins_again(place, braze):
    for ids in ((1, 2, 3), (2, 3), (1, 2, 3)):
        export(place, users(*ids))
        found = synced(place)
    assert (found.new, found.changed, found.left) == (1, 0, 0)
    assert braze.members["vips"] == by_user("u1", "u2", "u3")


def test_the_same_members_in_a_new_delivery_send_nothing(place, braze):
    export(place, users(1, 2, 3))
    synced(place)
    braze.forget()
    export(place, users(3, 1, 2, 1), note="new")
    assert synced(place).taken == 0
    assert braze.stub.got == []


def test_a_delivery_that_was_sent_is_not_read_again(place, braze):
    export(place, users(1))
    synced(place)
    kept = place.files()
    assert synced(place).state == "nothing new"
    assert (len(braze.stub.got), place.files()) == (2, kept)


def test_a_new_name_renames_and_nothing_else(place, braze):
    export(place, users(1, 2))
    synced(place, cohort="Gold")
    braze.forget()
    found = synced(place, cohort="Platinum")
    assert [one.path for one in braze.stub.got] == ["/partners/amperity/cohorts"]
    [told] = braze.definitions
    assert (told["cohort_id"], told["name"]) == ("Gold", "Platinum")
    assert (found.new, found.left, found.requests) == (0, 0, 1)
    braze.forget()
    export(place, users(1, 2, 3))
    synced(place, cohort="Platinum")
    assert [one.path for one in braze.stub.got] == ["/partners/amperity/cohorts/users"]
    assert braze.members == {"Gold": by_user("u1", "u2", "u3")}


def test_a_new_name_is_told_before_new_members(place, braze):
    export(place, users(1))
    synced(place, cohort="Gold")
    export(place, users(1, 2))
    synced(place, cohort="Platinum")
    paths = [one.path.rpartition("/")[2] for one in braze.stub.got]
    assert paths == ["cohorts", "users", "cohorts", "users"]


@pytest.mark.parametrize(
    ("first", "later"),
    [("amperity-{name}", "{name}"), ("{name}", "amperity-{name}")],
)
def test_the_id_of_a_cohort_is_fixed_when_it_is_first_sent(place, braze, first, later):
    export(place, users(1))
    synced(place, cohort="High Value", cohort_id=first)
    export(place, users(2))
    synced(place, force=True, cohort="Best", cohort_id=later)
    fixed = first.format(name="High Value")
    told = [(one["cohort_id"], one["name"]) for one in braze.definitions]
    assert told == [(fixed, "High Value"), (fixed, "Best")]
    assert braze.members == {fixed: by_user("u2")}


def test_the_partner_is_named_in_the_address(place, braze):
    export(place, users(1))
    synced(place, braze={"partner": "acme-data"})
    assert {one.path for one in braze.stub.got} == {
        "/partners/acme-data/cohorts",
        "/partners/acme-data/cohorts/users",
    }


def test_no_bearer_is_sent_and_the_rest_key_is_not_needed(place, braze, monkeypatch):
    export(place, users(1))
    monkeypatch.setenv("BRAZE_API_KEY", KEY)
    synced(place)
    for got in braze.stub.got:
        assert "authorization" not in got.headers
        assert got.headers["content-type"] == "application/json"
        assert KEY not in f"{got.headers} {got.body!r}"


# A thousand ids, of all kinds.


def mixed(number: int) -> tuple[list[dict[str, str]], set[tuple[str, str]]]:
    """Make rows whose ids are of every kind in turn, and say who is meant."""
    rows, meant = [], set()
    for one in range(number):
        if one % 3 == 0:
            rows.append(NOBODY | {"external_id": f"u{one}"})
            meant.add((USER, f"u{one}"))
        elif one % 3 == 1:
            rows.append(NOBODY | {"alias_name": f"a{one}", "alias_label": "crm"})
            meant.add((ALIAS, f"a{one} of crm"))
        else:
            rows.append(NOBODY | {"device_id": f"device-{one}"})
            meant.add((DEVICE, f"device-{one}"))
    return rows, meant


@pytest.mark.parametrize("number", [1, 999, 1000, 1001, 2000, 2001])
def test_a_request_has_a_thousand_ids_at_most_in_all_kinds_together(
    place, braze, number
):
    rows, meant = mixed(number)
    write_csv(place.export, rows)
    synced(place, **KINDS)
    sizes = [len(one.ids) for one in braze.sent]
    assert max(sizes) <= 1000
    assert sum(sizes) == number
    assert len(sizes) == -(-number // 1000)
    assert braze.members["vips"] == meant


def test_joins_and_leaves_share_the_thousand(place, braze):
    export(place, users(*range(700)))
    synced(place)
    braze.forget()
    export(place, users(*range(600, 1300)))
    found = synced(place, max_shrink=1)
    assert sorted(len(one.ids) for one in braze.sent) == [200, 1000]
    assert (found.new, found.left) == (600, 600)


def test_a_request_is_about_one_cohort(place, braze):
    rows = [{"external_id": f"u{one}", "group": f"G{one % 7}"} for one in range(3500)]
    write_csv(place.export, rows)
    synced(place, cohort_column="group")
    assert Counter(one.cohort for one in braze.sent) == {f"G{n}": 1 for n in range(7)}
    for told in braze.sent:
        assert {int(one[1:]) % 7 for _, one in told.ids} == {int(told.cohort[1:])}


def test_an_id_that_the_file_has_twice_is_sent_once(place, braze):
    export(place, users(1, 2, 1, 1))
    found = synced(place)
    assert sorted(braze.sent[0].ids) == [(USER, "u1"), (USER, "u2")]
    assert (found.new, found.repeated) == (2, 2)


def test_an_id_of_two_kinds_is_two_members(place, braze):
    write_csv(
        place.export,
        [NOBODY | {"external_id": "same-id-1"}, NOBODY | {"device_id": "same-id-1"}],
    )
    synced(place, **KINDS)
    assert braze.members["vips"] == {(USER, "same-id-1"), (DEVICE, "same-id-1")}


# Who is meant.


@pytest.mark.parametrize("null", ["", "   ", "NULL", "null"])
def test_null_ids_are_skipped_and_counted_and_are_no_rejects(place, braze, null):
    export(place, ["u1", null, "u2", null, null])
    found = synced(place, max_reject_share=0)
    assert braze.members["vips"] == by_user("u1", "u2")
    assert (found.rows, found.skipped, found.rejected, found.new) == (5, 3, 0, 2)
    assert sync.preview(*cohort(place)).skipped == 3


def test_null_ids_of_typed_files_are_skipped_too(place, braze):
    path = place.root / "export.parquet"
    pl.DataFrame({"external_id": ["u1", None, "u2"]}).write_parquet(path)
    found = synced(place, source=str(path))
    assert (found.skipped, found.new, found.rejected) == (1, 2, 0)
    assert braze.members["vips"] == by_user("u1", "u2")


def test_null_ids_keep_nobody_from_leaving(place, braze):
    export(place, users(1, 2, 3))
    synced(place)
    export(place, ["u1", "u2", ""])
    assert synced(place).left == 1
    assert braze.members["vips"] == by_user("u1", "u2")


def test_the_first_identifier_that_is_not_null_names_a_member(place, braze):
    full = {
        "external_id": "u1",
        "alias_name": "a1",
        "alias_label": "crm",
        "device_id": "device-1",
    }
    rows = [
        full,
        full | {"external_id": "NULL", "alias_name": "a2"},
        full | {"external_id": "", "alias_name": "", "alias_label": ""},
        NOBODY,
    ]
    write_csv(place.export, rows)
    found = synced(place, **KINDS)
    assert braze.members["vips"] == {
        (USER, "u1"),
        (ALIAS, "a2 of crm"),
        (DEVICE, "device-1"),
    }
    assert (found.skipped, found.rejected) == (1, 0)
    assert len(braze.sent) == 1


@pytest.mark.parametrize(
    ("row", "identifier", "meant"),
    [
        ({"device_id": "device-1"}, "device_id", (DEVICE, "device-1")),
        (
            {"alias_name": "a1", "alias_label": "crm"},
            "user_alias",
            (ALIAS, "a1 of crm"),
        ),
    ],
)
def test_members_can_be_devices_or_aliases_alone(place, braze, row, identifier, meant):
    write_csv(place.export, [row | {"external_id": "u1"}])
    synced(place, identifier=identifier)
    assert braze.members["vips"] == {meant}


def test_ids_can_come_from_a_column_of_another_name(place, braze):
    write_csv(place.export, [{"customer_id": "007", "email": "a@example.com"}])
    synced(place, columns={"customer_id": "external_id"})
    assert braze.members["vips"] == by_user("007")


def test_other_columns_are_no_mans_business(place, braze):
    export(place, users(1), email="a@example.com", push_subscribe="x", birthday="1990")
    found = synced(place)
    assert braze.sent[0].ids == [(USER, "u1")]
    assert found.warnings == ()
    assert all(b"example" not in got.body for got in braze.stub.got)


def test_a_file_without_the_identifier_is_refused_by_name(place, braze):
    write_csv(place.export, [{"customer": "1"}])
    with pytest.raises(Exception, match="external_id") as caught:
        synced(place)
    assert "columns" in str(caught.value)
    assert braze.stub.got == []


@pytest.mark.parametrize("one", ['a"b', "ü\\n", "ид-1", "a,b", "x" * 250, "null-1"])
def test_ids_arrive_as_they_are_written(place, braze, one):
    export(place, [one])
    synced(place)
    assert braze.members["vips"] == by_user(one)


# Guards, preview, resume, retry.


def test_an_export_that_shrank_is_refused_until_forced(place, braze):
    export(place, users(*range(10)))
    synced(place)
    braze.forget()
    export(place, users(*range(4)))
    with pytest.raises(GuardError, match="4 people, and the one before had 10"):
        synced(place)
    assert braze.stub.got == []
    assert sync.preview(*cohort(place)).guard
    assert synced(place, force=True).left == 6
    assert braze.members["vips"] == by_user(*users(*range(4)))


def test_an_export_of_nobody_is_refused_until_forced(place, braze):
    export(place, users(1, 2))
    synced(place)
    export(place, ["", "NULL"])
    with pytest.raises(GuardError, match="names nobody"):
        synced(place)
    assert synced(place, force=True).left == 2
    assert braze.members["vips"] == set()


def test_one_small_cohort_may_vanish_without_force(place, braze):
    rows = [{"external_id": f"u{n}", "g": "B" if n == 9 else "A"} for n in range(10)]
    write_csv(place.export, rows)
    synced(place, cohort_column="g")
    write_csv(place.export, rows[:9])
    assert synced(place, cohort_column="g").left == 1
    assert braze.members["B"] == set()


def test_a_preview_changes_nothing_and_counts_as_the_sync_does(place, braze):
    export(place, users(*range(2500)))
    for ids in (range(2500), range(300, 2600)):
        export(place, ["", *users(*ids)])
        kept, asked = place.files() if place.kept.is_dir() else {}, len(braze.stub.got)
        told = sync.preview(*cohort(place))
        assert len(braze.stub.got) == asked
        assert (place.files() if place.kept.is_dir() else {}) == kept
        found = synced(place)
        counts = told.figures
        assert (counts.new, counts.changed, counts.left) == (
            found.new,
            found.changed,
            found.left,
        )
        assert counts.objects == found.taken
        assert (told.rows, told.skipped) == (found.rows, found.skipped)
        members = [one for one in braze.stub.got[asked:] if one.path.endswith("users")]
        assert counts.requests == len(members)
        assert counts.cohorts == found.cohorts
        shown = json.dumps(asdict(told)["samples"])
        assert '"u1"' not in shown


def test_a_plan_is_sent_exactly(place, braze):
    export(place, users(1, 2))
    given_ = cohort(place)
    plan = place.root / "vips.plan"
    sync.preview(*given_, plan)
    export(place, users(3))
    found = sync.sync(*given_, sync.key(*given_), plan=plan)
    assert (found.new, braze.members) == (2, {"vips": by_user("u1", "u2")})


def stopping_after(asked: int) -> Callable[[], bool]:
    """Return what says stop when it was asked so often."""
    asks = count()
    return lambda: next(asks) >= asked


@pytest.mark.parametrize("asked", [0, 1, 2, 3, 5, 9])
def test_what_was_acknowledged_before_a_stop_is_not_sent_again(place, braze, asked):
    ids = users(*range(9500))
    export(place, ids)
    given_ = cohort(place, braze={"concurrency": 1})
    key = sync.key(*given_)
    first = sync.sync(*given_, key, stop=stopping_after(asked))
    assert first.state == "stopped"
    second = sync.sync(*given_, key)
    assert second.state == "done"
    sent = Counter(one for told in braze.sent for one in told.ids)
    assert set(sent.values()) == {1}
    assert braze.members["vips"] == by_user(*ids)
    assert first.taken + second.taken == 9500
    assert sync.sync(*given_, key).state == "nothing new"


def refusing(bad: set[str]) -> Callable[[Got], Reply | None]:
    """Refuse requests that have an id of these."""

    def answer(got: Got) -> Reply | None:
        changes = body_of(got).get("cohort_changes", [])
        ids = {one for change in changes for one in change.get("user_ids", ())}
        if ids & bad:
            return Reply(400, {"message": "'cohort_changes' has a bad id"})
        return None

    return answer


def test_a_bad_request_is_narrowed_down_to_the_id_and_the_others_join(tmp_path):
    ids = users(*range(1500))
    with partner(refusing({"u77", "u1200"})) as braze:
        place = Place(root=tmp_path, braze=braze.url)
        export(place, ids)
        found = synced(place)
        assert (found.taken, found.failed, found.unknown) == (1498, 2, 0)
        assert sum(found.reasons.values()) == 2
        assert all(one.startswith("400") for one in found.reasons)
        assert braze.members["vips"] == by_user(*ids) - by_user("u77", "u1200")


def test_what_failed_is_retried_on_demand_and_by_the_next_sync(tmp_path):
    bad = {"u7", "u8"}
    with partner(refusing(bad)) as braze:
        place = Place(root=tmp_path, braze=braze.url)
        export(place, users(*range(20)))
        given_ = cohort(place)
        key = sync.key(*given_)
        first = sync.sync(*given_, key)
        assert first.failed == 2
        bad.remove("u7")
        braze.forget()
        again = sync.retry(*given_, first.run, key)
        assert (again.taken, again.failed) == (1, 1)
        assert {one for told in braze.sent for one in told.ids} == by_user("u7", "u8")
        bad.clear()
        last = sync.sync(*given_, key)
        assert (last.taken, last.failed) == (1, 0)
        assert braze.members["vips"] == by_user(*users(*range(20)))


def test_who_failed_to_join_and_left_since_is_not_sent_a_join(tmp_path):
    bad = {"u3"}
    with partner(refusing(bad)) as braze:
        place = Place(root=tmp_path, braze=braze.url)
        export(place, users(1, 2, 3))
        synced(place)
        bad.clear()
        export(place, users(1, 2))
        synced(place)
        assert braze.members["vips"] == by_user("u1", "u2")


def test_a_name_that_braze_does_not_take_stops_the_run_and_says_so(tmp_path):
    def answer(got: Got) -> Reply | None:
        wrong = body_of(got).get("name") == "Bad"
        return (
            Reply(400, {"message": "'name' must be something else"}) if wrong else None
        )

    with partner(answer) as braze:
        place = Place(root=tmp_path, braze=braze.url)
        export(place, users(1))
        with pytest.raises(Exception, match="Bad") as caught:
            synced(place, cohort="Bad")
        assert "400" in str(caught.value)
        assert (braze.members, braze.sent) == ({}, [])
        synced(place, cohort="Good")
        assert list(braze.members.values()) == [by_user("u1")]


# Keys.


@pytest.mark.parametrize("missing", [["BRAZE_PARTNER_KEY"], list(ENVIRONMENT)])
def test_without_keys_nothing_is_sent_and_the_variables_are_named(
    place, monkeypatch, missing
):
    for one in missing:
        monkeypatch.setenv(one, "  ")
    with pytest.raises(SettingsError) as caught:
        sync.key(*cohort(place))
    told = str(caught.value)
    assert all((one in told) == (one in missing) for one in ENVIRONMENT)
    assert "without_partner" in told


def test_the_variables_of_the_keys_can_be_chosen(place, braze, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.delenv(name)
        monkeypatch.setenv(f"OUR_{name}", value)
    export(place, users(1))
    named = {
        "partner_key_env": "OUR_BRAZE_PARTNER_KEY",
        "data_import_key_env": "OUR_BRAZE_DATA_IMPORT_KEY",
    }
    assert synced(place, braze=named).new == 1
    assert braze.members["vips"] == by_user("u1")


def test_another_workspaces_key_is_refused_until_forced(place, braze, monkeypatch):
    export(place, users(1))
    synced(place)
    braze.forget()
    monkeypatch.setenv("BRAZE_DATA_IMPORT_KEY", "of-another-workspace")
    export(place, users(1, 2))
    with pytest.raises(GuardError, match="key"):
        synced(place)
    assert braze.stub.got == []


def test_a_new_partner_key_is_no_other_workspace(place, monkeypatch, braze):
    export(place, users(1))
    synced(place)
    monkeypatch.setitem(ENVIRONMENT, "BRAZE_PARTNER_KEY", "renewed")
    monkeypatch.setenv("BRAZE_PARTNER_KEY", "renewed")
    braze.forget()
    export(place, users(1, 2))
    assert synced(place).new == 1


# Without a partner key.


@pytest.fixture
def alone(tmp_path: Path, box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Return a place of someone whom Braze gave no partner key."""
    monkeypatch.delenv("BRAZE_PARTNER_KEY")
    monkeypatch.setenv("BRAZE_API_KEY", KEY)
    box.people({"external_id": f"u{n}"} for n in range(100))
    box.people(
        {
            "user_alias": {"alias_name": f"a{n}", "alias_label": "crm"},
            "_update_existing_only": False,
        }
        for n in range(3)
    )
    return Place(root=tmp_path, braze=box.url)


BOOLEAN = {"without_partner": "boolean", "membership": "in_vips"}
ARRAY = {"without_partner": "array", "membership": "cohorts"}


def test_without_a_partner_key_members_have_an_attribute_that_is_true(alone, box):
    export(alone, ["u1", "u2", "stranger", "NULL"], email="x@example.com")
    found = synced(alone, **BOOLEAN)
    assert (found.new, found.skipped, found.state) == (3, 1, "done")
    export(alone, ["u2", "u3"])
    assert synced(alone, **BOOLEAN).left == 2
    marked = {who: one for who, one in held(box).items() if one}
    assert marked == {
        "u1": {"in_vips": False},
        "u2": {"in_vips": True},
        "u3": {"in_vips": True},
    }
    assert "stranger" not in held(box)
    assert "/partners/{name}/cohorts" not in box.state()["requests"]


def test_without_a_partner_key_cohorts_can_be_items_of_an_array(alone, box):
    def groups(*rows: tuple[str, str]) -> None:
        write_csv(alone.export, [{"external_id": u, "g": g} for u, g in rows])

    settings_ = {**ARRAY, "cohort_column": "g"}
    groups(("u1", "Gold"), ("u1", 'Ü "x"'), ("u2", "Gold"), ("u3", "Gold"))
    synced(alone, **settings_)
    groups(("u1", 'Ü "x"'), ("u2", "Gold"), ("u4", "Gold"))
    found = synced(alone, **settings_)
    assert (found.new, found.left) == (1, 2)
    marked = {who: one["cohorts"] for who, one in held(box).items() if one}
    assert marked == {"u1": ['Ü "x"'], "u2": ["Gold"], "u3": [], "u4": ["Gold"]}


def test_the_item_of_a_cohort_is_fixed_when_it_is_first_sent(alone, box):
    export(alone, users(1, 2))
    synced(alone, cohort="Gold", **ARRAY)
    export(alone, users(2, 3))
    synced(alone, cohort="Best", cohort_id="amperity-{name}", **ARRAY)
    marked = {who: one["cohorts"] for who, one in held(box).items() if one}
    assert marked == {"u1": [], "u2": ["Gold"], "u3": ["Gold"]}


def test_aliases_get_the_attribute_too(alone, box):
    write_csv(
        alone.export,
        [NOBODY | {"alias_name": "a1", "alias_label": "crm"}],
    )
    synced(alone, identifier="user_alias", **BOOLEAN)
    marked = [
        one["user_aliases"][0]["alias_name"]
        for one in box.lines("profiles")
        if one["custom_attributes"].get("in_vips")
    ]
    assert marked == ["a1"]


@pytest.mark.parametrize("settings_", [BOOLEAN, ARRAY], ids=["boolean", "array"])
def test_attributes_equal_the_export_whatever_goes_wrong(alone, box, settings_):
    for ids in (range(60), range(30, 90)):
        box.faults(first=["500_after", "", "503", "reset_after", "", "empty_201"])
        export(alone, users(*ids))
        synced(alone, braze={"batch_size": 10}, **settings_)
        assert box.state()["faults"]
    value = [True, ["vips"]][settings_ is ARRAY]
    name = settings_["membership"]
    found = {who for who, one in held(box).items() if one.get(name) == value}
    assert found == set(users(*range(30, 90)))


def test_with_a_partner_key_the_same_settings_make_a_cohort(place, braze):
    export(place, users(1))
    synced(place, **BOOLEAN)
    assert braze.members["vips"] == by_user("u1")


def test_a_partner_key_that_comes_later_sends_all_members(alone, box, monkeypatch):
    export(alone, users(1, 2))
    synced(alone, **BOOLEAN)
    monkeypatch.setenv("BRAZE_PARTNER_KEY", "given at last")
    found = synced(alone, **BOOLEAN)
    assert (found.state, found.new) == ("done", 2)
    assert box.cohorts()["vips"]["user_ids"] == users(1, 2)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"without_partner": "boolean"}, "membership"),
        ({"without_partner": "array"}, "membership"),
        ({**BOOLEAN, "identifier": "device_id"}, "device_id"),
        ({**ARRAY, "otherwise": ["device_id"]}, "device_id"),
        ({**BOOLEAN, "cohort_column": "g"}, "array"),
        ({"membership": "x"}, "without_partner"),
        ({"identifier": "email"}, "email"),
        ({"otherwise": ["external_id"]}, "twice"),
        ({"cohort": "a", "cohort_column": "g"}, "one of cohort"),
        ({"cohorts": {"a": "b"}}, "cohort_column"),
        ({"cohort_column": "g", "cohorts": {"a": "x", "b": "x"}}, "one name"),
        ({"cohort_id": "fixed"}, "cohort_id"),
        ({"cohort_file": "a-*.csv"}, "cohort_file"),
        ({"kind": "attributes", "cohort": "a"}, "cohort"),
        ({"kind": "attributes", "identifier": "device_id"}, "device_id"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(place, wrong, said):
    with pytest.raises(SettingsError, match=said):
        cohort(place, **wrong)


# All audiences.


def test_all_audiences_are_synced_and_one_that_fails_keeps_no_other(tmp_path, box):
    box.people({"external_id": f"u{n}"} for n in range(3))
    place = Place(root=tmp_path, braze=box.url)
    export(place, users(1, 2))
    cohort(place, cohort="Kept")
    path = tmp_path / "currents.toml"
    told = path.read_text()
    one = told.partition("audiences = { ")[2].rpartition(" }")[0]
    lost = one.replace("vips", "a_lost", 1).replace("export.csv", "nowhere.csv")
    last = one.replace("vips", "z_last", 1).replace('"Kept"', '"Last"')
    path.write_text(told.replace(f"{{ {one} }}", f"{{ {lost}, {one}, {last} }}"))
    ended = run(place, "audience", "sync", "--all", "--json", **ENVIRONMENT)
    assert ended.status == 1
    assert "a_lost" in ended.stderr
    assert [one["audience"] for one in ended.told["runs"]] == ["vips", "z_last"]
    found = {name: one["user_ids"] for name, one in box.cohorts().items()}
    assert found == {"Kept": ["u1", "u2"], "Last": ["u1", "u2"]}
    write_csv(tmp_path / "nowhere.csv", [{"external_id": "u0"}])
    ended = run(place, "audience", "sync", "--all", **ENVIRONMENT)
    assert ended.status == 0, ended.stderr
    assert ended.stdout.count("nothing new") == 2


@pytest.mark.parametrize(
    "arguments", [[], ["vips", "--all"], ["--all", "--force"], ["--all", "--plan", "x"]]
)
def test_all_goes_alone(place, braze, arguments):
    export(place, users(1))
    cohort(place)
    config = ["--config", str(place.root / "currents.toml")]
    ended = CliRunner().invoke(app, ["sync", *arguments, *config])
    assert isinstance(ended.exception, SettingsError)
    assert braze.stub.got == []


# The law.

GROUPS = ("A", "B", "C")
MEMBERS = st.frozensets(
    st.tuples(st.sampled_from(GROUPS), st.integers(0, 5)), min_size=1, max_size=9
)
TROUBLE = ("", "", "stop", "400", "401", "401 after")
STEPS = st.lists(
    st.tuples(MEMBERS, st.sampled_from(TROUBLE), st.integers(0, 4)),
    min_size=1,
    max_size=4,
)


@dataclass(slots=True)
class Trouble:
    """What befalls requests that change members, after so many."""

    kind: str = ""
    after: int = 0

    def befall(self, got: Got) -> Reply | None:
        """Answer in place of Braze."""
        if not got.path.endswith("/users"):
            return None
        self.after -= 1
        if self.kind == "400" and len(got.body) % 2:
            return Reply(400, {"message": "bad request"})
        if self.kind == "401" and self.after < 0:
            return Reply(401, {"message": "not today"})
        return None

    def spoil(self, _: Got) -> Reply | None:
        """Answer wrongly what Braze took."""
        wrong = self.kind == "401 after" and self.after < 0
        return Reply(401, {"message": "not today"}) if wrong else None


def try_once(
    place: Place, want: frozenset[tuple[str, int]], stop: Callable[[], bool]
) -> None:
    """Write an export, and sync it."""
    rows = [{"external_id": f"u{one}", "g": group} for group, one in sorted(want)]
    write_csv(place.export, rows)
    given_ = cohort(place, cohort_column="g", braze={"concurrency": 2})
    with suppress(BrazeRefusedError):
        sync.sync(*given_, sync.key(*given_), force=True, stop=stop)


@given(steps=STEPS)
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_was_sent_before_membership_equals_the_last_export(steps):
    now = Trouble()
    with TemporaryDirectory() as folder, partner(now.befall, now.spoil) as braze:
        place = Place(root=Path(folder), braze=braze.url)
        for want, now.kind, now.after in steps:
            stop = stopping_after(now.after if now.kind == "stop" else 999)
            try_once(place, want, stop)
        now.kind = ""
        try_once(place, want, lambda: False)
        found = {
            (group, int(one[1:]))
            for group, ids in braze.members.items()
            for _, one in ids
        }
        assert found == want
        for told in braze.sent:
            assert len(told.ids) == len(set(told.ids)) <= 1000
