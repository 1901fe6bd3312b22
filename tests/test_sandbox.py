from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from queue import Queue
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from currents_ingest.sandbox import __main__ as command
from currents_ingest.sandbox.faults import AFTER, BEFORE, KINDS, Faults, fault
from currents_ingest.sandbox.fields import NO_CUSTOM
from currents_ingest.sandbox.limits import Window, epoch_headers, mau_headers, take
from currents_ingest.sandbox.profiles import Store, apply
from currents_ingest.sandbox.replies import Rules, receive
from currents_ingest.sandbox.server import SandboxOptions, run, serve
from currents_ingest.sandbox.state import fresh

TRACK, BULK, SYNC = "/users/track", "/users/track/bulk", "/users/track/sync"
EXPORT, COHORTS = "/users/export/ids", "/partners/acme/cohorts"
MEMBERS = f"{COHORTS}/users"
GROUP = "0f8fad5b-d9cb-469f-a165-70867728950e"
LONG = "x" * 256
NO_VALID = (
    "Valid data must be provided in the 'attributes', 'events', or 'purchases' fields."
)


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def rate(self):
        lower = {k.lower(): v for k, v in self.headers.items()}
        return {k: v for k, v in lower.items() if k.startswith("x-ratelimit-")}


class Braze:
    """A client as small as can be: one connection a request, no retries."""

    def __init__(self, url):
        self.where = urlsplit(url).netloc

    def send(self, method, path, body=b"", headers=None, timeout=5):
        wire = http.client.HTTPConnection(self.where, timeout=timeout)
        usual = {"Authorization": "Bearer k", "Content-Type": "application/json"}
        try:
            wire.request(method, path, body, usual if headers is None else headers)
            answer = wire.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            wire.close()

    def post(self, path, body, **more):
        return self.send("POST", path, json.dumps(body).encode(), **more)

    def track(self, *attributes, **arrays):
        return self.post(TRACK, {"attributes": attributes, **arrays})

    def lines(self, path):
        text = self.send("GET", f"/_sandbox/{path}").body
        return [json.loads(line) for line in text.splitlines()]

    @property
    def profiles(self):
        return [
            {k: v for k, v in one.items() if k not in {"braze_id", "created_at"}}
            for one in self.lines("profiles")
        ]

    @property
    def custom(self):
        [profile] = self.profiles
        return profile["custom_attributes"]

    @property
    def state(self):
        return self.send("GET", "/_sandbox/state").json


@contextmanager
def sandbox(**options):
    """Serve in a thread until the block ends."""
    told, loop = Queue(), asyncio.new_event_loop()
    chosen = SandboxOptions(**{"delay": 0, **options})
    task = loop.create_task(serve(chosen, ready=told.put))

    def work():
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield Braze(told.get(timeout=5))
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


@pytest.fixture(scope="module")
def shared():
    with sandbox(bulk_requests=0, export_requests=0) as braze:
        yield braze


@pytest.fixture
def braze(shared):
    assert shared.send("POST", "/_sandbox/reset").status == 200
    return shared


def settle(braze):
    """Wait until all that was accepted is applied."""
    until = time.monotonic() + 5
    while braze.state["pending"] and time.monotonic() < until:
        time.sleep(0.05)


def user(who="u1", **attributes):
    return {"external_id": who, **attributes}


def alias(name="a1", label="crm"):
    return {"alias_name": name, "alias_label": label}


def event(**more):
    return user(name="signed_up", time="2026-05-01T10:00:00Z") | more


def purchase(**more):
    sale = {"product_id": "shoe", "currency": "USD", "price": 9.5}
    return user(time="2026-05-01T10:00:00Z") | sale | more


# ---- The gate ----


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"Authorization": "Bearer right"}, 201, id="right key"),
        pytest.param({"Authorization": "Bearer wrong"}, 401, id="wrong key"),
        pytest.param({"Authorization": "right"}, 401, id="no bearer"),
        pytest.param({"Authorization": "Bearer "}, 401, id="empty key"),
        pytest.param({}, 401, id="no header"),
    ],
)
def test_without_the_right_key_nothing_is_done(headers, status):
    with sandbox(api_key="right") as braze:
        usual = {"Content-Type": "application/json"}
        answer = braze.post(TRACK, {"attributes": [user()]}, headers=usual | headers)
        assert answer.status == status
        assert len(braze.profiles) == (status == 201)


def test_any_key_but_an_empty_one_opens_a_sandbox_without_a_key(braze):
    kind = {"Content-Type": "application/json"}
    empty = braze.post(TRACK, {}, headers=kind | {"Authorization": "Bearer "})
    assert (empty.status, empty.json) == (401, {"message": "Invalid API key"})
    assert braze.track(user()).status == 201


def test_a_key_opens_only_what_it_has_permission_for():
    with sandbox(permissions=("users.track",)) as braze:
        one = {"attributes": [user()]}
        statuses = {p: braze.post(p, one).status for p in (TRACK, BULK, SYNC, EXPORT)}
        assert statuses == {TRACK: 201, BULK: 403, SYNC: 403, EXPORT: 403}
        assert braze.post(BULK, one).json == {
            "message": "The key has no permission users.track.bulk"
        }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/users/tracks"),
        ("POST", "/users/track/"),
        ("GET", "/users/track"),
        ("POST", "/"),
        ("POST", "/users/merge"),
        ("POST", "/partners//cohorts"),
        ("POST", "/partners/acme/audiences"),
        ("GET", "/_sandbox/nothing"),
        ("POST", "/_sandbox/state"),
    ],
)
def test_every_other_path_is_not_found(braze, method, path):
    answer = braze.send(method, path)
    assert (answer.status, answer.json) == (404, {"message": "Not Found"})


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json; charset=utf-8", 201),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        (None, 415),
    ],
)
def test_the_content_type_must_be_json(braze, kind, status):
    headers = {"Authorization": "Bearer k"} | ({"Content-Type": kind} if kind else {})
    body = {"attributes": [user()]}
    assert braze.post(TRACK, body, headers=headers).status == status


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b'{"attributes": [NaN]}', b"\xff"]
)
@pytest.mark.parametrize("path", [TRACK, BULK, SYNC, EXPORT])
def test_a_body_that_is_no_json_object_is_a_bad_request(braze, path, body):
    answer = braze.send("POST", path, body)
    assert answer.status == 400
    assert answer.json["message"] == "The request body is not a JSON object"
    assert braze.state["most_objects"] == 0


def test_an_array_that_is_none_is_a_bad_request(braze):
    answer = braze.post(TRACK, {"attributes": {"external_id": "u1"}})
    assert (answer.status, answer.json) == (
        400,
        {"message": "The property '#/attributes' is not an array", "errors": []},
    )


# ---- How much one request may hold ----


