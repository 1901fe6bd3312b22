"""What holds of the checkout itself, not of the package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from currents_ingest.schemas import Registry
from currents_ingest.unified_toml import load

ROOT = Path(__file__).parents[2]
FACTS = ROOT.parent / "shared" / "currents"


def tool(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not FACTS.is_dir(), reason="the facts are not part of the project")
def test_the_schemas_are_what_the_facts_give():
    ended = tool("tools/derive_schemas.py", str(FACTS), "--check")
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("page", ["feeds_page", "events_page", "contract_pages"])
def test_the_pages_made_from_schemas_are_up_to_date(page):
    ended = tool(f"tools/{page}.py", "--check")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_no_lock_file_names_an_index():
    for path in ROOT.glob("requirements*.txt"):
        text = path.read_text()
        assert "://" not in text
        assert "--index" not in text
        assert text.count("--hash=sha256:") > 100


def test_no_module_is_longer_than_it_may_be():
    long = {
        path.name: count
        for path in (ROOT / "currents_ingest").rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 420
    }
    assert long == {}


def test_the_readme_names_every_command_and_every_exit_status():
    text = (ROOT / "README.md").read_text()
    for command in (
        "init",
        "poll",
        "load",
        "status",
        "verify",
        "quarantine",
        "demo",
        "validate",
        "schemas",
        "feeds",
    ):
        assert f"currents-ingest {command}" in text
    assert re.findall(r"^\| (\d) \|", text, re.MULTILINE) == ["0", "1", "2", "3"]


def test_the_example_of_a_contract_in_the_docs_is_a_good_one():
    text = (ROOT / "docs" / "contracts.md").read_text("utf-8")
    example = text.split("```toml\n")[1].split("```")[0]
    assert load(example, "docs", "push_opens", Registry()).feed == "push_opens"
