"""The Lambda handler: invocations that end before their limit, until all is done."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from datetime import timedelta
from itertools import count
from pathlib import Path
from urllib.parse import quote, unquote

import boto3
import pytest

from currents_ingest import aws_lambda, config
from currents_ingest.audiences import sync
from currents_ingest.audiences.gathering import Target
from currents_ingest.aws_lambda import Place, handler
from currents_ingest.errors import (
    ExportNotReadyError,
    LeaseHeldError,
    SettingsError,
    StoreError,
    TooLittleTimeError,
)
from currents_ingest.lease import hold
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.store import Store
from currents_ingest.verify import verify
from tests.sandbox_server import Reply, Sandbox, stub
from tests.servers import proxied

POLL = {"do": "poll"}
VIP = {"do": "audience", "name": "vip"}
KEYS = {
    "BRAZE_API_KEY": "made-up",
    "BRAZE_PARTNER_KEY": "made-up partner",
    "BRAZE_DATA_IMPORT_KEY": "made-up import",
}


class Context:
    """An invocation with a time limit, on the real clock."""

    invoked_function_arn = "arn:aws:lambda:us-east-1:123456789012:function:ours"

    def __init__(self, seconds):
        self.ends = time.monotonic() + seconds

    def get_remaining_time_in_millis(self):
        return int((self.ends - time.monotonic()) * 1000)


class Counted(Context):
    """An invocation that has time for so many questions whether it has to end."""

    def __init__(self, questions):
        super().__init__(900)
        self.left = questions

    def get_remaining_time_in_millis(self):
        self.left -= 1
        return 900_000 if self.left >= 0 else 0


class Lambda:
    """Runs the handler as Lambda would: what it asks for comes after it."""

    def __init__(self, context):
        self.context, self.waiting, self.told = context, [], []

    def run(self, event):
        self.waiting.append(json.dumps(event))
        while self.waiting:
            context = self.context()
            found = handler(json.loads(self.waiting.pop(0)), context, self.again)
            assert time.monotonic() < context.ends
            self.told.append(json.loads(json.dumps(found)))
        return self.told

    def again(self, function, event):
        assert function == Context.invoked_function_arn
        self.waiting.append(json.dumps(event))


def refuse(*_):
    raise AssertionError("nothing has to go on")


@pytest.fixture(autouse=True)
def _plain_folder(tmp_path, monkeypatch):
    """Work in an empty folder, without settings of anybody's."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("CURRENTS_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def write_settings(tmp_path, **sections):
    """Write currents.toml; of values those of JSON are TOML's, too."""
    lines = []
    for name, values in sections.items():
        lines.append(f"[{name.replace('__', '.')}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    (tmp_path / "currents.toml").write_text("\n".join(lines) + "\n")


def export(tmp_path, people, row="p{0:05},{0}", header="external_id,points"):
    path = tmp_path / "exports" / "vip.csv"
    path.parent.mkdir(exist_ok=True)
    rows = "".join(f"{row.format(n)}\n" for n in range(people))
    path.write_text(f"{header}\n{rows}")
    return path


def audience(tmp_path, box, source, *, braze=None, **more):
    """Write settings with one audience, vip."""
    write_settings(
        tmp_path,
        feeds={"url": str(tmp_path / "feeds")},
        braze={"url": box.url, **(braze or {})},
        audiences__vip={"source": str(source), "settle": "0s", **more},
    )


def last_run():
    settings = config.read_audiences()
    return sync.runs(settings, Target("vip", settings.audiences["vip"]))[0]


# Files and polls that need several invocations.


def test_a_file_that_needs_five_invocations_is_finished_and_nothing_goes_twice(
    tmp_path, box, monkeypatch
):
    monkeypatch.setenv("CURRENTS_LAMBDA_RESERVE", "2s")
    pace = {"rate": "1/0.08s", "concurrency": 4}
    audience(tmp_path, box, export(tmp_path, 4_500), braze=pace)
    told = Lambda(lambda: Context(2.8)).run(VIP)
    assert len(told) >= 5
    assert [one["state"] for one in told] == ["stopped"] * (len(told) - 1) + ["done"]
    assert sum(one["done"] for one in told) == 4_500
    assert box.objects() == 4_500
    assert box.requests() == 60
    points = {
        one: p["custom_attributes"]["points"] for one, p in box.profiles().items()
    }
    assert points == {f"p{n:05}": n for n in range(4_500)}
    assert (last_run().state, last_run().undecided) == ("done", 0)


def test_events_over_many_invocations_arrive_once_each(tmp_path, box):
    columns, row = "external_id,name,time,n,nr", "p{0:05},seen,1789466400,{0},{0}"
    source = export(tmp_path, 1_200, row, columns)
    one_by_one = {"concurrency": 1}
    events = {"kind": "events", "dedupe": "nr"}
    audience(tmp_path, box, source, braze=one_by_one, **events)
    told = Lambda(lambda: Counted(10)).run(VIP)
    assert len(told) >= 3
    assert sorted(one["properties"]["n"] for one in box.events()) == list(range(1_200))
    assert last_run().undecided == 0


def test_a_cohort_over_many_invocations_has_every_member_once(tmp_path, box):
    people = [f"p{n:05}" for n in range(9_500)]
    box.people({"external_id": one} for one in people)
    source = export(tmp_path, 9_500, "p{0:05}", "external_id")
    audience(tmp_path, box, source, braze={"concurrency": 1}, kind="cohort")
    told = Lambda(lambda: Counted(8)).run(VIP)
    assert len(told) >= 3
    assert sum(one["done"] for one in told) == 9_500
    assert sorted(box.cohorts()["vip"]["user_ids"]) == people


def test_a_poll_that_needs_several_invocations_is_finished(tmp_path):
    made = simulate(
        str(tmp_path), Simulation(events=("users.messages.email*",), hours=2)
    )
    source = {"url": str(tmp_path / "currents")}
    write_settings(tmp_path, source=source, feeds={"url": str(tmp_path / "feeds")})
    told = Lambda(lambda: Counted(4)).run(POLL)
    assert len(told) >= 3
    assert [one["state"] for one in told] == ["stopped"] * (len(told) - 1) + ["done"]
    assert sum(one["rows"] for one in told) == made.distinct
    assert verify(config.read()).differences == ()


@pytest.mark.parametrize("questions", [0, 1, 2])
def test_invocations_that_do_nothing_end_with_an_error_that_says_why(
    tmp_path, box, questions
):
    audience(tmp_path, box, export(tmp_path, 10))
    ours = Lambda(lambda: Counted(questions))
    with pytest.raises(TooLittleTimeError, match="vip: 3 invocations in a row"):
        ours.run(VIP)
    assert len(ours.told) == 2
    assert box.objects() == 0


def test_an_export_is_not_read_on_when_time_is_up(tmp_path, box):
    audience(tmp_path, box, export(tmp_path, 250_000))
    context = Counted(1)
    found = handler(VIP, context, lambda *_: None)
    assert (found["state"], found["done"], context.left) == ("stopped", 0, -1)
    (kept,) = (tmp_path / "feeds").rglob("summaries/*")
    assert json.loads(kept.read_text())["state"] == "stopped"
    assert not list((tmp_path / "feeds").rglob("_ledger/0*"))


# What an object in S3 asks for.


def s3_event(bucket, key):
    named = {"bucket": {"name": bucket}, "object": {"key": key}}
    return {"Records": [{"eventSource": "aws:s3", "s3": named}]}


def wrapped(how, bucket):
    """Return a notification of one object, the way it comes."""
    plain = s3_event(bucket, "exports/vip+2026/part%3D1.csv")
    if how == "EventBridge":
        named = {
            "bucket": {"name": bucket},
            "object": {"key": "exports/vip 2026/a.csv"},
        }
        return {"detail-type": "Object Created", "source": "aws.s3", "detail": named}
    if how == "SQS":
        return {"Records": [{"body": json.dumps(plain)}]}
    if how == "SNS":
        return {"Records": [{"Sns": {"Message": json.dumps(plain)}}]}
    if how == "SNS in SQS":
        inner = json.dumps({"Message": json.dumps(plain)})
        return {"Records": [{"body": inner}]}
    return plain


@pytest.fixture
def put(s3):
    """Return what puts an object of one person into the bucket."""
    client = boto3.client("s3")

    def one(key, body="external_id,a\nx,1\n"):
        client.put_object(Bucket=s3.name, Key=key, Body=body.encode())
        return s3_event(s3.name, key.replace(" ", "+"))

    return one


def in_s3(tmp_path, box, s3, settle="0s", **sources):
    write_settings(
        tmp_path,
        feeds={"url": f"{s3.url}/feeds"},
        braze={"url": box.url},
        **{
            f"audiences__{name}": {"source": f"{s3.url}/{path}", "settle": settle}
            for name, path in sources.items()
        },
    )


@pytest.mark.parametrize("how", ["S3", "EventBridge", "SQS", "SNS", "SNS in SQS"])
def test_an_object_in_an_audiences_source_sends_that_audience(
    how, tmp_path, box, s3, put
):
    in_s3(tmp_path, box, s3, vip="exports/vip 2026", other="exports/other/")
    put("exports/vip 2026/part=1.csv")
    found = handler(wrapped(how, s3.name), Context(900), refuse)
    assert (found["name"], found["state"], found["done"]) == ("vip", "done", 1)
    elsewhere = put("exports/vip 2027/part.csv")
    assert handler(elsewhere, Context(900), refuse) == {"state": "nothing to do"}


@pytest.mark.parametrize(
    ("key", "names"),
    [
        pytest.param("in/a.csv", ["object"], id="the object itself"),
        pytest.param("in/a.csv.DONE", ["object"], id="its marker"),
        pytest.param("in/a.done", ["object"], id="its marker, in its other form"),
        pytest.param("in/b.csv", [], id="another object beside it"),
        pytest.param("in/folder/x/part-1.csv", ["folder"], id="a part"),
        pytest.param("in/folder.DONE", ["folder"], id="the folder's marker"),
        pytest.param("in/folder/_SUCCESS.DONE", ["folder"], id="a marker in it"),
        pytest.param("in/folder2/part-1.csv", [], id="a folder that begins alike"),
        pytest.param("in/export.DONE", ["object"], id="a marker of whatever"),
        pytest.param("glob/vip_1.csv", ["glob"], id="what a pattern matches"),
        pytest.param("glob/vip_1.csv.DONE", ["glob"], id="the marker of that"),
        pytest.param("glob/all.DONE", ["glob"], id="a marker beside the pattern"),
        pytest.param("glob/churn_1.csv", [], id="what a pattern does not match"),
    ],
)
def test_an_object_belongs_to_whoever_names_it(key, names, tmp_path, box, s3, put):
    sources = {"object": "in/a.csv", "folder": "in/folder/", "glob": "glob/vip_*"}
    in_s3(tmp_path, box, s3, a_first_one="first/", **sources)
    event = put("first/a.csv")
    event["Records"] += s3_event(s3.name, key)["Records"]
    asked = []
    found = handler(event, Context(900), lambda _, one: asked.append(one))
    assert (found["name"], found["done"]) == ("a_first_one", 1)
    assert [one["name"] for one in asked] == names


def test_an_export_is_sent_once_it_has_been_still(tmp_path, box, s3, put):
    in_s3(tmp_path, box, s3, settle="3s", vip="exports/vip/")
    event = put("exports/vip/a.csv")
    began = time.monotonic()
    assert handler(event, Context(900), refuse)["done"] == 1
    assert 2 < time.monotonic() - began < 15


def test_an_export_with_a_marker_is_sent_at_once(tmp_path, box, s3, put):
    in_s3(tmp_path, box, s3, settle="1h", vip="exports/vip/")
    put("exports/vip/a.csv")
    event = put("exports/vip/a.csv.DONE", "")
    assert handler(event, Context(900), refuse)["done"] == 1


def test_an_export_that_is_still_written_is_left_to_its_last_object(
    tmp_path, box, s3, put, monkeypatch
):
    in_s3(tmp_path, box, s3, settle="10m", vip="exports/vip/")
    event = put("exports/vip/a.csv")

    class Time:
        """Ten minutes go by, and the export is written once more meanwhile."""

        now = 0.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            if not self.now:
                put("exports/vip/a.csv")
            self.now += seconds

    monkeypatch.setattr(aws_lambda, "time", Time())
    assert handler(event, Context(900), refuse)["state"] == "not ready"
    assert box.objects() == 0


def test_who_asks_for_an_export_that_is_not_there_is_told(tmp_path, box, s3):
    in_s3(tmp_path, box, s3, vip="exports/vip/")
    with pytest.raises(ExportNotReadyError, match="there is no export yet"):
        handler(VIP, Context(900), refuse)


def test_an_error_that_nobody_foresaw_is_told_without_its_text(tmp_path):
    audience(tmp_path, Sandbox("http://127.0.0.1:1", 0), "s3://b/a.csv")
    event = {"Records": [{"s3": {"bucket": "jane@example.com"}}]}
    with pytest.raises(RuntimeError) as told:
        handler(event, Context(900), refuse)
    assert re.fullmatch(r"TypeError at aws_lambda\.py:\d+", str(told.value))
    assert told.value.__context__ is None  # which would be told as well


def test_logs_are_json_where_alarms_read_them(tmp_path, box):
    audience(tmp_path, box, export(tmp_path, 1))
    code = "from tests.test_aws_lambda import *; handler(VIP, Context(900))"
    root = str(Path(__file__).parents[1])
    more = {"AWS_LAMBDA_FUNCTION_NAME": "ours", "PYTHONPATH": root}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | more,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [json.loads(one) for one in ended.stderr.splitlines()]
    (last,) = [one for one in lines if one["event"] == "ended"]
    assert (last["level"], last["needs_a_look"], last["done"]) == ("info", False, 1)


def test_that_s3_asks_whether_we_are_there_is_no_error(tmp_path, box):
    audience(tmp_path, box, "s3://elsewhere/a.csv")
    asks = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "elsewhere"}
    queued = {"Records": [{"body": json.dumps(asks)}]}
    for event in (asks, queued):
        assert handler(event, Context(900), refuse) == {"state": "nothing to do"}


