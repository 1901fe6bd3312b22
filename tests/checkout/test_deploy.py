"""What lies in deploy/ and the Dockerfile, and what docs/deploy.md says of it."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import typer
import yaml
from apscheduler.triggers.cron import CronTrigger
from cfnlint.api import lint_all
from distributed.cli import dask_scheduler, dask_worker

from currents_ingest import aws_lambda, cli, config, policies
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.units import size

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs" / "deploy.md").read_text("utf-8")
PROGRAM = "/opt/currents/bin/currents-ingest"
OF_NO_SETTING = {
    aws_lambda.CONFIG,
    aws_lambda.RESERVE,
    aws_lambda.SECRETS,
    "CURRENTS_COMMAND",  # the DAG's
    "CURRENTS_SETTINGS",
    "CURRENTS_ETC",  # currents-cron's
    "CURRENTS_LOG",
    "CURRENTS_LOG_FORMAT",  # the command line's
}
USAGE = typer.BadParameter.__base__
"""What is raised where a command is used wrongly."""
MEMORY = size("2GB")
"""What the process uses unless limits.memory says otherwise."""


class Template(yaml.SafeLoader):
    """Reads CloudFormation: !Ref X is {"Ref": X}."""


def tagged(loader, tag, node):
    if isinstance(node, yaml.ScalarNode):
        return {tag: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {tag: loader.construct_sequence(node, deep=True)}
    return {tag: loader.construct_mapping(node, deep=True)}


Template.add_multi_constructor("!", tagged)


def kubernetes():
    """Return every manifest by kind and name."""
    found = {}
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text("utf-8")):
            found[one["kind"], one["metadata"]["name"]] = one
    return found


def pods():
    """Return the pod of each workload by its name."""
    found = {}
    for (kind, name), one in kubernetes().items():
        if kind in ("Deployment", "Job"):
            found[name] = one["spec"]["template"]["spec"]
        if kind == "CronJob":
            job = one["spec"]["jobTemplate"]["spec"]
            found[name] = job["template"]["spec"]
    return found


def ecs(name):
    return json.loads((DEPLOY / "ecs" / f"{name}.json").read_text("utf-8"))


def units():
    """Return systemd's units by name, each with the lines of all its sections."""
    found = {}
    for path in sorted((DEPLOY / "systemd").rglob("*")):
        if path.is_file():
            parser = configparser.RawConfigParser(strict=False)
            parser.optionxform = str
            parser.read(path, "utf-8")
            found[path.name] = {
                k: v
                for section in parser.sections()
                for k, v in parser[section].items()
            }
    return found


def template():
    path = DEPLOY / "lambda" / "template.yaml"
    return yaml.load(path.read_text("utf-8"), Template)  # noqa: S506 (a safe one)


def crontab():
    """Return schedule and arguments of each line."""
    lines = (
        (DEPLOY / "cron" / "currents-ingest.crontab").read_text("utf-8").splitlines()
    )
    jobs = [one for one in lines if one and not re.match(r"#|\w+=", one)]
    return [
        (" ".join(one.split()[:5]), " ".join(one.split()[5:]).split(" ", 1))
        for one in jobs
    ]


