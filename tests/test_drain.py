"""The queue that S3 notifies: whatever comes of it, each file is ingested once."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from queue import SimpleQueue
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import boto3
import pytest
from moto.sqs.models import sqs_backends
from structlog.testing import capture_logs

from currents_ingest import api, aws_lambda, backends, config, drain, status
from currents_ingest.errors import RefusedError, StoreError
from currents_ingest.ledger import Ledger
from currents_ingest.manifest import Entry
from currents_ingest.output import show_status
from currents_ingest.service import Service
from currents_ingest.session import looking_at_feeds
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.store import Store
from currents_ingest.verify import verify
from tests import campaign
from tests.servers import Fault, proxied

if TYPE_CHECKING:
    from pathlib import Path

ACCOUNT = "123456789012"
TREE = Simulation(events=("*.email.Open", "*.Purchase"), hours=2, files_per_hour=2)
KEY = "event_type=users.behaviors.Purchase/date=2026-09-15-11/1/a/x+0+1.avro"


SESSION = cache(boto3.session.Session)
"""One for all: to make it takes longer than what is asked by it."""


@cache
def client(service):
    return SESSION().client(service)


@dataclass(slots=True)
class World:
    """A bucket that notifies a queue, and feeds in a folder."""

    bucket: str
    queue: str
    root: Path
    s3: Any = field(default_factory=lambda: client("s3"))
    sqs: Any = field(default_factory=lambda: client("sqs"))
    more: dict[str, Any] = field(default_factory=dict)
    tree: dict[str, bytes] = field(default_factory=dict)

    def settings(self, **source):
        return config.read(
            source={
                "url": f"s3://{self.bucket}/braze",
                "queue": f"sqs://us-east-1/{ACCOUNT}/{self.queue}",
                **source,
            },
            feeds={"url": str(self.root / "feeds"), **self.more},
            ledger={"cache": str(self.root / "cache.db")},
        )

    @property
    def arn(self):
        return f"arn:aws:sqs:us-east-1:{ACCOUNT}:{self.queue}"

    def reconciled(self):
        settings = self.settings()
        ledger = Ledger.open(Store.open(settings.feeds.url), settings.ledger.cache)
        with closing(ledger):
            now = datetime.now(UTC)
            ledger.commit(Entry(at=now, run="r", reconciled=now))

    def notify(self, **whom):
        """Let S3 notify a queue, a topic or EventBridge, and forget its question."""
        rules = [{"Name": "prefix", "Value": "braze/"}]
        asked = whom.get("QueueConfigurations", whom.get("TopicConfigurations", []))
        for one in asked:
            one["Events"] = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]
            one["Filter"] = {"Key": {"FilterRules": rules}}
        self.s3.put_bucket_notification_configuration(
            Bucket=self.bucket, NotificationConfiguration=whom
        )
        self._in_moto._messages.clear()  # noqa: SLF001 (purging is limited)

    def poll(self, **source):
        return api.poll(self.settings(**source))

    def put(self, key, body):
        path = f"braze/{key}"
        return self.s3.put_object(Bucket=self.bucket, Key=path, Body=body)

    def put_tree(self):
        for key, body in self.tree.items():
            self.put(key, body)

    def send(self, *bodies):
        for body in bodies:
            text = body if isinstance(body, str) else json.dumps(body)
            self.sqs.send_message(QueueUrl=self.queue, MessageBody=text)

    @property
    def messages(self):
        """Return messages that wait, and those that are hidden."""
        about = self.sqs.get_queue_attributes(
            QueueUrl=self.queue, AttributeNames=["All"]
        )
        names = "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"
        return tuple(int(about["Attributes"][name]) for name in names)

    @property
    def _in_moto(self):
        return sqs_backends[ACCOUNT]["us-east-1"].queues[self.queue]

    def let_the_time_pass_for_which_messages_are_hidden(self):
        for one in self._in_moto._messages:  # noqa: SLF001 (five minutes)
            one.visible_at = 0

    def record(self, key, body=b"", name="ObjectCreated:Put", bucket=None):
        """Return what S3 tells of an object that was put."""
        etag = self.put(key, body)["ETag"].strip('"') if bucket is None else "0" * 32
        told = record(bucket or self.bucket, key, len(body), etag)
        return told | {"eventName": name}


def record(bucket, key, size=1, etag="0" * 32):
    """Return a record of a file below braze/, as S3 makes it."""
    about = {"key": quote_plus(f"braze/{key}"), "size": size, "eTag": etag}
    return {
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "eventTime": "2026-09-15T12:00:00.000Z",
        "s3": {"bucket": {"name": bucket}, "object": about},
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Make a few Currents files, by key."""
    folder = tmp_path_factory.mktemp("made")
    simulate(str(folder), TREE)
    made = Store.open(str(folder / "currents"))
    return {one.key: made.get(one.key) for page in made.listing() for one in page}