@pytest.mark.parametrize("event", [{}, {"do": "dance"}, {"Records": [{"a": 1}]}])
def test_an_event_that_asks_for_nothing_is_an_error(event, tmp_path):
    write_settings(tmp_path, feeds={"url": str(tmp_path / "feeds")})
    with pytest.raises(SettingsError, match="an event that is neither"):
        handler(event, Context(900), refuse)


# What else it is asked, and what it runs with.


@pytest.fixture
def source(tmp_path):
    """Write a few Currents files and settings; return the feeds' place."""
    simulate(str(tmp_path), Simulation(events=("*.Purchase",), hours=1))
    feeds = str(tmp_path / "feeds")
    write_settings(
        tmp_path, source={"url": str(tmp_path / "currents")}, feeds={"url": feeds}
    )
    return feeds


@pytest.mark.usefixtures("source")
def test_a_scheduled_event_polls_and_status_looks(tmp_path):
    event = {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}
    assert handler(event, Context(900), refuse)["state"] == "done"
    told = handler({"do": "status"}, Context(900), refuse)
    assert (told["entries"], list(told["newest"])) == (2, ["behaviors_purchase"])
    assert not (tmp_path / ".currents").exists()
    assert (tmp_path / "tmp" / "currents" / ".currents" / "cache.db").exists()


