"""What lies in deploy/ and docs/ about metrics: true, and of use as it is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from currents_ingest.metrics import METRICS

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "currents-ingest.json"
KINDS = {"ledger": "gauge, ledger"}
GIVEN = {"instance", "le", "alertname", "severity"}
"""Labels that Prometheus itself gives."""


def labels_by_name():
    """Return the labels of everything that a scrape may show, by its whole name."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    return {
        one.name + suffix: set(one.labels)
        for one in METRICS
        for suffix in suffixes.get(one.kind, [""])
    }


def alerts():
    (group,) = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    return {one["alert"]: one for one in group["rules"]}


def panels():
    found = json.loads(DASHBOARD.read_text())["panels"]
    return [one for one in found if one["type"] != "row"]


def queries():
    """Return every query by where it stands."""
    found = {name: one["expr"] for name, one in alerts().items()}
    for panel in panels():
        for target in panel["targets"]:
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    return found


def test_the_page_lists_exactly_the_metrics_that_there_are():
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    row = r"^\| `(currents_\w+)` \| ([a-z, ]+) \| (.*?) ?\| (.+) \|$"
    listed = [
        (name, kind, tuple(re.findall(r"`(\w+)`", labels)), told)
        for name, kind, labels, told in re.findall(row, text, re.MULTILINE)
    ]
    assert listed == [
        (
            one.name + ("_total" if one.kind == "counter" else ""),
            KINDS.get(one.kind, one.kind),
            one.labels,
            one.told,
        )
        for one in METRICS
    ]


def test_the_page_explains_every_label():
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8").split("## Labels")[1]
    for label in {label for one in METRICS for label in one.labels}:
        assert f"| `{label}`" in text


@pytest.mark.parametrize("where", sorted(queries()))
def test_queries_ask_for_what_there_is(where):
    query, known = queries()[where], labels_by_name()
    named = set(re.findall(r"\b(?:currents|process)_\w+", query))
    mine = {name for name in named if name.startswith("currents_")}
    assert named
    assert mine <= known.keys()
    labels = {label for name in mine for label in known[name]} | GIVEN
    for name, chosen in re.findall(r"\b(currents_\w+)\{([^}]*)\}", query):
        assert set(re.findall(r"(\w+)=~?\"", chosen)) <= known[name] | GIVEN
    for by in re.findall(r"\bby \(([^)]*)\)", query):
        assert set(by.split(", ")) <= labels


def test_every_alert_says_what_to_do_and_how_bad_it_is():
    assert {one["labels"]["severity"] for one in alerts().values()} == {
        "critical",
        "warning",
        "info",
    }
    for one in alerts().values():
        assert one["annotations"].keys() == {"summary", "description"}
        used = set(re.findall(r"\$labels\.(\w+)", json.dumps(one["annotations"])))
        by = set(re.findall(r"by \((\w+)\)", one["expr"]))
        assert used <= by


def test_every_state_and_task_that_alerts_name_is_one_that_metrics_have():
    named = {
        value
        for one in alerts().values()
        for value in re.findall(r'(?:state|result)=~?"([^"]+)"', one["expr"])
    }
    told = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    for value in {single for one in named for single in one.split("|")}:
        assert f"`{value}`" in told


def test_the_dashboard_can_be_imported_anywhere():
    board = json.loads(DASHBOARD.read_text())
    assert board["uid"] == "currents-ingest"
    assert "id" not in board
    ids = [one["id"] for one in board["panels"]]
    assert len(set(ids)) == len(ids)
    cells = set()
    for one in board["panels"]:
        at = one["gridPos"]
        mine = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not mine & cells  # no panel covers another
        cells |= mine
    for one in panels():
        assert one["datasource"]["uid"] == "${datasource}"
        assert all(t["datasource"] == one["datasource"] for t in one["targets"])
    names = {one["name"] for one in board["templating"]["list"]}
    assert names == {"datasource", "instance"}


def test_every_alert_is_shown_firing_and_silent():
    tests = yaml.safe_load((RULES / "alerts_test.yml").read_text())["tests"]
    calm, *others = tests
    silent = {
        one["alertname"] for one in calm["alert_rule_test"] if one["exp_alerts"] == []
    }
    firing = set(re.findall(r'alertname="(\w+)"', json.dumps(others).replace("\\", "")))
    assert silent == firing == alerts().keys()


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")],
)
def test_promtool_finds_the_rules_right(arguments):
    ended = subprocess.run(
        ["promtool", *arguments],  # noqa: S607 (wherever it is installed)
        cwd=RULES,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