@pytest.mark.parametrize("number", [1, 74, 75, 76])
def test_a_request_holds_at_most_75_objects_all_arrays_together(braze, number):
    events = [event() for _ in range(number // 2)]
    answer = braze.track(*[user()] * (number - number // 2), events=events)
    assert answer.status == (201 if number <= 75 else 400)
    if number > 75:
        assert answer.json["message"] == "Max Input Length Exceeded"
    assert braze.state["most_objects"] == number


def test_an_old_contract_counts_each_array_by_itself():
    with sandbox(legacy_batches=True) as braze:
        full = {"attributes": [user()] * 75, "events": [event()] * 75}
        assert braze.post(TRACK, full).status == 201
        full["events"].append(event())
        answer = braze.post(TRACK, full)
        assert answer.json["message"] == "Max Input Length Exceeded"


def test_the_batch_limit_can_be_set():
    with sandbox(batch_limit=5) as braze:
        assert braze.track(*[user()] * 5).status == 201
        assert braze.track(*[user()] * 6).status == 400


@pytest.mark.parametrize(
    ("path", "megabytes", "status"),
    [(TRACK, 4, 413), (SYNC, 4, 413), (BULK, 2, 400)],
)
def test_a_body_is_limited_in_bytes(braze, path, megabytes, status):
    body = json.dumps({"attributes": [user(note="")]}).encode()
    full = body.ljust(megabytes * 1_000_000)
    assert braze.send("POST", path, full).status == 201
    answer = braze.send("POST", path, full + b" ")
    assert (answer.status, answer.json["message"]) == (
        status,
        "Request body is too large",
    )


def test_a_huge_body_is_not_even_read(braze):
    assert braze.send("POST", TRACK, b" " * 16_000_001).status == 413


@pytest.mark.parametrize(("number", "status"), [(1000, 201), (1001, 400)])
def test_bulk_takes_a_thousand_objects(braze, number, status):
    people = [user(f"u{i}") for i in range(number)]
    answer = braze.post(BULK, {"attributes": people})
    assert answer.status == status
    assert answer.json["message"] == (
        "success" if status == 201 else "Max Input Length Exceeded"
    )


def test_bulk_counts_no_user_where_none_is_named(braze):
    answer = braze.post(BULK, {"attributes": [{}] * 100 + [1] * 50 + [user()]})
    assert (answer.status, answer.json["attributes_processed"]) == (201, 1)
    assert braze.post(BULK, {"attributes": [{}] * 101}).json["message"] == NO_VALID


@pytest.mark.parametrize(("number", "status"), [(100, 201), (101, 400)])
def test_bulk_takes_a_hundred_objects_of_one_user(braze, number, status):
    others = [event(external_id=f"u{i}") for i in range(2, 50)]
    answer = braze.post(BULK, {"attributes": [user()] * number, "events": others})
    assert answer.status == status
    if status == 400:
        assert answer.json["message"] == "At most 100 objects per user are allowed"


def test_the_sync_endpoint_takes_exactly_one_object(braze):
    for body in ({}, {"attributes": [user()], "events": [event()]}):
        answer = braze.post(SYNC, body)
        assert answer.status == 400
        assert answer.json["message"] == "Exactly one object in one array is allowed"


# ---- Answers ----


def test_a_success_says_how_many_of_each_array_are_queued(braze):
    answer = braze.track(user(), user("u2"), events=[event()], purchases=[purchase()])
    assert (answer.status, answer.json) == (
        201,
        {
            "message": "success",
            "attributes_processed": 2,
            "events_processed": 1,
            "purchases_processed": 1,
        },
    )
    assert braze.track(user()).json == {"message": "success", "attributes_processed": 1}


def test_wrong_objects_are_told_by_array_and_index_and_the_rest_is_processed(braze):
    answer = braze.track(
        user(),
        {"nobody": 1},
        user("u2", email_subscribe="yes", push_subscribe="no"),
        7,
        events=[event(), user(name="late")],
    )
    assert answer.status == 201
    assert answer.json == {
        "message": "success",
        "attributes_processed": 1,
        "events_processed": 1,
        "errors": [
            {
                "type": (
                    "'external_id', 'braze_id', 'user_alias', 'email' or 'phone' "
                    "is required"
                ),
                "input_array": "attributes",
                "index": 1,
            },
            {
                "type": "BAD_EMAIL_SUBSCRIPTION_STATE",
                "input_array": "attributes",
                "index": 2,
            },
            {
                "type": "BAD_PUSH_SUBSCRIPTION_STATE",
                "input_array": "attributes",
                "index": 2,
            },
            {
                "type": "The property '#/attributes' holds an item that is not an "
                "object",
                "input_array": "attributes",
                "index": 3,
            },
            {
                "type": (
                    "The property '#/' did not contain a required property of 'time'"
                ),
                "input_array": "events",
                "index": 1,
            },
        ],
    }
    assert [one["external_id"] for one in braze.profiles] == ["u1"]


@pytest.mark.parametrize("body", [{}, {"attributes": []}, {"attributes": None}])
def test_a_request_without_objects_is_a_bad_request(braze, body):
    answer = braze.post(TRACK, body)
    assert (answer.status, answer.json) == (400, {"message": NO_VALID, "errors": []})


def test_a_request_without_a_valid_object_is_a_bad_request_with_the_errors(braze):
    answer = braze.track({"points": 1}, events=[user()])
    assert answer.status == 400
    assert answer.json["message"] == NO_VALID
    assert {(e["input_array"], e["index"]) for e in answer.json["errors"]} == {
        ("attributes", 0),
        ("events", 0),
    }
    assert braze.profiles == []


def rejected(braze, obj, array="attributes"):
    """Return the errors of *obj*, sent behind a good one."""
    good = user("good")
    arrays = {"attributes": [good]} | {array: [obj]}
    if array == "attributes":
        arrays = {"attributes": [good, obj]}
    answer = braze.post(TRACK, arrays)
    assert answer.status == 201
    return [error["type"] for error in answer.json.get("errors", [])]


ONE_PRIMARY = "only one of 'external_id', 'braze_id' and 'user_alias' may be given"
BAD_ALIAS = (
    "'user_alias' must hold an 'alias_name' and an 'alias_label', each of 1 to 236 "
    "bytes"
)
NO_IDENTIFIER = (
    "'external_id', 'braze_id', 'user_alias', 'email' or 'phone' is required"
)
TOO_LONG_ID = "'external_id' must be fewer than 988 bytes"


@pytest.mark.parametrize(
    ("obj", "errors"),
    [
        pytest.param(user(user_alias=alias()), [ONE_PRIMARY], id="id and alias"),
        pytest.param(user(braze_id="0"), [ONE_PRIMARY], id="id and braze_id"),
        pytest.param(
            {"braze_id": "0", "user_alias": alias()}, [ONE_PRIMARY], id="no id"
        ),
        pytest.param({"points": 1}, [NO_IDENTIFIER], id="none"),
        pytest.param({"external_id": None}, [NO_IDENTIFIER], id="null is none"),
        pytest.param({"external_id": ""}, [NO_IDENTIFIER], id="empty is none"),
        pytest.param({"phone": 7}, [NO_IDENTIFIER], id="a number is no phone"),
        pytest.param(user(user_alias=None), [], id="a null beside one is none"),
        pytest.param(user("x" * 987), [], id="987 bytes"),
        pytest.param(user("x" * 988), [TOO_LONG_ID], id="988 bytes"),
        pytest.param(user("é" * 493), [], id="986 bytes, 493 characters"),
        pytest.param(user("é" * 494), [TOO_LONG_ID], id="988 bytes, 494 characters"),
        pytest.param(user(17), [], id="an integer stands for its digits"),
        pytest.param(user(1.5), ["'external_id' must be a string"], id="a fraction"),
        pytest.param(user(True), ["'external_id' must be a string"], id="a truth"),
        pytest.param({"braze_id": 7}, ["'braze_id' must be a string"], id="number"),
        pytest.param({"user_alias": alias("x" * 236)}, [], id="236 bytes"),
        pytest.param({"user_alias": alias("x" * 237)}, [BAD_ALIAS], id="237 bytes"),
        pytest.param({"user_alias": alias("é" * 119)}, [BAD_ALIAS], id="238 bytes"),
        pytest.param({"user_alias": alias(label="")}, [BAD_ALIAS], id="no label"),
        pytest.param({"user_alias": {"alias_name": "a"}}, [BAD_ALIAS], id="half"),
        pytest.param({"user_alias": "a"}, [BAD_ALIAS], id="text for an alias"),
        pytest.param({"email": "nobody"}, ["EMAIL_BAD_FORMAT"], id="bad email"),
    ],
)
def test_an_object_needs_exactly_one_good_primary_identifier_or_an_address(
    braze, obj, errors
):
    assert rejected(braze, obj) == errors


TOKEN = {"app_id": "app", "token": "t"}


@pytest.mark.parametrize(
    ("field", "value", "errors"),
    [
        ("email", "a@b", ["EMAIL_BAD_FORMAT"]),
        ("email", "a b@example.com", ["EMAIL_BAD_FORMAT"]),
        ("email", "a@example.com, b@example.com", ["EMAIL_BAD_FORMAT"]),
        ("email", 7, ["EMAIL_BAD_FORMAT"]),
        ("email", None, []),
        ("email", "a+b@mail.example.com", []),
        ("email_subscribe", "Subscribed", ["BAD_EMAIL_SUBSCRIPTION_STATE"]),
        ("email_subscribe", ["subscribed"], ["BAD_EMAIL_SUBSCRIPTION_STATE"]),
        ("email_subscribe", "opted_in", []),
        ("push_subscribe", "", ["BAD_PUSH_SUBSCRIPTION_STATE"]),
        ("push_subscribe", "unsubscribed", []),
        ("current_location", {"longitude": 1}, ["BAD_LOCATION_UPDATE"]),
        (
            "current_location",
            {"longitude": "1", "latitude": 2},
            ["BAD_LOCATION_UPDATE"],
        ),
        ("current_location", [1, 2], ["BAD_LOCATION_UPDATE"]),
        ("current_location", {"longitude": 1, "latitude": 2.5}, []),
        ("current_location", None, []),
        ("subscription_groups", {}, ["BAD_SUBSCRIPTION_GROUP_ARRAY"]),
        ("subscription_groups", ["x"], ["BAD_SUBSCRIPTION_GROUP_HASH"]),
        (
            "subscription_groups",
            [{"subscription_group_id": "x", "subscription_state": "subscribed"}],
            ["BAD_SUBSCRIPTION_GROUP_ID"],
        ),
        (
            "subscription_groups",
            [{"subscription_group_id": GROUP, "subscription_state": "opted_in"}],
            ["BAD_SUBSCRIPTION_GROUP_STATE"],
        ),
        ("push_tokens", [TOKEN], []),
        ("push_tokens", TOKEN, ["BAD_PUSH_TOKEN_VALUE"]),
        ("push_tokens", [{"token": "t"}], ["BAD_PUSH_TOKEN_APP_ID"]),
        ("push_tokens", [{"app_id": "a", "token": ""}], ["BAD_PUSH_TOKEN_STRING"]),
        ("push_tokens", [TOKEN | {"device_id": "x" * 7}], ["BAD_DEVICE_ID"]),
        ("push_tokens", [TOKEN | {"device_id": "x" * 256}], ["BAD_DEVICE_ID"]),
        ("push_tokens", [TOKEN | {"device_id": "x" * 8}], []),
        ("push_token_import", True, ["BAD_PUSH_TOKEN_IMPORT"]),
        ("push_token_import", False, []),
        (
            "email_subscription_info",
            {},
            ["INVALID_ATTRIBUTE_EMAIL_SUBSCRIPTION_INFO"],
        ),
    ],
)
def test_these_wrong_fields_reject_their_object_with_brazes_code(
    braze, field, value, errors
):
    assert rejected(braze, user(**{field: value})) == errors
    known = [p["external_id"] for p in braze.profiles]
    assert known == (["good"] if errors else ["good", "u1"])


def test_push_tokens_are_imported_for_people_without_an_id_only(braze):
    token = {"push_token_import": True, "push_tokens": [TOKEN]}
    found = rejected(braze, {"user_alias": alias(), **token})
    assert found == []
    assert rejected(braze, {"user_alias": alias(), "push_token_import": True}) == [
        "BAD_PUSH_TOKEN_IMPORT"
    ]
    for known in ({"external_id": "u1"}, {"braze_id": "0"}):
        assert rejected(braze, known | token) == ["BAD_PUSH_TOKEN_IMPORT"]


KEYS_SENT = st.sampled_from(
    sorted({*NO_CUSTOM, "name", "time", "properties", "product_id", "currency", "it"})
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(0, 1) | st.text("a$ .@"),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["inc", "add", "remove", "$add", "$remove", "$update"])
            | st.sampled_from(["$time", "$new_object", "$identifier_key", "a"]),
            inner,
            max_size=2,
        )
    ),
    max_leaves=4,
)
OBJECTS = st.lists(
    st.dictionaries(KEYS_SENT, VALUES, max_size=5)
    | st.dictionaries(KEYS_SENT, VALUES, max_size=5).map(lambda o: user() | o),
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(OBJECTS, OBJECTS, OBJECTS)
def test_no_json_breaks_the_sandbox(attributes, events, purchases):
    store = Store()
    arrays = {"attributes": attributes, "events": events, "purchases": purchases}
    body = json.dumps(arrays).encode()
    received = receive(body, Rules(), datetime.now(UTC), frozenset())
    assert received.status in {201, 400}
    apply(store, received.batch, "2026-05-01")
    json.dumps(list(store.profiles.values()))


def test_a_blocked_external_id_is_refused():
    with sandbox(blocked_ids=frozenset(["dummy"])) as braze:
        assert rejected(braze, user("dummy")) == [
            "provided external_id is blacklisted and disallowed"
        ]


# ---- Who is meant ----


def test_an_unknown_external_id_creates_a_profile_and_a_known_one_is_updated(braze):
    braze.track(user(tier="gold", points=1), user(17))
    braze.track(user(points=2), user("17", points=3))
    assert braze.profiles == [
        {"external_id": "17", "custom_attributes": {"points": 3}},
        {"external_id": "u1", "custom_attributes": {"tier": "gold", "points": 2}},
    ]


def test_update_existing_only_never_creates(braze):
    braze.track(user(tier="gold"))
    only = {"_update_existing_only": True}
    answer = braze.track(
        user(points=1) | only,
        user("u2") | only,
        {"email": "a@example.com"} | only,
        {"phone": "+12025550100"} | only,
    )
    assert answer.json == {"message": "success", "attributes_processed": 4}
    assert braze.profiles == [
        {"external_id": "u1", "custom_attributes": {"tier": "gold", "points": 1}}
    ]


def test_an_alias_creates_a_profile_only_when_told_to(braze):
    for only in (None, True):
        braze.track({"user_alias": alias(), "_update_existing_only": only})
    braze.track({"user_alias": alias()})
    assert braze.profiles == []
    braze.track({"user_alias": alias(), "_update_existing_only": False, "points": 1})
    braze.track({"user_alias": alias(), "points": 2}, {"user_alias": alias("A1")})
    assert braze.profiles == [
        {"user_aliases": [alias()], "custom_attributes": {"points": 2}}
    ]


def test_a_braze_id_updates_and_never_creates(braze):
    braze.track(user())
    [profile] = braze.lines("profiles")
    braze.track(
        {"braze_id": profile["braze_id"], "points": 1},
        {"braze_id": "f" * 24, "_update_existing_only": False},
    )
    assert braze.profiles == [{"external_id": "u1", "custom_attributes": {"points": 1}}]


def test_an_address_beside_a_primary_identifier_is_an_attribute(braze):
    address = {"email": "A@Example.com", "phone": "+12025550100"}
    braze.track(user("u1", **address), user("u2", **address))
    stored = address | {"email": "a@example.com", "custom_attributes": {}}
    assert braze.profiles == [
        {"external_id": "u1"} | stored,
        {"external_id": "u2"} | stored,
    ]


def test_without_a_primary_identifier_email_is_looked_up_and_wins_over_phone(braze):
    phone = {"phone": "+12025550100"}
    braze.track(user("u1", email="a@example.com"), user("u2", **phone))
    braze.track({"email": "A@EXAMPLE.com", "points": 1} | phone)
    assert braze.profiles == [
        user("u1", email="a@example.com", custom_attributes={"points": 1}) | phone,
        user("u2", custom_attributes={}) | phone,
    ]


def test_without_an_email_the_phone_is_looked_up(braze):
    phone = {"phone": "+12025550100"}
    braze.track(user("u1", **phone), user("u2", **phone))
    braze.track(user("u1"))
    braze.track({"points": 1} | phone)
    assert [one["custom_attributes"] for one in braze.profiles] == [{"points": 1}, {}]


def test_of_several_with_one_email_the_last_updated_with_an_external_id_is_meant(
    braze,
):
    braze.track({"email": "a@example.com"})
    braze.track(user("u1", email="a@example.com"), user("u2", email="a@example.com"))
    braze.track(user("u1", seen=True))
    braze.track({"email": "a@example.com", "points": 1})
    assert {
        one.get("external_id"): one["custom_attributes"] for one in braze.profiles
    } == {None: {}, "u1": {"seen": True, "points": 1}, "u2": {}}


def test_of_several_without_external_id_the_last_updated_is_meant(braze):
    for name in ("a1", "a2"):
        braze.track(
            {
                "user_alias": alias(name),
                "_update_existing_only": False,
                "email": "a@example.com",
            }
        )
    braze.track({"user_alias": alias("a1"), "seen": True})
    braze.track({"email": "a@example.com", "points": 1})
    assert [one["custom_attributes"] for one in braze.profiles] == [
        {"seen": True, "points": 1},
        {},
    ]


def test_an_unknown_address_creates_a_profile_with_nothing_else(braze):
    braze.track({"email": "a@example.com", "points": 1}, {"phone": "+12025550100"})
    assert braze.profiles == [
        {"phone": "+12025550100", "custom_attributes": {}},
        {"email": "a@example.com", "custom_attributes": {"points": 1}},
    ]


def test_a_phone_that_is_no_number_finds_and_creates_nobody(braze):
    braze.track(user(phone="555-0100"))
    answer = braze.track({"phone": "555-0100", "points": 1})
    assert answer.json["attributes_processed"] == 1
    assert braze.profiles == [
        {"external_id": "u1", "phone": "555-0100", "custom_attributes": {}}
    ]


def test_a_changed_or_removed_address_is_found_no_longer(braze):
    braze.track(user(email="a@example.com", phone="+12025550100"))
    braze.track(user(email="b@example.com", phone=None))
    only = {"_update_existing_only": True, "found": True}
    braze.track({"email": "a@example.com"} | only, {"phone": "+12025550100"} | only)
    assert braze.custom == {}
    braze.track({"email": "b@example.com"} | only)
    assert braze.custom == {"found": True}


# ---- Profile fields ----


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("first_name", "Ada", LONG),
        ("last_name", "x" * 255, 7),
        ("home_city", "Oslo", ["Oslo"]),
        ("phone", "+12025550100", 12025550100),
        ("dob", "1990-02-28", "1990-02-30"),
        ("dob", "1990-02-28", "28/02/1990"),
        ("dob", "1990-02-28", "1990-02-28T00:00:00Z"),
        ("gender", "F", "female"),
        ("gender", "N", ["N"]),
        ("language", "de", "german"),
        ("time_zone", "Europe/Oslo", "Oslo"),
        ("time_zone", "Europe/Oslo", 1),
        ("image_url", "https://example.com/a.png", "x" * 1025),
        ("email_open_tracking_disabled", True, "true"),
        ("email_click_tracking_disabled", False, 0),
        ("marked_email_as_spam_at", "2026-05-01", "yesterday"),
        ("date_of_first_session", "05/01/2026", 1),
        ("date_of_last_session", "2026-05-01T10:00:00:123Z", "3001-01-01"),
        ("facebook", {"id": "1"}, "1"),
        ("twitter", {"id": 1}, [1]),
        ("email_encrypted", "abc", LONG),
    ],
)
def test_a_profile_field_out_of_form_is_ignored_without_error(braze, field, good, bad):
    assert "errors" not in braze.track(user(**{field: good, "points": 1})).json
    assert "errors" not in braze.track(user(**{field: bad, "points": 2})).json
    [profile] = braze.profiles
    assert profile[field] == good
    assert profile["custom_attributes"] == {"points": 2}
    braze.track(user(**{field: None}))
    assert field not in braze.profiles[0]


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("NO", "NO"),
        ("no", "NO"),
        ("NOR", "NO"),
        (" Norway ", "NO"),
        ("Atlantis", None),
        (47, None),
        (None, None),
    ],
)
def test_a_country_becomes_its_code_and_one_that_cannot_becomes_null(
    braze, sent, stored
):
    braze.track(user(country="US"))
    braze.track(user(country=sent))
    assert braze.profiles[0].get("country") == stored