def test_a_poll_beside_another_run_ends_well_and_leaves_all_to_it(source):
    with hold(Store.open(source), "another", timedelta(minutes=1)):
        told = handler(POLL, Context(900), refuse)
    assert told["state"] == "another run is at work"


def test_a_sync_beside_another_run_is_tried_again_by_lambda(tmp_path, box):
    audience(tmp_path, box, export(tmp_path, 1))
    handler(VIP, Context(900), refuse)
    export(tmp_path, 2)
    (ours,) = (tmp_path / "feeds" / "_audiences" / "vip").glob("*/*")
    with (
        hold(Store.open(str(ours)), "another", timedelta(minutes=1)),
        pytest.raises(LeaseHeldError),
    ):
        handler(VIP, Context(900), refuse)
    assert handler(VIP, Context(900), refuse)["done"] == 1


@pytest.fixture
def changing(tmp_path, s3, monkeypatch):
    """Put a file into the bucket that changes before each reading of it."""
    client, versions = boto3.client("s3"), count()
    name = "dataexport.prod-01.S3.integration.1"
    folder = "event_type=users.behaviors.Purchase/date=2026-09-15-11/version=12/us-01"
    key = f"braze/{name}/{folder}/{name}+0+1.avro"

    def write(request=None):
        if request is None or (
            request.method == "GET" and unquote(request.path).endswith(key)
        ):
            client.put_object(Bucket=s3.name, Key=key, Body=str(next(versions)))

    write()
    source, feeds = {"url": f"{s3.url}/braze"}, {"url": str(tmp_path / "feeds")}
    write_settings(tmp_path, source=source, feeds=feeds)
    with proxied(s3.endpoint, write) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield


@pytest.mark.usefixtures("changing")
def test_what_the_bucket_does_not_give_is_tried_again_by_lambda():
    with pytest.raises(StoreError, match=r"could not read 1 files.*changed after"):
        handler(POLL, Context(900), refuse)


@pytest.mark.usefixtures("changing")
def test_what_the_bucket_does_not_give_beside_others_is_asked_for_at_once(s3, tmp_path):
    simulate(str(tmp_path), Simulation(events=("*.email.Open",), hours=1))
    root = tmp_path / "currents"
    for path in root.rglob("*.avro"):
        key = f"braze/{path.relative_to(root)}"
        boto3.client("s3").put_object(Bucket=s3.name, Key=key, Body=path.read_bytes())
    asked = []
    found = handler(POLL, Context(900), lambda _, event: asked.append(event))
    assert (found["state"], found["done"]) == ("stopped", 2)
    assert asked == [{**POLL, "fruitless": 0}]


@pytest.mark.usefixtures("source")
def test_settings_may_lie_in_s3(tmp_path, s3, monkeypatch):
    body = (tmp_path / "currents.toml").read_bytes()
    (tmp_path / "currents.toml").unlink()
    boto3.client("s3").put_object(Bucket=s3.name, Key="etc/ours.toml", Body=body)
    monkeypatch.setenv("CURRENTS_CONFIG", f"{s3.url}/etc/ours.toml")
    assert handler(POLL, Context(900), refuse)["state"] == "done"
    monkeypatch.setenv("CURRENTS_CONFIG", f"{s3.url}/etc/other.toml")
    with pytest.raises(SettingsError, match=r"there is no object other\.toml"):
        handler(POLL, Context(900), refuse)