@pytest.fixture
def world(s3, tree, tmp_path, monkeypatch):
    """Notify a queue directly; it is empty, and the last listing was just now."""
    monkeypatch.setattr(drain, "WAIT", 0)
    monkeypatch.setattr(backends, "session", SESSION)
    name = s3.name.replace("test-", "currents-")
    made = World(s3.name, name, tmp_path, tree=tree)
    made.sqs.create_queue(QueueName=name)
    made.reconciled()
    made.notify(QueueConfigurations=[{"QueueArn": made.arn}])
    return made


def by_sns(world, **attributes):
    client = boto3.client("sns")
    topic = client.create_topic(Name=world.queue)["TopicArn"]
    client.subscribe(
        TopicArn=topic, Protocol="sqs", Endpoint=world.arn, Attributes=attributes
    )
    world.notify(TopicConfigurations=[{"TopicArn": topic}])


def by_eventbridge(world):
    client = boto3.client("events")
    client.put_rule(Name=world.queue, EventPattern='{"source": ["aws.s3"]}')
    targets = [{"Id": "queue", "Arn": world.arn}]
    client.put_targets(Rule=world.queue, Targets=targets)
    world.notify(EventBridgeConfiguration={})


@pytest.mark.parametrize(
    "notified",
    [
        pytest.param(lambda _: None, id="directly"),
        pytest.param(by_sns, id="through SNS"),
        pytest.param(lambda w: by_sns(w, RawMessageDelivery="true"), id="SNS, raw"),
        pytest.param(by_eventbridge, id="through EventBridge"),
    ],
)
def test_what_s3_notifies_is_ingested_without_a_listing(
    notified, world, s3, monkeypatch
):
    notified(world)
    world.put_tree()
    listed = []

    def watch(request):
        if "list-type" in request.path:
            listed.append(request.path)

    with proxied(s3.endpoint, watch) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        outcome = world.poll()
    assert (listed, outcome.files, outcome.unread) == ([], len(world.tree), ())
    assert world.messages == (0, 0)
    assert outcome.messages["done"] == len(world.tree)
    found = verify(world.settings())
    assert (found.differences, found.pending) == ((), 0)
    assert world.poll().files == 0


def test_a_listing_finds_nothing_new_after_the_queue(world):
    world.put_tree()
    world.put("dataexport.x/event_type=a.B/date=2026-01-01-00/a b+ü&%41.txt", b"x")
    assert world.poll().files == len(world.tree)
    outcome = world.poll(reconcile="0s")
    assert (outcome.files, outcome.quarantined) == (0, ())


def test_a_message_that_comes_again_changes_nothing(world):
    key, body = next(iter(world.tree.items()))
    record = world.record(key, body)
    world.send(*[{"Records": [record, record]}] * 3)
    assert (world.poll().files, world.messages) == (1, (0, 0))
    world.send({"Records": [record]})
    outcome = world.poll()
    assert (outcome.files, outcome.messages["done"], world.messages) == (0, 1, (0, 0))


