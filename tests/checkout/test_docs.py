"""Every command that README and docs tell a reader to type, typed.

A block of ``sh`` runs as it is written, in a folder of its page's own, with the page's
blocks of ``toml`` as settings. S3 is moto's server, Braze is the sandbox. What cannot
run here stands in blocks of ``console``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import boto3
import pytest

from currents_ingest.simulate import Simulation, simulate
from currents_ingest.store import Store
from tests.campaign import s3_environment

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXPORTS = {
    "vip/vip.csv": "external_id,loyalty,segment_note,zip\nc1,20,a,02134\n",
    "high_value/people.csv": "customer_id,spent\nc1,900\nNULL,1000\n",
    "churn/people.csv": "external_id,treatment\nc1,a\nc2,control\nc3,a\n",
    "loyal/people.csv": "external_id\nc5\n",
    "orders/orders.csv": "external_id,event_id,shipped_at\nc1,e1,1789466400\n",
    "winback/Winback_Offer_2026-09-15.csv": "external_id\nc4\n",
}
SETTINGS = {
    "source": {"url": "s3://acme-currents/braze"},
    "feeds": {"url": "s3://acme-amperity/currents"},
}
BRAZE = {"url": "", "instance": ""}
BEFORE = """
set -e
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
newest() {
  currents-ingest audience status "$1" --json | python -c \\
    'import json, sys; print(json.load(sys.stdin)["runs"][0]["run"])'
}
"""


def blocks(page, language):
    return [body for told, body in BLOCK.findall(page.read_text()) if told == language]


PAGES_WITH_COMMANDS = [page for page in PAGES if blocks(page, "sh")]


@pytest.fixture(scope="module")
def file_in_source(s3_endpoint, tmp_path_factory):
    """Fill the buckets that the pages speak of; return the key of one Avro file."""
    folder = tmp_path_factory.mktemp("made")
    events = ("users.messages.email.*", "users.behaviors.Purchase")
    simulate(str(folder), Simulation(events=events, hours=2, files_per_hour=1))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(s3_endpoint).items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        for bucket in ("acme-currents", "acme-amperity"):
            client.create_bucket(Bucket=bucket)
        notify_a_queue(client)
        made = Store.open(str(folder / "currents"))
        keys = [one.key for listed in made.listing("") for one in listed]
        for key in keys:
            path = f"braze/{key}"
            client.put_object(Bucket="acme-currents", Key=path, Body=made.get(key))
        for name, body in EXPORTS.items():
            for path, held in ((name, body), (f"{name}.DONE", "")):
                client.put_object(
                    Bucket="acme-amperity", Key=f"exports/{path}", Body=held.encode()
                )
    return next(one for one in keys if ".Open/" in one)


def notify_a_queue(client):
    """Make the queue that docs/queue.md speaks of, as it says."""
    (told,) = blocks(ROOT / "docs" / "queue.md", "json")
    sqs = boto3.client("sqs")
    made = sqs.create_queue(QueueName="currents-dead-letters")["QueueUrl"]
    about = sqs.get_queue_attributes(QueueUrl=made, AttributeNames=["QueueArn"])
    arn = about["Attributes"]["QueueArn"]
    rule = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 100})
    sqs.create_queue(QueueName="currents", Attributes={"RedrivePolicy": rule})
    client.put_bucket_notification_configuration(
        Bucket="acme-currents", NotificationConfiguration=json.loads(told)
    )


def settings(page, braze):
    """Return the page's settings as variables, each section in one."""
    merged = {name: dict(section) for name, section in SETTINGS.items()}
    for body in blocks(page, "toml"):
        try:
            told = tomllib.loads(body)
        except tomllib.TOMLDecodeError as error:
            pytest.fail(f"{page.name}: {error} in\n{body}")
        for name, section in told.items():
            merged.setdefault(name, {}).update(section)
    merged["feeds"]["url"] += f"/{page.stem}"
    merged["source"]["url"] = SETTINGS["source"]["url"]
    merged.setdefault("run", {})["listen"] = "127.0.0.1:0"
    if "braze" in merged:
        merged["braze"].pop("instance", None)
        merged["braze"]["url"] = braze
    return {f"CURRENTS_{name}".upper(): json.dumps(one) for name, one in merged.items()}


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: page.stem)
def test_every_command_of_the_page_runs_as_written(
    page, file_in_source, s3_endpoint, box, tmp_path
):
    plain = {k: v for k, v in os.environ.items() if not k.startswith("CURRENTS_")}
    environment = plain | s3_environment(s3_endpoint) | settings(page, box.url)
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "BRAZE_API_KEY": "made-up key",
        "BRAZE_PARTNER_KEY": "made-up partner key",
        "BRAZE_DATA_IMPORT_KEY": "made-up data import key",
        "COLUMNS": "200",
    }
    for body in blocks(page, "sh"):
        script = body.replace("dataexport.../file.avro", file_in_source)
        script = re.sub(r"(retry \S+) RUN\b", r"\1 $(newest vip)", script)
        ended = subprocess.run(
            ["/bin/bash", "-c", BEFORE + script],
            cwd=ROOT if script.startswith("make ") else tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert ended.returncode == 0, f"{body}\n{ended.stdout}\n{ended.stderr}"


def test_what_the_pages_let_a_reader_make_can_be_made():
    text = (ROOT / "CONTRIBUTING.md").read_text() + "".join(
        page.read_text() for page in PAGES
    )
    for target in set(re.findall(r"^make ([a-z][a-z-]*)", text, re.MULTILINE)):
        ended = subprocess.run(
            ["/usr/bin/env", "make", "-n", target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