def test_a_field_in_other_letters_is_a_custom_attribute(braze):
    braze.track(user(Email="nobody", First_Name="Ada"))
    assert braze.custom == {"Email": "nobody", "First_Name": "Ada"}


def test_bio_and_controls_are_not_stored(braze):
    controls = {"_merge_objects": False, "_update_existing_only": False}
    braze.track(user(bio="long ago", push_token_import=False, **controls))
    assert braze.profiles == [{"external_id": "u1", "custom_attributes": {}}]


def test_push_tokens_are_added_once_and_removed_by_null(braze):
    other = TOKEN | {"token": "t2"}
    braze.track(user(push_tokens=[TOKEN]))
    braze.track(user(push_tokens=[TOKEN, other]))
    assert braze.profiles[0]["push_tokens"] == [TOKEN, other]
    braze.track(user(push_tokens=None))
    assert "push_tokens" not in braze.profiles[0]


def test_subscriptions_hold_for_everyone_with_the_same_email(braze):
    braze.track(user("u1", email="a@example.com"), user("u2", email="a@example.com"))
    braze.track(user("u3"))
    group = {"subscription_group_id": GROUP, "subscription_state": "unsubscribed"}
    braze.track(user("u1", email_subscribe="opted_in", subscription_groups=[group]))
    first, second, third = braze.profiles
    assert first["email_subscribe"] == second["email_subscribe"] == "opted_in"
    assert first["subscription_groups"] == {GROUP: "unsubscribed"}
    assert second["subscription_groups"] == {GROUP: "unsubscribed"}
    assert third == {"external_id": "u3", "custom_attributes": {}}
    again = group | {"subscription_state": "subscribed"}
    braze.track(user("u3", subscription_groups=[again], email_subscribe="unsubscribed"))
    assert braze.profiles[2]["subscription_groups"] == {GROUP: "subscribed"}
    assert braze.profiles[0]["email_subscribe"] == "opted_in"


