"""The command answers --help at once: what takes long to import waits for its use."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    *("aiohttp", "altair", "asyncio", "boto3", "botocore", "fastavro", "fsspec"),
    *("jinja2", "obstore", "polars", "pydantic", "sqlite3", "structlog", "urllib3"),
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
