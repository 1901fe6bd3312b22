"""``doctor``: each thing that can be wrong makes its own finding, and no other."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import boto3
import pytest
from moto.core import enable_iam_authentication

from currents_ingest import doctor, policies
from currents_ingest.api import poll
from currents_ingest.config import read
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.store import Store
from currents_ingest.verify import verify
from tests.campaign import s3_environment
from tests.sandbox_server import Reply, stub
from tests.servers import moto_server

READ, WRITE = "s3:GetObject", "s3:PutObject"
DELETE, HIDE = "sqs:DeleteMessage", "sqs:ChangeMessageVisibility"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Settings of a source with a few files and of feeds that are not there yet."""
    monkeypatch.chdir(tmp_path)
    simulate(str(tmp_path), Simulation(events=("*.Purchase",), hours=1))
    monkeypatch.setenv("CURRENTS_SOURCE__URL", str(tmp_path / "currents"))
    monkeypatch.setenv("CURRENTS_FEEDS__URL", str(tmp_path / "feeds"))
    monkeypatch.setenv("CURRENTS_RUN__LISTEN", "")
    return tmp_path


def wrong(found):
    """Return what is not as it should be, by what was tried."""
    return {
        one.tried: one.came
        for one in found.findings
        if one.state in {"problem", "warning"}
    }


def test_a_good_setup_has_nothing_wrong(folder):
    poll(read())
    found = doctor.examine(None)
    assert wrong(found) == {}
    assert not found.problems
    assert found.policy == ""
    assert {one.state for one in found.findings} == {"ok"}
    assert list((folder / "feeds" / "_ledger" / "probe").iterdir()) == []


def test_read_only_leaves_every_byte_as_it_was(folder):
    poll(read())
    before = {one: one.stat().st_mtime_ns for one in folder.rglob("*")}
    found = doctor.examine(None, read_only=True)
    assert not found.problems
    assert {one: one.stat().st_mtime_ns for one in folder.rglob("*")} == before


def test_all_that_is_wrong_with_the_settings_is_told_at_once(tmp_path):
    path = tmp_path / "currents.toml"
    path.write_text('[source]\nlookback = "soon"\nfoo = 1\n')
    found = doctor.examine(path)
    told = [one.came for one in found.findings if one.state == "problem"]
    assert not found.usable
    for name in ("source.lookback", "source.foo", "source.url", "feeds"):
        assert any(name in one for one in told)


@pytest.mark.usefixtures("folder")
def test_a_feed_that_there_is_not_is_told(monkeypatch):
    monkeypatch.setenv("CURRENTS_FEEDS__INCLUDE", '["raw", "emails"]')
    (told,) = wrong(doctor.examine(None)).values()
    assert "emails" in told


def test_an_empty_or_wrong_source_is_told(folder, monkeypatch):
    monkeypatch.setenv("CURRENTS_SOURCE__URL", str(folder))
    found = wrong(doctor.examine(None))
    assert found[f"list {folder}"] == "no folder of Braze's is there"
    assert any("within each other" in one for one in found.values())


def test_an_object_that_a_courier_would_take_for_ours_is_a_problem(folder):
    poll(read())
    published = next((folder / "feeds" / "behaviors_purchase").rglob("*.parquet"))
    published.with_name("behaviors_purchase-copy.parquet").write_bytes(b"")
    published.with_name("notes.txt").write_bytes(b"")
    (told,) = wrong(doctor.examine(None)).values()
    assert "1 objects that are not ours match" in told
    assert "behaviors_purchase-copy.parquet" in told


def test_quarantine_and_a_broken_ledger_are_told(folder):
    torn = next((folder / "currents").rglob("*.avro"))
    torn.write_bytes(torn.read_bytes()[:-10])
    poll(read())
    assert wrong(doctor.examine(None)) == {
        "look into the quarantine": "1 files wait for someone"
    }
    for path in (folder / ".currents").iterdir():
        path.unlink()
    (folder / "feeds" / "_ledger" / "0000000001.json").write_text("{")
    found = wrong(doctor.examine(None))
    assert "0000000001.json cannot be used" in found["read the ledger"]