# ---- Custom attributes ----

OBJECT = {"city": "Oslo", "visits": 3, "since": {"$time": "2026-05-01T10:00:00Z"}}
PETS = [{"id": 1, "name": "Rex"}, {"id": 2, "name": "Tom"}]
FULL = [f"i{n}" for n in range(500)]


@pytest.mark.parametrize(
    "value",
    [
        "gold",
        "",
        "0012",
        "x" * 255,
        0,
        -7,
        2**53 + 1,
        1.5,
        1.0,
        True,
        False,
        "2026-05-01",
        "2026-05-01T10:00:00.000+02:00",
        [],
        ["a", "b"],
        [1, 1.0, True, "1"],
        {},
        OBJECT,
        {"deep": {"list": [1, {"a": [True]}]}},
        PETS,
        {"inc": 1, "other": 2},
    ],
    ids=lambda value: json.dumps(value)[:20],
)
def test_a_value_is_stored_exactly_as_sent(braze, value):
    braze.track(user(**{"Loyalty Points": value}))
    braze.track(user("u1", other=1))
    [stored] = [braze.custom["Loyalty Points"]]
    assert json.dumps(stored) == json.dumps(value)


@pytest.mark.parametrize(
    ("before", "sent", "after"),
    [
        pytest.param(1, None, ..., id="null removes"),
        pytest.param(..., None, ..., id="null of nothing"),
        pytest.param("a", LONG, "a", id="too long a text"),
        pytest.param(3, {"inc": 2}, 5, id="inc"),
        pytest.param(3, {"inc": -4}, -1, id="inc down"),
        pytest.param(1.5, {"inc": 2}, 3.5, id="inc of a fraction"),
        pytest.param(..., {"inc": 2}, 2, id="inc from nothing"),
        pytest.param("a", {"inc": 2}, "a", id="inc of a text"),
        pytest.param(True, {"inc": 2}, True, id="inc of a truth"),
        pytest.param(3, {"inc": 0.5}, 3, id="inc by a fraction"),
        pytest.param(3, {"inc": "1"}, 3, id="inc by a text"),
        pytest.param(["a"], {"add": ["b"]}, ["a", "b"], id="add"),
        pytest.param(["a", "b"], {"add": ["a"]}, ["b", "a"], id="added again"),
        pytest.param(..., {"add": ["b", "b"]}, ["b"], id="add to nothing"),
        pytest.param(["a", "b"], {"remove": ["a", "c"]}, ["b"], id="remove"),
        pytest.param(["a"], {"add": ["b"], "remove": ["a"]}, ["b"], id="both"),
        pytest.param("a", {"add": ["b"]}, "a", id="add to a text"),
        pytest.param(["a"], {"add": "b"}, ["a"], id="add no array"),
        pytest.param(["a"], {"add": [LONG]}, ["a"], id="add too long a text"),
        pytest.param(..., ["a", "b", "a"], ["a", "b"], id="unique"),
        pytest.param(["a"], [None], ["a"], id="null in an array"),
        pytest.param(["a"], [["b"]], ["a"], id="array in an array"),
        pytest.param(["a"], [LONG], ["a"], id="too long a text in an array"),
        pytest.param(..., ["old", *FULL], FULL, id="501 items"),
        pytest.param(FULL, {"add": ["new"]}, [*FULL[1:], "new"], id="add to 500"),
        pytest.param(
            ["a"], [f"{n:0250}" for n in range(410)], ["a"], id="array over 100 KB"
        ),
        pytest.param(
            OBJECT, {"visits": 4}, {"visits": 4}, id="an object is overwritten"
        ),
        pytest.param(
            OBJECT, {f"k{n}": "x" * 250 for n in range(400)}, OBJECT, id="over 100 KB"
        ),
    ],
)
def test_what_a_value_does_to_a_custom_attribute(braze, before, sent, after):
    braze.track(user(**({} if before is ... else {"it": before})))
    assert "errors" not in braze.track(user(it=sent)).json
    assert braze.custom.get("it", ...) == after


