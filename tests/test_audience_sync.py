"""What `audience` promises, kept against a sandbox; expectations are computed here."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from currents_ingest.audiences import sync
from currents_ingest.errors import (
    BrazeDownError,
    BrazeRefusedError,
    CurrentsError,
    GuardError,
    LeaseHeldError,
    LedgerConflictError,
    SettingsError,
)
from tests.audience_campaign import (
    KEY,
    Place,
    chosen,
    end,
    flat,
    held,
    id_of,
    inside,
    rows,
    start,
    take_in,
    write_csv,
    write_settings,
)
from tests.sandbox_server import SUCCESS, Got, Reply, Sandbox, sandbox, stub

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.conftest import Bucket

EVENTS = {"kind": "events", "dedupe": "nr"}
INC = {"operations": {"gained": "inc"}}
NOBODY_KNOWS = {"fault_kinds": "hang_after", "faults": 1, "hang": 3}


def synced(place: Place, *, force: bool = False, **settings: Any) -> sync.Run:
    """Sync the audience as it is now."""
    return sync.sync(*chosen(place, **settings), KEY, force=force)


def export(place: Place, found: Any) -> None:
    write_csv(place.export, found)


def people(*numbers: int, **cells: str) -> list[dict[str, str]]:
    """Make rows of few cells."""
    return [{"external_id": id_of(number), **cells} for number in numbers]


def alike(numbers: Iterable[int], profile: dict[str, Any]) -> dict[str, Any]:
    """Return what is held of people who are all the same."""
    return {id_of(number): profile for number in numbers}


def happenings(numbers: range, **cells: str) -> list[dict[str, str]]:
    """Make rows of events, each with a number of its own."""
    return [
        {
            "external_id": id_of(number % 7),
            "name": "visited",
            "time": "2026-09-01T10:00:00Z",
            "nr": str(number),
            "properties.n": str(number),
            **cells,
        }
        for number in numbers
    ]


def numbers_of(box: Sandbox) -> Counter[int]:
    """Return how often each event arrived."""
    return Counter(one["properties"]["n"] for one in box.events())


def left(place: Place, run: sync.Run) -> pl.DataFrame:
    """Return the rows of a run that were not taken."""
    found = sorted(place.ours.rglob(f"runs/{run.run}/left-*.parquet"))
    return pl.concat([pl.read_parquet(one) for one in found], how="diagonal")


# The difference alone.


def test_profiles_equal_the_export_and_the_second_sync_sends_only_what_changed(
    place, box
):
    want: dict[str, Any] = {}
    for version, objects in ((0, 2000), (1, 20), (2, 20)):
        export(place, rows(range(2000), version))
        take_in(want, rows(range(2000), version))
        before = box.objects()
        found = synced(place)
        assert (found.state, found.taken, found.failed) == ("done", objects, 0)
        assert box.objects() - before == objects
        assert held(box) == want
    assert box.state()["most_objects"] == 75


def test_a_changed_attribute_is_sent_alone(place, box):
    export(place, people(1, Tier="gold", points="5"))
    synced(place)
    box.reset()
    export(place, people(1, Tier="gold", points="6"))
    synced(place)
    assert held(box) == {id_of(1): {"points": 6}}


def test_a_changed_row_is_sent_whole_where_rows_are_asked_for(place, box):
    export(place, people(1, 2, Tier="gold", points="5"))
    synced(place, changed="rows")
    box.reset()
    export(
        place, people(1, Tier="gold", points="6") + people(2, Tier="gold", points="5")
    )
    synced(place, changed="rows")
    assert held(box) == {id_of(1): {"Tier": "gold", "points": 6}}


def test_a_delivery_that_was_sent_is_not_sent_again(place, box):
    export(place, rows(range(100)))
    synced(place)
    kept = place.files()
    assert synced(place).state == "nothing new"
    assert (box.objects(), place.files()) == (100, kept)


def test_the_same_rows_in_a_new_delivery_send_nothing(place, box):
    export(place, rows(range(100)))
    synced(place)
    export(place, rows(range(99, -1, -1)))
    assert synced(place).taken == 0
    assert box.objects() == 100


def test_the_last_of_several_rows_of_a_person_counts(place, box):
    export(place, people(1, Tier="a") + people(2, Tier="b") + people(1, Tier="c"))
    assert synced(place).taken == 2
    assert held(box) == {id_of(1): {"Tier": "c"}, id_of(2): {"Tier": "b"}}


def test_an_empty_cell_leaves_alone_and_null_removes(place, box):
    export(place, people(1, Tier="gold", email="a@example.com"))
    synced(place)
    export(place, people(1, Tier="", email="null"))
    synced(place)
    assert held(box) == {id_of(1): {"Tier": "gold"}}


def test_a_column_that_vanishes_is_left_alone_and_comes_back_unsent(place, box):
    export(place, people(1, Tier="gold", points="5"))
    synced(place)
    export(place, people(1, points="5"))
    synced(place)
    export(place, people(1, Tier="gold", points="5"))
    synced(place)
    assert box.objects() == 1
    assert held(box) == {id_of(1): {"Tier": "gold", "points": 5}}


def test_each_destination_has_its_own_snapshot(place, box):
    export(place, rows(range(50)))
    synced(place)
    with sandbox() as other:
        assert synced(replace(place, braze=other.url)).taken == 50
        assert held(other) == held(box)


# People who leave.


def test_who_leaves_a_mirror_is_no_member_any_more_and_who_comes_back_is(place, box):
    mirror = {"mode": "mirror", "membership": "In VIPs"}
    member = {"In VIPs": True, "Tier": "gold"}
    export(place, people(1, 2, 3, Tier="gold"))
    synced(place, **mirror)
    assert held(box) == alike((1, 2, 3), member)
    export(place, people(1, 2, Tier="gold"))
    assert synced(place, **mirror).left == 1
    former = member | {"In VIPs": False}
    everyone = {id_of(1): member, id_of(2): member, id_of(3): former}
    assert held(box) == everyone
    export(place, people(2, 1, Tier="gold"))
    assert synced(place, **mirror).taken == 0
    export(place, people(1, 2, 3, Tier="gold"))
    assert synced(place, **mirror).taken == 1
    assert held(box) == everyone | {id_of(3): member}


def test_who_leaves_a_mirror_without_membership_loses_custom_attributes(place, box):
    export(place, people(1, 2, Tier="gold", email="x@example.com"))
    synced(place, mode="mirror")
    export(place, people(1, Tier="gold", email="x@example.com"))
    synced(place, mode="mirror")
    assert held(box) == {
        id_of(1): {"Tier": "gold", "email": "x@example.com"},
        id_of(2): {"email": "x@example.com"},
    }
    export(place, people(1, 2, Tier="gold", email="x@example.com"))
    assert synced(place, mode="mirror").taken == 1
    assert held(box)[id_of(2)] == {"Tier": "gold", "email": "x@example.com"}


def test_who_leaves_an_upsert_stays_as_they_are(place, box):
    export(place, people(1, 2, Tier="gold"))
    synced(place)
    export(place, people(1, Tier="gold"))
    assert synced(place).left == 0
    assert held(box) == alike((1, 2), {"Tier": "gold"})


# What looks wrong as a whole.


@pytest.mark.parametrize(
    ("later", "says"),
    [
        pytest.param(range(0), "names nobody", id="empty"),
        pytest.param(range(40), "40 people, and the one before had 100", id="shrunken"),
    ],
)
def test_an_export_that_lost_many_people_is_refused_without_force(
    place, box, later, says
):
    mirror = {"mode": "mirror", "membership": "vip"}
    export(place, people(*range(100), Tier="gold"))
    synced(place, **mirror)
    export(place, people(*later, Tier="gold") or people())
    if not later:
        place.export.write_text("external_id,Tier\n")
    write_settings(place, **mirror)
    requests = box.requests()
    refused = inside(place, "audience", "sync", "vips")
    assert (refused.status, refused.stdout) == (1, "")
    assert says in " ".join(refused.stderr.split())
    assert "--force" in refused.stderr
    assert box.requests() == requests
    assert synced(place, force=True, **mirror).left == 100 - len(later)
    members = {one["vip"] for one in held(box).values()}
    assert members == ({False, True} if later else {False})


def test_half_of_the_people_may_leave_unforced(place):
    export(place, people(*range(100), Tier="gold"))
    synced(place, mode="mirror")
    export(place, people(*range(50), Tier="gold"))
    assert synced(place, mode="mirror").left == 50


@pytest.mark.parametrize("force", [False, True])
def test_too_many_rejects_stop_the_run_before_the_first_request(place, box, force):
    bad = people(*range(98, 100), email="no address")
    export(place, people(*range(98), email="a@example.com") + bad)
    with pytest.raises(GuardError, match=r"2 of 100 rows .*email: not an email"):
        synced(place, force=force)
    assert box.requests() == 0
    assert held(box) == {}


def test_few_rejects_are_listed_with_row_and_reason_and_the_others_are_sent(place, box):
    good = people(*range(99), email="a@example.com")
    export(place, good[:40] + people(99, email="no address") + good[40:])
    found = synced(place)
    assert (found.rejected, found.taken) == (1, 99)
    (listed,) = place.ours.rglob("rejects.jsonl")
    told = json.loads(listed.read_text())
    assert (told["row"], told["reason"]) == (41, "email: not an email address")
    assert box.objects() == 99


# Preview.


def test_a_preview_changes_nothing_and_makes_no_folder(place, box):
    export(place, rows(range(100)))
    before = box.state()
    sync.preview(*chosen(place))
    assert not place.kept.exists()
    synced(place)
    export(place, rows(range(100), 1))
    kept, state, profiles = place.files(), box.state(), held(box)
    write_settings(place)
    shown = inside(place, "audience", "preview", "vips")
    assert shown.status == 0
    assert place.files() == kept
    assert (box.state(), held(box)) == (state, profiles)
    assert before["requests"] == {}


@pytest.mark.parametrize("settings", [{}, {"mode": "mirror"}, {"changed": "rows"}])
def test_what_a_preview_counts_is_what_sync_does(place, box, settings):
    export(place, rows(range(1000)))
    for _ in range(2):
        told = sync.preview(*chosen(place, **settings)).figures
        before = box.objects(), box.requests()
        found = synced(place, **settings)
        assert box.objects() - before[0] == told.objects == found.taken
        assert box.requests() - before[1] == told.requests == found.requests
        same = (found.new, found.changed, found.left)
        assert same == (told.new, told.changed, told.left)
        export(place, rows(range(10, 1010), 1))


def test_a_preview_says_that_sync_would_refuse(place):
    export(place, people(1, 2, email="nothing of the kind"))
    write_settings(place)
    shown = inside(place, "audience", "preview", "vips", "--json")
    assert shown.status == 1
    assert "max_reject_share" in shown.told["guard"]


def test_a_preview_names_attributes_that_change_for_most_people(place):
    export(place, people(*range(100), since="1", Tier="gold"))
    synced(place)
    export(place, people(*range(100), since="2", Tier="gold"))
    assert sync.preview(*chosen(place)).churny == {"since": 1.0}


# Plans.


def planned(place: Place, **settings: Any) -> Path:
    plan = place.root / "plan"
    sync.preview(*chosen(place, **settings), plan)
    return plan


def test_a_plan_is_sent_exactly_even_if_the_export_has_changed(place, box):
    export(place, rows(range(200)))
    plan = planned(place)
    export(place, rows(range(300), 1))
    sync.sync(*chosen(place), KEY, plan=plan)
    want: dict[str, Any] = {}
    take_in(want, rows(range(200)))
    assert held(box) == want
    synced(place)
    take_in(want, rows(range(300), 1))
    assert held(box) == want
    assert box.objects() == 200 + 102


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"membership": "vip"}, id="membership"),
        pytest.param({"columns": {"Tier": "Level"}}, id="columns"),
        pytest.param({"update_existing_only": True}, id="update_existing_only"),
    ],
)
def test_a_plan_of_other_settings_sends_nothing(place, box, settings):
    export(place, rows(range(20)))
    plan = planned(place)
    with pytest.raises(GuardError, match="settings have changed"):
        sync.sync(*chosen(place, **settings), KEY, plan=plan)
    assert box.requests() == 0


def test_a_plan_sends_nothing_after_something_else_was_sent(place, box):
    export(place, rows(range(20)))
    plan = planned(place)
    synced(place)
    with pytest.raises(GuardError, match="something was sent since"):
        sync.sync(*chosen(place), KEY, plan=plan)
    assert box.objects() == 20


def test_a_plan_is_sent_once(place, box):
    export(place, people(1, 2, gained="5"))
    plan = planned(place, **INC)
    sync.sync(*chosen(place, **INC), KEY, plan=plan)
    with pytest.raises(GuardError, match="something was sent since"):
        sync.sync(*chosen(place, **INC), KEY, plan=plan)
    assert held(box) == alike((1, 2), {"gained": 5})


def test_a_plan_for_another_workspace_sends_nothing(place):
    export(place, rows(range(20)))
    plan = planned(place)
    with stub(lambda _: SUCCESS) as other:
        elsewhere = replace(place, braze=other.url)
        with pytest.raises(GuardError, match="the plan is for vips at"):
            sync.sync(*chosen(elsewhere), KEY, plan=plan)
        assert other.got == []


def test_only_its_owner_can_read_a_plan(place):
    export(place, rows(range(20)))
    assert planned(place).stat().st_mode & 0o077 == 0


# Increments, events, purchases.


def test_an_increment_counts_once_for_each_delivery(place, box):
    want = alike(range(100), {"gained": 5, "Tier": "gold"})
    export(place, people(*range(100), gained="5", Tier="gold"))
    synced(place, **INC)
    synced(place, **INC)
    synced(place, force=True, **INC)
    assert held(box) == want
    export(place, people(*range(100), gained="5", Tier="gold"))
    synced(place, **INC)
    assert held(box) == {who: one | {"gained": 10} for who, one in want.items()}


@pytest.mark.parametrize("kind", ["events", "purchases"])
def test_what_happened_is_sent_once_across_runs_and_deliveries(place, box, kind):
    columns = {"product_id": "a", "currency": "EUR", "price": "1.5"}
    cells = columns if kind == "purchases" else {}
    settings = {"kind": kind, "dedupe": "nr"}
    if kind == "purchases":
        settings["columns"] = {"name": ""}
    export(place, happenings(range(100), **cells))
    synced(place, **settings)
    export(place, happenings(range(50, 150), **cells))
    assert synced(place, **settings).taken == 50
    synced(place, force=True, **settings)
    assert numbers_of(box) == dict.fromkeys(range(150), 1)


def test_an_event_that_a_file_has_twice_is_sent_once(place, box):
    export(place, happenings(range(10)) + happenings(range(5, 15)))
    synced(place, **EVENTS)
    assert numbers_of(box) == dict.fromkeys(range(15), 1)


def test_events_without_a_name_of_their_own_count_once_a_delivery(place, box):
    export(place, happenings(range(10)) + happenings(range(10)))
    settings = {"kind": "events", "columns": {"nr": ""}}
    synced(place, **settings)
    synced(place, force=True, **settings)
    assert numbers_of(box) == dict.fromkeys(range(10), 2)


def test_events_arrive_with_what_the_file_says_of_them(place, box):
    export(place, happenings(range(1), app_id="app-1"))
    synced(place, **EVENTS)
    (event,) = box.events()
    del event["braze_id"]
    assert event == {
        "kind": "event",
        "external_id": id_of(0),
        "app_id": "app-1",
        "name": "visited",
        "time": "2026-09-01T10:00:00Z",
        "properties": {"n": 0},
    }


# Two at once.


@pytest.mark.parametrize("lease", ["0s", "60s"])
@pytest.mark.parametrize("settings", [{}, EVENTS], ids=["attributes", "events"])
def test_two_syncs_of_an_audience_never_cross(place, box, lease, settings):
    place = replace(place, lease=lease)
    what = happenings(range(3000)) if settings else list(rows(range(3000)))
    export(place, what)
    given = chosen(place, **settings)

    def attempt(_: int) -> str:
        try:
            return sync.sync(*given, KEY).state
        except (LeaseHeldError, LedgerConflictError):
            return "refused"

    with ThreadPoolExecutor(3) as pool:
        ended = list(pool.map(attempt, range(3)))
    assert set(ended) <= {"done", "refused", "nothing new"}
    assert lease == "0s" or "done" in ended
    synced(place, **settings)
    if settings:
        assert numbers_of(box) == dict.fromkeys(range(3000), 1)
    else:
        want: dict[str, Any] = {}
        take_in(want, what)
        assert held(box) == want
    assert synced(place, **settings).state == "nothing new"
    assert sync.undecided(*given) == {}


def test_a_second_process_is_told_that_another_is_at_work(place, box):
    box.faults(share=1, kinds=["hang_after"], hang=2)
    place = replace(place, lease="60s")
    export(place, happenings(range(10)))
    write_settings(place, braze={"timeout": "10s"}, **EVENTS)
    first = start(place, "audience", "sync", "vips")
    until(lambda: box.requests("gone") or list(place.ours.rglob("unknown/*")))
    second = inside(place, "audience", "sync", "vips")
    assert second.status == 1
    assert "has been at work" in second.stderr
    assert end(first).status == 0
    assert numbers_of(box) == dict.fromkeys(range(10), 1)


def until(true: Any, seconds: float = 20) -> None:
    """Wait for something."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "it never comes"
        time.sleep(0.01)