def foreign(world):
    """Return messages that speak of nothing new in the source, by what they are."""
    asks = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": world.bucket}
    deleted = {"bucket": {"name": world.bucket}, "object": {"key": f"braze/{KEY}"}}
    outside = record(world.bucket, KEY)
    outside["s3"]["object"]["key"] = quote_plus(KEY)
    records = {
        "a removal": world.record(KEY, name="ObjectRemoved:Delete"),
        "a restored object": world.record(KEY, name="ObjectRestore:Completed"),
        "another bucket": world.record(KEY, bucket="other"),
        "another folder": world.record("notes/a.avro"),
        "a folder that is named alike": outside,
        "an object beside the folders": world.record("dataexport.x/event_type=a.B"),
        "another event type": world.record(KEY.replace("Purchase", "Location")),
        "a folder's marker": world.record("event_type=users.behaviors.Purchase/"),
    }
    return {
        "a question of S3's": asks,
        "one through SNS": {"Type": "Notification", "Message": json.dumps(asks)},
        "a deletion, by EventBridge": {
            "source": "aws.s3",
            "detail-type": "Object Deleted",
            "detail": deleted,
        },
        **{name: {"Records": [one]} for name, one in records.items()},
    }


def test_what_can_never_be_ours_is_deleted(world):
    world.notify()
    messages = foreign(world)
    world.send(*messages.values())
    outcome = world.poll(events=["*.Purchase"])
    assert (outcome.files, outcome.quarantined, world.messages) == (0, (), (0, 0))
    assert outcome.messages == {
        "foreign": len(messages) - 1,
        "done": 1,  # the marker, which a listing passes over, too
        "unknown": 0,
        "returned": 0,
    }