def sized(size):
    """Return an object of so many bytes as JSON."""
    filled = {f"k{n:03}": "x" * 250 for n in range(size // 260 - 1)}
    filled["last"] = ["y" * 200]
    missing = size - len(json.dumps(filled, separators=(",", ":")))
    filled["last"] += ["z" * (missing - 3 - 203), "z" * 200]
    assert len(json.dumps(filled, separators=(",", ":"))) == size
    return filled


def test_an_object_has_at_most_102400_bytes(braze):
    braze.track(user(it=sized(102_400), other=sized(102_401)))
    assert set(braze.custom) == {"it"}


@pytest.mark.parametrize(
    ("array", "made", "most"),
    [("events", event, 102_400), ("purchases", purchase, 51_200)],
)
def test_properties_are_limited_in_bytes(braze, array, made, most):
    for size, errors in ((most, []), (most + 1, BAD_PROPERTIES)):
        obj = made() | {"properties": sized(size)}
        assert rejected(braze, obj, array) == errors


def test_a_custom_name_has_1_to_255_characters(braze):
    braze.track(user(**{LONG: 1, "": 2, "x" * 255: 3}))
    braze.track(user(**{LONG: 1, "points": 4}))
    braze.track(user(**{"": 1, "tier": 5}))
    assert braze.custom == {"x" * 255: 3, "points": 4, "tier": 5}


def test_objects_are_merged_all_the_way_down_when_told_to(braze):
    braze.track(user(it={"a": {"b": 1, "c": 2}, "d": 3}))
    braze.track(user(it={"a": {"b": 9}, "e": 4}, _merge_objects=True))
    assert braze.custom["it"] == {"a": {"b": 9, "c": 2}, "d": 3, "e": 4}
    braze.track(user(it={"a": 5, "d": {"f": 6}}, _merge_objects=True))
    assert braze.custom["it"] == {"a": 5, "d": {"f": 6}, "e": 4}
    braze.track(user(new={"a": 1}, _merge_objects=True))
    assert braze.custom["new"] == {"a": 1}


def by_id(number, **new):
    change = {"$identifier_key": "id", "$identifier_value": number}
    return change | ({"$new_object": new} if new else {})


@pytest.mark.parametrize(
    ("change", "merge", "after"),
    [
        pytest.param(
            {"$add": [{"id": 3}]}, False, [*PETS, {"id": 3}], id="add goes last"
        ),
        pytest.param({"$remove": [by_id(1), by_id(9)]}, False, PETS[1:], id="remove"),
        pytest.param(
            {"$update": [by_id(2, id=2, age=7)]},
            False,
            [PETS[0], {"id": 2, "age": 7}],
            id="update replaces",
        ),
        pytest.param(
            {"$update": [by_id(2, age=7)]},
            True,
            [PETS[0], PETS[1] | {"age": 7}],
            id="update merges when told to",
        ),
        pytest.param(
            {
                "$update": [by_id(3, id=4)],
                "$remove": [by_id(1)],
                "$add": [{"id": 3}, {"id": 1}],
            },
            False,
            [PETS[1], {"id": 4}],
            id="always add, remove, update",
        ),
        pytest.param({"$remove": [by_id(True)]}, False, PETS, id="true is not 1"),
    ],
)
def test_an_array_of_objects_is_changed_item_by_item(braze, change, merge, after):
    braze.track(user(it=PETS))
    braze.track(user(it=change, _merge_objects=merge))
    assert braze.custom["it"] == after


def test_items_are_added_to_nothing_but_not_to_a_text(braze):
    braze.track(user(text="a"))
    braze.track(user(text={"$add": PETS}, new={"$add": PETS}))
    assert braze.custom == {"text": "a", "new": PETS}


@pytest.mark.parametrize(
    "wrong",
    [
        {"a": None},
        {"a": {"$time": "soon"}},
        {"a": {"$time": None}},
        {"a": {"$time": "3001-01-01"}},
        {"a": {"$time": "2026-05-01", "b": 1}},
        {"a b": 1},
        {"a.b": 1},
        {"$a": 1},
        {"": 1},
        {LONG: 1},
        {"a": LONG},
        [{"a": None}],
        [{"a": 1}, 2, None],
        {"$add": [{"a": None}]},
        {"$add": {"a": 1}},
        {"$remove": [{"$identifier_key": "id"}]},
        {"$remove": [1]},
        {"$update": [by_id(1)]},
        {"$update": [by_id(1, a=None)]},
    ],
    ids=lambda value: json.dumps(value)[:30],
)
def test_one_invalid_nested_value_drops_all_nested_updates_of_its_request(braze, wrong):
    braze.track(user(it={"a": 0}))
    plain = {"count": {"inc": 1}, "tags": {"add": ["t"]}, "list": [1]}
    answer = braze.track(user(wrong=wrong, points=1), user(it={"a": 1}, **plain))
    assert answer.json == {"message": "success", "attributes_processed": 2}
    stored = {"points": 1, "count": 1, "tags": ["t"], "list": [1]}
    assert braze.custom == {"it": {"a": 0}} | stored


@pytest.mark.parametrize(
    "date",
    [
        "2026-05-01",
        "2026-05-01T10:00:00Z",
        "2026-05-01T10:00:00.123+02:00",
        "2026-05-01T10:00:00:123Z",
        "2026-05-01T10:00:00",
        "2026-05-01 10:00:00",
        "05/01/2026",
        "Fri 05 01 10:00:00.UTC 2026",
        "Fri 05 01 10:00:00.+0200 2026",
    ],
)
def test_a_nested_time_may_have_any_form_that_braze_reads(braze, date):
    braze.track(user(it={"at": {"$time": date}}))
    assert braze.custom == {"it": {"at": {"$time": date}}}


# ---- Events and purchases ----


def test_events_are_stored_as_sent_in_order_and_never_deduplicated(braze):
    sent = event(properties={"plan": "pro", "seats": 2, "at": "2026-05-01"}, app_id="x")
    braze.track(events=[sent, sent])
    braze.track(events=[sent])
    [profile] = braze.lines("profiles")
    stored = {"kind": "event", "braze_id": profile["braze_id"], **sent}
    assert braze.lines("events") == [stored] * 3


def test_attributes_come_before_events_before_purchases(braze):
    new = {"user_alias": alias()}
    body = {
        "purchases": [purchase()],
        "events": [event() | new | {"external_id": None}],
        "attributes": [new | {"_update_existing_only": False}],
    }
    braze.post(TRACK, body)
    assert [row["kind"] for row in braze.lines("events")] == ["event", "purchase"]


def test_an_event_creates_its_profile_as_attributes_do(braze):
    only = {"_update_existing_only": True}
    braze.track(events=[event(), event(external_id="u2") | only])
    assert [one["external_id"] for one in braze.profiles] == ["u1"]
    assert len(braze.lines("events")) == 1


REQUIRED = "The property '#/' did not contain a required property of '{}'"
NAME = "'name' must be a string of 1 to 255 characters"
BAD_PROPERTIES = ["Invalid 'properties' field"]


@pytest.mark.parametrize(
    ("obj", "errors"),
    [
        pytest.param(event(), [], id="good"),
        pytest.param(event(time="2026-05-01"), [], id="a day"),
        pytest.param(event(name="x"), [], id="a letter for a name"),
        pytest.param(event(name="x" * 255), [], id="255 for a name"),
        pytest.param(
            user(), [REQUIRED.format("name"), REQUIRED.format("time")], id="bare"
        ),
        pytest.param(event(time=1), ["'time' must be an ISO 8601 time"], id="number"),
        pytest.param(
            event(time="05/01/2026"), ["'time' must be an ISO 8601 time"], id="form"
        ),
        pytest.param(
            event(name=""), ["'name' must be a string of 1 to 255 characters"]
        ),
        pytest.param(
            event(name=LONG), ["'name' must be a string of 1 to 255 characters"]
        ),
        pytest.param(event(name=7), [NAME], id="name 7"),
        pytest.param(event(external_id=None), [NO_IDENTIFIER], id="nobody"),
        pytest.param(
            event(external_id=None, email="a"), ["EMAIL_BAD_FORMAT"], id="address"
        ),
        pytest.param(event(properties=None), [], id="null properties"),
        pytest.param(event(properties=[]), BAD_PROPERTIES, id="no object"),
        pytest.param(event(properties={"time": 1}), BAD_PROPERTIES, id="time"),
        pytest.param(event(properties={"event_name": 1}), BAD_PROPERTIES, id="e_n"),
        pytest.param(event(properties={"price": 1}), [], id="price is free"),
        pytest.param(event(properties={"": 1}), BAD_PROPERTIES, id="empty"),
        pytest.param(event(properties={"$a": 1}), BAD_PROPERTIES, id="dollar"),
        pytest.param(event(properties={LONG: 1}), BAD_PROPERTIES, id="256"),
        pytest.param(event(properties={"a": ["x" * 99] * 1000}), [], id="99 KB"),
        pytest.param(
            event(properties={"a": ["x" * 99] * 1010}), BAD_PROPERTIES, id="101 KB"
        ),
    ],
)
def test_an_event_that_breaks_a_rule_is_refused(braze, obj, errors):
    assert rejected(braze, obj, "events") == errors
    assert len(braze.lines("events")) == (not errors)


CURRENCY = "'currency' must be an ISO 4217 currency"
QUANTITY = "'quantity' must be an integer from 1 to 100"
PRODUCT = "'product_id' must be a string of 1 to 255 characters"


@pytest.mark.parametrize(
    ("obj", "errors"),
    [
        pytest.param(purchase(), [], id="good"),
        pytest.param(purchase(price=0), [], id="free"),
        pytest.param(purchase(quantity=1), [], id="one"),
        pytest.param(purchase(quantity=100), [], id="a hundred"),
        pytest.param(purchase(quantity=0), [QUANTITY], id="none"),
        pytest.param(purchase(quantity=101), [QUANTITY], id="too many"),
        pytest.param(purchase(quantity=1.0), [QUANTITY], id="a fraction"),
        pytest.param(purchase(price="9.5"), ["'price' must be a number"], id="text"),
        pytest.param(purchase(price=True), ["'price' must be a number"], id="truth"),
        pytest.param(purchase(currency="usd"), [CURRENCY], id="small letters"),
        pytest.param(purchase(currency="XXY"), [CURRENCY], id="no currency"),
        pytest.param(purchase(product_id=LONG), [PRODUCT], id="long product"),
        pytest.param(purchase(product_id=7), [PRODUCT], id="product number"),
        pytest.param(
            user(),
            [REQUIRED.format(k) for k in ("product_id", "currency", "price", "time")],
            id="bare",
        ),
        pytest.param(
            purchase(time="x"), ["'time' must be an ISO 8601 time"], id="time"
        ),
        *[
            pytest.param(purchase(properties={name: 1}), BAD_PROPERTIES, id=name)
            for name in (
                "time",
                "product_id",
                "quantity",
                "event_name",
                "price",
                "currency",
            )
        ],
        pytest.param(purchase(properties={"size": 42}), [], id="free property"),
        pytest.param(
            purchase(properties={"a": ["x" * 99] * 510}), BAD_PROPERTIES, id="51 KB"
        ),
    ],
)
def test_a_purchase_that_breaks_a_rule_is_refused(braze, obj, errors):
    assert rejected(braze, obj, "purchases") == errors
    assert len(braze.lines("events")) == (not errors)


@pytest.mark.parametrize("make", [event, purchase])
def test_a_future_time_becomes_now_and_a_past_one_stays_as_sent(braze, make):
    array = "events" if make is event else "purchases"
    future = (datetime.now(UTC) + timedelta(days=2)).isoformat()
    past = "2026-05-01T12:00:00+02:00"
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    braze.track(**{array: [make(time=future), make(time=past)]})
    first, second = braze.lines("events")
    assert before <= datetime.fromisoformat(first["time"]) <= datetime.now(UTC)
    assert second["time"] == past


def test_a_property_with_too_long_a_text_is_left_out(braze):
    braze.track(events=[event(properties={"a": LONG, "b": "x" * 255, "c": [LONG]})])
    [stored] = braze.lines("events")
    assert stored["properties"] == {"b": "x" * 255, "c": [LONG]}


def test_a_profile_counts_its_events_and_purchases(braze):
    early, late = "2026-01-01T00:00:00+01:00", "2026-06-01"
    braze.track(
        events=[event(), event(time=late), event(time=early), event(name="other")],
        purchases=[purchase(quantity=3), purchase()],
    )
    [profile] = braze.profiles
    usual = event()["time"]
    assert profile["custom_events"] == [
        {"name": "signed_up", "first": early, "last": late, "count": 3},
        {"name": "other", "first": usual, "last": usual, "count": 1},
    ]
    assert profile["purchases"] == [
        {"name": "shoe", "first": usual, "last": usual, "count": 4}
    ]


PRODUCT_ITEM = {
    "product_id": "p",
    "product_name": "Shoe",
    "variant_id": "v",
    "quantity": 1,
    "price": 9.5,
}
ORDER = {
    "order_id": "o",
    "total_value": 9.5,
    "currency": "USD",
    "products": [PRODUCT_ITEM],
    "source": "web",
}
VIEWED = {k: v for k, v in PRODUCT_ITEM.items() if k != "quantity"}
CART = {"cart_id": "c"} | {k: v for k, v in ORDER.items() if k != "order_id"}
CHECKOUT = {"checkout_id": "c"} | {k: v for k, v in ORDER.items() if k != "order_id"}
ONLY_CHANGES = {k: v for k, v in CART.items() if k != "total_value"}


def without(given, name):
    return {k: v for k, v in given.items() if k != name}


@pytest.mark.parametrize(
    ("name", "properties"),
    [
        ("product_viewed", VIEWED | {"currency": "USD", "source": "web"}),
        ("cart_updated", CART),
        ("cart_updated", ONLY_CHANGES | {"action": "add"}),
        ("checkout_started", CHECKOUT | {"cart_id": "c"}),
        ("order_placed", ORDER | {"tax": 0, "metadata": {"gift": True}}),
        ("order_cancelled", ORDER | {"cancel_reason": "late"}),
        ("order_refunded", ORDER | {"discounts": []}),
        ("orderPlaced", {"a near miss": "is no recommended event"}),
    ],
)
def test_an_ecommerce_event_that_keeps_its_schema_is_stored(braze, name, properties):
    answer = braze.track(
        events=[event(name=f"ecommerce.{name}", properties=properties)]
    )
    assert answer.json == {"message": "success", "events_processed": 1}
    assert braze.lines("events")[0]["properties"] == properties


EXTRA = (
    "The property '#/properties/gift' is not part of the schema; custom fields belong "
    "into 'metadata'"
)
NO_OBJECT = (
    "The property '#/properties/products/0' did not match the following type: object"
)
SHAPE = "The property '#/properties{}' did not contain a required property of '{}'"


@pytest.mark.parametrize(
    ("name", "properties", "array", "error"),
    [
        (
            "order_placed",
            without(ORDER, "source"),
            "events",
            SHAPE.format("", "source"),
        ),
        ("cart_updated", ONLY_CHANGES, "events", SHAPE.format("", "total_value")),
        (
            "cart_updated",
            CART | {"action": "clear"},
            "events",
            "The property '#/properties/action' did not match the schema",
        ),
        (
            "order_placed",
            ORDER | {"gift": True},
            "events",
            EXTRA,
        ),
        (
            "order_placed",
            ORDER | {"total_value": -1},
            "events",
            "The property '#/properties/total_value' did not match the schema",
        ),
        (
            "order_placed",
            ORDER | {"total_value": "9.5"},
            "events",
            "The property '#/properties/total_value' did not match the schema",
        ),
        (
            "order_placed",
            ORDER | {"metadata": []},
            "events",
            "The property '#/properties/metadata' did not match the schema",
        ),
        (
            "order_placed",
            ORDER | {"products": {}},
            "events",
            "The property '#/properties/products' did not match the schema",
        ),
        (
            "order_placed",
            ORDER | {"order_id": 7},
            "events",
            "The property '#/properties/order_id' did not match the schema",
        ),
        (
            "order_placed",
            ORDER | {"products": [PRODUCT_ITEM, without(PRODUCT_ITEM, "price")]},
            "events",
            SHAPE.format("/products/1", "price"),
        ),
        (
            "order_placed",
            ORDER | {"products": [PRODUCT_ITEM | {"quantity": 1.5}]},
            "events",
            "The property '#/properties/products/0/quantity' did not match the schema",
        ),
        (
            "order_placed",
            ORDER | {"products": ["p"]},
            "events",
            NO_OBJECT,
        ),
        ("order_placed", ORDER | {"currency": "usd"}, "purchases", CURRENCY),
    ],
)
def test_an_ecommerce_event_that_breaks_its_schema_is_dropped_beside_a_success(
    braze, name, properties, array, error
):
    wrong = event(name=f"ecommerce.{name}", properties=properties)
    answer = braze.track(events=[{"nobody": 1}, event(), wrong])
    assert answer.status == 201
    assert answer.json["events_processed"] == 1
    assert answer.json["errors"][3:] == [
        {"type": error, "input_array": array, "index": 2}
    ]
    alone = braze.track(events=[wrong])
    assert (alone.status, alone.json["message"]) == (201, "success")
    assert [row["name"] for row in braze.lines("events")] == ["signed_up"]


# ---- Reading back ----


def test_what_is_accepted_shows_after_the_delay():
    with sandbox(delay=0.4) as braze:
        braze.track(user(points=1))
        assert (braze.profiles, braze.state["pending"]) == ([], 1)
        settle(braze)
        assert (braze.custom, braze.state["pending"]) == ({"points": 1}, 0)


def exported(braze, *fields, **ids):
    return braze.post(EXPORT, {"fields_to_export": fields, **ids})


def test_export_returns_the_fields_asked_for_and_names_unknown_ids(braze):
    braze.track(user(email="a@example.com", points=1), user("u2", tags=["a"]))
    braze.track(
        {"user_alias": alias(), "_update_existing_only": False}, events=[event()]
    )
    ids = ["u2", "u1", "u9", "u2"]
    answer = exported(
        braze,
        "external_id",
        "email",
        "custom_attributes",
        "custom_events",
        external_ids=ids,
        user_aliases=[alias(), alias("a9")],
    )
    nobody = {"external_id": None, "email": None, "custom_events": []}
    counted = {"name": "signed_up", "count": 1}
    counted |= {"first": event()["time"], "last": event()["time"]}
    assert (answer.status, answer.json) == (
        201,
        {
            "message": "success",
            "users": [
                nobody | {"external_id": "u2", "custom_attributes": {"tags": ["a"]}},
                {
                    "external_id": "u1",
                    "email": "a@example.com",
                    "custom_attributes": {"points": 1},
                    "custom_events": [counted],
                },
                nobody | {"custom_attributes": {}},
            ],
            "invalid_user_ids": ["u9", "a9"],
        },
    )


def test_export_finds_by_one_address_or_braze_id_too(braze):
    both = {"email": "a@example.com", "phone": "+12025550100"}
    braze.track(user("u1", **both), user("u2", **both))
    one = braze.lines("profiles")[0]["braze_id"]
    found = [
        [u["external_id"] for u in exported(braze, "external_id", **ids).json["users"]]
        for ids in (
            {"email_address": "A@example.com"},
            {"phone": "+12025550100"},
            {"braze_id": one},
            {"device_id": "d"},
        )
    ]
    assert found == [["u1", "u2"], ["u1", "u2"], ["u1"], []]


def test_export_never_tells_subscription_groups(braze):
    group = {"subscription_group_id": GROUP, "subscription_state": "subscribed"}
    braze.track(user(subscription_groups=[group]))
    answer = exported(braze, "subscription_groups", external_ids=["u1"])
    assert answer.json["users"] == [{}]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"external_ids": ["u1"]}, "'fields_to_export' is required"),
        (
            {"external_ids": ["u1"], "fields_to_export": "email"},
            "'fields_to_export' is required",
        ),
        (
            {"external_ids": ["u"] * 51, "fields_to_export": ["email"]},
            "At most 50 ids are allowed",
        ),
        (
            {
                "external_ids": ["u"] * 26,
                "user_aliases": [alias()] * 25,
                "fields_to_export": ["email"],
            },
            "At most 50 ids are allowed",
        ),
        (
            {"fields_to_export": ["email"]},
            "Exactly one kind of identifier must be given",
        ),
        (
            {"external_ids": ["u"], "phone": "1", "fields_to_export": ["email"]},
            "Exactly one kind of identifier must be given",
        ),
        (
            {"external_ids": [1], "fields_to_export": ["email"]},
            "'external_ids' and 'user_aliases' must be arrays of ids",
        ),
        (
            {"user_aliases": ["a"], "fields_to_export": ["email"]},
            "'external_ids' and 'user_aliases' must be arrays of ids",
        ),
    ],
)
def test_an_export_asked_for_wrongly_is_a_bad_request(braze, body, message):
    answer = braze.post(EXPORT, body)
    assert (answer.status, answer.json) == (400, {"message": message})