# Errors of single objects.


def refuses(bad: set[str], *, status: int = 201, named: bool = True) -> Any:
    """Answer as Braze does where some objects are bad, and all others good."""

    def answer(got: Got) -> Reply:
        errors = [
            {"type": "BAD_PUSH_TOKEN_VALUE", "input_array": "attributes"}
            | ({"index": at} if named else {})
            for at, one in enumerate(got.objects)
            if one["external_id"] in bad
        ]
        if len(errors) == len(got.objects):
            message = "Valid data must be provided in the 'attributes', 'events', or "
            told = {"message": message + "'purchases' fields.", "errors": errors}
            return Reply(400, told)
        if not errors:
            return SUCCESS
        told = {"message": "success" if status == 201 else "bad", "errors": errors}
        return Reply(status, told)

    return answer


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, id="named in a success"),
        pytest.param({"named": False}, id="a success that names nobody"),
        pytest.param({"status": 400}, id="named in a 400"),
        pytest.param({"status": 400, "named": False}, id="a 400 that names nobody"),
    ],
)
@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param([3], id="one"),
        pytest.param([0, 74, 75, 149, 199], id="at the edges"),
        pytest.param(list(range(70, 160)), id="more than a request"),
        pytest.param(list(range(200)), id="all"),
    ],
)
def test_bad_objects_are_found_and_all_others_taken(place, how, numbers):
    bad = set(map(id_of, numbers))
    local = people(900, Tier="x" * 300) + people(901, 902, Tier="gold")
    export(place, local[:1] + people(*range(200), Tier="gold") + local[1:])
    with stub(refuses(bad, **how)) as braze:
        there = replace(place, braze=braze.url)
        found = synced(there)
        listed = left(there, found)
        assert set(listed["__person__"]) == bad
        assert set(listed["__state__"]) == {"failed"}
        rejected = 1  # the row before them, so that numbers in requests are others
        told = dict(zip(listed["__person__"], listed["__row__"], strict=True))
        assert told == {id_of(one): one + 1 + rejected for one in numbers}
        assert (found.taken, found.failed) == (202 - len(bad), len(bad))
        braze.got.clear()
        again = synced(there)
        assert {one["external_id"] for one in braze.objects} == bad
        assert again.failed == len(bad)