def test_what_nobody_understands_is_left_to_the_queue(world):
    asks = {"Type": "SubscriptionConfirmation", "Token": "x", "SubscribeURL": "y"}
    half = {"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {}}}]}
    messages = ["jane@example.com", {"order": 17}, asks, half]
    world.send(*messages)
    with capture_logs() as logs:
        outcome = world.poll()
    assert (outcome.messages["unknown"], world.messages) == (4, (0, 4))
    told = str(logs)
    assert "messages that are not S3's" in told
    assert "jane" not in told


def test_several_records_are_sorted_and_what_is_ours_is_ingested(world):
    world.notify()
    ours = [world.record(key, body) for key, body in list(world.tree.items())[:3]]
    others = [world.record(KEY, bucket="other"), {"a": 1}]
    world.send({"Records": [*others, *ours]})
    assert (world.poll().files, world.messages) == (3, (0, 0))


def test_a_message_is_deleted_once_the_ledger_holds_its_files(world, monkeypatch, s3):
    world.more = {"url": f"{s3.url}/feeds"}
    world.reconciled()
    world.put_tree()
    seen = []

    def watch(request):
        if re.search(r"_ledger/\d{10}\.json", request.path) and request.writes:
            seen.append("entry")
        if request.headers.get("x-amz-target", "").endswith("DeleteMessageBatch"):
            seen.append("delete")

    with proxied(s3.endpoint, watch) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        world.poll()
    assert (seen[0], "delete" in seen, world.messages) == ("entry", True, (0, 0))


def test_what_is_gone_or_changed_does_not_block_the_queue(world):
    first, second, third = list(world.tree)[:3]
    for key in (first, second, third):
        world.put(key, world.tree[key])
    client = world.s3
    client.delete_object(Bucket=world.bucket, Key=f"braze/{first}")
    client.put_bucket_notification_configuration(
        Bucket=world.bucket, NotificationConfiguration={}
    )
    world.put(second, world.tree[third])
    outcome = world.poll()
    assert (outcome.files, outcome.unread, world.messages) == (1, (), (0, 0))
    assert world.poll(reconcile="0s").files == 1


def test_an_object_that_was_written_again_is_read_again(world):
    first, second, *_ = world.tree
    for body in (world.tree[first], world.tree[second]):
        world.put(first, body)
    polls = [world.poll().files, world.poll().files]
    assert (sorted(polls), world.messages) == ([0, 1], (0, 0))
    assert verify(world.settings()).pending == 0


def test_what_the_bucket_does_not_give_comes_again(world, monkeypatch):
    world.put_tree()
    read, refused = Store.read, next(iter(world.tree))

    def refuse(store, objects):
        return [
            RefusedError("read", one.key, "403") if one.key == refused else body
            for one, body in zip(objects, read(store, objects), strict=True)
        ]

    monkeypatch.setattr(Store, "read", refuse)
    outcome = world.poll()
    assert (outcome.files, len(outcome.unread)) == (len(world.tree) - 1, 1)
    assert (world.messages, outcome.messages["returned"]) == ((1, 0), 1)


def test_a_file_in_quarantine_is_done(world):
    key = next(iter(world.tree))
    world.put(key, world.tree[key][:-10])
    outcome = world.poll()
    assert (len(outcome.quarantined), world.messages) == (1, (0, 0))


def test_a_message_that_never_came_is_made_up_by_the_listing(world):
    world.notify()
    world.put_tree()
    assert world.poll().files == 0
    assert world.poll(reconcile="0s").files == len(world.tree)
    assert world.poll().files == 0


def test_a_poll_that_lists_drains_the_queue_as_well(world):
    world.put_tree()
    outcome = world.poll(reconcile="0s")
    assert (outcome.files, world.messages) == (len(world.tree), (0, 0))


def test_a_long_queue_is_taken_in_rounds(world, monkeypatch):
    monkeypatch.setattr(drain, "ROUND", 3)
    monkeypatch.setattr(drain, "QUEUE_REQUESTS", 1)
    files = list(world.tree.items())
    for some in (files[::2], files[1::2]):
        for key, body in some:
            world.put(key, body)
        world.send(*["{}"] * 15, *[{"Event": "s3:TestEvent"}] * 15)
    outcome = world.poll()
    assert (outcome.files, outcome.messages["unknown"]) == (len(world.tree), 30)
    assert world.messages == (0, 30)
    with looking_at_feeds(world.settings()) as ledger:
        staged = [one.staged for each in ledger.entries() for one in each.outputs]
    assert len(set(staged)) == len(staged) > 2  # over several runs


def test_where_too_many_wait_the_next_poll_sees_further(world, monkeypatch):
    monkeypatch.setattr(drain, "QUEUE_REQUESTS", 1)
    monkeypatch.setattr(drain, "ROUND", 10)
    world.more = {"max_wait": "24h"}
    for n in range(40):
        world.put(KEY.replace("+1.", f"+{n}."), b"x")
    outcome = world.poll()
    assert 10 <= outcome.waiting <= 20
    assert (outcome.messages["returned"], world.messages) == (outcome.waiting, (40, 0))


class Shelf:
    """A queue in memory that counts what is out of it."""

    def __init__(self, bodies):
        self.bodies = deque(enumerate(bodies))
        self.out, self.most = set(), 0

    def receive(self, **_):
        found = [self.bodies.popleft() for _ in range(min(10, len(self.bodies)))]
        self.out |= {str(handle) for handle, _ in found}
        self.most = max(self.most, len(self.out))
        return [(str(handle), body) for handle, body in found]

    def delete(self, handles):
        self.out -= set(handles)
        return 0

    def hide(self, handles, seconds):
        assert not (handles and seconds)
        return 0


def test_one_poll_drains_any_queue_and_holds_two_rounds_at_most(world, monkeypatch):
    monkeypatch.setattr(drain, "ROUND", 100)
    keys = [f"event_type=a.B{n % 7}/{n}.txt" for n in range(1500)]
    shelf = Shelf(json.dumps({"Records": [record(world.bucket, key)]}) for key in keys)
    monkeypatch.setattr(drain.Queue, "open", lambda _: shelf)
    outcome = world.poll()
    assert sorted(one.key for one in outcome.quarantined) == sorted(keys)
    assert (outcome.messages["done"], shelf.out) == (1500, set())
    assert shelf.most <= 2 * (100 + 10 * drain.QUEUE_REQUESTS)


def test_what_could_not_be_deleted_comes_again_and_is_found_done(
    foreign_file, world, monkeypatch
):
    class Stubborn(Shelf):
        def delete(self, _):
            raise StoreError("delete from", "the queue", "throttled")

    monkeypatch.setattr(drain.Queue, "open", lambda _: Stubborn([foreign_file]))
    assert len(world.poll().quarantined) == 1
    monkeypatch.setattr(drain.Queue, "open", lambda _: Shelf([foreign_file]))
    outcome = world.poll()
    assert (outcome.quarantined, outcome.messages["done"]) == ((), 1)


@pytest.fixture
def foreign_file(world):
    """Return a message of a file that is set aside unread."""
    key = "event_type=a.B/date=2026-09-15-11/x.txt"
    return json.dumps({"Records": [record(world.bucket, key)]})


def test_a_file_in_work_is_not_taken_once_more(foreign_file, world, monkeypatch):
    monkeypatch.setattr(drain, "ROUND", 10)
    monkeypatch.setattr(drain, "QUEUE_REQUESTS", 1)
    monkeypatch.setattr(drain.Queue, "open", lambda _: Shelf([foreign_file] * 20))
    outcome = world.poll()
    assert (len(outcome.quarantined), outcome.messages["done"]) == (1, 20)


def test_after_a_rivals_commit_what_is_in_hand_is_planned_anew(
    foreign_file, world, monkeypatch
):
    class Rival(Shelf):
        def receive(self, **how):
            if not self.most:
                world.reconciled()
            return super().receive(**how)

    monkeypatch.setattr(drain.Queue, "open", lambda _: Rival([foreign_file]))
    outcome = world.poll()
    assert (len(outcome.quarantined), outcome.messages["done"]) == (1, 1)


def test_what_a_request_could_not_do_is_tried_once_more():
    asked = []

    class Flaky:
        def delete_message_batch(self, Entries, **_):  # noqa: N803 (AWS's)
            asked.append([one["ReceiptHandle"] for one in Entries])
            return {"Failed": [{"Id": "1"}]} if len(asked) == 1 else {}

    queue = drain.Queue("sqs://x", Flaky(), "")
    assert (queue.delete(["a", "b", "c"]), asked) == (0, [["a", "b", "c"], ["b"]])


def test_a_request_that_is_done_in_part_says_how_many_are_left(world):
    world.send("{}", "{}")
    queue = drain.Queue.open(world.settings().source.queue)
    (first, _), (second, _) = queue.receive(hidden=60)
    assert queue.delete(["gone", first, "lost"]) == 2
    assert queue.hide(["gone", second], 0) == 1
    assert world.messages == (1, 0)


def test_files_that_are_held_back_stay_in_the_queue(world):
    world.put_tree()
    world.more = {"max_wait": "24h"}
    outcome = world.poll()
    assert (outcome.files, outcome.waiting) == (0, len(world.tree))
    assert world.messages == (len(world.tree), 0)
    world.more = {}
    assert (world.poll().files, world.messages) == (len(world.tree), (0, 0))


def test_two_polls_at_once_take_each_file_once(world):
    world.put_tree()

    def poll(name):
        settings = world.settings()
        cache = {"cache": world.root / f"{name}.db", "lease": timedelta()}
        ledger = settings.ledger.model_copy(update=cache)
        return api.poll(settings.model_copy(update={"ledger": ledger}))

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(poll, ["a", "b"]))
    assert sum(one.files for one in outcomes) == len(world.tree)
    assert verify(world.settings()).differences == ()
    world.let_the_time_pass_for_which_messages_are_hidden()
    assert (world.poll().files, world.messages) == (0, (0, 0))


