"""The Lambda handler: invocations that end before their limit, until all is done."""

from __future__ import annotations

import json
import os
import time

import boto3
import pytest

from currents_ingest import config
from currents_ingest.audiences import sync
from currents_ingest.audiences.gathering import Target
from currents_ingest.aws_lambda import handler
from currents_ingest.errors import (
    ExportNotReadyError,
    SettingsError,
    TooLittleTimeError,
)
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.verify import verify

POLL = {"do": "poll"}
VIP = {"do": "audience", "name": "vip"}


class Context:
    """An invocation with a time limit, on the real clock."""

    invoked_function_arn = "arn:aws:lambda:us-east-1:123456789012:function:ours"

    def __init__(self, seconds):
        self.ends = time.monotonic() + seconds

    def get_remaining_time_in_millis(self):
        return int((self.ends - time.monotonic()) * 1000)


class Counted:
    """An invocation that has time for so many questions whether it has to end."""

    invoked_function_arn = Context.invoked_function_arn

    def __init__(self, questions):
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
            assert getattr(context, "ends", time.monotonic()) >= time.monotonic() - 0.01
            self.told.append(found)
        return self.told

    def again(self, function, event):
        assert function == Context.invoked_function_arn
        self.waiting.append(json.dumps(event))


@pytest.fixture(autouse=True)
def _plain_folder(tmp_path, monkeypatch):
    """Work in an empty folder, without settings of anybody's."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("CURRENTS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CURRENTS_LEDGER__CACHE", str(tmp_path / "cache.db"))
    monkeypatch.setenv("BRAZE_API_KEY", "made-up")


def write_settings(tmp_path, **sections):
    """Write currents.toml; of values those of JSON are TOML's, too."""
    lines = []
    for name, values in sections.items():
        lines.append(f"[{name.replace('__', '.')}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    (tmp_path / "currents.toml").write_text("\n".join(lines) + "\n")


def export(tmp_path, people):
    path = tmp_path / "exports" / "vip.csv"
    path.parent.mkdir(exist_ok=True)
    rows = "".join(f"p{n:05},{n}\n" for n in range(people))
    path.write_text("external_id,points\n" + rows)
    return path


def test_a_file_that_needs_five_invocations_is_finished_and_nothing_goes_twice(
    tmp_path, box, monkeypatch
):
    monkeypatch.setenv("CURRENTS_LAMBDA_RESERVE", "2s")
    braze = {"url": box.url, "rate": "12/1s", "concurrency": 4}
    vip = {"source": str(export(tmp_path, 9_000)), "settle": "0s"}
    feeds = {"url": str(tmp_path / "feeds")}
    write_settings(tmp_path, feeds=feeds, braze=braze, audiences__vip=vip)
    told = [one["vip"] for one in Lambda(lambda: Context(3.1)).run(VIP)]
    assert len(told) >= 5
    assert [one["state"] for one in told] == ["stopped"] * (len(told) - 1) + ["done"]
    assert sum(one["done"] for one in told) == 9_000
    assert box.objects() == 9_000
    points = {
        one: p["custom_attributes"]["points"] for one, p in box.profiles().items()
    }
    assert points == {f"p{n:05}": n for n in range(9_000)}
    settings = config.read_audiences()
    last = sync.runs(settings, Target("vip", settings.audiences["vip"]))[0]
    assert (last.state, last.undecided) == ("done", 0)


def test_a_poll_that_needs_several_invocations_is_finished(tmp_path):
    made = simulate(str(tmp_path), Simulation(events=("users.messages.*",), hours=2))
    source = {"url": str(tmp_path / "currents")}
    write_settings(tmp_path, source=source, feeds={"url": str(tmp_path / "feeds")})
    told = [one["poll"] for one in Lambda(lambda: Counted(30)).run(POLL)]
    assert len(told) >= 3
    assert [one["state"] for one in told] == ["stopped"] * (len(told) - 1) + ["done"]
    assert sum(one["rows"] for one in told) == made.distinct
    assert verify(config.read()).differences == ()


def test_invocations_that_do_nothing_end_with_an_error_that_says_why(tmp_path, box):
    vip = {"source": str(export(tmp_path, 10)), "settle": "0s"}
    feeds, braze = {"url": str(tmp_path / "feeds")}, {"url": box.url}
    write_settings(tmp_path, feeds=feeds, braze=braze, audiences__vip=vip)
    ours = Lambda(lambda: Counted(0))
    with pytest.raises(TooLittleTimeError, match="vip: 3 invocations in a row"):
        ours.run(VIP)
    assert len(ours.told) == 2
    assert box.objects() == 0


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


@pytest.mark.parametrize("how", ["S3", "EventBridge", "SQS", "SNS", "SNS in SQS"])
def test_an_object_in_an_audiences_source_sends_that_audience(how, tmp_path, box, s3):
    folder = f"{s3.url}/exports/vip 2026"
    audiences = {
        "audiences__vip": {"source": folder, "settle": "0s"},
        "audiences__other": {"source": f"{s3.url}/exports/other/", "settle": "0s"},
    }
    feeds, braze = {"url": f"{s3.url}/feeds"}, {"url": box.url}
    write_settings(tmp_path, feeds=feeds, braze=braze, **audiences)
    key = "exports/vip 2026/part=1.csv"
    boto3.client("s3").put_object(Bucket=s3.name, Key=key, Body=b"external_id,a\nx,1\n")
    found = handler(wrapped(how, s3.name), Context(900))
    assert list(found) == ["vip"]
    assert found["vip"]["done"] == 1
    elsewhere = s3_event(s3.name, "exports/vip 2027/part.csv")
    assert handler(elsewhere, Context(900)) == {}


def test_an_export_that_is_still_written_is_asked_for_again_by_lambda(
    tmp_path, box, s3
):
    vip = {"source": f"{s3.url}/exports/vip/", "settle": "60s"}
    feeds, braze = {"url": f"{s3.url}/feeds"}, {"url": box.url}
    write_settings(tmp_path, feeds=feeds, braze=braze, audiences__vip=vip)
    client = boto3.client("s3")
    client.put_object(
        Bucket=s3.name, Key="exports/vip/a.csv", Body=b"external_id,a\nx,1"
    )
    with pytest.raises(ExportNotReadyError):
        handler(s3_event(s3.name, "exports/vip/a.csv"), Context(900))
    client.put_object(Bucket=s3.name, Key="exports/vip/a.csv.DONE", Body=b"")
    found = handler(s3_event(s3.name, "exports/vip/a.csv.DONE"), Context(900))
    assert found["vip"]["done"] == 1


def test_a_scheduled_event_polls(tmp_path):
    simulate(str(tmp_path), Simulation(events=("*.Purchase",), hours=1))
    source = {"url": str(tmp_path / "currents")}
    write_settings(tmp_path, source=source, feeds={"url": str(tmp_path / "feeds")})
    event = {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}
    assert handler(event, Context(900))["poll"]["state"] == "done"


@pytest.mark.parametrize("event", [{}, {"do": "dance"}, {"Records": []}])
def test_an_event_that_asks_for_nothing_is_an_error(event, tmp_path):
    write_settings(tmp_path, feeds={"url": str(tmp_path / "feeds")})
    with pytest.raises(SettingsError, match="an event that is neither"):
        handler(event, Context(900))
