"""What a message says, whatever it is and however it is wrapped."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from currents_ingest.notices import Notice, read

# As in the Amazon S3 User Guide, "Event message structure", shortened.
RECORD = {
    "eventVersion": "2.1",
    "eventSource": "aws:s3",
    "awsRegion": "us-west-2",
    "eventTime": "1970-01-01T00:00:00.000Z",
    "eventName": "ObjectCreated:Put",
    "userIdentity": {"principalId": "AIDAJDPLRKLG7UEXAMPLE"},
    "requestParameters": {"sourceIPAddress": "127.0.0.1"},
    "s3": {
        "s3SchemaVersion": "1.0",
        "configurationId": "testConfigRule",
        "bucket": {"name": "amzn-s3-demo-bucket", "arn": "arn:aws:s3:::x"},
        "object": {
            "key": "Happy+Face%2B%C3%BC.jpg",
            "size": 1024,
            "eTag": "d41d8cd98f00b204e9800998ecf8427e",
            "versionId": "096fKKXTRTtl3on89fVO.nfljtsv6qko",
            "sequencer": "0055AED6DCD90281E5",
        },
    },
}
# As in the same guide, "EventBridge event message structure".
EVENT = {
    "version": "0",
    "id": "17793124-05d4-b198-2fde-7ededc63b103",
    "detail-type": "Object Created",
    "source": "aws.s3",
    "account": "111122223333",
    "time": "1970-01-01T00:00:00Z",
    "region": "ca-central-1",
    "resources": ["arn:aws:s3:::amzn-s3-demo-bucket"],
    "detail": {
        "version": "0",
        "bucket": {"name": "amzn-s3-demo-bucket"},
        "object": {
            "key": "Happy Face+ü.jpg",
            "size": 1024,
            "etag": "d41d8cd98f00b204e9800998ecf8427e",
            "version-id": "IYV3p45BT0ac8hjHg1houSdS1a.Mro8e",
            "sequencer": "617f08299329d189",
        },
        "reason": "PutObject",
    },
}
TEST_EVENT = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "bucketname"}
NOTICE = Notice(
    bucket="amzn-s3-demo-bucket",
    key="Happy Face+ü.jpg",
    etag='"d41d8cd98f00b204e9800998ecf8427e"',
    size=1024,
    at=datetime(1970, 1, 1, tzinfo=UTC),
)
TEST, OTHER, UNKNOWN = "test event", "other event", "not understood"


def sns(body):
    """Wrap a message as the Amazon SNS Developer Guide shows it."""
    return {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": "arn:aws:sns:us-west-2:123456789012:MyTopic",
        "Subject": "Amazon S3 Notification",
        "Message": json.dumps(body),
        "Timestamp": "2012-05-02T00:54:06.655Z",
        "SignatureVersion": "1",
    }


def changed(event, **values):
    """Change the object that an event tells of; None takes a value away."""
    found = json.loads(json.dumps(event))
    about = found.get("s3") or found["detail"]
    given = about["object"] | values
    about["object"] = {k: v for k, v in given.items() if v is not None}
    return found


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param({"Records": [RECORD]}, [NOTICE], id="S3 itself"),
        pytest.param(sns({"Records": [RECORD]}), [NOTICE], id="through SNS"),
        pytest.param(EVENT, [NOTICE], id="EventBridge"),
        pytest.param(sns(EVENT), [NOTICE], id="EventBridge, then SNS"),
        pytest.param(sns(sns(EVENT)), [NOTICE], id="two topics"),
        pytest.param({"Records": [RECORD] * 3}, [NOTICE] * 3, id="several records"),
        pytest.param(
            {"Records": [RECORD | {"eventName": "s3:ObjectCreated:Copy"}]},
            [NOTICE],
            id="a name with s3:",
        ),
        pytest.param(
            changed(RECORD, eTag="d41d8cd98f00b204e9800998ecf8427e-17"),
            [replace(NOTICE, etag='"d41d8cd98f00b204e9800998ecf8427e-17"')],
            id="uploaded in parts",
        ),
        pytest.param(
            changed(EVENT, etag='"d41d8cd98f00b204e9800998ecf8427e"'),
            [NOTICE],
            id="an ETag in quotes",
        ),
        pytest.param(
            RECORD | {"eventTime": "noon"}, [replace(NOTICE, at=None)], id="no time"
        ),
        pytest.param(TEST_EVENT, [TEST], id="test event"),
        pytest.param(sns(TEST_EVENT), [TEST], id="test event through SNS"),
        *(
            pytest.param({"Records": [RECORD | {"eventName": name}]}, [OTHER], id=name)
            for name in (
                "ObjectRemoved:Delete",
                "ObjectRemoved:DeleteMarkerCreated",
                "ObjectRestore:Completed",
                "ObjectTagging:Put",
                "LifecycleExpiration:Delete",
                "ReducedRedundancyLostObject",
            )
        ),
        *(
            pytest.param(EVENT | {"detail-type": name}, [OTHER], id=name)
            for name in ("Object Deleted", "Object Restore Completed")
        ),
        pytest.param(
            {"Records": [RECORD, {"s3": 1}, RECORD | {"eventName": "ObjectAcl:Put"}]},
            [NOTICE, UNKNOWN, OTHER],
            id="a mixture",
        ),
        pytest.param("", [UNKNOWN], id="nothing"),
        pytest.param("{", [UNKNOWN], id="no JSON"),
        pytest.param('{"a": "\\ud800"}', [UNKNOWN], id="no text"),
        pytest.param("[" * 10**5, [UNKNOWN], id="too deep to be read"),
        pytest.param({"Records": []}, [UNKNOWN], id="no records"),
        pytest.param({"Type": "SubscriptionConfirmation"}, [UNKNOWN], id="SNS asks"),
        pytest.param(EVENT | {"source": "orders"}, [UNKNOWN], id="not S3's event"),
        *(
            pytest.param(changed(RECORD, **values), [UNKNOWN], id=f"{values}"[:30])
            for values in (
                {"key": None},
                {"key": 5},
                {"size": None},
                {"size": -1},
                {"size": 10**30},
                {"size": "1024"},
                {"eTag": None},
                {"eTag": ""},
                {"eTag": "d41d8cd9\r\nX-Header: 1"},
                {"eTag": {"a": 1}},
            )
        ),
    ],
)
def test_a_message_says_what_was_written_or_why_that_is_not_known(body, says):
    assert read(body if isinstance(body, str) else json.dumps(body)) == says


_WORDS = st.sampled_from(
    [
        *("Records", "s3", "eventName", "bucket", "object", "name", "key", "size"),
        *("eTag", "etag", "detail", "detail-type", "source", "aws.s3", "Message"),
        *("Type", "Notification", "Event", "s3:TestEvent", "Object Created", "time"),
        *("ObjectCreated:Put", "d41d8cd98f00b204e9800998ecf8427e", "eventTime"),
    ]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | _WORDS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(_WORDS | st.text(), inner, max_size=6)
    ),
    max_leaves=20,
)


@given(st.text() | _VALUES.map(json.dumps) | _VALUES.map(sns).map(json.dumps))
def test_no_text_is_an_error_and_each_says_something(body):
    assert read(body)


@given(_VALUES, st.sampled_from(["key", "size", "eTag", "etag", "sequencer"]))
def test_whatever_stands_in_a_record_it_says_one_thing(value, name):
    for event in (changed(RECORD, **{name: value}), changed(EVENT, **{name: value})):
        (found,) = read(json.dumps(event))
        if isinstance(found, Notice):
            assert 0 <= found.size < 2**53
            assert found.etag.isascii()
