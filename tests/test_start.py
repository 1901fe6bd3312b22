"""The command answers --help at once: what takes long to import waits for its use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from currents_ingest.simulate import Simulation, simulate
from tests.audience_campaign import Place, rows, write_csv, write_settings

HEAVY = {
    *("aiohttp", "altair", "asyncio", "boto3", "botocore", "fastavro", "fsspec"),
    *("jinja2", "obstore", "polars", "pydantic", "sqlite3", "structlog"),
    *("email_validator", "phonenumbers", "pycountry", "tenacity", "urllib3"),
}
OF_A_COMMAND = {"asyncio", "pydantic", "structlog"}
"""What Typer and the logs need themselves."""
ASK = """
import sys
sys.argv = ["currents-ingest", *sys.argv[1:]]
from currents_ingest.cli import _run
assert _run() == 0
print(",".join(sorted({heavy} & set(sys.modules))), file=sys.stderr)
"""


@pytest.mark.parametrize("command", [[], ["poll"], ["schemas", "list"]], ids=str)
def test_help_imports_nothing_heavy(command):
    code = ASK.format(heavy=HEAVY)
    asked = [sys.executable, "-c", code, *command, "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert "Usage: " in done.stdout
    heavy = set(done.stderr.strip().split(",")) - {""}
    assert heavy <= (OF_A_COMMAND if command else set())


def test_a_poll_that_meets_no_trouble_imports_no_means_against_it(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CURRENTS_SOURCE__URL", str(tmp_path / "in/currents"))
    monkeypatch.setenv("CURRENTS_FEEDS__URL", str(tmp_path / "out"))
    simulate(
        f"{tmp_path}/in", Simulation(events=("users.messages.email.Open",), rows=9)
    )
    code = ASK.format(heavy=HEAVY)
    asked = [sys.executable, "-c", code, "poll"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    heavy = set(done.stderr.strip().splitlines()[-1].split(","))
    assert {"polars", "obstore"} <= heavy
    assert not heavy & {"aiohttp", "boto3", "botocore", "tenacity", "urllib3"}


@pytest.mark.parametrize("command", [["status"], ["audience", "preview", "vips"]])
def test_what_sends_nothing_imports_no_means_to(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CURRENTS_SOURCE__URL", str(tmp_path / "in"))
    place = Place(root=tmp_path, braze="http://127.0.0.1:9")
    write_csv(place.export, rows(range(9)))
    write_settings(place)
    code = ASK.format(heavy=HEAVY)
    asked = [sys.executable, "-c", code, *command]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    heavy = set(done.stderr.strip().splitlines()[-1].split(","))
    assert not heavy & {"aiohttp", "email_validator", "phonenumbers"}


KEEP = """
import os, sys
sys.argv = ["currents-ingest", "status"]
from currents_ingest.cli import _run
_run()
import polars
print(os.environ["_RJEM_MALLOC_CONF"])
"""


@pytest.mark.parametrize("given", [None, "dirty_decay_ms:7"])
def test_polars_is_told_to_keep_memory_before_it_starts(given, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("_RJEM_MALLOC_CONF", raising=False)  # Polars here has set it
    if given:
        monkeypatch.setenv("_RJEM_MALLOC_CONF", given)
    asked = [sys.executable, "-c", KEEP]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(given or "muzzy_decay_ms:5000")
