"""The registry: shipped schemas and the user's, looked up and learned."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pytest

from currents_ingest import registry, schemas
from currents_ingest.config import Schemas
from currents_ingest.errors import CorruptObjectError, NotThereError, SettingsError
from currents_ingest.schemas import Registry
from currents_ingest.store import Store
from tests.avro_files import OPEN, container, key, record

DAY = date(2026, 9, 15)
CLICK = "users.messages.email.Click"


def opened(*urls, shipped=True):
    return registry.open_registry(Schemas(urls=tuple(map(str, urls)), shipped=shipped))


def put(folder, number, schema, event=OPEN):
    path = folder / event / f"{number:03}.avsc"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(schema))


def test_without_folders_it_is_what_is_shipped():
    held = opened()
    assert held.event_types() == tuple(schemas.known())
    assert held.versions(OPEN) == schemas.versions(OPEN)
    assert opened(shipped=False).event_types() == ()


def test_own_schemas_are_numbered_after_the_shipped_ones(tmp_path):
    count = len(schemas.versions(OPEN))
    put(tmp_path / "a", 1, record(x="int"))
    put(tmp_path / "a", 2, record(y="int"))
    put(tmp_path / "b", count + 20, record(z="int"))
    put(tmp_path / "b", 1, record("users.new.Thing"), "users.new.Thing")
    held = opened(tmp_path / "a", tmp_path / "b")
    new = held.versions(OPEN)[count:]
    assert [one.number for one in new] == [count + 1, count + 2, count + 20]
    assert [one.origin for one in new] == [
        str(tmp_path / "a"),
        str(tmp_path / "a"),
        str(tmp_path / "b"),
    ]
    assert [one.number for one in held.versions("users.new.Thing")] == [1]
    assert "users.new.Thing" in held.event_types()


def test_a_schema_that_is_known_twice_counts_once(tmp_path):
    shipped = json.loads((schemas.schemas_root() / OPEN / "003.avsc").read_text())
    put(tmp_path / "a", 50, shipped)
    put(tmp_path / "a", 51, record(x="int"))
    put(tmp_path / "b", 51, record(x="int"))
    held = opened(tmp_path / "a", tmp_path / "b")
    assert len(held.versions(OPEN)) == len(schemas.versions(OPEN)) + 1


def test_a_folder_may_lie_in_an_object_store(s3):
    store = Store.open(f"{s3.url}/schemas")
    store.put(f"{OPEN}/001.avsc", json.dumps(record(x="int")).encode())
    store.put("README.md", b"not a schema, and not read")
    (version,) = opened(f"{s3.url}/schemas", shipped=False).versions(OPEN)
    assert [field.name for field in version.writer.fields] == ["id", "time", "x"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{}", "the schema in the header is not that of a record"),
        (b"nonsense", "the schema in the header is no Avro schema (JSONDecodeError)"),
        (
            json.dumps(record(CLICK)).encode(),
            f"its record is named dataexport.S3.inner.{CLICK}",
        ),
    ],
)
def test_a_file_that_is_no_schema_of_its_event_type_is_named(tmp_path, body, reason):
    folder = tmp_path / OPEN
    folder.mkdir()
    (folder / "001.avsc").write_bytes(body)
    with pytest.raises(SettingsError) as caught:
        opened(tmp_path)
    assert caught.value.problems == (
        f"schemas.urls: {tmp_path}/{OPEN}/001.avsc is no schema: {reason}",
    )


@pytest.mark.parametrize(
    ("release", "day", "number"),
    [
        pytest.param(0, "2024-04-01", 5, id="before releases were numbered"),
        pytest.param(2, "2025-07-09", 8, id="the day it came"),
        pytest.param(11, "2026-09-01", 8, id="unchanged since"),
        pytest.param(12, "2026-09-02", 9, id="the newest"),
        pytest.param(99, "2030-01-01", 9, id="to come"),
    ],
)
def test_the_version_in_force_is_found_by_release_and_by_day(release, day, number):
    held = Registry()
    if release:
        assert held.of_release(CLICK, release).number == number
    assert held.on(CLICK, date.fromisoformat(day)).number == number


def test_before_its_first_version_an_event_type_has_none():
    assert Registry().on(CLICK, date(2018, 11, 4)) is None
    assert Registry().of_release("users.UserOrphan", 9) is None
    assert Registry().versions("users.no.Such") == ()


def test_every_version_is_found_by_its_fingerprint():
    held = Registry()
    for versions in schemas.known().values():
        for version in versions:
            found = held.version(version.event_type, version.writer.fingerprint)
            assert found is version
    assert held.find(held.versions(OPEN)[2].writer.fingerprint.upper()) == (
        held.versions(OPEN)[2],
    )
    assert held.find("0" * 16) == ()


# Learning


def test_learning_writes_the_next_version_and_finds_it_again(tmp_path):
    source = Store.open(str(tmp_path / "source"))
    schema = record(
        price=["null", "float"], tags={"type": "array", "items": "string", "doc": "x"}
    )
    schema["doc"] = schema["owner"] = "someone's words"
    for field in schema["fields"]:
        field["doc"] = "someone's words"
    schema["fields"][2]["default"] = None
    name = key(hour="2026-10-07-11").replace("version=12", "version=13")
    source.put(name, container(schema, [{"id": "a", "time": 1, "tags": ["x"]}]))
    target = tmp_path / "own"
    learned = registry.learn(opened(), f"{source.url}/{name}", str(target), DAY)
    number = len(schemas.versions(OPEN)) + 1
    assert learned.written == f"{target}/{OPEN}/{number:03}.avsc"
    version = opened(target).versions(OPEN)[-1]
    assert version == learned.version
    assert (version.number, version.currents_version) == (number, "v13")
    assert version.first_seen == "2026-10-07"
    assert version.writer.fingerprint == schemas.read(schema).fingerprint
    assert (
        "someone"
        not in (target / OPEN / f"{number:03}.avsc").read_text().split('"tags"')[0]
    )
    again = registry.learn(opened(target), f"{source.url}/{name}", str(target), DAY)
    assert again.version == learned.version
    assert again.written is None


def test_a_shipped_schema_need_not_be_learned():
    path = schemas.schemas_root() / OPEN / "004.avsc"
    learned = registry.learn(opened(), str(path), None, DAY)
    assert (learned.version.number, learned.written) == (4, None)


def test_a_schema_file_can_be_learned_and_says_itself_when_it_was_seen(tmp_path):
    path = tmp_path / "new.avsc"
    path.write_text(json.dumps(record("users.new.Thing") | {"currents_version": "v14"}))
    version = registry.learn(opened(), str(path), str(tmp_path / "own"), DAY).version
    assert (version.event_type, version.number) == ("users.new.Thing", 1)
    assert (version.currents_version, version.first_seen) == ("v14", "2026-09-15")


def test_learning_from_and_into_a_bucket(s3):
    Store.open(s3.url).put(
        key(), container(record(x="int"), [{"id": "a", "time": 1, "x": 1}])
    )
    learned = registry.learn(opened(), f"{s3.url}/{key()}", f"{s3.url}/own", DAY)
    assert opened(f"{s3.url}/own").versions(OPEN)[-1] == learned.version


def test_learners_at_the_same_time_do_not_overwrite_each_other(tmp_path):
    for n in range(6):
        (tmp_path / f"{n}.avsc").write_text(json.dumps(record(**{f"f{n}": "int"})))
    held, target = opened(), tmp_path / "own"
    with ThreadPoolExecutor(6) as pool:
        list(
            pool.map(
                lambda n: registry.learn(
                    held, str(tmp_path / f"{n}.avsc"), str(target), DAY
                ),
                range(6),
            )
        )
    new = opened(target).versions(OPEN)[len(held.versions(OPEN)) :]
    assert {one.writer.fields[-1].name for one in new} == {f"f{n}" for n in range(6)}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the object is empty; Currents writes no empty file"),
        (b"text", "the object is no Avro file (it does not start as one)"),
        (
            json.dumps(record("x/../../y")).encode(),
            "its record's name dataexport.S3.inner.x/../../y is no event type",
        ),
    ],
)
def test_what_cannot_be_learned_says_why(tmp_path, body, reason):
    path = tmp_path / "file"
    path.write_bytes(body)
    with pytest.raises(CorruptObjectError) as caught:
        registry.learn(opened(), str(path), str(tmp_path / "own"), DAY)
    assert caught.value.told() == f"{reason} [in {path}]"
    assert not (tmp_path / "own").exists()


def test_learning_needs_a_file_that_is_there(tmp_path):
    with pytest.raises(NotThereError):
        registry.learn(opened(), str(tmp_path / "none"), str(tmp_path / "own"), DAY)
    with pytest.raises(CorruptObjectError, match="it is a folder; name one file"):
        registry.learn(opened(), str(tmp_path), str(tmp_path / "own"), DAY)