def dag(monkeypatch):
    """Return the DAGs by name, their tasks made of stand-ins for Airflow's classes."""
    dags = {}

    class Dag:
        def __init__(self, name, **options):
            self.options, self.tasks = options, []
            dags[name] = self

        def __enter__(self):
            Dag.now = self

        def __exit__(self, *_):
            Dag.now = None

    class Task:
        def __init__(self, **options):
            self.options, self.before = options, []
            Dag.now.tasks.append(self)

        def __rshift__(self, other):
            other.before.append(self.options["task_id"])

        def __rrshift__(self, others):
            for one in others:
                one.__rshift__(self)

    made = {"airflow.sdk": {"DAG": Dag}}
    made["airflow.providers.standard.operators.bash"] = {"BashOperator": Task}
    for name, inside in made.items():
        module = ModuleType(name)
        vars(module).update(inside)
        monkeypatch.setitem(sys.modules, name, module)
    path = DEPLOY / "airflow" / "currents_dag.py"
    spec = importlib.util.spec_from_file_location("currents_dag", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return dags


@pytest.fixture
def dags(tmp_path, monkeypatch):
    settings = tmp_path / "currents.toml"
    settings.write_text('[audiences.vip]\nsource="a"\n[audiences.churn]\nsource="b"\n')
    monkeypatch.setenv("CURRENTS_SETTINGS", str(settings))
    return dag(monkeypatch)


def mebibytes(text):
    """Read 2200M of systemd or 2200Mi of Kubernetes; returns bytes."""
    return int(re.fullmatch(r"(\d+)Mi?", text)[1]) << 20


# Every command is one of ours.


def is_ours(arguments):
    """Tell whether the command line knows these commands and takes what follows."""
    command, *rest = typer.main.get_command(cli.app), *arguments
    if rest[:1] == ["--config"]:
        rest = rest[2:]
    while names := getattr(command, "commands", None):
        if not rest or rest[0] not in names:
            return False
        command = names[rest.pop(0)]
    try:
        command.make_context("", rest)
    except USAGE:
        return False
    return True


def consoles():
    """Return what the page lets a reader type where it cannot be run here."""
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    text = re.sub(r"\\\n\s*", " ", "".join(blocks))
    return re.findall(r"^\$ (.+)$", text, re.MULTILINE)


def ours(line):
    """Return the arguments of ours in a line that a reader types, if there are any."""
    found = re.match(r"currents-ingest (.+)|docker run .* currents-ingest (.+)", line)
    return shlex.split(found[1] or found[2]) if found else None


def commands():
    """Yield the arguments of every command, each with where it stands."""
    for _, (_, arguments) in crontab():
        yield "cron", shlex.split(arguments)
    for name, one in units().items():
        if PROGRAM in one.get("ExecStart", ""):
            line = one["ExecStart"].replace("%i", "vip")
            yield name, shlex.split(line.removeprefix(PROGRAM))
    for name, pod in pods().items():
        if arguments := pod["containers"][0].get("args"):
            yield name, arguments
    yield "ecs", ecs("task-definition")["containerDefinitions"][0]["command"]
    for name in ("schedule-poll", "schedule-audience"):
        target = json.loads(ecs(name)["Target"]["Input"])
        yield name, target["containerOverrides"][0]["command"]
    yield "Dockerfile", json.loads(dict(stages()["service"])["CMD"])
    for line in consoles():
        if arguments := ours(line):
            yield "docs", arguments


def stages():
    """Return the Dockerfile's instructions by stage."""
    text = re.sub(
        r"^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE
    )
    found = {}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip():
            continue
        word, _, value = line.partition(" ")
        if word == "ARG":
            continue
        if word == "FROM":
            _, _, name = value.partition(" AS ")
            found[name] = []
        found[name].append((word, value.strip()))
    return found


@pytest.mark.parametrize(
    "arguments",
    [pytest.param(one, id=f"{at}: {' '.join(one)}") for at, one in commands()],
)
def test_every_command_is_one_of_ours(arguments):
    assert is_ours(arguments)


@pytest.mark.parametrize(
    "wrong", [["pool"], ["poll", "--stricter"], ["audience", "sync", "--al"], []]
)
def test_a_wrong_command_would_be_noticed(wrong):
    assert not is_ours(wrong)


def deployed():
    """Return the files, without what Python makes of them where they are imported."""
    found = (one for one in DEPLOY.rglob("*") if one.is_file())
    return [one for one in found if one.suffix != ".pyc"]


def test_the_page_says_how_every_way_is_started():
    typed = "\n".join(consoles())
    for path in deployed():
        mentioned = path.name in PAGE or path.suffix == ".conf"
        assert mentioned or "prometheus" in path.parts or "grafana" in path.parts, path
    for path in re.findall(r"deploy/[\w./@-]+[\w@]", typed + PAGE):
        assert (ROOT / path).exists(), path


# Settings and secrets.


def known_variables():
    found = set(OF_NO_SETTING)
    for name, field in config.Settings.model_fields.items():
        found.add(f"CURRENTS_{name}".upper())
        for inner in getattr(field.annotation, "model_fields", ()):
            found.add(f"CURRENTS_{name}__{inner}".upper())
    return found


def test_every_variable_is_a_setting():
    texts = [one.read_text("utf-8") for one in (*deployed(), ROOT / "Dockerfile")]
    named = set(re.findall(r"\bCURRENTS_[A-Z_]+", "".join(texts) + PAGE))
    assert named - known_variables() == set()


def test_the_settings_of_ecs_and_kubernetes_can_be_used(tmp_path, monkeypatch):
    (container,) = ecs("task-definition")["containerDefinitions"]
    monkeypatch.chdir(tmp_path)
    for one in container["environment"]:
        monkeypatch.setenv(one["name"], one["value"])
    assert config.read().audiences["vip"].mode == "mirror"
    for one in container["environment"]:
        monkeypatch.delenv(one["name"])
    path = tmp_path / "currents.toml"
    path.write_text(kubernetes()["ConfigMap", "currents-ingest"]["data"][path.name])
    assert config.read(path).limits.memory == MEMORY


def test_no_secret_is_in_a_file():
    names = re.compile(r"(?i)(api|partner|import)_key|token|password")
    for path in deployed():
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            harmless = re.search(
                r"secret|automountServiceAccountToken|^#", line, re.IGNORECASE
            )
            named = names.search(line) and not harmless and '"name"' not in line
            assert not named, f"{path}:{number} {line}"
    (container,) = ecs("task-definition")["containerDefinitions"]
    assert [one["name"] for one in container["secrets"]] == ["BRAZE_API_KEY"]
    assert not any("KEY" in one["name"] for one in container["environment"])


# The image.


def test_the_image_runs_as_nobody_in_particular_and_gets_signals():
    service = stages()["service"]
    one = dict(service)
    assert list(stages())[-1] == "service"  # what is built unless another is named
    assert json.loads(one["ENTRYPOINT"]) == ["currents-ingest"]
    assert one["USER"] == "10001:10001"
    assert "/healthz" in one["HEALTHCHECK"]
    json.loads(one["HEALTHCHECK"].partition("CMD ")[2])
    after = [word for word, _ in service[[w for w, _ in service].index("USER") :]]
    assert not {"COPY", "RUN"} & set(after)


def test_only_what_the_locks_name_is_installed():
    for name, stage in stages().items():
        for word, value in stage:
            assert word != "ADD"
            for step in value.split("&&"):
                if "pip install" in step or "pip wheel" in step:
                    assert "--require-hashes" in step or "--no-deps" in step, name
                    assert "-r " not in step or "--require-hashes" in step, name
        assert all(not v.endswith("latest") for w, v in stage if w == "FROM")
    for folder, name in (("lambda", "awslambdaric"), ("dask", "distributed")):
        lock = (DEPLOY / folder / "requirements.txt").read_text("utf-8")
        assert "://" not in lock
        assert re.search(rf"^{name}==", lock, re.MULTILINE)


def test_what_the_image_copies_is_there_and_not_ignored():
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    kept = {one[1:] for one in ignore if one.startswith("!")}
    copied = [
        source
        for stage in stages().values()
        for word, value in stage
        if word == "COPY" and "--from" not in value
        for source in value.split()[:-1]
    ]
    assert len(copied) >= 5
    assert set(copied) == kept
    for source in copied:
        assert (ROOT / source).exists()
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert needs["project"]["readme"] in copied


def test_the_images_handler_is_ours():
    module, _, name = json.loads(dict(stages()["lambda"])["CMD"])[0].rpartition(".")
    assert getattr(sys.modules[module], name) is aws_lambda.handler


# cron and systemd.


def test_schedules_of_cron_are_schedules():
    assert len(crontab()) == 3
    for schedule, (command, arguments) in crontab():
        CronTrigger.from_crontab(schedule)
        assert "%" not in arguments  # a line's end to cron
        assert (DEPLOY / "cron" / command).stat().st_mode & 0o111
    for name, one in kubernetes().items():
        if name[0] == "CronJob":
            CronTrigger.from_crontab(one["spec"]["schedule"])


@pytest.fixture
def cron(tmp_path):
    """Return what runs currents-cron in a folder with a few Currents files."""
    simulate(str(tmp_path), Simulation(events=("*.Purchase",), hours=1))
    etc, log = tmp_path / "etc", tmp_path / "log"
    for one in (etc, log):
        one.mkdir()
    (etc / "currents.toml").write_text(f'[source]\nurl = "{tmp_path}/currents"\n')
    (etc / "environment").write_text(f"CURRENTS_FEEDS__URL={tmp_path}/feeds\n")
    bins = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def run(*arguments):
        return subprocess.run(
            [str(DEPLOY / "cron" / "currents-cron"), *arguments],
            env={"PATH": bins, "CURRENTS_ETC": str(etc), "CURRENTS_LOG": str(log)},
            capture_output=True,
            text=True,
            check=False,
        )

    return SimpleNamespace(run=run, etc=etc, log=log)


def test_cron_mails_nothing_of_what_went_well(cron):
    first, second = cron.run("poll", "--strict"), cron.run("poll", "--strict")
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
    assert (second.returncode, second.stdout) == (0, "")
    log = (cron.log / "poll-strict.log").read_text()
    assert "objects published" in log
    assert "nothing new" in log


def test_cron_mails_what_failed_with_its_status(cron):
    (cron.etc / "environment").write_text("CURRENTS_LIMITS__MEMORY=much\n")
    ended = cron.run("poll")
    assert ended.returncode == 2
    assert "currents-ingest poll ended with 2 on" in ended.stdout
    assert "feeds is missing" in ended.stdout


def test_cron_starts_nothing_beside_the_same_at_work(cron):
    lock = cron.log / ".poll.lock"
    with subprocess.Popen([shutil.which("flock"), lock, "sleep", "60"]) as busy:
        while not lock.exists():
            pass
        ended = cron.run("poll")
        busy.kill()
    assert (ended.returncode, ended.stdout) == (0, "")
    assert not (cron.log / "poll.log").exists()


def test_units_share_what_hardens_them():
    shared = units()["10-shared.conf"]
    assert shared["DynamicUser"] == shared["NoNewPrivileges"] == "yes"
    assert shared["ProtectSystem"] == "strict"
    assert int(shared["TimeoutStopSec"]) >= 120
    assert mebibytes(shared["MemoryMax"]) > MEMORY
    for name, one in units().items():
        if PROGRAM in one.get("ExecStart", ""):
            assert name.startswith("currents-ingest-")  # whose folder .d holds for it
            assert "%i" not in one["ExecStart"] or "@" in name


def test_timers_make_up_what_was_missed_and_start_what_there_is():
    timers = [one for one in units() if one.endswith(".timer")]
    assert len(timers) == 3
    for name in timers:
        assert units()[name]["Persistent"] == "yes"
        service = units()[name.replace(".timer", ".service")]
        assert service["Type"] == "oneshot"  # systemd starts none beside itself


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd's own check")
def test_systemd_finds_nothing_wrong_with_its_units(tmp_path):
    shutil.copytree(DEPLOY / "systemd", tmp_path / "units")
    for path in (tmp_path / "units").glob("*.service"):
        text = path.read_text("utf-8").replace(PROGRAM, "/bin/true")
        path.write_text(text.replace("/opt/currents/bin", "/bin"), "utf-8")
    names = [one for one in units() if not one.endswith(".conf")]
    ended = subprocess.run(
        [
            shutil.which("systemd-analyze"),
            "verify",
            "--man=no",
            *(one.replace("@.", "@vip.") for one in names),
        ],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path / 'units'}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


# Kubernetes and ECS.


@pytest.mark.parametrize("name", list(pods()))
def test_a_pod_may_do_no_more_than_it_needs(name):
    pod = pods()[name]
    (container,) = pod["containers"]
    uid, _, gid = dict(stages()["service"])["USER"].partition(":")
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == int(uid)
    assert pod["securityContext"]["fsGroup"] == int(gid)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert mounted["local"] == json.loads(dict(stages()["service"])["VOLUME"])[0]
    if "command" in container:
        return  # Dask's own
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert mebibytes(container["resources"]["limits"]["memory"]) > MEMORY
    assert mounted["settings"] == dict(stages()["base"])["WORKDIR"]
    assert container["envFrom"] == [{"secretRef": {"name": "currents-ingest"}}]


def test_dask_takes_its_commands_and_keeps_the_limit_of_memory():
    scheduler, worker = (
        pods()[f"currents-dask-{name}"]["containers"][0]
        for name in ("scheduler", "worker")
    )
    assert scheduler["command"][:2] == ["dask", "scheduler"]
    dask_scheduler.main.make_context("scheduler", scheduler["command"][2:])
    assert worker["command"][:2] == ["dask", "worker"]
    found = dask_worker.main.make_context("worker", worker["command"][2:]).params
    limit = mebibytes(worker["resources"]["limits"]["memory"])
    assert MEMORY < mebibytes(found["memory_limit"].removesuffix("B")) < limit
    (job,) = (one for key, one in kubernetes().items() if key[0] == "Job")
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    address = arguments[-1].removeprefix("--scheduler=")
    assert found["scheduler"] == address
    service = kubernetes()["Service", "currents-dask-scheduler"]
    port = service["spec"]["ports"][0]["port"]
    assert address == f"tcp://{service['metadata']['name']}:{port}"
    policy = kubernetes()["NetworkPolicy", "currents-dask"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]


def test_jobs_of_kubernetes_never_overlap_nor_repeat_in_vain():
    jobs = [one["spec"] for key, one in kubernetes().items() if key[0] == "CronJob"]
    assert len(jobs) == 2
    for job in jobs:
        assert job["concurrencyPolicy"] == "Forbid"
        (rule,) = job["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
        assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2, 3])


