"""Logs: one line for each thing, whole in JSON, and nothing of what data says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from currents_ingest.simulate import Simulation, simulate

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tree(tmp_path):
    """Write two event types with rows that break rules, and a torn file."""
    simulation = Simulation(
        events=("users.messages.email.Open", "users.messages.email.Click"),
        hours=3,
        bad_rows=0.002,
        torn=1,
    )
    simulate(str(tmp_path / "in"), simulation)
    return tmp_path


def run(folder, *arguments, code="", **more):
    """Run the command line, or Python code, on a folder."""
    settings = {
        "CURRENTS_SOURCE__URL": str(folder / "in" / "currents"),
        "CURRENTS_FEEDS__URL": str(folder / "out"),
    }
    environment = {n: v for n, v in os.environ.items() if not n.startswith("CURRENTS")}
    path = os.pathsep.join([str(ROOT), *sys.path])
    given = environment | settings | {"PYTHONPATH": path} | more
    command = ["-c", code] if code else ["-m", "currents_ingest", *arguments]
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={name: value for name, value in given.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def lines(ended):
    """Return what was logged; every line has to be JSON with what each must have."""
    found = [json.loads(line) for line in ended.stderr.splitlines()]
    for one in found:
        assert {"event", "level", "timestamp"} <= one.keys()
        assert one["timestamp"].endswith("Z")
    return found


def test_each_line_of_a_poll_is_json_and_names_its_run_and_batch(tree):
    ended = run(tree, "--log-format", "json", "poll", "--json")
    assert ended.returncode == 0
    outcome, found = json.loads(ended.stdout), lines(ended)
    (entry,) = (tree / "out" / "_ledger").glob("0000000001.json")
    assert {one["run"] for one in found} == {json.loads(entry.read_text())["run"]}
    batches = [one for one in found if one["event"] == "batch done"]
    assert sorted(one["batch"] for one in batches) == [
        f"0-{n:06}" for n in range(len(batches))
    ]
    assert sum(one["rows"] for one in batches) == outcome["rows_out"]
    assert {one["event_type"] for one in batches} == {
        "users.messages.email.Open",
        "users.messages.email.Click",
    }
    events = {one["event"] for one in found}
    assert {"batch done", "committed", "file quarantined", "polled"} <= events
    assert all("batch" not in one for one in found if one["event"] == "committed")
    (polled,) = (one for one in found if one["event"] == "polled")
    assert polled["rows_out"] == outcome["rows_out"]


def test_the_environment_says_how_logs_look_too_and_is_no_setting(tree):
    ended = run(tree, "poll", CURRENTS_LOG_FORMAT="json")
    assert lines(ended)[-1]["event"] == "polled"
    bare = {"CURRENTS_SOURCE__URL": None, "CURRENTS_FEEDS__URL": None}
    (told,) = lines(run(tree, "validate", CURRENTS_LOG_FORMAT="json", **bare))
    assert "name files, folders or URLs" in told["told"]


def test_people_get_lines_that_are_no_json(tree):
    ended = run(tree, "poll")
    assert "committed" in ended.stderr
    assert "{" not in ended.stderr


def test_an_error_that_ends_a_command_is_json_too(tree):
    ended = run(tree, "--log-format", "json", "poll", CURRENTS_LIMITS__MEMORY="1MB")
    (told,) = lines(ended)
    assert (ended.returncode, told["event"], told["level"]) == (2, "failed", "error")
    assert "limits.memory" in told["told"]


def test_a_format_that_there_is_not_is_wrong_use(tree):
    ended = run(tree, "--log-format", "xml", "poll")
    assert ended.returncode == 2
    assert "--log-format is one of console, json, not 'xml'" in ended.stderr


SECRETS = """
import logging, sys, threading, warnings
import structlog
from currents_ingest import logs
from currents_ingest.errors import BrazeDownError

logs.configure(logging.INFO, sys.argv[1] if len(sys.argv) > 1 else {format!r})
log = structlog.get_logger("currents_ingest.made_up")

def fail(address):
    password = "hunter2"
    raise KeyError(address, password)

try:
    fail("jane@example.com")
except KeyError:
    log.exception("failed unexpectedly", task="poll")
    logging.getLogger("asyncio").exception("Task exception was %r", "jane@example.com")
try:
    raise BrazeDownError("no answer")
except BrazeDownError:
    log.exception("failed")
logging.getLogger("urllib3.connectionpool").warning("retry %s", "jane@example.com")
logging.getLogger("asyncio").error("Task failed\\nexception: jane@example.com")
logging.getLogger("boto3").info("jane@example.com")
logging.getLogger("apscheduler.scheduler").info("Scheduler started")
log.debug("unseen")
warnings.warn("jane@example.com")
"""


def test_neither_errors_nor_libraries_bring_what_data_says_into_the_log(tmp_path):
    ended = run(tmp_path, code=SECRETS.format(format="json"))
    assert ended.returncode == 0
    assert "jane" not in ended.stderr
    assert "hunter2" not in ended.stderr
    first, *others = lines(ended)
    assert (first["event"], first["level"], first["error"], first["task"]) == (
        "failed unexpectedly",
        "error",
        "KeyError",
        "poll",
    )
    assert [one.split()[-1] for one in first["at"]] == ["<module>", "fail"]
    told = [(one["event"], one["level"], one.get("logger")) for one in others]
    assert told == [
        ("Task exception was %r", "error", "asyncio"),
        ("failed", "error", None),
        ("retry %s", "warning", "urllib3.connectionpool"),
        ("Task failed", "error", "asyncio"),
        ("a library warned", "warning", "py.warnings"),
    ]
    assert others[1]["told"].startswith("Braze does not answer (no answer).")


def test_for_people_nothing_of_it_shows_either(tmp_path):
    ended = run(tmp_path, code=SECRETS.format(format="console"))
    assert ended.returncode == 0
    assert "jane" not in ended.stderr
    assert "hunter2" not in ended.stderr
    assert "KeyError" in ended.stderr