def test_an_event_beside_bad_ones_is_sent_once_unless_nobody_is_named(place):
    bad = {id_of(3)}
    export(place, happenings(range(70)))
    with stub(refuses(bad)) as braze:
        found = synced(replace(place, braze=braze.url), **EVENTS)
        assert len(braze.objects) == 70
        assert (found.taken, found.failed, found.unknown) == (60, 10, 0)


def test_events_of_which_nobody_knows_which_is_bad_are_unknown(place):
    export(place, happenings(range(70)))
    with stub(refuses({id_of(3)}, named=False)) as braze:
        there = replace(place, braze=braze.url)
        found = synced(there, **EVENTS)
        assert (found.taken, found.failed, found.unknown) == (0, 0, 70)
        assert len(braze.objects) == 70
        assert sync.undecided(*chosen(there, **EVENTS)) == {found.run: 70}


@pytest.mark.parametrize("status", [200, 201])
@pytest.mark.parametrize("body", [b"", b"{}", {"message": "queued for thought"}])
def test_a_success_that_does_not_say_so_is_none(place, status, body):
    replies = iter([Reply(status, body)])
    export(place, people(1, Tier="gold"))
    with stub(lambda _: next(replies, SUCCESS)) as braze:
        found = synced(replace(place, braze=braze.url))
        assert (found.taken, found.repeated_requests) == (1, 1)
        assert len(braze.got) == 2