@pytest.mark.usefixtures("folder")
def test_an_address_that_is_taken_is_told(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as held:
        listen = f"127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("CURRENTS_RUN__LISTEN", listen)
        found = wrong(doctor.examine(None))
    assert list(found) == [f"see whether {listen} is free, for run"]


def with_audience(monkeypatch, folder, url, **settings):
    export = folder / "vip.csv"
    export.write_text("external_id\nx\n")
    audience = {"source": str(export), "settle": "0s", **settings}
    monkeypatch.setenv("CURRENTS_AUDIENCES", json.dumps({"vip": audience}))
    monkeypatch.setenv("CURRENTS_BRAZE__URL", url)


@pytest.mark.parametrize("kind", ["attributes", "cohort"])
def test_a_key_that_braze_takes_is_told_and_nothing_is_changed(
    kind, folder, box, monkeypatch
):
    with_audience(monkeypatch, folder, box.url, kind=kind)
    for name in ("BRAZE_API_KEY", "BRAZE_PARTNER_KEY", "BRAZE_DATA_IMPORT_KEY"):
        monkeypatch.setenv(name, "made-up")
    assert wrong(doctor.examine(None)) == {}
    state = box.state()
    assert state["objects"] == {"attributes": 0, "events": 0, "purchases": 0}
    assert (state["profiles"], state["cohorts"]) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "says"),
    [("attributes", "lacks users.track"), ("cohort", "the data import key")],
)
def test_a_key_that_braze_does_not_take_is_told_and_never_shown(
    kind, says, folder, monkeypatch
):
    secret = f"secret-{uuid4()}"
    for name in ("BRAZE_API_KEY", "BRAZE_PARTNER_KEY", "BRAZE_DATA_IMPORT_KEY"):
        monkeypatch.setenv(name, secret)
    refused = Reply(401, {"message": f"Invalid client secret: {secret}"})
    with stub(lambda _: refused) as braze:
        with_audience(monkeypatch, folder, braze.url, kind=kind)
        found = doctor.examine(None)
    (told,) = wrong(found).values()
    assert says in told
    assert secret not in str(found)


def test_a_key_that_is_not_set_is_told_by_its_variable(folder, monkeypatch):
    with_audience(monkeypatch, folder, "http://127.0.0.1:1")
    monkeypatch.delenv("BRAZE_API_KEY", raising=False)
    (told,) = wrong(doctor.examine(None)).values()
    assert "BRAZE_API_KEY" in told


def test_hosts_that_never_answer_cost_their_own_checks_alone(folder, monkeypatch):
    monkeypatch.setattr(doctor, "_PATIENCE", 2.0)
    monkeypatch.setenv("BRAZE_API_KEY", "made-up")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with_audience(monkeypatch, folder, f"http://127.0.0.1:{port}")
        since = time.monotonic()
        found = wrong(doctor.examine(None))
    assert time.monotonic() - since < 4
    assert list(found) == ["ask Braze whether it takes the REST API key"]


@pytest.mark.usefixtures("folder")
def test_a_clock_that_is_off_is_a_problem(monkeypatch):
    stat = Store.stat

    def late(store, key):
        found = stat(store, key)
        return replace(found, modified=found.modified + timedelta(minutes=6))

    monkeypatch.setattr(Store, "stat", late)
    assert wrong(doctor.examine(None)) == {
        "compare clocks with the store": "360 s apart"
    }


# What S3 allows.


