from __future__ import annotations

import re

import pytest

from currents_ingest import schemas
from currents_ingest.contracts import ADDED, feed_name, raw_contract
from tests.avro_files import record

# Amperity docs, "Feeds": letters, digits and underscores, not starting with one.
AMPERITY_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def contract(*writers):
    return raw_contract("users.X", [schemas.read(writer) for writer in writers])


@pytest.mark.parametrize(
    ("event_type", "feed"),
    [
        ("users.messages.email.Open", "messages_email_open"),
        ("agentconsole.AgentExecuted", "agentconsole_agent_executed"),
        (
            "users.behaviors.subscriptiongroup.StateChange",
            "behaviors_subscriptiongroup_state_change",
        ),
        ("users.RandomBucketNumberUpdate", "random_bucket_number_update"),
        ("users.messages.rcs.HTTPFailure2Way", "messages_rcs_http_failure2_way"),
    ],
)
def test_a_feed_is_named_after_its_event_type(event_type, feed):
    assert feed_name(event_type) == feed


def test_no_two_event_types_share_a_feed():
    assert len({feed_name(event_type) for event_type in schemas.known()}) == 106


def test_a_raw_feed_has_every_field_of_every_version_then_ours():
    for event_type, versions in schemas.known().items():
        found = raw_contract(event_type, [version.writer for version in versions])
        fields = {field.name for version in versions for field in version.writer.fields}
        names = list(found.types)
        assert set(names) == fields | {column.name for column in ADDED}
        assert tuple(found.columns[-len(ADDED) :]) == ADDED
        assert all(AMPERITY_NAME.fullmatch(name) for name in names)
        assert len({name.lower() for name in names}) == len(names)


def test_types_are_flat_and_money_is_decimal():
    types = contract(
        record(
            price="float",
            latitude=["null", "float"],
            n="long",
            tags=["null", {"type": "array", "items": "string"}],
            inner={"type": "map", "values": "int"},
        )
    ).types
    assert list(types.items())[:7] == [
        ("id", "string"),
        ("time", "int64"),
        ("price", "decimal(38,6)"),
        ("latitude", "double"),
        ("n", "int64"),
        ("tags", "json"),
        ("inner", "json"),
    ]


def test_a_type_that_was_widened_takes_the_wider_one():
    assert contract(record(x="int"), record(x="double")).types["x"] == "double"
    assert contract(record(x="float"), record(x="long")).types["x"] == "double"


def test_names_that_amperity_cannot_take_or_tell_apart_are_left_out():
    types = contract(record(_x="int", Time="int", ingested_at="int", ok="int")).types
    assert list(types)[:3] == ["id", "time", "ok"]
    assert len(types) == 3 + len(ADDED)
