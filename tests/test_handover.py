"""What an operator gets to set a feed up in Amperity."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from fnmatch import fnmatchcase

import pyarrow.parquet as pq
import pytest

from currents_ingest import api, config, handover, policies
from currents_ingest.conform import POLARS_TYPES
from currents_ingest.errors import NotThereError
from currents_ingest.feeds import show
from currents_ingest.handover_page import html, markdown
from currents_ingest.parquet import schema_of
from currents_ingest.selection import select
from currents_ingest.simulate import Simulation, simulate

UNIFIED = sorted(select(config.read(source={"url": "x"}, feeds={"url": "y"})).contracts)


def example(**feeds):
    return config.read(
        source={"url": "s3://acme-currents/braze"},
        feeds={"url": "s3://acme-amperity/out/currents", **feeds},
    )


def paper(feed, **feeds):
    selection = select(example(**feeds))
    return handover.page(selection, selection.contracts[feed])


def glob(pattern, day):
    """Return the glob of a courier's file pattern on a day: literals in quotes."""
    tokens = {"yyyy": f"{day:%Y}", "MM": f"{day:%m}", "dd": f"{day:%d}"}
    parts = re.findall(r"'([^']*)'|([yMd]+|-)", pattern)
    return "".join(literal or tokens.get(token, token) for literal, token in parts)


@pytest.fixture(scope="module")
def delivered(tmp_path_factory):
    """Every feed delivered, with copies in days' directories."""
    root = tmp_path_factory.mktemp("delivered")
    simulate(str(root), Simulation(rows=3, hours=2))
    settings = config.read(
        source={"url": str(root / "currents")},
        feeds={"url": str(root / "feeds"), "include": ["raw", "*"], "daily_copy": True},
        ledger={"cache": ":memory:", "lease": "0s"},
    )
    api.poll(settings)
    return root / "feeds", settings


@pytest.mark.parametrize("feed", [*UNIFIED, "messages_email_open"])
def test_the_patterns_find_the_feeds_objects_and_nothing_else(delivered, feed):
    root, settings = delivered
    objects = [str(one.relative_to(root)) for one in root.rglob("*") if one.is_file()]
    page = handover.handover(settings, feed)
    day = datetime.now(UTC)
    found = [
        key
        for key in objects
        if fnmatchcase(key, glob(page.patterns["objects"], day))
        and key.count("/") == glob(page.patterns["objects"], day).count("/")
    ]
    own = [key for key in objects if key.startswith(f"{feed}/")]
    assert found == own != []
    directory = glob(page.patterns["a day's directory instead"], day)
    copies = [key for key in objects if key.startswith(directory)]
    assert len(copies) == len(own)
    assert page.sample in own


def test_the_prefix_is_the_users_own():
    page = paper("email_events")
    assert page.patterns == {
        "objects": (
            "'out/currents/email_events/'yyyy'/'MM'/'dd'/email_events-*.parquet'"
        )
    }
    assert page.location == "s3://acme-amperity/out/currents/email_events/"
    assert page.table == "Braze_Email_Events"


@pytest.mark.parametrize("feed", UNIFIED)
def test_every_column_is_there_with_amperitys_type(feed):
    contract = select(example()).contracts[feed]
    page = paper(feed)
    assert [one.name for one in page.columns] == list(contract.types)
    assert {one.type for one in page.columns} <= {
        "String",
        "Integer",
        "Float",
        "Boolean",
        "Datetime",
        "Decimal(38,6)",
    }
    assert tuple(one.name for one in page.columns if one.key) == contract.key
    (updated,) = [one.name for one in page.columns if one.last_updated]
    assert updated == contract.last_updated
    text = markdown(page)
    for one in page.columns:
        assert f"| `{one.name}` | {one.type} |" in text
    assert "fifteen months" in text or feed != "email_events"


def test_choices_about_personal_data_are_shown():
    settings = example().model_copy(
        update={
            "privacy": config.Privacy(
                fields={"user_id": "hash"},
                feeds={"email_events": {"email_address": "drop"}},
            )
        }
    )
    selection = select(settings)
    page = handover.page(selection, selection.contracts["email_events"])
    chosen = {one.name: one.personal for one in page.columns}
    assert chosen["email"] == {
        "email_address": "drop",
        "channel_identifier": "drop",
    }
    assert chosen["send_id"] == {"user_id": "hash", "email_address": "drop"}
    assert chosen["external_id"] == {"external_user_id": "keep"}
    assert "`user_id`: hash" in markdown(page)