def test_export_has_a_rate_limit_of_its_own():
    with sandbox(export_requests=1, requests=1, per=3600) as braze:
        statuses = [
            exported(braze, "email", external_ids=["u1"]).status for _ in range(4)
        ]
        assert statuses[0] == 201
        assert 429 in statuses
        assert braze.track(user()).status == 201


@pytest.mark.parametrize(
    ("body", "users"),
    [
        pytest.param(
            {"attributes": [user(points={"inc": 2}, tags=["a"], email="a@b.co")]},
            [{"external_id": "u1", "custom_attributes": {"points": 2, "tags": ["a"]}}],
            id="only what was sent",
        ),
        pytest.param(
            {
                "events": [
                    {"email": "old@example.com"} | without(event(), "external_id")
                ]
            },
            [
                {
                    "email": "old@example.com",
                    "custom_events": [
                        {
                            "name": "signed_up",
                            "first": event()["time"],
                            "last": event()["time"],
                            "count": 1,
                        }
                    ],
                }
            ],
            id="event",
        ),
        pytest.param(
            {"purchases": [purchase(quantity=2)]},
            [
                {
                    "external_id": "u1",
                    "purchase_events": [
                        {
                            "product_id": "shoe",
                            "first": purchase()["time"],
                            "last": purchase()["time"],
                            "count": 2,
                        }
                    ],
                }
            ],
            id="purchase",
        ),
        pytest.param(
            {"attributes": [user("u9", _update_existing_only=True)]}, [], id="nobody"
        ),
        pytest.param(
            {"attributes": [user(note=LONG)]},
            [{"external_id": "u1", "custom_attributes": {}}],
            id="not applied",
        ),
    ],
)
def test_sync_answers_with_what_became_of_the_one_object(body, users):
    with sandbox(delay=60) as braze:
        answer = braze.post(SYNC, body)
        assert (answer.status, answer.json) == (
            201,
            {"users": users, "message": "success"},
        )


def test_sync_refuses_what_track_refuses(braze):
    answer = braze.post(SYNC, {"attributes": [{"points": 1}]})
    assert (answer.status, answer.json["message"]) == (400, NO_VALID)


# ---- Rate limits ----


def test_a_window_takes_its_number_and_starts_at_a_multiple_of_its_length():
    windows = (Window(requests=2, per=3),)
    seen = []
    for now in (100.0, 101.0, 101.5, 102.0, 105.0):
        verdict, windows = take(windows, now)
        seen.append((verdict.allowed, verdict.remaining, verdict.reset))
    assert seen == [
        (True, 1, 102),
        (True, 0, 102),
        (False, 0, 102),
        (True, 1, 105),
        (True, 1, 108),
    ]


def test_an_hourly_limit_turns_with_the_clock_hour_and_a_refusal_counts_nowhere():
    windows = (Window(requests=1, per=3), Window(requests=2, per=3600))
    seen = []
    for now in (7195.0, 7195.5, 7197.0, 7199.0, 7200.0):
        verdict, windows = take(windows, now)
        seen.append((verdict.allowed, verdict.limit, verdict.remaining, verdict.reset))
    assert seen == [
        (True, 2, 1, 7200),
        (False, 1, 0, 7197),
        (True, 2, 0, 7200),
        (False, 2, 0, 7200),
        (True, 2, 1, 10800),
    ]


def test_the_reset_is_an_epoch_time_or_by_mau_the_seconds_left():
    windows = (Window(requests=1, per=3600),)
    taken, windows = take(windows, 7100.5)
    refused, _ = take(windows, 7100.5)
    limit = {"X-RateLimit-Limit": "1", "X-RateLimit-Remaining": "0"}
    assert epoch_headers(taken) == limit | {"X-RateLimit-Reset": "7200"}
    assert epoch_headers(refused) == epoch_headers(taken)
    assert mau_headers(taken, 7100.5) == limit | {"X-RateLimit-Reset": "100"}
    assert mau_headers(refused, 7100.5) == {"X-Ratelimit-Retry-After": "100"}


@pytest.mark.parametrize("mau", [False, True])
def test_over_the_limit_is_429_with_headers_and_nothing_is_done(mau):
    with sandbox(requests=2, per=3600, mau_headers=mau) as braze:
        answers = [braze.track(user(f"u{i}")) for i in range(3)]
        assert [one.status for one in answers] == [201, 201, 429]
        assert answers[2].json == {"message": "Rate limit exceeded"}
        assert [one.rate.get("x-ratelimit-remaining") for one in answers[:2]] == [
            "1",
            "0",
        ]
        assert set(answers[2].rate) == (
            {"x-ratelimit-retry-after"}
            if mau
            else {
                "x-ratelimit-limit",
                "x-ratelimit-remaining",
                "x-ratelimit-reset",
            }
        )
        reset = int(answers[0].rate["x-ratelimit-reset"])
        assert reset <= 3600 if mau else reset > 1e9
        assert len(braze.profiles) == 2