def test_the_deployment_asks_for_the_pages_of_run():
    (container,) = pods()["currents-ingest"]["containers"]
    paths = {
        probe: container[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    port = container["ports"][0]["containerPort"]
    environment = dict(stages()["service"])["ENV"]
    assert f"CURRENTS_RUN__LISTEN=0.0.0.0:{port}" in environment
    deployment = kubernetes()["Deployment", "currents-ingest"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]["type"]) == (1, "Recreate")


def test_a_task_of_ecs_fits_its_machine_and_its_service():
    task = ecs("task-definition")
    (container,) = task["containerDefinitions"]
    limit = next(
        one["value"]
        for one in container["environment"]
        if one["name"] == "CURRENTS_LIMITS__MEMORY"
    )
    assert size(limit) < int(task["memory"]) << 20
    assert container["user"] == dict(stages()["service"])["USER"]
    assert container["readonlyRootFilesystem"] is True
    volume = json.loads(dict(stages()["service"])["VOLUME"])[0]
    assert [one["containerPath"] for one in container["mountPoints"]] == [volume]
    service = ecs("service")
    assert service["taskDefinition"] == task["family"]
    assert service["desiredCount"] == 1
    assert service["deploymentConfiguration"]["maximumPercent"] == 100
    pattern = json.loads(ecs("failed-tasks")["EventPattern"])
    assert f"family:{task['family']}" in pattern["detail"]["group"]


# Lambda.


@pytest.mark.parametrize("part", ["lambda", "queue"])
def test_cloudformation_takes_the_template(part):
    found = lint_all((DEPLOY / part / "template.yaml").read_text("utf-8"))
    assert [str(one) for one in found if not one.rule.id.startswith("I")] == []


def test_the_function_is_one_at_a_time_and_may_call_itself():
    resources = template()["Resources"]
    function = resources["Function"]["Properties"]
    assert function["ReservedConcurrentExecutions"] == 1
    assert function["RecursiveLoop"] == "Allow"
    variables = function["Environment"]["Variables"]
    assert {"BRAZE_API_KEY", "BRAZE_PARTNER_KEY"}.isdisjoint(variables)
    reserve = variables[aws_lambda.RESERVE]
    assert aws_lambda.duration(reserve).total_seconds() < function["Timeout"] / 2
    memory = template()["Parameters"]["MemoryMB"]["Default"]
    assert size(variables["CURRENTS_LIMITS__MEMORY"]) < memory << 20
    failures = resources["Failures"]["Properties"]["DestinationConfig"]["OnFailure"]
    assert failures == {"Destination": {"GetAtt": "FailedEvents.Arn"}}


def test_the_schedule_sends_an_event_that_the_handler_knows(tmp_path, monkeypatch):
    (target,) = template()["Resources"]["Poll"]["Properties"]["Targets"]
    simulate(str(tmp_path), Simulation(events=("*.Purchase",), hours=1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CURRENTS_SOURCE__URL", str(tmp_path / "currents"))
    monkeypatch.setenv("CURRENTS_FEEDS__URL", str(tmp_path / "feeds"))
    monkeypatch.setenv("CURRENTS_LEDGER__CACHE", str(tmp_path / "cache.db"))
    context = SimpleNamespace(get_remaining_time_in_millis=lambda: 900_000)
    found = aws_lambda.handler(json.loads(target["Input"]), context)
    assert (found["do"], found["state"]) == ("poll", "done")
    (look,) = template()["Resources"]["Look"]["Properties"]["Targets"]
    told = aws_lambda.handler(json.loads(look["Input"]), context)
    assert told["needs_a_look"] is True  # nothing came for long
    assert "Braze has stopped" in told["look"][0]
    assert found["needs_a_look"] is False
    filter_ = template()["Resources"]["LookNeeded"]["Properties"]["FilterPattern"]
    assert filter_ == "{ $.needs_a_look IS TRUE }"


def filled(value):
    """Put names in place of the template's parameters."""
    if isinstance(value, list):
        return [filled(one) for one in value]
    if isinstance(value, dict) and "Sub" in value:
        given = {
            "AWS::Partition": "aws",
            "SourceBucket": "in",
            "SourcePrefix": "braze/",
            "FeedsBucket": "out",
            "FeedsPrefix": "currents/",
            "ExportsBucket": "exports",
            "ExportsPrefix": "amperity/",
        }
        return re.sub(r"\$\{(.+?)\}", lambda m: given.get(m[1], m[0]), value["Sub"])
    return value


def listed(value):
    return value if isinstance(value, list) else [value]


def test_the_function_may_do_what_it_needs_and_no_more():
    """Hold the template's policy against the one that doctor prints."""
    settings = config.given(
        source={"url": "s3://in/braze"},
        feeds={"url": "s3://out/currents"},
        audiences={"vip": {"source": "s3://exports/amperity/"}},
    )
    document = template()["Resources"]["Policy"]["Properties"]["PolicyDocument"]

    def allowed(statements):
        return {
            (action, filled(resource).rstrip("/*"), json.dumps(filled(condition)))
            for one in statements
            for action in listed(one["Action"])
            for resource in listed(one["Resource"])
            for condition in listed(
                one.get("Condition", {}).get("StringLike", {}).get("s3:prefix", "")
            )
            if action.startswith("s3:")
        }

    wanted = json.loads(policies.own(settings))["Statement"]
    assert allowed(document["Statement"]) == {
        (action, where, prefix.replace('amperity*"', 'amperity/*"'))
        for action, where, prefix in allowed(wanted)
    }


def test_the_function_may_do_with_a_queue_what_it_needs_and_no_more():
    arn = "arn:aws:sqs:us-east-1:123456789012:currents"
    settings = config.given(
        source={"url": "s3://in/braze", "queue": arn}, feeds={"url": "out"}
    )
    policy = template()["Resources"]["QueuePolicy"]["Properties"]["PolicyDocument"]
    (ours,) = policy["Statement"]
    assert (
        ours | {"Resource": arn} == json.loads(policies.own(settings))["Statement"][2]
    )


# Airflow.


def test_the_dags_poll_and_send_every_audience_of_the_settings(dags):
    assert sorted(dags) == ["currents_audiences", "currents_poll"]
    found = {
        name: {
            one.options["task_id"]: (one.options["bash_command"], one.before)
            for one in each.tasks
        }
        for name, each in dags.items()
    }
    poll, sent = found["currents_poll"], found["currents_audiences"]
    assert list(poll) == ["poll"]
    assert sorted(sent) == ["look", "sync_churn", "sync_vip"]
    assert sent["look"][1] == ["sync_vip", "sync_churn"]
    for command, _ in [*poll.values(), *sent.values()]:
        program, *arguments = shlex.split(command.removeprefix("exec "))
        assert program == PROGRAM
        assert is_ours(arguments)


def test_the_dags_make_up_nothing_and_never_overlap(dags):
    for one in dags.values():
        assert one.options["catchup"] is False
        assert one.options["max_active_runs"] == 1
        assert one.options["default_args"]["retries"] == 2
        CronTrigger.from_crontab(one.options["schedule"])
    look = dags["currents_audiences"].tasks[-1].options
    assert (look["task_id"], look["retries"]) == ("look", 0)  # twice is no remedy