def test_a_request_that_is_too_large_is_cut_until_it_fits(place):
    def answer(got: Got) -> Reply:
        fits = len(got.body) < 500
        return SUCCESS if fits else Reply(413, b"<html>too large</html>")

    export(place, people(*range(60), Tier="gold"))
    with stub(answer) as braze:
        found = synced(replace(place, braze=braze.url))
        small = [one for one in braze.got if len(one.body) < 500]
        sent = [one["external_id"] for got in small for one in got.objects]
        assert sorted(sent) == [id_of(n) for n in range(60)]
        assert (found.taken, found.failed) == (60, 0)


def test_one_person_too_large_for_braze_fails_alone(place):
    def answer(got: Got) -> Reply:
        return Reply(413, b"") if id_of(7).encode() in got.body else SUCCESS

    export(place, people(*range(60), Tier="gold"))
    with stub(answer) as braze:
        there = replace(place, braze=braze.url)
        found = synced(there)
        assert (found.taken, found.failed) == (59, 1)
        assert left(there, found)["__person__"].to_list() == [id_of(7)]


def test_no_request_is_larger_than_the_limits(place):
    export(place, people(*range(1000), **{f"c{n}": "x" * 250 for n in range(10)}))
    with stub(lambda _: SUCCESS) as braze:
        limits = {"request_size": 100_000, "batch_size": 50}
        found = synced(replace(place, braze=braze.url), braze=limits)
        assert max(len(one.body) for one in braze.got) <= 100_000
        assert max(len(one.objects) for one in braze.got) <= 50
        assert found.taken == len(braze.objects) == 1000