def test_the_policies_allow_no_more_than_is_needed():
    page = paper("purchases", daily_copy=True)
    trust, amperity, own = map(json.loads, page.policies.values())
    assert trust["Statement"][0]["Action"] == "sts:AssumeRole"
    actions = {a for one in amperity["Statement"] for a in _several(one["Action"])}
    assert actions == {"s3:ListBucket", "s3:GetObject"}
    arn = "arn:aws:s3:::acme-amperity/out/currents"
    assert amperity["Statement"][1]["Resource"] == [
        f"{arn}/purchases/*",
        f"{arn}/purchases_refill/*",
        f"{arn}/purchases_????-??-??.parquet/*",
    ]
    removing = [one for one in own["Statement"] if "s3:DeleteObject" in one["Action"]]
    assert [one.removeprefix(arn) for one in removing[0]["Resource"]] == [
        "/_staging/*",
        "/_ledger/lease/*",
        "/_ledger/probe/*",
        "/_ledger/checkpoints/*",
    ]
    source = "arn:aws:s3:::acme-currents"
    about_source = [one for one in own["Statement"] if source in str(one["Resource"])]
    assert {a for one in about_source for a in _several(one["Action"])} == {
        "s3:ListBucket",
        "s3:GetObject",
    }


def _several(value):
    return [value] if isinstance(value, str) else value


def test_our_policy_reaches_what_audiences_need():
    audiences = {
        "vip": {"source": "s3://exports/vip/"},
        "churn": {"source": "s3://exports/churn/Churn_*.csv"},
        "local": {"source": "people.csv"},
    }
    settings = config.given(
        source={"url": "s3://braze/in"},
        feeds={"url": "s3://feeds/currents", "contracts": ["s3://own/contracts"]},
        schemas={"urls": ["s3://own/schemas"]},
        audiences=audiences,
    )
    statements = json.loads(policies.own(settings))["Statement"]
    removed = next(one for one in statements if one["Action"] == ["s3:DeleteObject"])
    assert "arn:aws:s3:::feeds/currents/_audiences/*" in removed["Resource"]
    of_own, listed, read = statements[-4], *statements[-2:]
    assert of_own["Condition"]["StringLike"]["s3:prefix"] == ["schemas*", "contracts*"]
    assert listed["Condition"]["StringLike"]["s3:prefix"] == ["vip*", "churn/Churn_*"]
    assert read["Action"] == ["s3:GetObject"]
    assert read["Resource"] == [
        "arn:aws:s3:::exports/vip*",
        "arn:aws:s3:::exports/churn/Churn_*",
    ]


def test_a_folder_has_no_policies():
    settings = config.read(source={"url": "a"}, feeds={"url": "b"})
    assert policies.of(settings, "purchases") == {}


def test_queries_name_columns_that_there_are():
    for feed in UNIFIED:
        page = paper(feed)
        names = {one.name for one in page.columns}
        for query in page.queries.values():
            if page.table in query and "Unified" not in query:
                words = set(re.findall(r"\(([a-z_, ]+)\)", query))
                used = {one for word in words for one in word.split(", ")}
                assert used <= names, query


@pytest.mark.parametrize("feed", ["email_opt_status", "messages_sms_send"])
def test_a_sample_has_made_up_rows_and_the_contracts_columns(delivered, feed):
    _, settings = delivered
    body = handover.made_up(settings, feed)
    contract = show(settings, feed).contract
    assert dict(schema_of(body)) == {
        name: POLARS_TYPES[kind] for name, kind in contract.types.items()
    }
    assert pq.read_metadata(io.BytesIO(body)).num_rows > 0


def test_hostile_text_stays_text():
    selection = select(example())
    contract = selection.contracts["purchases"]
    bad = contract.model_copy(update={"description": "<script>x</script>"})
    page = html(handover.page(selection, bad))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", page)


def test_there_is_no_paper_of_a_feed_that_is_not(delivered):
    with pytest.raises(NotThereError):
        handover.handover(delivered[1], "no_such")


@pytest.mark.parametrize("format_", ["md", "json", "html"])
def test_the_command_writes_each_format(delivered, tmp_path, format_):
    root, _ = delivered
    out, sample = tmp_path / "page", tmp_path / "sample.parquet"
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "currents_ingest", "feeds", "contract"),
            *("purchases", "--format", format_, "-o", str(out)),
            *("--sample", str(sample)),
        ],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "CURRENTS_SOURCE__URL": str(root.parent / "currents"),
            "CURRENTS_FEEDS__URL": str(root),
            "CURRENTS_LEDGER__CACHE": str(tmp_path / "cache.db"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    text = out.read_text("utf-8")
    starts = {
        "md": "# purchases\n",
        "json": '{"feed": "purchases"',
        "html": "<!doctype",
    }
    assert text.startswith(starts[format_])
    assert pq.read_table(sample).num_rows > 0
