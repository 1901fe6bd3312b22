from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import jsonschema
import pytest

from currents_ingest import audience_config, config, template, units
from currents_ingest.errors import SettingsError

MINIMAL = '[source]\nurl = "in"\n[feeds]\nurl = "out"\n'


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text):
        Path("currents.toml").write_text(text)
        return Path("currents.toml")

    return write


def test_two_urls_are_all_that_must_be_said(write):
    found = config.read(write(MINIMAL))
    assert (found.source.url, found.feeds.url) == ("in", "out")
    assert found.source.lookback == timedelta(hours=48)
    assert found.feeds.dedupe_horizon == timedelta(days=45)
    assert found.limits.memory == 2 * 10**9


def test_the_environment_wins_over_the_file(write, monkeypatch):
    monkeypatch.setenv("CURRENTS_FEEDS__URL", "elsewhere")
    monkeypatch.setenv("CURRENTS_LIMITS__MEMORY", "1GB")
    monkeypatch.setenv("CURRENTS_SOURCE__EVENTS", '["users.messages.*"]')
    found = config.read(write(MINIMAL))
    assert found.feeds.url == "elsewhere"
    assert found.limits.memory == 10**9
    assert found.source.events == ("users.messages.*",)


def test_the_file_in_the_working_folder_is_found(write):
    write(MINIMAL)
    assert config.read().source.url == "in"


def test_everything_that_is_wrong_is_said_at_once(write):
    path = write(
        '[source]\nlookback = "two days"\nbanana = 1\n[feeds]\nurl = ""\n'
        '[limits]\nmemory = "1MB"\nconcurrency = 0\n[ledger]\nlease = "5"\n'
    )
    with pytest.raises(SettingsError) as caught:
        config.read(path)
    needed = "is no duration; write a number and s, m, h or d, as in 48h"
    assert str(caught.value).splitlines() == [
        "the configuration cannot be used:",
        "  - source.url is missing: set it in currents.toml or as CURRENTS_SOURCE__URL",
        f"  - source.lookback: 'two days' {needed}",
        "  - source.banana is no setting; `currents-ingest init` lists those there are",
        "  - feeds.url: String should have at least 1 character",
        f"  - ledger.lease: '5' {needed}",
        "  - limits.memory: Input should be greater than or equal to 256000000",
        "  - limits.concurrency: Input should be greater than or equal to 1",
    ]


@pytest.mark.parametrize("text", ["[source", "x = = 1", "\x00"])
def test_a_file_that_is_no_toml_is_named(write, text):
    with pytest.raises(SettingsError, match=r"currents\.toml"):
        config.read(write(text))


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(SettingsError, match=r"there is no file nowhere\.toml"):
        config.read(Path("nowhere.toml"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("48h", 172800), ("45d", 3888000), ("0.5s", 0.5)],
)
def test_durations_have_units(text, seconds):
    assert units.duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "size"), [("256MB", 256 * 10**6), ("1.5gb", 1.5 * 10**9), (300, 300)]
)
def test_sizes_have_units(text, size):
    assert units.size(text) == size


def test_what_init_writes_is_valid_and_has_every_setting(write):
    path = write(template.toml("currents.schema.json"))
    found = config.read(path)
    assert found.source.url.startswith("s3://")
    text = path.read_text().replace("\n# ", "\n")
    for name, section in config.Settings.model_fields.items():
        many = name == "audiences"
        assert (f"[{name}.vip]" if many else f"[{name}]") in text
        kind = audience_config.Audience if many else section.annotation
        for field in kind.model_fields:
            assert f"\n{field}" in text
    assert text.startswith("#:schema ./currents.schema.json\n")