def notify(bucket, name, events="s3:ObjectCreated:*", prefix="in/"):
    """Make a queue with a dead-letter queue, and let a bucket notify it."""
    client = boto3.client("sqs")
    arns = []
    for made in (f"{name}-dead", name):
        url = client.create_queue(QueueName=made)["QueueUrl"]
        about = client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        arns.append(about["Attributes"]["QueueArn"])
    rule = json.dumps({"deadLetterTargetArn": arns[0], "maxReceiveCount": 9})
    client.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": rule})
    told = {
        "QueueArn": arns[1],
        "Events": [events],
        "Filter": {"Key": {"FilterRules": [{"Name": "prefix", "Value": prefix}]}},
    }
    boto3.client("s3").put_bucket_notification_configuration(
        Bucket=bucket, NotificationConfiguration={"QueueConfigurations": [told]}
    )
    return url


@pytest.fixture
def own_s3(tmp_path, monkeypatch):
    """An S3 of this test's own, so that nobody else meets its permissions."""
    monkeypatch.chdir(tmp_path)
    simulate(str(tmp_path), Simulation(events=("*.Purchase",), hours=1))
    with moto_server() as endpoint:
        for name, value in s3_environment(endpoint).items():
            monkeypatch.setenv(name, value)
        source, feeds = f"source-{uuid4()}", f"feeds-{uuid4()}"
        client = boto3.client("s3")
        for bucket in (source, feeds):
            client.create_bucket(Bucket=bucket)
        made = Store.open(str(tmp_path / "currents"))
        for page in made.listing(""):
            for one in page:
                body = made.get(one.key)
                client.put_object(Bucket=source, Key=f"in/{one.key}", Body=body)
        notify(source, name=source)
        queue = f"sqs://us-east-1/123456789012/{source}"
        monkeypatch.setenv("CURRENTS_SOURCE__QUEUE", queue)
        monkeypatch.setenv("CURRENTS_SOURCE__URL", f"s3://{source}/in")
        monkeypatch.setenv("CURRENTS_FEEDS__URL", f"s3://{feeds}/out")
        monkeypatch.setenv("CURRENTS_RUN__LISTEN", "")
        yield


@pytest.fixture
def allowed(own_s3, monkeypatch):  # noqa: ARG001 (it holds the buckets)
    """Become a user that may do what a policy says and nothing else."""
    iam = boto3.client("iam")
    name = f"user-{uuid4()}"
    iam.create_user(UserName=name)
    key = iam.create_access_key(UserName=name)["AccessKey"]

    def allow(without=()):
        policy = json.loads(policies.own(read()))
        for one in policy["Statement"]:
            actions = one["Action"]
            several = [actions] if isinstance(actions, str) else actions
            if "s3:DeleteObject" in several:  # moto asks it of the bucket
                one["Resource"].append(one["Resource"][0].partition("/")[0])
            left = [a for a in several if a not in without] or ["s3:Nothing"]
            # moto asks for what AWS has no permission of its own for
            batches = [f"{a}Batch" for a in left if a in {DELETE, HIDE}]
            one["Action"] = left + batches
        iam.put_user_policy(
            UserName=name, PolicyName="own", PolicyDocument=json.dumps(policy)
        )
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        stack.enter_context(enable_iam_authentication())

    with ExitStack() as stack:
        yield allow


def test_the_policy_it_prints_is_enough_for_all_that_a_run_does(allowed):
    allowed()
    assert wrong(doctor.examine(None)) == {}
    outcome = poll(read())
    assert outcome.rows_out > 0
    assert verify(read()).differences == ()
    assert wrong(doctor.examine(None)) == {}


@pytest.mark.parametrize(
    ("action", "fails"),
    [
        ("s3:ListBucket", {"list"}),
        (READ, {"read from", "read it again"}),
        (WRITE, {"write"}),
        ("s3:DeleteObject", {"remove it"}),
        ("sqs:GetQueueAttributes", {"look at the queue"}),
        ("sqs:ReceiveMessage", {"receive from"}),
        (DELETE, {"delete messages"}),
        (HIDE, {"hide messages"}),
    ],
)
def test_each_permission_that_is_missing_fails_where_it_is_needed(
    action, fails, allowed
):
    allowed(without=[action])
    found = doctor.examine(None)
    bad = [one for one in found.findings if one.state == "problem"]
    assert {one.mend for one in bad} == {
        "Allow it: the policy below has all that is needed."
    }
    for start in fails:
        assert any(one.tried.startswith(start) for one in bad)


