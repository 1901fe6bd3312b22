from __future__ import annotations

import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from currents_ingest.audience_config import Audience
from currents_ingest.audiences.mapping import ID, OBJECT, PART, PERSON, WHAT
from currents_ingest.audiences.masking import masked, reason_without_values
from currents_ingest.audiences.pace import Pace, to_next_hour
from currents_ingest.audiences.requests import (
    Answer,
    Request,
    grouped,
    lost,
    used_up,
    verdict,
    wait,
    with_objects,
)
from currents_ingest.audiences.tables import ROW

NOW = 1_800_000_000.0
EVENTS = Request(array="events")


def request(count, *, safe=True):
    objects = ["{}"] * count
    return Request(array="attributes", rows=range(count), objects=objects, safe=safe)


def batch(found):
    """Return rows of (person, length of its object)."""
    persons = [f"p{person}" for person, _ in found]
    objects = ["x" * length for _, length in found]
    return pl.DataFrame(
        {PERSON: persons, OBJECT: objects}, {PERSON: pl.String, OBJECT: pl.String}
    )


def answer(status, body=None, **headers):
    named = {name.replace("_", "-"): str(one) for name, one in headers.items()}
    text = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    return Answer(status=status, headers=named, body=text)


OBJECTS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30)), max_size=40).map(
    lambda found: sorted(found, key=lambda one: one[0])
)


@given(OBJECTS, st.integers(1, 8), st.integers(40, 120))
def test_every_object_is_in_one_request_and_none_is_too_big(found, most, size):
    made = list(grouped(batch(found), EVENTS, most=most, size=size))
    assert [row for each in made for row in each.rows] == list(range(len(found)))
    assert all(1 <= len(each.rows) <= most for each in made)
    assert all(sum(len(one) + 1 for one in each.objects) <= size for each in made)
    assert all(
        each.objects == ["x" * found[row][1] for row in each.rows] for each in made
    )


@given(OBJECTS, st.integers(1, 8))
def test_one_persons_objects_share_a_request_where_they_fit_one(found, most):
    made = list(grouped(batch(found), EVENTS, most=most, size=10**6))
    for person in {person for person, _ in found}:
        rows = {at for at, one in enumerate(found) if one[0] == person}
        spread = sum(not rows.isdisjoint(each.rows) for each in made)
        assert spread == 1 or len(rows) > most


@pytest.mark.parametrize(("count", "requests"), [(0, 0), (1, 1), (75, 1), (76, 2)])
def test_requests_are_full(count, requests):
    found = [(at, 5) for at in range(count)]
    made = list(grouped(batch(found), EVENTS, most=75, size=10**6))
    assert len(made) == requests


def test_a_request_is_what_braze_documents():
    objects = ['{"external_id":"a"}', '{"external_id":"b"}']
    body = Request(array="attributes", rows=[0, 1], objects=objects).body
    assert json.loads(body) == {
        "attributes": [{"external_id": "a"}, {"external_id": "b"}]
    }


GOOD = {"message": "success", "attributes_processed": 3}
SOME = GOOD | {
    "errors": [
        {"type": "EMAIL_BAD_FORMAT", "input_array": "attributes", "index": 1},
        {"type": "and more", "input_array": "purchases", "index": 1},
    ]
}
NAMELESS = GOOD | {"errors": [{"type": "something", "input_array": "attributes"}]}
ALL_BAD = {
    "message": "Valid data must be provided",
    "errors": [
        {"type": f"E{at}", "input_array": "attributes", "index": at} for at in range(3)
    ],
}


@pytest.mark.parametrize(
    ("got", "kind", "failed"),
    [
        pytest.param(answer(201, GOOD), "taken", {}, id="201"),
        pytest.param(answer(200, GOOD), "taken", {}, id="200"),
        pytest.param(answer(202, {"message": "queued"}), "taken", {}, id="queued"),
        pytest.param(
            answer(201, SOME), "taken", {1: "EMAIL_BAD_FORMAT; and more"}, id="some"
        ),
        pytest.param(
            answer(400, ALL_BAD), "taken", {0: "E0", 1: "E1", 2: "E2"}, id="all"
        ),
        pytest.param(
            answer(400, {"message": "Max Input Length Exceeded"}), "split", {}, id="400"
        ),
        pytest.param(answer(400, b"<html>"), "split", {}, id="400 HTML"),
        pytest.param(answer(413), "split", {}, id="413"),
        pytest.param(answer(401), "refused", {}, id="401"),
        pytest.param(answer(403), "refused", {}, id="403"),
        pytest.param(answer(404), "refused", {}, id="404"),
        pytest.param(answer(415), "refused", {}, id="415"),
        pytest.param(answer(302, b"", location="http://x"), "refused", {}, id="302"),
        pytest.param(answer(418), "refused", {}, id="418"),
        pytest.param(answer(429), "again", {}, id="429"),
    ],
)
@pytest.mark.parametrize("safe", [True, False], ids=["safe", "once"])
def test_an_answer_that_says_what_happened_means_the_same_for_all(
    got, kind, failed, safe
):
    found = verdict(request(3, safe=safe), got)
    assert (found.kind, dict(found.failed)) == (kind, failed)