def test_every_default_in_the_template_is_the_default(write):
    import tomllib

    lines = template.toml("x").splitlines()
    plain = [line.removeprefix("# ") for line in lines]
    values = [line for line in plain if " = " in line or line[:1] == "["]
    spelled = tomllib.loads("\n".join(values))
    urls = {name: {"url": spelled[name]["url"]} for name in ("source", "feeds")}
    found = config.read(write("\n".join(values)))
    plain = config.read(**urls, audiences={"vip": spelled["audiences"]["vip"]})
    assert found.model_dump() == plain.model_dump()
    vip = {"source": "s3://acme-amperity/exports/vip/"}
    assert found.audiences["vip"] == audience_config.Audience(**vip)


def test_the_json_schema_accepts_good_files_and_refuses_bad_ones():
    schema = json.loads(json.dumps(config.json_schema()))
    urls = {"source": {"url": "a"}, "feeds": {"url": "b"}}
    jsonschema.validate(urls | {"limits": {"memory": "1GB"}}, schema)
    for bad in (
        {"source": {}},
        urls | {"nonsense": {}},
        urls | {"ledger": {"lease": "5"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


@pytest.mark.parametrize(
    "change",
    [
        {"braze": {"rate": "0/3s"}},
        {"braze": {"rate": "3/0s"}},
        {"braze": {"batch_size": 76}},
        {"braze": {"url": "http://rest.example.com"}},
        {"braze": {"url": "https://user:pw@rest.example.com"}},
        {"braze": {"api_key": "x"}},
        {"audiences": {"a": {"source": "x", "kind": "events", "mode": "mirror"}}},
        {"audiences": {"a": {"source": "x", "dedupe": "id"}}},
        {"audiences": {"a": {"source": "x", "header": False}}},
        {"audiences": {"a": {}}},
    ],
)
def test_settings_of_the_way_back_that_cannot_work_are_refused(change):
    with pytest.raises(SettingsError):
        config.read_audiences(feeds={"url": "x"}, **change)


def test_bulk_has_limits_of_its_own():
    braze = audience_config.Braze(bulk=True)
    assert (braze.most, braze.pace) == (1000, "50/1s")
    assert braze.room < 2_000_000
    assert (audience_config.Braze().most, audience_config.Braze().pace) == (
        75,
        "3000/3s",
    )


def test_audiences_are_read_beside_a_source(tmp_path):
    path = tmp_path / "currents.toml"
    path.write_text(
        '[source]\nurl = "in"\n[feeds]\nurl = "out"\n'
        '[audiences.vip]\nsource = "x.csv"\n'
    )
    assert list(config.read_audiences(path).audiences) == ["vip"]


def test_given_settings_heed_no_environment(monkeypatch):
    monkeypatch.setenv("CURRENTS_SOURCE__LOOKBACK", "1h")
    found = config.given(source={"url": "in"}, feeds={"url": "out"})
    assert found.source.lookback == config.Source(url="in").lookback


@pytest.mark.parametrize(
    "queue",
    [
        "sqs://us-east-1/123456789012/currents-2",
        "https://sqs.us-east-1.amazonaws.com/123456789012/currents-2",
        "arn:aws:sqs:us-east-1:123456789012:currents-2",
    ],
)
def test_a_queue_is_named_as_aws_names_it(queue):
    found = config.read(source={"url": "s3://in", "queue": queue}, feeds={"url": "out"})
    assert found.source.queue == "sqs://us-east-1/123456789012/currents-2"


@pytest.mark.parametrize(
    ("url", "queue", "says"),
    [
        ("s3://in", "currents", "'currents' is no queue; write sqs://REGION/ACCOUNT/"),
        ("s3://in", "sqs://us-east-1/1/currents", "is no queue"),
        ("s3://in", "sqs://eu-west-1/123456789012/a.fifo", "notifies no FIFO queue"),
        ("gs://in", "sqs://eu-west-1/123456789012/a", "source: queue takes what S3"),
    ],
)
def test_a_queue_that_cannot_be_one_is_told(url, queue, says):
    with pytest.raises(SettingsError, match=says):
        config.read(source={"url": url, "queue": queue}, feeds={"url": "out"})