def test_a_poll_that_is_stopped_gives_back_what_it_has(world):
    world.put_tree()
    outcome = api.poll(world.settings(), stop=lambda: True)
    assert (outcome.stopped, outcome.files) == (True, 0)
    assert world.messages == (len(world.tree), 0)


def test_what_is_in_work_for_long_stays_hidden(world, monkeypatch):
    monkeypatch.setattr(drain, "HIDDEN", 1)
    world.put_tree()
    read = Store.read

    def slow(store, objects):
        time.sleep(1.5)
        assert world.messages == (0, len(world.tree))
        return read(store, objects)

    monkeypatch.setattr(Store, "read", slow)
    assert (world.poll().files, world.messages) == (len(world.tree), (0, 0))


def test_a_queue_that_is_not_there_is_told(world):
    with pytest.raises(StoreError, match=r"could not receive from sqs://.*/none: "):
        world.poll(queue=f"sqs://us-east-1/{ACCOUNT}/none")


def test_a_killed_poll_is_made_up_by_the_messages_that_come_again(
    world, s3, monkeypatch
):
    place = campaign.bucket(world.root, s3.endpoint, s3.name, lease="0s")
    place = replace(place, source=f"s3://{s3.name}/braze", feeds=f"{s3.url}/feeds")
    told = {"CURRENTS_SOURCE__QUEUE": world.settings().source.queue}
    plain = campaign.environment
    monkeypatch.setattr(campaign, "environment", lambda one: plain(one) | told)
    world.more = {"url": place.feeds}
    world.reconciled()
    world.put_tree()
    for doomed in (r"_ledger/\d{10}\.json", "DeleteMessageBatch"):
        ended = kill_at(place, re.compile(doomed))
        assert ended.status == campaign.KILLED
        assert sum(world.messages) == len(world.tree)
        world.let_the_time_pass_for_which_messages_are_hidden()
    campaign.finish(place)
    assert world.messages == (0, 0)
    found = verify(
        config.given(
            source={"url": place.source},
            feeds={"url": place.feeds},
            ledger={"cache": world.root / "other.db"},
        )
    )
    assert (found.differences, found.pending) == ((), 0)
    assert found.source_files == len(world.tree)


