"""What ``deploy/`` and the Dockerfile say can be read, and names what there is."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
import types
from pathlib import Path
from shutil import which

import pytest
import structlog
import yaml
from apscheduler.triggers.cron import CronTrigger
from cfnlint.api import lint_all
from typer.testing import CliRunner

from currents_ingest import config, policies
from currents_ingest.cli import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").iterdir())
COMMAND = re.compile(r"currents-ingest (?!of|ingestion)((?:(?!&&|\|\||>|\"|\n).)+)")


def is_known(arguments):
    """Tell whether our command line takes these; it only parses them."""
    ended = CliRunner().invoke(app, [*arguments, "--help"])
    structlog.reset_defaults()  # it logs to where the command's output went
    return ended.exit_code == 0, ended.output


def commands():
    """Yield every call of the command that the files make, with its file."""
    crontab = (DEPLOY / "cron" / "currents-ingest.crontab").read_text()
    for line in crontab.splitlines():
        if re.match(r"[\d*]", line):
            yield "cron", COMMAND.search(line)[1]
    for unit in UNITS:
        if started := re.search(
            r"^ExecStart=\S+ (.*)$", unit.read_text(), re.MULTILINE
        ):
            yield unit.name, started[1].replace("%i", "vip")
    for path in sorted((DEPLOY / "kubernetes").iterdir()):
        for one in re.findall(r"args: \[(.*)\]", path.read_text()):
            yield path.name, one.replace(",", "")
    task = json.loads((DEPLOY / "ecs" / "task-definition.json").read_text())
    yield "ecs", shlex.join(task["containerDefinitions"][0]["command"])
    schedule = json.loads((DEPLOY / "ecs" / "scheduled-poll.json").read_text())
    override = json.loads(schedule["Target"]["Input"])["containerOverrides"][0]
    yield "ecs schedule", shlex.join(override["command"])
    docker = (ROOT / "Dockerfile").read_text()
    yield "Dockerfile", shlex.join(json.loads(docker.rpartition("CMD ")[2]))


@pytest.mark.parametrize(("where", "line"), list(commands()))
def test_every_command_is_one_of_ours(where, line):
    known, told = is_known(shlex.split(line))
    assert known, f"{where}: {line}\n{told}"


def test_the_airflow_dags_call_commands_of_ours(monkeypatch):
    made, tasks = {}, []

    class Dag:
        def __init__(self, name, **options):
            made[name] = options

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    def module(name, **what):
        one = types.ModuleType(name)
        one.__dict__.update(what)
        monkeypatch.setitem(sys.modules, name, one)

    for name in ("airflow", "airflow.providers", "airflow.providers.standard"):
        module(name)
    module("airflow.providers.standard.operators")
    module(
        "airflow.providers.standard.operators.bash",
        BashOperator=lambda **options: tasks.append(options),
    )
    module("airflow.sdk", DAG=Dag)
    runpy.run_path(str(DEPLOY / "airflow" / "currents_dag.py"))
    assert {"currents_poll", "currents_audience_vip"} <= set(made)
    for one in made.values():
        assert (one["max_active_runs"], one["catchup"]) == (1, False)
    for one in tasks:
        line = one["bash_command"].partition("currents-ingest ")[2]
        known, told = is_known(shlex.split(line))
        assert known, told


def test_the_crontab_has_times_that_cron_knows():
    text = (DEPLOY / "cron" / "currents-ingest.crontab").read_text()
    lines = [line for line in text.splitlines() if re.match(r"[\d*]", line)]
    assert len(lines) == 4
    for line in lines:
        CronTrigger.from_crontab(" ".join(line.split()[:5]))
        assert "%" not in line  # it is a line end to cron


@pytest.mark.skipif(not which("systemd-analyze"), reason="no systemd here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_the_units(unit):
    ended = subprocess.run(
        ["/usr/bin/env", "systemd-analyze", "verify", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    wrong = [
        line
        for line in ended.stderr.splitlines()
        if unit.name in line and "is not executable" not in line
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "path", sorted((DEPLOY / "kubernetes").iterdir()), ids=lambda path: path.name
)
def test_pods_are_no_root_and_keep_nothing(path):
    for one in yaml.safe_load_all(path.read_text()):
        if one["kind"] == "Service":
            continue
        spec = one["spec"]
        if one["kind"] == "CronJob":
            assert spec["concurrencyPolicy"] == "Forbid"
            spec = spec["jobTemplate"]["spec"]
        pod = spec["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["terminationGracePeriodSeconds"] >= 60
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert {"memory"} <= set(container["resources"]["limits"])


def test_the_lambda_template_is_one_that_cloudformation_takes():
    found = lint_all((DEPLOY / "lambda" / "template.yaml").read_text())
    assert [str(one) for one in found if not one.rule.id.startswith("I")] == []


def test_the_lambda_role_may_do_what_our_policy_says():
    """The template's statements, with its parameters filled in, are policies.own's."""
    text = (DEPLOY / "lambda" / "template.yaml").read_text()
    names = {
        "SourceBucket": "braze",
        "SourcePrefix": "in",
        "FeedsBucket": "acme",
        "FeedsPrefix": "feeds",
        "ExportsPrefix": "exports",
        "AWS::Partition": "aws",
    }
    for name, value in names.items():
        text = text.replace(f"${{{name}}}", value)

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda own, _, node: own.construct_scalar(node))
    role = yaml.load(text, Loader)["Resources"]["Role"]["Properties"]  # noqa: S506
    ours = config.given(
        source={"url": "s3://braze/in"},
        feeds={"url": "s3://acme/feeds"},
        audiences={"vip": {"source": "s3://acme/exports/"}},
    )

    def allowed(statements):
        return {
            (action, resource)
            for one in statements
            for action in several(one["Action"])
            for resource in several(one["Resource"])
            if action.startswith("s3:")
        }

    def several(value):
        return [value] if isinstance(value, str) else value

    told = role["Policies"][0]["PolicyDocument"]["Statement"]
    wanted = allowed(json.loads(policies.own(ours))["Statement"])
    assert allowed(told) == {(a, r.replace("exports*", "exports/*")) for a, r in wanted}


def test_the_image_runs_as_nobody_and_takes_all_that_it_needs():
    text = (ROOT / "Dockerfile").read_text()
    targets = re.split(r"^FROM ", text, flags=re.MULTILINE)
    for name in ("lambda", "command"):
        target = next(one for one in targets if f"AS {name}\n" in one)
        assert "USER 10001" in target
        assert target.index("USER") < target.index("ENTRYPOINT [")
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE)
    allowed = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert sorted(" ".join(copied).split()) == sorted(allowed)
    assert all((ROOT / one).exists() for one in allowed)