def test_the_limits_are_brazes_unless_set():
    def limits(**options):
        windows = fresh(SandboxOptions(**options)).windows
        return {k: [(w.requests, w.per) for w in v] for k, v in windows.items()}

    others = {
        SYNC: [(500, 60)],
        "/partners/{name}/cohorts": [(250_000, 3600)],
        "/partners/{name}/cohorts/users": [(250_000, 3600)],
    }
    assert limits() == others | {
        TRACK: [(3000, 3)],
        BULK: [(50, 1)],
        EXPORT: [(40, 1)],
    }
    assert limits(requests=0, bulk_requests=0, export_requests=0) == others
    assert limits(hourly=9)[TRACK] == [(3000, 3), (9, 3600)]


def test_without_a_limit_no_header_speaks_of_one():
    with sandbox(requests=0) as braze:
        assert braze.track(user()).rate == {}


# ---- Cohorts ----

KEYS = {"partner_api_key": "p", "client_secret": "s"}
NO_CHANGES = (
    "'cohort_changes' must be an array of objects with user_ids and/or device_ids "
    "arrays, or an aliases object"
)
VIP = KEYS | {"cohort_id": "vip"}
NEW = VIP | {"name": "High Value", "created_at": "2026-05-01T10:00:00Z"}


def cohort(braze):
    [one] = braze.send("GET", "/_sandbox/cohorts").json["cohorts"]
    return one


def moved(braze, *changes, **more):
    return braze.post(MEMBERS, VIP | {"cohort_changes": changes} | more)


def test_a_cohort_keeps_who_was_added_and_not_removed(braze):
    braze.track(*[user(f"u{i}") for i in range(4)])
    braze.track({"user_alias": alias(), "_update_existing_only": False})
    assert braze.post(COHORTS, NEW).json == {"message": "success"}
    moved(
        braze, {"user_ids": ["u2", "u1", "unknown"], "aliases": [alias(), alias("x")]}
    )
    answer = moved(
        braze,
        {"user_ids": ["u2"], "device_ids": ["u0"], "should_remove": True},
        {"user_ids": ["u3"], "device_ids": ["u0"], "aliases": [alias("a9")]},
    )
    assert (answer.status, answer.json) == (201, {"message": "success"})
    assert cohort(braze) == {
        "partner": "acme",
        "cohort_id": "vip",
        "name": "High Value",
        "created_at": NEW["created_at"],
        "user_ids": ["u1", "u3"],
        "device_ids": [],
        "aliases": [alias()],
    }
    assert len(braze.profiles) == 5
    assert (braze.state["cohort_ids"], braze.state["most_ids"]) == (10, 5)


def device(name, **identifier):
    tokens = [TOKEN | {"device_id": name}]
    return {**identifier, "_update_existing_only": False, "push_tokens": tokens}


def test_a_device_finds_only_who_has_no_external_id(braze):
    braze.track(
        device("device-1", external_id="u1"),
        device("device-2", user_alias=alias()),
        device("device-3", email="a@example.com"),
        device("device-4", email="b@example.com"),
    )
    braze.track({"email": "b@example.com", "push_tokens": None})
    braze.post(COHORTS, NEW)
    moved(braze, {"device_ids": [f"device-{n}" for n in range(6)]})
    found = cohort(braze)
    assert (found["user_ids"], found["aliases"]) == ([], [alias()])
    assert found["device_ids"] == ["device-3"]
    moved(braze, {"device_ids": ["device-2", "device-3"], "should_remove": True})
    assert (cohort(braze)["device_ids"], cohort(braze)["aliases"]) == ([], [])


def test_a_cohort_is_renamed_by_defining_it_again(braze):
    braze.track(user())
    braze.post(COHORTS, NEW)
    moved(braze, {"user_ids": ["u1"]})
    braze.post(COHORTS, NEW | {"name": "Best"})
    assert (cohort(braze)["name"], cohort(braze)["user_ids"]) == ("Best", ["u1"])


def test_one_who_is_added_and_removed_in_one_request_is_what_comes_last(braze):
    braze.track(user("u1"), user("u2"))
    braze.post(COHORTS, NEW)
    add, remove = ({"user_ids": ["u1"]}, {"user_ids": ["u1"], "should_remove": True})
    moved(braze, add, remove, remove | {"user_ids": ["u2"]}, {"user_ids": ["u2"]})
    assert cohort(braze)["user_ids"] == ["u2"]
    assert braze.state["contradictions"] == 2


def test_ids_of_two_kinds_or_in_two_requests_do_not_contradict_each_other(braze):
    braze.post(COHORTS, NEW)
    moved(braze, {"user_ids": ["a"]}, {"device_ids": ["a"], "should_remove": True})
    moved(braze, {"user_ids": ["a"], "should_remove": True})
    assert braze.state["contradictions"] == 0


@pytest.mark.parametrize("number", [0, 1000, 1001])
def test_one_request_changes_at_most_a_thousand_ids_of_all_kinds(braze, number):
    braze.post(COHORTS, NEW)
    third = ["x"] * (number // 3)
    change = {"user_ids": third, "device_ids": third}
    change["aliases"] = [alias()] * (number - 2 * len(third))
    answer = moved(braze, change)
    assert answer.status == (201 if number <= 1000 else 400)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (COHORTS, NEW | {"cohort_id": ""}, "'cohort_id' must be a non-empty string"),
        (COHORTS, NEW | {"name": ""}, "'name' must be a non-empty string"),
        (COHORTS, VIP | {"name": "x"}, "'created_at' must be a non-empty string"),
        (
            COHORTS,
            NEW | {"created_at": "now"},
            "'created_at' must be an ISO 8601 time",
        ),
        (
            MEMBERS,
            VIP | {"cohort_id": "other", "cohort_changes": []},
            "'cohort_id' is not the id of a cohort",
        ),
        (
            MEMBERS,
            VIP | {"cohort_id": ["vip"], "cohort_changes": []},
            "'cohort_id' is not the id of a cohort",
        ),
        *[
            (
                MEMBERS,
                VIP | {"cohort_changes": changes},
                NO_CHANGES,
            )
            for changes in (
                None,
                {},
                ["u1"],
                [{}],
                [{"user_ids": "u1"}],
                [{"user_ids": [None]}],
                [{"user_ids": ["u1", ""]}],
                [{"device_ids": [7]}],
                [{"aliases": ["a1"]}],
                [{"aliases": [{"alias_name": "a1"}]}],
                [{"user_ids": [], "should_remove": "true"}],
            )
        ],
    ],
)
def test_a_cohort_request_that_breaks_a_rule_is_a_bad_request(
    braze, path, body, message
):
    braze.post(COHORTS, NEW)
    answer = braze.post(path, body)
    assert (answer.status, answer.json) == (400, {"message": message})


@pytest.mark.parametrize("path", [COHORTS, MEMBERS])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"partner_api_key": ""}, "Invalid partner API key"),
        ({"partner_api_key": "x"}, "Invalid partner API key"),
        ({"partner_api_key": ["p"]}, "Invalid partner API key"),
        ({"client_secret": "x"}, "Invalid client secret: x"),
        ({"client_secret": None}, "Invalid client secret: None"),
    ],
)
def test_cohorts_are_opened_by_two_keys_in_the_body_and_no_bearer(path, keys, message):
    with sandbox(partner_key="p", data_import_key="s") as braze:
        kind = {"Content-Type": "application/json"}
        assert braze.post(COHORTS, NEW, headers=kind).status == 201
        answer = braze.post(path, NEW | {"cohort_changes": []} | keys, headers=kind)
        assert (answer.status, answer.json) == (401, {"message": message})


def test_membership_changes_after_the_delay():
    with sandbox(delay=0.4) as braze:
        braze.post(SYNC, {"attributes": [user()]})
        braze.post(COHORTS, NEW)
        moved(braze, {"user_ids": ["u1"]})
        assert cohort(braze)["user_ids"] == []
        settle(braze)
        assert cohort(braze)["user_ids"] == ["u1"]


# ---- Faults ----


def test_the_same_seed_gives_the_same_faults_and_another_gives_others():
    def drawn(seed):
        faults = Faults(seed=seed, share=0.3)
        return [fault(faults, number, KINDS) for number in range(2000)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert set(drawn(1)) == {"", *KINDS}
    assert 0.27 < sum(map(bool, drawn(1))) / 2000 < 0.33


def test_faults_are_of_the_kinds_switched_on_that_fit_the_endpoint():
    all_of_them = Faults(share=1, kinds=("500", "423"))
    drawn = {fault(all_of_them, n, ("423", "502")) for n in range(50)}
    assert drawn == {"423"}
    assert fault(all_of_them, 0, ("502",)) == ""
    assert {fault(Faults(), n, KINDS) for n in range(50)} == {""}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kinds": ("504", "500")}, "no fault is called 504; there are "),
        ({"first": ("x",)}, "no fault is called x; there are "),
        ({"share": 1.5}, "the share of faults is 1.5; it is 0 to 1"),
        ({"hang": -1}, "a fault hangs for -1 seconds; 0 is the least"),
    ],
)
def test_faults_that_do_not_exist_are_refused(wrong, message):
    with pytest.raises(ValueError, match="fault") as caught:
        Faults(**wrong)
    assert str(caught.value).startswith(message)


BUSY = {"message": "Rate limit exceeded"}


def failed(braze, kind, path=TRACK, body=None, hang=60.0):
    """Send one request that meets the fault; None is a connection that broke."""
    setting = {"first": [kind], "hang": hang}
    assert braze.post("/_sandbox/faults", setting).status == 200
    try:
        return braze.post(path, body or {"attributes": [user()]}, timeout=0.5)
    except (ConnectionError, TimeoutError):
        return None


