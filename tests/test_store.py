from __future__ import annotations

import os
import pwd
import subprocess
import sys
import threading
from uuid import uuid4

import boto3
import pytest

from currents_ingest.backends import open_backend
from currents_ingest.errors import (
    AlreadyThereError,
    ChangedError,
    NotThereError,
    StoreError,
)
from currents_ingest.store import Store, StoredObject

ODD = ["a/with space", "a/pl+us", "a/per%20cent", "a/üñí😀", "a/x=y&z"]


@pytest.fixture(params=["memory", "folder", "s3"])
def store(request, tmp_path):
    if request.param == "memory":
        return Store.open(f"memory://{uuid4()}")
    if request.param == "folder":
        return Store.open(str(tmp_path / "a folder"))
    return Store.open(request.getfixturevalue("s3").url + "/some/prefix")


def keys(pages):
    return [one.key for page in pages for one in page]


def test_a_listing_is_in_key_order_below_its_folder_and_after_its_offset(store):
    for key in ["b/2", "b/10", "b/1", "bc/1", "a/1", "b/c/d"]:
        store.put(key, b"x")
    assert keys(store.listing("b")) == ["b/1", "b/10", "b/2", "b/c/d"]
    assert keys(store.listing("b", after="b/10")) == ["b/2", "b/c/d"]
    assert keys(store.listing()) == ["a/1", "b/1", "b/10", "b/2", "b/c/d", "bc/1"]
    assert keys(store.listing("nothing")) == []


def test_folders_are_those_directly_below(store):
    for key in ["x/event_type=b/1", "x/event_type=a/date=1/2", "x/file", "y/z/1"]:
        store.put(key, b"x")
    assert store.folders() == ["x", "y"]
    assert store.folders("x") == ["x/event_type=a", "x/event_type=b"]


def test_what_is_written_is_read_back_whatever_the_key(store):
    for key in ODD:
        store.put(key, key.encode())
    listed = [one for page in store.listing("a") for one in page]
    assert [one.key for one in listed] == sorted(ODD)
    assert store.read(listed) == [key.encode() for key in sorted(ODD)]
    assert store.gather(ODD) == [key.encode() for key in ODD]


def test_one_bad_read_does_not_spoil_the_others(store):
    store.put("a", b"one")
    listed = store.stat("a")
    gone = StoredObject(key="gone", etag=listed.etag, size=3)
    store.put("b", b"old")
    old = store.stat("b")
    store.put("b", b"newer")
    found = store.read([gone, listed, old])
    assert bytes(found[1]) == b"one"
    assert isinstance(found[0], NotThereError)
    assert isinstance(found[2], ChangedError)


def test_create_writes_only_what_is_new(store):
    store.create("key", b"first")
    with pytest.raises(AlreadyThereError) as caught:
        store.create("key", b"second")
    assert str(caught.value) == "key exists already"
    assert store.get("key") == b"first"


def test_create_again_with_the_same_bytes_is_a_repeated_request(store):
    store.create("key", b"mine")
    store.create("key", b"mine")