def test_all_events_of_one_person_go_in_one_request(place):
    export(place, [one for n in range(30) for one in happenings(range(n, 700, 70))])
    with stub(lambda _: SUCCESS) as braze:
        synced(replace(place, braze=braze.url), **EVENTS, braze={"batch_size": 75})
        where = {
            (one["external_id"], at)
            for at, got in enumerate(braze.got)
            for one in got.objects
        }
        assert len(braze.objects) == 300
        assert len(where) == 7


# Errors that stop.


@pytest.mark.parametrize(
    ("status", "says"),
    [
        pytest.param(401, "braze.instance", id="401"),
        pytest.param(403, "users.track", id="403"),
        pytest.param(404, "braze.url", id="404"),
        pytest.param(302, "braze.url", id="302"),
        pytest.param(415, "content type", id="415"),
    ],
)
@pytest.mark.parametrize("settings", [{}, EVENTS], ids=["attributes", "events"])
def test_a_refusal_stops_the_run_and_nothing_but_the_journal_moves(
    place, status, says, settings
):
    what = happenings(range(800)) if settings else list(rows(range(800)))
    export(place, what)
    with stub(lambda _: Reply(status, {"message": "no"})) as braze:
        there = replace(place, braze=braze.url)
        write_settings(there, braze={"concurrency": 2}, **settings)
        refused = inside(there, "audience", "sync", "vips")
        assert (refused.status, refused.stdout) == (1, "")
        told = " ".join(refused.stderr.split())
        assert f"Braze answered {status}" in told
        assert says in told
        assert "Traceback" not in told
        assert len(braze.got) <= 2
        moved = {one.split("/")[4] for one in there.files()}
        assert moved <= {"_ledger", "summaries", "doubt", "unknown", "told"}
        (last,) = sync.runs(*chosen(there, **settings))
        assert (last.state, last.taken, last.unknown) == ("failed", 0, 0)
        assert sync.undecided(*chosen(there, **settings)) == {}
        told_ = sync.preview(*chosen(there, **settings)).figures
        assert told_.objects == 800