# The queue.


@pytest.fixture
def queue(s3, folder, monkeypatch):  # noqa: ARG001 (settings that are good otherwise)
    """Settings with a bucket that notifies a queue; returns the queue's URL."""
    url = notify(s3.name, name=s3.name)
    client = boto3.client("sqs")
    client.receive_message(QueueUrl=url, VisibilityTimeout=60)  # S3's question
    boto3.client("s3").put_object(Bucket=s3.name, Key="in/event_type=a.B/x", Body=b"")
    monkeypatch.setenv("CURRENTS_SOURCE__URL", f"{s3.url}/in")
    ours = f"sqs://us-east-1/123456789012/{s3.name}"
    monkeypatch.setenv("CURRENTS_SOURCE__QUEUE", ours)
    return url


def of_queue(**options):
    """Return what doctor finds of the queue, by what it tried."""
    starts = ("look at sqs", "look at the q", "look for its", "see whom", "receive")
    return {
        one.tried.partition(" sqs:")[0].partition(" s3:")[0]: (one.state, one.came)
        for one in doctor.examine(None, **options).findings
        if one.tried.startswith((*starts, "hide", "delete"))
    }


def test_a_queue_is_tried_and_its_messages_stay(queue):
    found = of_queue()
    assert {state for state, _ in found.values()} == {"ok"}
    assert found["see whom"] == ("ok", "the queue")
    assert found["look for its dead-letter rule"] == ("ok", "after 9 receives")
    assert found["receive from"][1].startswith("1 messages, 1 of them S3's of")
    about = boto3.client("sqs").get_queue_attributes(
        QueueUrl=queue, AttributeNames=["All"]
    )["Attributes"]
    assert about["ApproximateNumberOfMessages"] == "1"
    assert of_queue(read_only=True)["receive from"] == ("skipped", "--read-only")


@pytest.mark.usefixtures("queue")
def test_what_is_wrong_with_a_queue_is_told(s3, monkeypatch):
    monkeypatch.setenv("CURRENTS_FEEDS__MAX_WAIT", "1h")
    notify(s3.name, name=s3.name, prefix="in/event_type=")
    found = of_queue(read_only=True)
    assert found["look for its dead-letter rule"] == (
        "warning",
        "after 9 receives, but files are held back for up to 12 polls",
    )
    assert found["see whom"] == ("problem", "the queue, but only of in/event_type=*")
    notify(s3.name, name=s3.name, events="s3:ObjectCreated:Put")
    told = "the queue, but only of s3:ObjectCreated:Put"
    assert of_queue(read_only=True)["see whom"] == ("warning", told)
    boto3.client("s3").put_bucket_notification_configuration(
        Bucket=s3.name, NotificationConfiguration={}
    )
    told = "neither the queue nor anything on its way"
    assert of_queue(read_only=True)["see whom"] == ("problem", told)


def test_a_queue_that_is_not_s3s_is_told(queue, s3):
    client = boto3.client("sqs")
    client.delete_queue(QueueUrl=queue)
    ((state, told),) = of_queue().values()
    assert state == "problem"
    assert "NonExistentQueue" in told
    client.create_queue(QueueName=s3.name)
    client.send_message(QueueUrl=queue, MessageBody='{"order": 17}')
    found = of_queue()
    told = f"1 messages, 0 of them S3's of s3://{s3.name}"
    assert found["receive from"] == ("warning", told)
    assert found["look for its dead-letter rule"] == (
        "warning",
        "there is none: what nobody understands comes again for 4 days",
    )
