"""The command line as a user meets it: real processes, whole messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from currents_ingest import schemas
from currents_ingest.store import Store
from tests.avro_files import OPEN, container, key, record


@pytest.fixture
def run(tmp_path):
    """Run a command in an empty folder, with settings from the environment."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CURRENTS_", "COV"))
    } | {
        "CURRENTS_SOURCE__URL": str(tmp_path / "in"),
        "CURRENTS_FEEDS__URL": str(tmp_path / "out"),
        "CURRENTS_FEEDS__INCLUDE": '["raw"]',
        "COLUMNS": "200",
        "PYTHONPATH": os.pathsep.join([".", *sys.path]),
    }

    def run(*arguments, **more):
        return subprocess.run(
            [sys.executable, "-m", "currents_ingest", *arguments],
            cwd=tmp_path,
            env={k: v for k, v in (environment | more).items() if v is not None},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def source(tmp_path):
    return Store.open(str(tmp_path / "in"))


def put(source, offset, *ids):
    rows = [{"id": name, "time": 1_700_000_000} for name in ids]
    source.put(key(offset=offset), container(record(), rows))


def test_poll_reports_what_it_did_and_then_that_nothing_is_new(run, source):
    put(source, 1, "a", "b", "a")
    first, second = run("poll"), run("poll")
    assert first.returncode == second.returncode == 0
    fingerprint = schemas.read(record()).fingerprint
    told = first.stdout.splitlines()
    assert told[:2] == [
        "1 files, 3 rows in, 2 out, 1 duplicates, 0 rejects; 1 objects published",
        f"drift (compatible): {OPEN} {fingerprint}",
    ]
    assert "    email_address removed (string)" in told
    assert told[-1] == f"    in {key(offset=1)}"
    assert "committed" in first.stderr
    assert second.stdout == "nothing new\n"


def test_json_is_all_that_stands_on_standard_output(run, source):
    put(source, 1, "a")
    for arguments in (["poll"], ["status"], ["verify"], ["quarantine", "list"]):
        ended = run(*arguments, "--json")
        assert ended.returncode == 0
        json.loads(ended.stdout)
    days = ["--since", "2026-09-15", "--until", "2026-09-16"]
    assert json.loads(run("load", *days, "--dry-run", "--json").stdout)["files"] == 0


def test_strict_asks_for_a_look_with_status_3(run, source):
    put(source, 1, "a")
    source.put(key(offset=2), b"")
    assert run("poll", "--strict").returncode == 3
    assert run("poll", "--strict").returncode == 0


def test_load_shows_progress_and_dry_run_what_it_would_read(run, source):
    put(source, 1, "a", "b")
    days = ["--since", "2026-09-15", "--until", "2026-09-16"]
    dry = run("load", *days, "--dry-run")
    assert dry.stdout.endswith(" bytes would be read\n")
    assert "users.messages.email.Open" in dry.stdout
    loaded = run("load", *days)
    assert loaded.returncode == 0
    assert "1 files, 2 rows" in loaded.stderr
    assert "1 files, 2 rows in, 2 out" in loaded.stdout


def test_status_names_feeds_quarantine_and_drift(run, source):
    put(source, 1, "a")
    source.put(key(offset=2), b"")
    run("poll")
    text = run("status").stdout
    assert text.startswith("Braze has stopped: nothing was queued since 2026-09-15 10")
    row = next(line for line in text.splitlines() if line.startswith(OPEN))
    assert " ".join(row.split()) == f"{OPEN} 2026-09-15 10:00 0 7.0 d 0 0 1 new"
    told = (
        "2 ledger entries, 1 files in quarantine; 1 files and 1 rows delivered in all"
    )
    assert told in text
    assert "schemas drifted" not in text  # a compatible one asks for nothing
    assert "drift (compatible): users.messages.email.Open " in text


def test_quarantine_is_listed_shown_retried_and_discarded(run, source):
    source.put(key(offset=2), b"")
    run("poll")
    listed = run("quarantine", "list").stdout
    assert listed == (
        f"{key(offset=2)}\n    the object is empty; Currents writes no empty file\n"
        "1 files in quarantine\n"
    )
    shown = json.loads(run("quarantine", "show", key(offset=2)).stdout)
    assert (shown["size"], shown["event_type"]) == (0, "users.messages.email.Open")
    assert run("quarantine", "retry", "--all").returncode == 3
    assert run("quarantine", "retry").returncode == 2
    assert run("quarantine", "retry", "nothing").returncode == 1
    assert run("quarantine", "discard", key(offset=2)).stdout == "1 files discarded\n"
    assert run("quarantine", "list").stdout == "0 files in quarantine\n"


def test_verify_names_every_difference_and_fails(run, source, tmp_path):
    put(source, 1, "a")
    run("poll")
    assert run("verify").returncode == 0
    (path,) = (tmp_path / "out" / "messages_email_open").rglob("*.parquet")
    path.write_bytes(path.read_bytes() + b"x")
    ended = run("verify")
    assert ended.returncode == 1
    assert f"{path.relative_to(tmp_path / 'out').as_posix()} has " in ended.stdout
    assert ended.stdout.endswith("2 differences\n")


@pytest.mark.parametrize(
    ("arguments", "environment", "status", "message"),
    [
        pytest.param(
            ["poll"],
            {"CURRENTS_SOURCE__URL": ""},
            2,
            "source.url: String should have at least 1 character",
            id="no source",
        ),
        pytest.param(
            ["poll"],
            {"CURRENTS_SOURCE__URL": "ftp://x"},
            1,
            "error: could not open ftp://x:",
            id="no such scheme",
        ),
        pytest.param(
            ["--config", "no.toml", "poll"],
            {},
            2,
            "there is no file no.toml; `init` writes one",
            id="no file",
        ),
        pytest.param(
            ["load", "--since", "yesterday", "--until", "2026-09-15"],
            {},
            2,
            "'yesterday': Invalid isoformat string",
            id="no date",
        ),
        pytest.param(
            ["poll", "--every", "5"], {}, 2, "'5' is no duration", id="no unit"
        ),
        pytest.param(
            ["nonsense"], {}, 2, "No such command 'nonsense'", id="no command"
        ),
        pytest.param(
            ["simulate", "x", "--layout", "odd"],
            {},
            2,
            "--layout is one of new, old, 2017, mixed, not 'odd'",
            id="no layout",
        ),
        pytest.param(
            ["poll"],
            {"CURRENTS_FEEDS__URL": "/proc/nothing"},
            1,
            "error: could not ",
            id="nowhere to write",
        ),
    ],
)
def test_what_goes_wrong_is_said_in_words_and_never_as_a_traceback(
    run, arguments, environment, status, message
):
    ended = run(*arguments, **environment)
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode == status


def test_config_goes_before_or_after_the_command(run, source, tmp_path):
    put(source, 1, "a")
    text = (
        f'[source]\nurl = "{tmp_path / "in"}"\n[feeds]\nurl = "{tmp_path / "other"}"\n'
    )
    (tmp_path / "my.toml").write_text(text)
    for arguments in (
        ["--config", "my.toml", "status"],
        ["status", "--config", "my.toml"],
    ):
        assert run(*arguments).returncode == 0


def test_init_writes_settings_that_an_editor_can_check(run, tmp_path):
    assert run("init").stdout == (
        "wrote currents.toml and currents.schema.json; set the two urls, then: "
        "currents-ingest poll\n"
    )
    assert json.loads((tmp_path / "currents.schema.json").read_text())["properties"]
    again = run("init")
    assert again.returncode == 2
    assert "currents.toml exists already; move it away first" in again.stderr


def test_demo_shows_the_whole_way(run, tmp_path):
    ended = run("demo", "--folder", "show")
    assert ended.returncode == 0
    assert "Second poll: 0 files, for nothing is new." in ended.stdout
    assert "objects read again, 0 differences." in ended.stdout
    assert "2,000 people in 27 requests." in ended.stdout
    assert "Read back: 1,980 members." in ended.stdout
    page = (tmp_path / "show" / "report.html").read_text()
    assert "Rows an hour" in page
    assert "high_value" in page
    assert (tmp_path / "show" / "feeds" / "_ledger" / "0000000001.json").exists()


def test_help_answers_for_every_command(run):
    text = run("--help").stdout
    for command in ("init", "poll", "load", "status", "quarantine", "verify", "demo"):
        assert f"  {command} " in text
        assert run(command, "--help").returncode == 0


def test_no_event_content_is_logged_or_kept_beside_the_feeds(run, source, tmp_path):
    private = "jane.doe@example.com"
    schema = record(email_address="string")
    rows = [{"id": "a", "time": 1, "email_address": private}]
    source.put(key(offset=1), container(schema, rows))
    source.put(key(offset=2), container(schema, rows)[:-5])
    rows[0]["time"] = -1
    source.put(key(offset=3), container(schema, rows))
    ended = run("--verbose", "poll")
    spoken = ended.stdout + ended.stderr + run("status").stdout
    spoken += run("quarantine", "list").stdout
    folders = ("_ledger", "_rejects", "_index")
    kept = [
        p for f in folders for p in (tmp_path / "out" / f).rglob("*") if p.is_file()
    ]
    assert len(kept) >= 3
    spoken += "".join(path.read_bytes().decode("latin-1") for path in kept)
    assert private not in spoken


# Schemas and drift


@pytest.mark.parametrize(
    ("schema", "fail_on", "status"),
    [
        pytest.param(record("users.messages.email.Open"), "additive", 0, id="harmless"),
        pytest.param(record(extra="int"), "additive", 3, id="additive"),
        pytest.param(record(extra="int"), "breaking", 0, id="additive is let through"),
        pytest.param(record(user_id="int"), "breaking", 3, id="breaking"),
        pytest.param(record(user_id="int"), "additive", 3, id="breaking is worse"),
        pytest.param(record(user_id="int"), "never", 0, id="never"),
    ],
)
def test_validate_is_a_gate(run, source, schema, fail_on, status):
    row = {"id": "a", "time": 1_700_000_000, "extra": 1, "user_id": 1}
    source.put(key(), container(schema, [row]))
    ended = run("validate", "--fail-on", fail_on)
    assert ended.returncode == status
    assert OPEN in ended.stdout
    assert "1 of 1 objects looked at" in ended.stdout


def test_validate_prints_one_format_on_standard_output(run, source):
    put(source, 1, "a")
    assert json.loads(run("validate", "--format", "json").stdout)["listed"] == 1
    assert run("validate", "--format", "junit").stdout.startswith("<?xml")
    assert run("validate", "--format", "html").stdout.startswith("<!doctype html>")
    deep = json.loads(run("validate", "--deep", "--format", "json").stdout)
    assert deep["schemas"][0]["data"]["rows"] == 1
    wrong = run("validate", "--format", "pdf")
    assert wrong.returncode == 2
    assert "--format is one of text, json, junit, html" in wrong.stderr


def test_validate_needs_no_settings_for_what_is_named(run, source, tmp_path):
    put(source, 1, "a")
    names = ("SOURCE__URL", "FEEDS__URL", "FEEDS__INCLUDE")
    nothing = {f"CURRENTS_{name}": None for name in names}
    named = run("validate", str(tmp_path / "in"), **nothing)
    assert (named.returncode, named.stderr) == (0, "")
    unnamed = run("validate", **nothing)
    assert unnamed.returncode == 2
    assert "name files, folders or URLs" in unnamed.stderr
    missing = run("validate", "nowhere", **nothing)
    assert missing.returncode == 1
    assert "there is no object" in missing.stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_breaking_change_is_lived_through_as_the_manual_says(run, source, tmp_path):
    own = {"CURRENTS_SCHEMAS__URLS": json.dumps([str(tmp_path / "own")])}
    put(source, 1, "a")
    assert run("poll", **own).returncode == 0
    new = record(user_id="int", brand_new=["null", "string"])
    row = {"id": "b", "time": 1_700_000_000, "user_id": 5, "brand_new": "x"}
    source.put(key(offset=2), container(new, [row]))
    ended = run("poll", "--strict", **own)
    assert ended.returncode == 3
    assert "drift (breaking)" in ended.stdout
    assert "field user_id is int and not string" in ended.stdout
    file = f"{tmp_path / 'in'}/{key(offset=2)}"
    assert "names no folder of yours" in run("schemas", "learn", file).stderr
    learned = run("schemas", "learn", key(offset=2), **own)
    assert f"learned {OPEN} version" in learned.stdout
    assert "known already" in run("schemas", "learn", file, **own).stdout
    listed = run("feeds", "list", **own).stdout
    assert "messages_email_open  version 1" in listed
    dry = run("feeds", "upgrade", "messages_email_open", "--dry-run", **own).stdout
    assert "would get contract version 2" in dry
    assert "+ user_id_int64 Integer, from user_id" in dry
    assert "+ brand_new String" in dry
    assert "edit the feed before the next object arrives" in dry
    done = run("feeds", "upgrade", "messages_email_open", **own).stdout
    assert "now has contract version 2" in done
    retried = run("quarantine", "retry", "--all", **own)
    assert retried.returncode == 0
    assert "1 files, 1 rows in, 1 out" in retried.stdout
    refilled = run("feeds", "refill", "messages_email_open", **own)
    assert "1 objects read, 0 rows written" in refilled.stdout
    assert "drift" not in run("status", **own).stdout.replace("drift (compatible)", "")
    assert run("verify", **own).returncode == 0
    shown = run("feeds", "show", "messages_email_open", **own).stdout
    assert "user_id_int64 int64, from user_id" in shown


def test_schemas_are_listed_shown_and_compared(run):
    event = "users.messages.sms.InboundReceive"
    listed = run("schemas", "list", event)
    assert listed.returncode == 0
    assert len(listed.stdout.splitlines()) == 5
    assert "2021-08-12" in listed.stdout
    compared = run("schemas", "diff", event, "1", "2").stdout
    assert "+ campaign_id added (null or string)" in compared
    assert "~ subscription_group_id made optional" in compared
    assert "~ subscription_group_id default changed: none to null" in compared
    assert "\x1b[" not in compared
    coloured = run("schemas", "diff", event, "1", "2", FORCE_COLOR="1").stdout
    assert "\x1b[32m+ campaign_id" in coloured
    assert "version 4" in run("schemas", "show", event).stdout.splitlines()[0]
    older = run("schemas", "show", event, "--on", "2021-09-01").stdout
    assert "version 2" in older.splitlines()[0]
    plain = json.loads(run("schemas", "show", event, "--version", "1", "--json").stdout)
    assert plain["name"] == f"dataexport.S3.inner.{event}"
    print_ = schemas.versions(event)[2].writer.fingerprint
    (found,) = json.loads(
        run("schemas", "list", "--fingerprint", print_, "--json").stdout
    )
    assert (found["event_type"], found["number"]) == (event, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["schemas", "show", "users.X"], "no schema of 'users.X' is known"),
        (["schemas", "diff", OPEN, "1", "99"], f"{OPEN} has no version 99; it has 1,"),
        (["schemas", "list", "--on", "soon"], "'soon': Invalid isoformat string"),
    ],
)
def test_what_the_registry_has_not_is_wrong_use(run, arguments, message):
    ended = run(*arguments)
    assert ended.returncode == 2
    assert message in ended.stderr


def test_a_feed_that_is_not_there_is_said(run, source):
    put(source, 1, "a")
    for command in ("show", "upgrade", "refill"):
        ended = run("feeds", command, "no_such")
        assert ended.returncode == 1
        assert "there is no object no_such among the feeds" in ended.stderr