def test_a_run_without_a_key_stops_before_anything(place, box):
    export(place, rows(range(10)))
    write_settings(place)
    found = inside(place, "audience", "sync", "vips", BRAZE_API_KEY="")
    assert found.status == 2
    assert "BRAZE_API_KEY" in found.stderr
    assert box.requests() == 0
    assert not place.kept.exists()


def test_a_server_that_never_works_is_given_up_and_the_next_run_goes_on(place, box):
    export(place, rows(range(100)))
    box.faults(share=1, kinds=["503"])
    with pytest.raises(BrazeDownError, match="503"):
        synced(place, braze={"patience": "1s"})
    box.faults(share=0)
    assert synced(place).taken == 100
    want: dict[str, Any] = {}
    take_in(want, rows(range(100)))
    assert held(box) == want


def test_events_are_safe_from_a_port_where_nobody_listens(place):
    export(place, happenings(range(10)))
    nobody = replace(place, braze="http://127.0.0.1:9")
    with pytest.raises(BrazeDownError, match="no connection"):
        synced(nobody, braze={"patience": "0s"}, **EVENTS)
    (last,) = sync.runs(*chosen(nobody, **EVENTS))
    assert (last.taken, last.unknown) == (0, 0)
    assert sync.undecided(*chosen(nobody, **EVENTS)) == {}


# What nobody knows.


def lost(place: Place, box: Sandbox, count: int = 100) -> sync.Run:
    """Send events that arrive, but of which no answer comes back."""
    export(place, happenings(range(count)))
    box.faults(share=1, kinds=["hang_after"], hang=2)
    found = synced(place, braze={"timeout": "1s"}, **EVENTS)
    box.faults(share=0)
    return found


def test_events_without_an_answer_are_unknown_and_never_sent_by_themselves(place, box):
    found = lost(place, box)
    assert (found.taken, found.failed, found.unknown) == (0, 0, 100)
    assert sync.undecided(*chosen(place, **EVENTS)) == {found.run: 100}
    assert set(left(place, found)["__state__"]) == {"unknown"}
    export(place, happenings(range(150)))
    assert synced(place, **EVENTS).taken == 50
    synced(place, force=True, **EVENTS)
    assert numbers_of(box) == dict.fromkeys(range(150), 1)
    assert sync.undecided(*chosen(place, **EVENTS)) == {found.run: 100}


def test_unknown_events_are_sent_again_if_a_person_says_so(place, box):
    found = lost(place, box)
    given = chosen(place, **EVENTS)
    assert sync.retry(*given, found.run, KEY).taken == 0
    assert sync.retry(*given, found.run, KEY, unknown="send").taken == 100
    assert numbers_of(box) == dict.fromkeys(range(100), 2)
    assert sync.undecided(*given) == {}


def test_unknown_events_are_kept_as_sent_if_a_person_says_so(place, box):
    found = lost(place, box)
    given = chosen(place, **EVENTS)
    assert sync.retry(*given, found.run, KEY, unknown="keep").taken == 0
    assert sync.undecided(*given) == {}
    synced(place, force=True, **EVENTS)
    assert numbers_of(box) == dict.fromkeys(range(100), 1)


@pytest.mark.parametrize("reply", [Reply(401, {}), Reply(503, {})])
def test_unknown_events_whose_second_try_fails_are_not_lost(place, reply):
    replies = [Reply(201, b"")]
    export(place, happenings(range(5000)))
    with stub(lambda _: replies[0]) as braze:
        given = chosen(
            replace(place, braze=braze.url), braze={"patience": "0s"}, **EVENTS
        )
        found = sync.sync(*given, KEY)
        assert found.unknown == 5000
        replies[0] = reply
        try:
            again = sync.retry(*given, found.run, KEY, unknown="send")
        except BrazeRefusedError:
            again = sync.runs(*given)[0]
        unknown = sum(sync.undecided(*given).values())
        replies[0], before = SUCCESS, len(braze.objects)
        sync.sync(*given, KEY, force=True)
        assert again.taken == 0
        assert len(braze.objects) - before + unknown == 5000


def test_increments_without_an_answer_are_unknown_and_never_sent_by_themselves(
    place, box
):
    export(place, people(*range(10), gained="5"))
    box.faults(share=1, kinds=["500_after"])
    found = synced(place, **INC)
    assert (found.taken, found.unknown) == (0, 10)
    box.faults(share=0)
    synced(place, force=True, **INC)
    assert held(box) == alike(range(10), {"gained": 5})


def test_attributes_beside_an_increment_of_which_nobody_knows_still_arrive(place, box):
    export(place, people(*range(10), gained="5", Tier="gold"))
    box.faults(share=1, kinds=["500"])
    synced(place, **INC)
    box.faults(share=0)
    synced(place, force=True, **INC)
    tiers = [one.get("Tier") for one in held(box).values()]
    assert tiers == ["gold"] * 10