def kill_at(place, doomed):
    """Kill a poll as it asks for what is doomed, before that is applied."""

    def decide(request):
        asked = request.path + request.headers.get("x-amz-target", "")
        if request.writes and doomed.search(asked):
            process.kill()
            return Fault.REFUSED
        return None

    with proxied(place.endpoint, decide) as proxy:
        process = campaign.start(replace(place, endpoint=proxy.endpoint), "poll")
        return campaign.end(process)


def test_a_look_tells_what_waits_and_receives_nothing(world, capsys):
    world.send("{}", "{}")
    found = status.status(world.settings())
    assert (found.queue, found.queue_error) == ((2, 0), "")
    show_status(found)
    assert "2 messages wait in the queue, 0 are in work" in capsys.readouterr().out
    assert world.messages == (2, 0)
    gone = status.status(world.settings(queue=f"sqs://us-east-1/{ACCOUNT}/none"))
    assert any(one.startswith("queue: could not look at sqs://") for one in gone.look)


def test_run_counts_what_became_of_messages_and_what_is_left(world):
    world.put_tree()
    world.send("{}")
    service = Service(settings=world.settings(), inbox=SimpleQueue())
    for task in ("poll", "look"):
        service.schedule.jobs[task].work()
    told = service.metrics.text().decode()
    done, name = float(len(world.tree)), "currents_queue"
    assert f'{name}_received_messages_total{{fate="done"}} {done}' in told
    assert f'{name}_received_messages_total{{fate="unknown"}} 1.0' in told
    assert f'{name}_messages{{state="in_work"}} 1.0' in told


def test_lambda_polls_a_queue_as_well(world, monkeypatch):
    world.put_tree()
    told = {
        "SOURCE__URL": world.settings().source.url,
        "SOURCE__QUEUE": world.arn,
        "FEEDS__URL": world.settings().feeds.url,
    }
    for name, value in told.items():
        monkeypatch.setenv(f"CURRENTS_{name}", value)
    monkeypatch.setattr("tempfile.tempdir", str(world.root))
    context = SimpleNamespace(get_remaining_time_in_millis=lambda: 900_000)
    found = aws_lambda.handler({"do": "poll"}, context)
    assert (found["state"], found["done"]) == ("done", len(world.tree))
    assert world.messages == (0, 0)


def test_no_key_of_a_message_breaks_a_poll(world):
    folder = "event_type=users.behaviors.Purchase/date=2026-09-15-11/1/a/"
    odd = ["\0", "\n", "a\x7f", "//", "../", "é" * 400, "%41+ ", "\u202e", "?#[]|\\"]
    keys = [f"{folder}{one}+0+1.avro" for one in odd]
    types = ["", "..", "a b", "é\0", "x" * 400, "%2e", "a.B?*["]
    keys += [f"event_type={one}/date=2026-09-15-11/1/a/x+0+1.avro" for one in types]
    world.send({"Records": [record(world.bucket, key) for key in keys]})
    outcome = world.poll()
    assert (outcome.files, outcome.unread, world.messages) == (0, (), (0, 0))
    assert len(outcome.quarantined) == 5 + len(types) - 1