@pytest.mark.parametrize(
    "got",
    [
        answer(500),
        answer(502, b"<html>bad gateway</html>"),
        answer(503),
        answer(504),
        answer(423),
        answer(201, b""),
        answer(201, {"message": "failed"}),
    ],
)
def test_where_nobody_knows_only_what_is_safe_is_sent_again(got):
    assert verdict(request(3), got).kind == "again"
    assert verdict(request(3, safe=False), got).kind == "unknown"
    assert lost(request(3), "no answer").kind == "again"
    assert lost(request(3, safe=False), "no answer").kind == "unknown"


def test_an_error_that_names_no_object_is_narrowed_down_where_that_is_safe():
    assert verdict(request(3), answer(201, NAMELESS)).kind == "split"
    assert verdict(request(1), answer(201, NAMELESS)).failed == {0: "something"}
    once = verdict(request(3, safe=False), answer(201, NAMELESS))
    assert (once.kind, dict(once.failed)) == ("unknown", {})


def test_one_object_that_braze_calls_bad_is_bad():
    for got in (answer(400, {"message": "no"}), answer(413)):
        found = verdict(request(1), got)
        assert (found.kind, list(found.failed)) == ("taken", [0])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param({"x_ratelimit_retry_after": 7}, 7, id="MAU contracts"),
        pytest.param({"retry_after": 7}, 7, id="standard"),
        pytest.param({"x_ratelimit_reset": int(NOW) + 3}, 3, id="a time"),
        pytest.param({"x_ratelimit_reset": 1800}, 1800, id="seconds"),
        pytest.param({"x_ratelimit_reset": int(NOW) - 9}, 0, id="past"),
        pytest.param(
            {"x_ratelimit_reset": 99, "x_ratelimit_retry_after": 2}, 2, id="both"
        ),
        pytest.param({}, None, id="neither"),
        pytest.param({"retry_after": "soon"}, None, id="no number"),
    ],
)
def test_both_forms_of_rate_limit_headers_are_understood(headers, seconds):
    assert wait(answer(429, **headers), NOW) == seconds


def test_a_window_that_is_used_up_is_known_before_it_is_hit():
    assert used_up(answer(201, x_ratelimit_remaining=0))
    assert not used_up(answer(201, x_ratelimit_remaining=1))
    assert not used_up(answer(201))


@given(st.integers(1, 5), st.lists(st.floats(0, 2), max_size=40))
def test_no_window_has_more_requests_than_it_may(limit, pauses):
    pace, now, gone = Pace(limit, 3.0), 0.0, []
    for pause in pauses:
        now += pause
        while delay := pace.delay(now):
            assert delay > 0
            now += delay
        gone.append(now)
    for start in gone:
        assert sum(start <= one < start + 3.0 - 1e-9 for one in gone) <= limit


def test_a_hold_keeps_everything_back():
    pace = Pace.of("3000/3s")
    pace.hold(10.0)
    assert pace.delay(4.0) == 6.0
    assert pace.delay(10.0) == 0.0
    assert Pace.of("250000/1h").seconds == 3600
    assert pace.seconds_for(9000) == 6.0
    assert to_next_hour(3600 * 5 + 60.0) == 3540


def test_objects_hold_what_changed_and_how_to_find_the_person():
    ours = {ID: ["a"], PERSON: ['A "b"'], PART: [0], ROW: [1], WHAT: ["new"]}
    cells = {'N "x"': ["1"], "gone": ["null"], "n": ['{"inc":2}@' + "0" * 16]}
    same = pl.lit(None, pl.String).alias("same")
    send = pl.DataFrame(ours | cells).with_columns(same)
    audience = Audience(source="x", operations={"n": "inc"}, update_existing_only=True)
    (text,) = with_objects(send, audience)[OBJECT]
    assert json.loads(text) == {
        "external_id": 'A "b"',
        "_update_existing_only": True,
        'N "x"': 1,
        "gone": None,
        "n": {"inc": 2},
    }


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("EMAIL_BAD_FORMAT", "EMAIL_BAD_FORMAT"),
        (
            "'external_id' must be fewer than 988 bytes",
            "'external_id' must be fewer than 988 bytes",
        ),
        (
            "The value 'u-77' for the 'email' field",
            "The value '[…]' for the 'email' field",
        ),
        ("bad key Bearer abc", "bad […]"),
        ("The property '#/Loyalty Points'", "The property '#/Loyalty Points'"),
        ("taken by Altisidora Quijano", "[…] by […]"),
        ("x " * 5000, "[…]"),
        ("", ""),
    ],
)
def test_of_a_reason_stays_what_tells_of_nobody(told, kept):
    sent = '{"external_id":"u-77","Loyalty":1,"Points":{"by":"Quijano"}}'
    assert reason_without_values(told, sent).strip() == kept


def test_masks_keep_the_shape_alone():
    assert masked('"Jo.Ä-12@x.com"') == '"xx.x-99@x.xxx"'
    assert [masked(one) for one in ("true", "null", "-1.5")] == ["true", "null", "-9.9"]