def test_attributes_without_an_answer_are_simply_sent_again(place, box):
    export(place, rows(range(100)))
    box.faults(first=["hang_after", "500_after"], hang=2)
    found = synced(place, braze={"timeout": "1s"})
    assert (found.taken, found.unknown, found.repeated_requests) == (100, 0, 2)
    want: dict[str, Any] = {}
    take_in(want, rows(range(100)))
    assert held(box) == want


# Retry.


def test_a_retry_sends_what_failed_and_nothing_else(place):
    bad = {id_of(3), id_of(8)}
    export(place, people(*range(20), Tier="gold"))
    with stub(refuses(bad)) as braze:
        given = chosen(replace(place, braze=braze.url))
        found = sync.sync(*given, KEY)
        bad.remove(id_of(3))
        braze.got.clear()
        again = sync.retry(*given, found.run, KEY)
        assert (again.taken, again.failed) == (1, 1)
        assert {one["external_id"] for one in braze.objects} == {id_of(3), id_of(8)}
        bad.clear()
        braze.got.clear()
        sync.sync(*given, KEY, force=True)
        assert [one["external_id"] for one in braze.objects] == [id_of(8)]


def test_a_retried_event_is_not_sent_by_a_later_sync(place):
    bad = {id_of(3)}
    export(place, happenings(range(70)))
    with stub(refuses(bad)) as braze:
        given = chosen(replace(place, braze=braze.url), **EVENTS)
        found = sync.sync(*given, KEY)
        bad.clear()
        assert sync.retry(*given, found.run, KEY).taken == 10
        assert sync.retry(*given, found.run, KEY).taken == 0
        sent = len(braze.objects)
        sync.sync(*given, KEY, force=True)
        assert len(braze.objects) == sent == 80


def test_an_old_run_of_attributes_is_not_retried_over_a_later_one(place):
    bad = {id_of(3)}
    export(place, people(*range(20), Tier="old"))
    with stub(refuses(bad)) as braze:
        there = replace(place, braze=braze.url)
        found = synced(there)
        bad.clear()
        time.sleep(1.1)
        export(place, people(*range(20), Tier="new"))
        synced(there)
        with pytest.raises(GuardError, match="a later run"):
            sync.retry(*chosen(there), found.run, KEY)
        assert braze.objects[-1]["Tier"] == "new"


def test_there_is_nothing_to_retry_of_a_run_that_never_was(place, box):
    export(place, rows(range(10)))
    synced(place)
    found = inside(place, "audience", "retry", "vips", "20200101T000000Z-0000")
    assert found.status == 1
    assert "there is no run" in found.stderr
    assert box.objects() == 10


# Status, one-time files, the command line.


def test_status_tells_what_became_of_the_runs_the_newest_first(place):
    runs = []
    for version in range(5):
        export(place, rows(range(200), version))
        runs.append(synced(place).run)
    assert [one.run for one in sync.runs(*chosen(place))] == runs[::-1]


def test_status_of_one_run_and_of_none(place):
    write_settings(place)
    export(place, rows(range(10)))
    assert "no runs yet" in inside(place, "audience", "status", "vips").stdout
    assert not place.kept.exists()
    found = synced(place)
    told = inside(place, "audience", "status", "vips", found.run, "--json").told
    assert [one["run"] for one in told["runs"]] == [found.run]
    assert told["undecided"] == {}
    assert inside(place, "audience", "status", "vips", "never").status == 2


def test_status_names_what_nobody_knows(place, box):
    found = lost(place, box, 20)
    write_settings(place, **EVENTS)
    shown = " ".join(inside(place, "audience", "status", "vips").stdout.split())
    assert f"20 objects of {found.run} may have arrived" in shown
    assert "--unknown send|keep" in shown


def test_strict_makes_a_run_that_needs_a_look_end_with_3(place, box):
    export(place, people(*range(199), email="a@example.com") + people(199, email="x"))
    write_settings(place)
    assert inside(place, "audience", "sync", "vips", "--strict").status == 3
    assert box.objects() == 199


def test_a_file_is_synced_once_without_being_configured(place, box):
    write_settings(place)
    path = place.root / "Spring visitors.csv"
    write_csv(path, [{"who": id_of(1), "Tier": "gold"}])
    once = [str(path), "--set", 'columns={who="external_id"}', "--set", "settle=0s"]
    first = inside(place, "audience", "sync", *once, "--set", "membership=Spring")
    assert first.status == 0, first.stderr
    assert held(box) == {id_of(1): {"Tier": "gold", "Spring": True}}
    assert (place.ours / "Spring_visitors").is_dir()
    again = inside(place, "audience", "sync", *once, "--set", "membership=Spring")
    assert "nothing new" in again.stdout
    assert box.objects() == 1


def test_a_setting_that_is_none_is_refused(place, box):
    write_settings(place)
    export(place, rows(range(3)))
    found = inside(
        place, "audience", "sync", str(place.export), "--set", "kinds=events"
    )
    assert found.status == 2
    assert "kinds" in found.stderr
    assert box.requests() == 0


