"""``validate``: what it says of files, how it says it, and that it only looks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.etree import ElementTree as ET

import fastavro
import pytest

from currents_ingest import api, config, schemas, validate_report
from currents_ingest.compatibility import Verdict
from currents_ingest.errors import NotThereError
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.store import Store
from currents_ingest.validate import HEAD, validate
from tests.avro_files import OPEN, by_hand, container, key, record

CLICK = "users.messages.email.Click"
ROW = {"id": "a", "time": 1_700_000_000}
NEWEST = schemas.versions(OPEN)[-1]


def shipped(number=-1, event=OPEN):
    version = schemas.versions(event)[number]
    path = schemas.schemas_root() / event / f"{version.number:03}.avsc"
    return json.loads(path.read_text())


def like(schema, **more):
    """Return the schema with more fields, or other types of those it has."""
    fields = {each["name"]: each for each in schema["fields"]}
    fields |= {name: {"name": name, "type": kind} for name, kind in more.items()}
    return schema | {"fields": [each for each in fields.values() if each["type"]]}


def rows(schema, count=1, **more):
    example = {"string": "x", "int": 1_700_000_000, "boolean": True}
    plain = {f["name"]: example.get(str(f["type"])) for f in schema["fields"]}
    return [plain | more | {"id": str(n)} for n in range(count)]


@pytest.fixture
def source(tmp_path):
    return Store.open(str(tmp_path / "source"))


def put(source, schema, name=None, count=1, **more):
    body = container(schema, rows(schema, count, **more))
    source.put(name or key(), body)
    return body


def test_each_schema_is_told_with_files_hours_layout_codec_and_verdict(source):
    new, drifted = shipped(), like(shipped(), extra=["null", "int"])
    names = [key(hour=f"2026-09-15-{hour:02}", offset=hour) for hour in range(3)]
    size = sum(len(put(source, new, name)) for name in names)
    old = names[1].replace("version=12/us-01", "22/a")
    packed = container(drifted, rows(drifted), codec="deflate")
    source.put(old, packed)
    report = validate(None, [source.url])
    assert (report.listed, report.looked_at, report.passed_over) == (4, 4, 0)
    assert (report.troubles, report.unread, report.worst) == ((), (), "additive")
    by_verdict = {one.verdict: one for one in report.schemas}
    known, additive = by_verdict[Verdict.KNOWN], by_verdict[Verdict.ADDITIVE]
    assert known.version == NEWEST.number
    assert known.currents_version == "v12"
    assert known.fingerprint == NEWEST.writer.fingerprint
    assert known.record == f"dataexport.S3.inner.{OPEN}"
    assert (known.files, known.bytes) == (3, size)
    assert known.first == datetime(2026, 9, 15, 0, tzinfo=UTC)
    assert known.last == datetime(2026, 9, 15, 2, tzinfo=UTC)
    assert (known.layouts, known.codecs) == ({"new": 3}, {"null": 3})
    assert known.differences == ()
    assert additive.version is None
    assert additive.differences == ("field extra (null or int) is new",)
    assert (additive.layouts, additive.codecs) == ({"old": 1}, {"deflate": 1})
    assert additive.example == f"{source.url}/{old}"


@pytest.mark.parametrize(
    ("change", "verdict", "differences"),
    [
        pytest.param({}, "known", (), id="as shipped"),
        pytest.param(
            {"email_address": ["null", "string"]},
            "compatible",
            ("email_address made optional",),
            id="optional now",
        ),
        pytest.param(
            {"time": "long"}, "compatible", ("time retyped: int to long",), id="wider"
        ),
        pytest.param(
            {"user_agent": None},
            "compatible",
            ("user_agent removed (null or string)",),
            id="removed",
        ),
        pytest.param(
            {"b": "int", "a": "string"},
            "additive",
            ("field b (int) is new", "field a (string) is new"),
            id="new fields",
        ),
        pytest.param(
            {"user_id": "long"},
            "breaking",
            ("field user_id is long and not string",),
            id="another type",
        ),
        pytest.param({"id": None}, "breaking", ("field id is gone",), id="no id"),
    ],
)
def test_the_verdict_and_the_exact_differences(source, change, verdict, differences):
    schema = like(shipped(), **change)
    names = {each["name"] for each in schema["fields"]}
    row = {
        name: (5 if kind in ("int", "long") else "x")
        for name, kind in ((f["name"], f["type"]) for f in schema["fields"])
        if not isinstance(kind, list)
    }
    source.put(key(), container(schema, [{n: row.get(n) for n in names}]))
    (found,) = validate(None, [source.url]).schemas
    assert (found.verdict, found.differences) == (verdict, differences)


def test_an_unknown_event_type_is_new(source):
    put(source, record("users.new.Thing"), key("users.new.Thing"))
    (found,) = validate(None, [source.url]).schemas
    assert found.verdict == "additive"
    assert found.differences == ("the event type is new",)


def test_pinned_contracts_count_where_there_are_feeds(source, tmp_path):
    settings = config.read(
        source={"url": source.url},
        feeds={"url": str(tmp_path / "feeds")},
        schemas={"shipped": False},
        ledger={"cache": ":memory:", "lease": "0s"},
    )
    put(source, record(a="string"))
    first = validate(settings)
    assert [one.differences for one in first.schemas] == [("the event type is new",)]
    assert not (tmp_path / "feeds").exists()
    api.poll(settings)
    put(source, record(a="int"), key(offset=2))
    found = {one.verdict: one.differences for one in validate(settings).schemas}
    assert found == {
        "compatible": (),
        "breaking": ("field a is int and not string",),
    }


BAD = {
    "empty": (b"", "the object is empty; Currents writes no empty file"),
    "text": (b"text", "the object is no Avro file (it does not start as one)"),
    "cut": (container(record(), [ROW])[:50], "the header is cut at byte 50"),
    "codec": (
        by_hand(record(), b"", 0, codec=b"zstandard"),
        "the codec 'zstandard' is not supported (null, deflate and snappy are)",
    ),
    "no schema": (
        by_hand(b"[]", b"", 0),
        "the schema in the header is not that of a record",
    ),
    "another record": (
        container(record(CLICK), [ROW]),
        f"the key says {OPEN}, the record inside is named dataexport.S3.inner.{CLICK}",
    ),
}


@pytest.mark.parametrize(("body", "reason"), BAD.values(), ids=BAD)
def test_what_a_poll_would_quarantine_is_told_with_its_reason(source, body, reason):
    source.put(key(), body)
    source.put(key(offset=2), body)
    report = validate(None, [source.url])
    (found,) = report.troubles
    assert (found.event_type, found.reason, found.files) == (OPEN, reason, 2)
    assert found.example.startswith(source.url)
    assert (report.worst, report.schemas) == ("breaking", ())


@pytest.mark.parametrize("name", ["x" * 5000, "../../etc", "/etc", "a\nb"])
def test_a_record_s_name_is_never_taken_for_a_path(tmp_path, name):
    schema = {"type": "record", "name": name, "fields": record()["fields"]}
    path = tmp_path / "file.avro"
    path.write_bytes(by_hand(json.dumps(schema).encode(), b"", 0))
    report = validate(None, [str(path)])
    assert len(report.schemas) + len(report.troubles) == 1


def test_reasons_that_differ_in_a_number_are_one_kind(source):
    whole = container(record(), [ROW])
    for n in range(40):
        source.put(key(offset=n), whole[: 40 + n])
    (found,) = validate(None, [source.url]).troubles
    assert found.files == 40


@pytest.mark.parametrize("over", [-1, 0, 1, 50_000])
def test_a_header_of_any_length_is_read(source, over):
    schema, head = shipped(), len(container(shipped(), []))
    schema["doc"] = ""
    short = len(container(schema, []))
    schema["doc"] = "x" * (HEAD - short - (short != head) + over)
    body = container(schema, rows(schema))
    assert len(body) > HEAD + over
    source.put(key(), body)
    (found,) = validate(None, [source.url]).schemas
    assert (found.verdict, found.files) == ("known", 1)


def test_files_folders_and_urls_may_be_named(s3, tmp_path):
    body = container(shipped(), rows(shipped()))
    bucket = Store.open(s3.url)
    for n in range(3):
        bucket.put(f"braze/{key(offset=n)}", body)
    path = tmp_path / "export.avro"
    path.write_bytes(body)
    deep = key().rsplit("/", 3)[0]  # below event_type= and date=
    for urls, count in (
        ([s3.url], 3),
        ([f"{s3.url}/braze"], 3),
        ([f"{s3.url}/braze/"], 3),
        ([f"{s3.url}/braze/{deep}"], 3),
        ([f"{s3.url}/braze/{key(offset=1)}"], 1),
        ([str(path)], 1),
        ([f"file://{path}", f"{s3.url}/nothing"], 1),
        ([str(path), s3.url], 4),
    ):
        report = validate(None, urls)
        assert [(one.event_type, one.files) for one in report.schemas] == [
            (OPEN, count)
        ]
        assert report.worst == "known"
    (found,) = validate(None, [str(path)]).schemas
    assert (found.first, found.layouts) == (None, {"other": 1})


def test_a_path_that_is_not_there_is_said_and_not_made(tmp_path):
    with pytest.raises(NotThereError):
        validate(None, [str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_only_the_head_is_read_unless_deep(s3):
    schema = shipped()
    torn = container(schema, rows(schema, 2000))[:-1]
    assert len(torn) > HEAD
    Store.open(s3.url).put(key(), torn)
    assert validate(None, [s3.url]).worst == "known"
    (found,) = validate(None, [s3.url], deep=True).troubles
    assert "is cut: 1 bytes of the file are missing" in found.reason


def test_deep_reads_no_file_that_memory_has_no_room_for(source, monkeypatch):
    monkeypatch.setattr("currents_ingest.validate.max_bytes_in_work", lambda _: 600)
    put(source, record(), key(offset=1))
    put(source, record(), key(offset=2), count=100)
    report = validate(None, [source.url], deep=True)
    assert report.schemas[0].data.rows == 1
    (found,) = report.troubles
    assert "and limits.memory leaves room for 600 at once" in found.reason


def test_what_is_kept_does_not_grow_with_ever_new_schemas_and_troubles(
    source, monkeypatch
):
    monkeypatch.setattr("currents_ingest.validate._MOST", 3)
    for n in range(10):
        put(source, record(**{f"f{n}": "int"}), key(offset=n), f=1, **{f"f{n}": 1})
        source.put(key(offset=100 + n), by_hand(record("x" * (n + 1)), b"", 0))
    report = validate(None, [source.url])
    assert len(report.schemas) == 3
    assert len(report.troubles) == 4
    assert sum(one.files for one in (*report.schemas, *report.troubles)) == 20
    (rest,) = [one for one in report.troubles if not one.event_type]
    assert rest.reason.startswith("one of more than 10,000 different")


def test_a_sample_looks_at_some_of_each_and_says_what_it_did_not_look_at(source):
    schema = shipped()
    for day in (14, 15):
        for n in range(5):
            name = key(hour=f"2026-09-{day}-{n:02}", offset=n)
            put(source, schema, name)
            put(source, schema, name.replace("version=12", "version=11"))
    report = validate(None, [source.url], sample=3)
    assert (report.listed, report.looked_at, report.passed_over) == (20, 12, 8)
    assert report.schemas[0].files == 12
    assert validate(None, [source.url], sample=5).passed_over == 0


# Deep


def test_deep_checks_what_the_files_hold(source):
    schema = like(
        record(),
        platform=["null", "string"],
        properties="string",
        user_agent=["null", "string"],
    )
    hour = datetime(2026, 9, 15, 10, tzinfo=UTC).timestamp()
    good = {"platform": "ios", "properties": "{}", "time": int(hour) + 5}
    told = [
        good | {"id": "a"},
        good | {"id": "a", "platform": None},
        good | {"id": ""},
        good | {"id": "b", "time": 2_000_000_000_0},
        good | {"id": "c", "time": int(hour) - 2 * 86400},
        good | {"id": "d", "time": int(hour) + 3 * 3600},
        good | {"id": "e", "properties": "{cut", "platform": "iOS"},
        good | {"id": "f", "platform": "Fridge", "properties": "[REDACTED]"},
        good | {"id": "g", "platform": "someone@example.com"},
    ]
    schema["fields"][1]["type"] = "long"
    source.put(key(offset=1), container(schema, told))
    source.put(key(offset=2), container(schema, [good | {"id": "a"}]))
    (found,) = validate(None, [source.url], deep=True).schemas
    data = found.data
    assert (data.files, data.rows, data.fewest, data.most) == (2, 10, 1, 9)
    assert (data.repeated_ids, data.without_id) == (2, 1)
    assert (data.bad_time, data.late, data.future) == (1, 1, 1)
    assert data.nulls == {"platform": 0.1, "user_agent": 1.0}
    assert data.no_json == {"properties": 1}
    assert data.new_words == {"platform": {"Fridge": 1, "(no plain word)": 1}}


def test_ids_are_counted_across_schemas_of_an_event_type_and_on_disk(
    source, monkeypatch
):
    monkeypatch.setattr("currents_ingest.deep._HELD_IDS", 10)
    monkeypatch.setattr("currents_ingest.deep._AT_ONCE", 1)
    for n in range(12):
        schema = record() if n % 2 else record(x="int")
        told = [{"id": str(i), "time": 1, "x": 1} for i in range(n, n + 5)]
        source.put(key(offset=n), container(schema, told))
    source.put(key(CLICK), container(record(CLICK), [{"id": "3", "time": 1}]))
    report = validate(None, [source.url], deep=True)
    opens = [one.data for one in report.schemas if one.event_type == OPEN]
    assert sum(one.rows for one in opens) == 60
    assert sum(one.repeated_ids for one in opens) == 60 - 16
    (click,) = [one.data for one in report.schemas if one.event_type == CLICK]
    assert click.repeated_ids == 0


def test_deep_agrees_with_fastavro_on_a_simulated_bucket(tmp_path):
    simulate(str(tmp_path), Simulation(versions="all", rows=8, hours=4, torn=6))
    report = validate(None, [str(tmp_path / "currents")], deep=True)
    expected = json.loads((tmp_path / "expected.json").read_text())["totals"]
    assert sum(one.data.rows for one in report.schemas) == expected["rows"]
    found = {(one.event_type, one.fingerprint): one.data for one in report.schemas}
    nulls: dict = {}
    for path in tmp_path.glob("currents/**/*.avro"):
        try:
            with path.open("rb") as file:
                reader = fastavro.reader(file)
                writer, read = schemas.read(reader.writer_schema), list(reader)
        except Exception:  # noqa: BLE001, S112 (the torn ones)
            continue
        (event,) = (p[11:] for p in path.parts if p.startswith("event_type="))
        at = nulls.setdefault((event, writer.fingerprint), [0, {}])
        at[0] += len(read)
        for field in writer.fields:
            if field.nullable:
                count = sum(row[field.name] is None for row in read)
                at[1][field.name] = at[1].get(field.name, 0) + count
    assert {at: data.nulls for at, data in found.items()} == {
        at: {name: n / total for name, n in counts.items()}
        for at, (total, counts) in nulls.items()
    }


def test_what_lies_there_is_the_same_afterwards(source, tmp_path):
    for n, (body, _) in enumerate(BAD.values()):
        source.put(key(offset=n), body)
    put(source, shipped(), key(offset=99))

    def everything():
        return {
            path.relative_to(tmp_path): path.stat().st_mtime_ns
            for path in tmp_path.rglob("*")
        }

    before = everything()
    validate(None, [source.url], deep=True)
    assert everything() == before


# Formats

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=alert(1)>"


def hostile_report(source, port=9):
    name = f"<img src=http://127.0.0.1:{port}/seen>"
    schema = like(shipped(), **{HOSTILE: "int", name: "int", "]]>&\ufffe": "int"})
    body = by_hand(json.dumps(schema).encode(), b"", 0)
    source.put(key(), body)
    wrong = record(OPEN)
    wrong["name"] = HOSTILE
    source.put(key(offset=2), by_hand(json.dumps(wrong).encode(), b"", 0))
    return validate(None, [source.url])


def test_json_is_the_whole_report(source):
    report = hostile_report(source)
    from currents_ingest import output

    text = json.dumps(report.schemas[0].differences, default=output._jsonable)  # noqa: SLF001
    assert HOSTILE in json.loads(text)[0]


@pytest.mark.parametrize(
    ("fail_on", "failures"),
    [(None, 0), (Verdict.BREAKING, 1), (Verdict.ADDITIVE, 2)],
)
def test_junit_has_a_case_for_each_schema_and_fails_as_asked(source, fail_on, failures):
    root = ET.fromstring(  # noqa: S314 (our own)
        validate_report.junit(hostile_report(source), fail_on)
    )
    assert (root.get("tests"), root.get("failures")) == ("2", str(failures))
    cases = root.findall(".//testcase")
    assert [case.get("classname") for case in cases] == [OPEN, OPEN]
    assert len(root.findall(".//failure")) == failures
    assert HOSTILE in "".join(root.itertext())


def test_the_page_names_nothing_outside_and_allows_nothing(source):
    page = validate_report.html(hostile_report(source))
    tags = re.findall(r"<\s*([a-zA-Z]+)", page)
    assert not {"script", "img", "link", "iframe", "object"} & set(map(str.lower, tags))
    assert not re.search(r"<[^>]*\s(src|href|on\w+)\s*=", page)
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert "@import" not in page


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_the_page_opens_in_a_browser_and_shows_hostile_names_as_text(source, tmp_path):
    asked: list[str] = []

    class Outside(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Outside)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = tmp_path / "report.html"
    page.write_text(
        validate_report.html(hostile_report(source, server.server_port)), "utf-8"
    )
    net = tmp_path / "net.json"
    ended = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'browser'}",
            f"--log-net-log={net}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    server.shutdown()
    server.server_close()
    assert "<title>Currents schemas: breaking</title>" in ended.stdout
    escaped = HOSTILE.replace("<", "&lt;").replace(">", "&gt;")
    assert escaped in ended.stdout
    assert "<script>document" not in ended.stdout
    assert asked == []
    log = net.read_text()
    assert f":{server.server_port}" not in log
    opened = {u for u in re.findall(r'"url":"(\w+:[^"]*)"', log) if "127.0.0.1" in u}
    assert opened == set()