@pytest.mark.usefixtures("s3")
def test_keys_may_come_from_secrets_manager_and_stay_there(
    tmp_path, box, monkeypatch, capsys
):
    audience(tmp_path, box, export(tmp_path, 1))
    monkeypatch.delenv("BRAZE_API_KEY")
    monkeypatch.setenv("CURRENTS_SECRETS", "braze")
    secrets = boto3.client("secretsmanager")
    with pytest.raises(StoreError, match="could not read the secret braze"):
        handler(VIP, Context(900), refuse)
    secrets.create_secret(Name="braze", SecretString="sesame-1")
    with pytest.raises(SettingsError, match="the secret braze is not JSON") as told:
        handler(VIP, Context(900), refuse)
    assert "sesame" not in str(told.value)
    held = json.dumps({"BRAZE_API_KEY": "sesame-2"})
    secrets.put_secret_value(SecretId="braze", SecretString=held)
    assert handler(VIP, Context(900), refuse)["done"] == 1
    assert "sesame" not in "".join(capsys.readouterr())


@pytest.mark.usefixtures("source")
def test_a_reserve_that_is_none_is_told(monkeypatch):
    monkeypatch.setenv("CURRENTS_LAMBDA_RESERVE", "soon")
    with pytest.raises(SettingsError, match="CURRENTS_LAMBDA_RESERVE: "):
        handler(POLL, Context(900), refuse)


@pytest.mark.usefixtures("source")
def test_no_more_memory_is_used_than_the_function_has(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1024")
    place = Place(tmp_path, lambda: False)
    assert place.settings(config.read).limits.memory == 1024 * 10**6
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "10240")
    assert place.settings(config.read).limits.memory == 2 * 10**9


@pytest.mark.usefixtures("s3")
def test_the_function_calls_itself_and_does_not_wait(tmp_path, box, monkeypatch):
    audience(tmp_path, box, export(tmp_path, 10))
    replies = [Reply(202, b""), Reply(403, {"Message": "not authorized"})]
    with stub(lambda _: replies.pop(0)) as aws:
        monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", aws.url)
        handler(VIP, Counted(0))
        with pytest.raises(StoreError, match="could not call the function arn:aws"):
            handler(VIP, Counted(0))
    first = aws.got[0]
    name = quote(Context.invoked_function_arn, safe="")
    assert first.path == f"/2015-03-31/functions/{name}/invocations"
    assert first.headers["x-amz-invocation-type"] == "Event"
    assert json.loads(first.body) == {**VIP, "fruitless": 1}