def test_sigterm_ends_a_run_cleanly_and_the_next_goes_on(place):
    with sandbox(requests=20, per=0.5, delay=0.01) as slow:
        there = replace(place, braze=slow.url)
        export(there, rows(range(6000)))
        write_settings(there, braze={"rate": "20/0.5s"})
        process = start(there, "audience", "sync", "vips", "--json")
        until(lambda: slow.requests() > 5)
        process.send_signal(signal.SIGTERM)
        ended = end(process)
        assert (ended.status, ended.told["state"]) == (1, "stopped")
        assert ended.told["taken"] == slow.objects() < 6000
        found = synced(there, braze={"rate": "20/0.5s"})
        assert found.taken == 6000 - ended.told["taken"]
        assert slow.objects() == 6000
        want: dict[str, Any] = {}
        take_in(want, rows(range(6000)))
        assert held(slow) == want


def test_events_that_sigterm_left_unsent_are_sent_by_the_next_run(place):
    with sandbox(requests=5, per=0.5, delay=0.01) as slow:
        there = replace(place, braze=slow.url)
        export(there, happenings(range(3000)))
        pace = {"rate": "5/0.5s"}
        write_settings(there, braze=pace, **EVENTS)
        process = start(there, "audience", "sync", "vips", "--json")
        until(lambda: slow.requests() > 2)
        process.send_signal(signal.SIGTERM)
        ended = end(process)
        assert (ended.status, ended.told["state"]) == (1, "stopped")
        assert ended.told["unknown"] == 0
        assert synced(there, braze=pace, **EVENTS).taken == 3000 - ended.told["taken"]
        assert numbers_of(slow) == dict.fromkeys(range(3000), 1)


# Where the feeds are.


def test_an_audience_is_kept_in_memory(place, request):
    there = replace(place, feeds=f"memory://{request.node.name}")
    for version, objects in ((0, 300), (1, 3)):
        export(there, rows(range(300), version))
        assert synced(there).taken == objects
    assert not place.kept.exists()


def test_an_audience_is_kept_in_s3_and_two_syncs_do_not_cross(place, box, s3: Bucket):
    there = replace(place, feeds=f"{s3.url}/feeds")
    want: dict[str, Any] = {}
    for version, objects in ((0, 300), (1, 3)):
        export(there, rows(range(300), version))
        take_in(want, rows(range(300), version))
        assert synced(there).taken == objects
        assert held(box) == want
    export(there, happenings(range(2000)))
    given = chosen(there, **EVENTS)

    def attempt(_: int) -> str:
        try:
            return sync.sync(*given, KEY).state
        except CurrentsError as error:
            return type(error).__name__

    with ThreadPoolExecutor(2) as pool:
        ended = set(pool.map(attempt, range(2)))
    assert ended <= {"done", "nothing new", "LedgerConflictError"}
    sync.sync(*given, KEY)
    assert numbers_of(box) == dict.fromkeys(range(2000), 1)
    assert not place.kept.exists()


def test_an_export_that_is_still_being_written_is_not_sent(place, box):
    export(place, rows(range(10)))
    with pytest.raises(CurrentsError, match="later"):
        synced(place, settle="60s")
    assert box.requests() == 0


def test_an_audience_that_is_not_configured_is_no_audience(place):
    write_settings(place)
    found = inside(place, "audience", "sync", "nobody")
    assert found.status == 2
    assert "vips" in found.stderr


def test_a_name_that_leads_elsewhere_is_refused(place):
    export(place, rows(range(3)))
    settings, target = chosen(place)
    with pytest.raises(SettingsError, match="use letters"):
        sync.sync(settings, replace(target, name="../../else"), KEY)


def test_the_bytes_of_a_request_are_json_in_utf_8(place):
    export(place, people(1, Tier="Bronzé \U0001f389"))
    with stub(lambda _: SUCCESS) as braze:
        synced(replace(place, braze=braze.url))
        (got,) = braze.got
    assert got.path == "/users/track"
    assert got.headers["authorization"] == f"Bearer {KEY}"
    assert got.headers["content-type"] == "application/json"
    assert json.load(BytesIO(got.body)) == {
        "attributes": [{"external_id": id_of(1), "Tier": "Bronzé \U0001f389"}]
    }
    assert flat({"custom_attributes": {}}) == {}


# In bulk.


def test_bulk_takes_a_thousand_objects_a_request_and_its_own_rate(place, box):
    export(place, rows(range(2500)))
    found = synced(place, braze={"bulk": True, "rate": ""})
    assert (found.taken, found.requests) == (2500, 3)
    assert box.state()["most_objects"] == 1000
    want: dict[str, Any] = {}
    take_in(want, rows(range(2500)))
    assert held(box) == want


def test_a_person_with_more_than_bulk_takes_is_sent_in_pieces(place, box):
    one = [row | {"external_id": id_of(0)} for row in happenings(range(450))]
    export(place, one)
    assert synced(place, braze={"bulk": True}, **EVENTS).taken == 450
    assert numbers_of(box) == dict.fromkeys(range(450), 1)
