"""Cohorts while Braze fails: membership equals the export, and no key is told."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from currents_ingest.audiences import sync
from currents_ingest.errors import BrazeDownError, BrazeRefusedError
from currents_ingest.sandbox.faults import AFTER, BEFORE
from tests.audience_campaign import (
    KILLED,
    Place,
    chosen,
    end,
    run,
    start,
    write_csv,
)
from tests.partner_server import ENVIRONMENT, USER, body_of, partner
from tests.sandbox_server import Got, Reply, Sandbox, stub

if TYPE_CHECKING:
    from collections.abc import Callable

PARTNER_KEY, IMPORT_KEY = ENVIRONMENT.values()
DEFINED, CHANGED = "/partners/{name}/cohorts", "/partners/{name}/cohorts/users"


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def users(*numbers: int) -> list[str]:
    return [f"u{number:05}" for number in numbers]


def export(place: Place, ids: list[str]) -> None:
    write_csv(place.export, ({"external_id": one} for one in ids))


def synced(place: Place, *, cohort_column: str = "", **braze: Any) -> sync.Run:
    quick = {"patience": "20s", "timeout": "0.5s", "concurrency": 16} | braze
    given = chosen(place, braze=quick, kind="cohort", cohort_column=cohort_column)
    return sync.sync(*given, sync.key(*given), force=True)


@pytest.fixture
def known(box: Sandbox) -> Sandbox:
    """Return a Braze that has everyone."""
    box.people({"external_id": one} for one in users(*range(300)))
    return box


# Whatever is answered.


def test_membership_equals_the_export_whatever_is_answered(place, known):
    kinds = [*BEFORE, *AFTER]

    def groups(first: int, last: int) -> dict[str, list[str]]:
        """Write as many cohorts as there are faults; return who is in which."""
        meant = {
            kind: users(*range(first, last, at + 1)) for at, kind in enumerate(kinds)
        }
        rows = ({"external_id": u, "g": g} for g, ids in meant.items() for u in ids)
        write_csv(place.export, rows)
        return meant

    def told() -> dict[str, list[str]]:
        return {name: one["user_ids"] for name, one in known.cohorts().items()}

    meant = groups(0, 200)
    synced(place, cohort_column="g")
    assert told() == meant
    meant = groups(100, 300)
    known.faults(first=kinds, hang=0.8)
    found = synced(place, cohort_column="g")
    assert (found.state, found.failed, found.unknown) == ("done", 0, 0)
    assert known.state()["faults"] == dict.fromkeys(kinds, 1)
    assert told() == meant


@pytest.mark.parametrize("kind", ["423", "429", "502", "reset_after", "empty_201"])
def test_a_cohort_is_defined_before_its_members_whatever_is_answered(
    place, known, kind
):
    known.faults(first=[kind])
    export(place, users(1))
    found = synced(place)
    assert (found.taken, found.failed) == (1, 0)
    asked = known.state()["requests"]
    assert sum(asked[DEFINED].values()) == 2
    assert asked[CHANGED] == {"201": 1}
    assert known.cohorts()["vips"]["user_ids"] == users(1)


def test_what_may_have_arrived_is_told_again_and_later_untold(place, known):
    export(place, users(1, 2))
    known.faults(first=["", "500_after"], share=1, kinds=["503"])
    with pytest.raises(BrazeDownError):
        synced(place, patience="0.2s")
    known.faults(share=0, first=[])
    assert known.cohorts()["vips"]["user_ids"] == users(1, 2)
    export(place, users(2, 3))
    synced(place)
    assert known.cohorts()["vips"]["user_ids"] == users(2, 3)


def test_a_braze_that_is_down_is_said_to_be_so_and_the_next_run_goes_on(place, known):
    export(place, users(1, 2))
    known.faults(share=1, kinds=["423"])
    with pytest.raises(BrazeDownError, match="423"):
        synced(place, patience="0.2s")
    known.faults(share=0)
    assert synced(place).taken == 2
    assert known.cohorts()["vips"]["user_ids"] == users(1, 2)


def test_membership_equals_the_export_after_a_sync_was_killed(place, known):
    known.people({"external_id": one} for one in users(*range(300, 12_000)))
    chosen(place, braze={"concurrency": 1}, kind="cohort")
    exports = (range(10_000), 3), (range(2_000, 12_000), 2)
    for kills, (numbers, hangs) in enumerate(exports, 1):
        ids = users(*numbers)
        export(place, ids)
        known.faults(first=[""] * hangs + ["hang_after"], share=0, hang=60)
        process = start(place, "audience", "sync", "vips", **ENVIRONMENT)
        limit = time.monotonic() + 30
        while known.state()["faults"].get("hang_after", 0) < kills:
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.02)
        process.kill()
        assert end(process).status == KILLED
        kinds = ["503", "500_after", "reset_after", "423"]
        known.faults(first=[], share=0.1, kinds=kinds, seed=1)
        ended = run(place, "audience", "sync", "vips", **ENVIRONMENT)
        assert ended.status == 0, ended.stderr
        assert known.cohorts()["vips"]["user_ids"] == ids
    assert known.state()["contradictions"] == 0
    assert known.state()["requests"][DEFINED]["201"] == 1


# Keys.


def whole(got: Got) -> str:
    return got.body.decode()


ECHOES: dict[str, Callable[[Got], Reply | None]] = {
    "401 with the secret": lambda _: Reply(
        401, {"message": f"Invalid client secret: {IMPORT_KEY}"}
    ),
    "401 with everything": lambda got: Reply(401, {"message": whole(got)}),
    "403 with both": lambda _: Reply(403, {"message": f"{PARTNER_KEY} {IMPORT_KEY}"}),
    "400 with the secret": lambda _: Reply(
        400, {"message": f"bad secret '{IMPORT_KEY}', partner key {PARTNER_KEY}."}
    ),
    "400 of members with everything": lambda got: (
        Reply(400, {"message": whole(got)}) if got.path.endswith("/users") else None
    ),
    "400 of members with errors": lambda got: (
        Reply(
            400,
            {"message": IMPORT_KEY, "errors": [{"type": IMPORT_KEY, "index": 0}]},
        )
        if got.path.endswith("/users")
        else None
    ),
    "500 with everything": lambda got: Reply(500, {"message": whole(got)}),
    "201 with everything": lambda got: Reply(201, {"message": whole(got)}),
    "201 of another kind": lambda got: Reply(201, {"error": [whole(got)]}),
    "a redirect with everything": lambda got: Reply(
        302, whole(got).encode(), {"Location": f"/{IMPORT_KEY}/{PARTNER_KEY}"}
    ),
    "headers with both": lambda _: Reply(
        503, {}, {"Retry-After": IMPORT_KEY, PARTNER_KEY: PARTNER_KEY}
    ),
}
SIGNS = (PARTNER_KEY, IMPORT_KEY, "sesame", "quixote")
MAY_HOLD_IDS = ("/doubt/", "/told/", "/snapshot/", "/left-")


def found_in(place: Place, told: dict[str, str]) -> dict[str, list[str]]:
    """Return what nobody may see, by where it was."""
    kept = {name: body.decode("latin-1") for name, body in place.files().items()}
    seen: dict[str, list[str]] = {}
    for where, text in (told | kept).items():
        ids = any(one in f"/{where}" for one in MAY_HOLD_IDS)
        signs = SIGNS[:3] if ids else SIGNS
        if there := [one for one in signs if one in f"{where} {text}"]:
            seen[where] = there
    return seen


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_no_key_and_no_id_is_told_however_braze_answers(tmp_path, caplog, capfd, echo):
    place = Place(root=tmp_path, braze="http://127.0.0.1:9")
    told: dict[str, str] = {}
    with stub(lambda got: echo(got) or Reply(201, {"message": "success"})) as braze:
        place = Place(root=tmp_path, braze=braze.url)
        export(place, ["quixote-1", "quixote-2"])
        try:
            told["run"] = repr(synced(place, patience="0.1s", timeout="1s"))
        except (BrazeRefusedError, BrazeDownError) as error:
            told["error"] = f"{error} {error!r} {error.told()} {error.__dict__}"
            cause = error.__cause__
            told["cause"] = f"{cause} {cause!r}"
        assert braze.got
        given = chosen(place, kind="cohort")
        told["runs"] = repr(sync.runs(*given))
        told["key"] = repr(sync.key(*given))
    out = capfd.readouterr()
    told |= {"out": out.out, "err": out.err, "log": caplog.text}
    assert found_in(place, told) == {}


def test_no_command_tells_a_key(tmp_path):
    with partner(ECHOES["401 with everything"]) as braze:
        place = Place(root=tmp_path, braze=braze.url)
        export(place, ["quixote-1"])
        chosen(place, kind="cohort")
        sent = run(place, "-v", "audience", "sync", "vips", **ENVIRONMENT)
        seen = run(place, "audience", "status", "vips", "--json", **ENVIRONMENT)
        assert (sent.status, seen.status, len(braze.stub.got)) == (1, 0, 1)
        assert found_in(place, {"sync": repr(sent), "status": repr(seen)}) == {}


def test_401_is_explained_as_a_wrong_key_or_a_wrong_instance(tmp_path):
    wrong = [True]

    def answer(_: Got) -> Reply | None:
        said = {"message": f"Invalid client secret: {IMPORT_KEY}"}
        return Reply(401, said) if wrong else None

    with partner(answer) as braze:
        place = Place(root=tmp_path, braze=braze.url)
        export(place, users(1))
        with pytest.raises(BrazeRefusedError) as caught:
            synced(place)
        text = str(caught.value)
        assert "401" in text
        assert "key is wrong" in text
        assert "instance" in text
        assert all(one in text for one in ("partner_key_env", "data_import_key_env"))
        given = chosen(place, kind="cohort")
        [told] = sync.runs(*given)
        assert (told.state, told.taken) == ("failed", 0)
        assert "401" in told.cause
        assert len(braze.stub.got) == 1
        wrong.clear()
        assert synced(place).taken == 1
        assert braze.members == {"vips": {(USER, *users(1))}}


def test_keys_are_in_the_body_of_every_request_and_nowhere_else(tmp_path):
    with partner() as braze:
        place = Place(root=tmp_path, braze=braze.url)
        export(place, users(*range(1200)))
        synced(place)
        assert len(braze.stub.got) == 3
        for got in braze.stub.got:
            body_of(got)  # has both, or fails
            assert not any(one in f"{got.path} {got.headers}" for one in SIGNS)
            assert json.loads(got.body).keys() <= {
                "partner_api_key",
                "client_secret",
                "cohort_id",
                "name",
                "created_at",
                "cohort_changes",
            }