@pytest.mark.parametrize(
    ("kind", "status", "body"),
    [
        ("500", 500, {"message": "Internal Server Error"}),
        ("503", 503, {"message": "Service Unavailable"}),
        ("429", 429, BUSY),
        ("429_mau", 429, BUSY),
        ("500_after", 500, {"message": "Internal Server Error"}),
        ("queued_202", 202, {"message": "queued"}),
    ],
)
def test_a_fault_answers_for_braze(braze, kind, status, body):
    answer = failed(braze, kind)
    assert (answer.status, answer.json) == (status, body)


def test_a_gateway_answers_in_html_and_an_empty_201_with_nothing(braze):
    gateway = failed(braze, "502")
    assert (gateway.status, gateway.headers["Content-Type"]) == (
        502,
        "text/html; charset=utf-8",
    )
    assert b"<html>" in gateway.body
    empty = failed(braze, "empty_201")
    assert (empty.status, empty.body) == (201, b"")


def test_a_429_comes_in_both_header_forms_without_being_over_the_limit(braze):
    rate = failed(braze, "429").rate
    assert (rate["x-ratelimit-limit"], rate["x-ratelimit-remaining"]) == ("3000", "0")
    assert -3 < int(rate["x-ratelimit-reset"]) - time.time() <= 1
    assert failed(braze, "429_mau").rate == {"x-ratelimit-retry-after": "1"}


@pytest.mark.parametrize("kind", [k for k in BEFORE if k != "423"])
def test_after_these_faults_nothing_was_done(braze, kind):
    answer = failed(braze, kind)
    assert (answer is None) == (kind == "reset")
    assert braze.profiles == []
    assert braze.state["faults"] == {kind: 1}


@pytest.mark.parametrize("kind", AFTER)
def test_after_these_faults_all_was_done(braze, kind):
    answer = failed(braze, kind)
    assert (answer is None) == (kind in {"reset_after", "hang_after"})
    assert [one["external_id"] for one in braze.profiles] == ["u1"]
    assert braze.state["faults"] == {kind: 1}


def test_a_client_that_waits_no_longer_is_gone_and_nothing_waits_for_it(braze):
    assert failed(braze, "hang_after") is None
    until = time.monotonic() + 5
    while TRACK not in braze.state["requests"] and time.monotonic() < until:
        time.sleep(0.05)
    assert braze.state["requests"] == {TRACK: {"gone": 1}}


def test_an_answer_held_back_comes_in_the_end(braze):
    assert failed(braze, "hang_after", hang=0.1).status == 201


def test_a_reset_shows_as_a_reset_connection(braze):
    braze.post("/_sandbox/faults", {"first": ["reset", "reset_after"]})
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            braze.track(user())
    assert braze.state["requests"][TRACK] == {"reset": 2}


@pytest.mark.parametrize("array", ["attributes", "events", "purchases"])
def test_an_error_without_index_hides_which_object_was_refused(braze, array):
    made = {"attributes": user(), "events": event(), "purchases": purchase()}[array]
    answer = failed(braze, "no_index", body={array: [made, made, {"nobody": 1}]})
    assert answer.status == 201
    assert answer.json[f"{array}_processed"] == 1
    assert len(answer.json["errors"]) >= 2
    assert not any("index" in error for error in answer.json["errors"])
    assert braze.state["objects"][array] == 1


def test_of_a_request_without_accepted_object_only_the_index_is_hidden(braze):
    wrong = event(name="ecommerce.order_placed", properties=without(ORDER, "source"))
    answer = failed(braze, "no_index", body={"events": [wrong]})
    assert answer.json == {
        "message": "success",
        "events_processed": 0,
        "errors": [{"type": SHAPE.format("", "source"), "input_array": "events"}],
    }


def test_a_request_refused_anyway_keeps_its_true_answer(braze):
    answer = failed(braze, "500_after", body={"attributes": [{}]})
    assert (answer.status, braze.state["faults"]) == (400, {})
    answer = failed(braze, "no_index", body={"attributes": [{}]})
    assert (answer.status, answer.json["message"]) == (400, NO_VALID)


def test_a_locked_cohort_is_423_and_no_other_endpoint_is(braze):
    answer = failed(braze, "423", path=COHORTS, body=NEW)
    assert (answer.status, answer.json) == (423, {"message": "Resource locked"})
    assert failed(braze, "423").status == 201


def test_an_export_is_never_told_that_something_was_queued(braze):
    wanted = {"external_ids": ["u1"], "fields_to_export": ["email"]}
    for kind in (*AFTER, "no_index", "423"):
        answer = failed(braze, kind, path=EXPORT, body=wanted, hang=0)
        assert (answer.status, answer.json["message"]) == (201, "success")


def test_faults_are_switched_at_run_time(braze):
    braze.post("/_sandbox/faults", {"share": 1, "kinds": ["503"], "seed": 3})
    assert [braze.track(user()).status for _ in range(3)] == [503] * 3
    assert braze.state["faults"] == {"503": 3}
    braze.post("/_sandbox/faults", {"share": 0})
    assert braze.track(user()).status == 201


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "The request body is not a JSON object"),
        ({"kind": ["500"]}, "faults have no kind"),
        ({"kinds": ["504"]}, "no fault is called 504"),
        ({"share": "much"}, "'<=' not supported"),
    ],
)
def test_a_wrong_setting_of_faults_changes_nothing(braze, body, message):
    answer = braze.post("/_sandbox/faults", body)
    assert answer.status == 400
    assert answer.json["message"].startswith(message)
    assert braze.track(user()).status == 201


# ---- Our own endpoints ----


def test_the_state_counts_everything_and_names_nobody(braze):
    braze.track(user(), user("u2"), {}, events=[event()], purchases=[purchase()])
    braze.track({})
    braze.send("GET", "/elsewhere")
    braze.post(COHORTS, NEW)
    assert braze.state == {
        "requests": {
            "/partners/{name}/cohorts": {"201": 1},
            "/users/track": {"201": 1, "400": 1},
            "other": {"404": 1},
        },
        "objects": {"attributes": 2, "events": 1, "purchases": 1},
        "most_objects": 5,
        "profiles": 2,
        "events": 2,
        "cohorts": 1,
        "cohort_ids": 0,
        "most_ids": 0,
        "contradictions": 0,
        "pending": 0,
        "faults": {},
    }


def test_profiles_are_told_by_external_id_in_order_after_those_without(braze):
    braze.track({"email": "b@example.com"}, {"email": "a@example.com"})
    braze.track(*[user(name) for name in ("u10", "u1", "u2")])
    known = [one.get("external_id", one.get("email")) for one in braze.profiles]
    assert known == ["a@example.com", "b@example.com", "u1", "u10", "u2"]


def test_thousands_of_profiles_are_streamed_whole(braze):
    for first in range(0, 2500, 500):
        people = [user(f"u{n:04}", n=n) for n in range(first, first + 500)]
        braze.post(BULK, {"attributes": people})
    assert [one["custom_attributes"]["n"] for one in braze.profiles] == list(
        range(2500)
    )


def test_a_reset_forgets_profiles_faults_counts_and_what_was_on_its_way():
    with sandbox(delay=0.1) as braze:
        braze.track(user(), events=[event()])
        braze.post(COHORTS, NEW)
        braze.post("/_sandbox/faults", {"share": 1})
        braze.send("POST", "/_sandbox/reset")
        time.sleep(0.2)
        assert braze.state == {
            "requests": {},
            "objects": {"attributes": 0, "events": 0, "purchases": 0},
            "most_objects": 0,
            "profiles": 0,
            "events": 0,
            "cohorts": 0,
            "cohort_ids": 0,
            "most_ids": 0,
            "contradictions": 0,
            "pending": 0,
            "faults": {},
        }
        assert braze.track(user()).status == 201


# ---- Starting and stopping ----


def test_keys_never_show_in_the_options():
    options = SandboxOptions(api_key="key", partner_key="key", data_import_key="key")
    assert "'key'" not in repr(options)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_it_listens_and_ends_when_told(end):
    arguments = ["--key", "right", "--delay", "0", "--batch-limit", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "currents_ingest.sandbox", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        assert Braze(url).track(user()).status == 401
        process.send_signal(end)
        output, errors = process.communicate(timeout=10)
    assert (process.returncode, output, errors) == (0, "", "")


def test_every_option_of_the_command_reaches_the_sandbox(monkeypatch, capsys):
    seen = []

    def instead(options, *, ready):
        seen.append(options)
        ready("http://127.0.0.1:1")

    monkeypatch.setattr(command, "run", instead)
    command.main([])
    assert seen.pop() == SandboxOptions()
    assert capsys.readouterr().out == "http://127.0.0.1:1\n"
    text = (
        "--port 8099 --key k --partner-key p --data-import-key s --delay 0 "
        "--faults 0.5 --fault-kinds 500,reset --seed 3 "
        "--hang 1 --requests 9 --per 2 --hourly 8 --mau --batch-limit 5 "
        "--legacy-batches"
    )
    command.main(text.split())
    assert seen.pop() == SandboxOptions(
        port=8099,
        api_key="k",
        partner_key="p",
        data_import_key="s",
        delay=0,
        batch_limit=5,
        legacy_batches=True,
        requests=9,
        per=2,
        hourly=8,
        mau_headers=True,
        faults=Faults(seed=3, share=0.5, kinds=("500", "reset"), hang=1),
    )


def test_an_unknown_fault_is_a_wrong_use_of_the_command(capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["--fault-kinds", "504"])
    assert caught.value.code == 2
    assert "no fault is called 504" in capsys.readouterr().err


def test_run_ends_cleanly_when_told():
    told = Queue()

    def stop_soon(url):
        told.put(url)
        os.kill(os.getpid(), signal.SIGTERM)

    run(SandboxOptions(), ready=stop_soon)
    assert told.get_nowait().startswith("http://127.0.0.1:")