def test_of_many_creators_one_wins(store):
    won = []

    def create(name):
        try:
            store.create("race", name)
            won.append(name)
        except AlreadyThereError:
            pass

    threads = [threading.Thread(target=create, args=(b"%d" % n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [store.get("race")]


def test_copy_find_and_delete(store):
    store.put("a", b"x")
    store.copy("a", "b/c")
    assert store.find(["b/c", "nothing", "a"]) == [b"x", None, b"x"]
    store.delete(["a", "never there"])
    assert store.stat("a") is None
    with pytest.raises(NotThereError):
        store.get("a")
    with pytest.raises(NotThereError):
        store.copy("a", "d")
    with pytest.raises(NotThereError):
        store.gather(["a"])


def test_unfinished_writes_to_a_folder_can_be_removed(tmp_path):
    store = Store.open(str(tmp_path))
    store.put("staging/whole", b"x")
    for name in ("staging/run#1", "staging/deep/run#12", "staging/no#number", "feed#1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    store.remove_unfinished("staging")
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*#*"))
    assert left == ["feed#1", "staging/no#number"]
    assert store.get("staging/whole") == b"x"
    Store.open("memory://x").remove_unfinished("staging")  # has none


def test_keys_that_are_no_paths_are_listed_with_the_others(s3):
    client = boto3.client("s3")
    names = ["p/a/../up", "p/a//double", "p/a/./dot", "p/a/plain"]
    for name in names:
        client.put_object(Bucket=s3.name, Key=name, Body=b"x")
    store = Store.open(s3.url + "/p")
    assert sorted(keys(store.listing("a"))) == [
        "a/../up",
        "a/./dot",
        "a//double",
        "a/plain",
    ]
    assert keys(store.listing("a", after="a/o")) == ["a/plain"]


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr("currents_ingest.repeating.ATTEMPTS", 1)
    with pytest.raises(StoreError) as caught:
        list(Store.open("s3://no-such-bucket-here").listing())
    text = str(caught.value)
    assert text.startswith("could not list s3://no-such-bucket-here/: ")
    assert "\n" not in text


def test_a_url_of_another_kind_is_refused():
    with pytest.raises(StoreError, match="could not open ftp://x"):
        Store.open("ftp://x/y")


CONFIG = """
[default]
endpoint_url = http://127.0.0.1:1
[profile other]
endpoint_url = http://127.0.0.1:2
services = local
[services local]
s3 =
  endpoint_url = http://127.0.0.1:3
"""


ENDPOINTS = [
    {},
    {"AWS_PROFILE": "other"},
    {"AWS_ENDPOINT_URL": "http://127.0.0.1:4", "AWS_PROFILE": "other"},
    {"AWS_ENDPOINT_URL": "http://127.0.0.1:4", "AWS_DEFAULT_REGION": "eu-west-1"},
    {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:4",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:5",
    },
    {"AWS_ENDPOINT_URL_S3": "", "AWS_SESSION_TOKEN": "token"},
    {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:4",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
    },
]


CASES = [(one, True) for one in ENDPOINTS] + [
    (one, False) for one in ENDPOINTS if "AWS_PROFILE" not in one
]


@pytest.mark.parametrize(("environment", "file"), CASES)
def test_s3_is_where_boto3_would_look_for_it(environment, file, monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    if file:
        (tmp_path / "config").write_text(CONFIG)
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name, value in (keys | environment).items():
        monkeypatch.setenv(name, value)
    session = boto3.session.Session()
    client = session.client("s3", region_name=session.region_name or "us-east-1")
    opened = open_backend("s3://bucket/feeds")
    there = opened.config.get("endpoint") or "https://s3.amazonaws.com"
    assert there == client.meta.endpoint_url
    assert opened.config["region"] == client.meta.region_name


def test_keys_come_from_a_file_too(s3, monkeypatch, tmp_path):
    (tmp_path / "keys").write_text(
        "[other]\naws_access_key_id = x\naws_secret_access_key = x\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_PROFILE", "other")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = Store.open(s3.url)
    store.put("a", b"1")
    assert store.get("a") == b"1"


@pytest.mark.parametrize("name", ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"])
def test_a_profile_that_does_not_exist_is_told(s3, name, monkeypatch):
    monkeypatch.setenv(name, "nobody")
    with pytest.raises(StoreError, match="nobody"):
        Store.open(s3.url)


def test_a_token_under_its_old_name_is_heard(s3, monkeypatch):
    assert "access_key_id" in open_backend(s3.url).config
    monkeypatch.setenv("AWS_SECURITY_TOKEN", "token")
    asked = open_backend(s3.url)
    assert "access_key_id" not in asked.config
    assert asked.credential_provider()["token"] == os.environ["AWS_SECURITY_TOKEN"]


def test_nobody_needs_a_home(s3, monkeypatch):
    for name in ("HOME", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    store = Store.open(s3.url)
    store.put("a", b"1")
    assert store.get("a") == b"1"


def test_variables_alone_need_no_botocore(s3):
    """It takes a tenth of a second or two of each start."""
    script = "import sys; from currents_ingest.store import Store; "
    script += f"Store.open({s3.url!r}).put('a', b'1'); print('botocore' in sys.modules)"
    said = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert said.strip() == "False"
