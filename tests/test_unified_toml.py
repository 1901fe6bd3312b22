"""Contracts of unified feeds: what is refused, where it stands, and why."""

from __future__ import annotations

import pytest

from currents_ingest.errors import SettingsError
from currents_ingest.schemas import FEEDS, Registry, schemas_root
from currents_ingest.unified_toml import load

GOOD = """\
feed = "opens"
description = "Opens"
key = "event_id"
last_updated = "feed_updated_at"

[options.machines]
default = "keep"
values = ["keep", "drop"]
description = "Opens by machines"

[[sources]]
event = "users.messages.email.Open"
unless = { machine_open = "true", "@machines" = "drop" }
set = { kind = "Open" }

[[columns]]
name = "event_id"
from = "id"
required = true

[[columns]]
name = "kind"

[[columns]]
name = "happened_at"
type = "datetime"
from = "time"
unit = "s"

[[columns]]
name = "feed_updated_at"
type = "datetime"
from = "ingested_at"
"""


def problems(text, feed="opens"):
    with pytest.raises(SettingsError) as caught:
        load(text, "opens.toml", feed, Registry())
    return caught.value.problems


def test_a_good_contract_is_read():
    contract = load(GOOD, "opens.toml", "opens", Registry())
    assert contract.types == {
        "event_id": "string",
        "kind": "string",
        "happened_at": "timestamp",
        "feed_updated_at": "timestamp",
    }
    assert contract.key == ("event_id",)


@pytest.mark.parametrize(
    "path",
    sorted((schemas_root() / FEEDS).glob("*.toml")),
    ids=lambda path: path.stem,
)
def test_the_shipped_contracts_are_good(path):
    contract = load(path.read_text("utf-8"), path.name, path.stem, Registry())
    assert contract.description
    assert contract.model_validate_json(contract.model_dump_json()) == contract


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ('feed = "opens"', 'feed = "Opens"', 1, "the feed is named Opens, its file"),
        ('"Opens"\n', '"Opens\n', 2, "Illegal character"),
        ('description = "Opens"\n', "", 1, "description: Field required"),
        ('key = "event_id"', 'key = "id"', 3, "id is no column"),
        ('key = "event_id"', 'key = "kind"', 3, "so it must be required"),
        ('"feed_updated_at"\n\n', '"kind"\n\n', 4, "must be a datetime or an integer"),
        ('default = "keep"', 'default = "no"', 7, "no is none of its values"),
        ("email.Open", "email.Opened", 12, "no known event type is named users."),
        ("machine_open =", "machine_opened =", 13, "has no field machine_opened"),
        ('"@machines"', '"@machine"', 13, "there is no option machine"),
        ("set = { kind", "set = { sort", 14, "there is no column sort to set"),
        ('kind = "Open"', "kind = 1", 14, "1 is no value of kind, which is string"),
        ('from = "id"', 'from = "ids"', 18, "has a field ids"),
        ('name = "kind"', 'name = "event_ID"', 22, "there are two columns event_ID"),
        ('name = "kind"', 'name = "_kind"', 22, "begins with an underscore"),
        ('name = "kind"', 'name = "the kind"', 22, "letters, digits and underscores"),
        ('name = "kind"', 'name = "order"', 22, "is a reserved word of Spark SQL"),
        ('name = "kind"', 'name = "kind"\ntag = "email-event/what"', 23, "no semantic"),
        (
            'name = "kind"',
            'name = "kind"\ntag = "email-opt/is-email-opted-in"',
            23,
            "needs a boolean column",
        ),
        ('unit = "s"\n', "", 26, "time is integer, which does not become datetime"),
        ('unit = "s"', 'unit = "h"', 28, "unit: Input should be 's' or 'ms'"),
        (
            'type = "datetime"\nfrom = "time"',
            'type = "date"\nfrom = "time"',
            26,
            "type",
        ),
        ('from = "ingested_at"', 'form = "ingested_at"', 33, "form: Extra inputs"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(old, new, line, reason):
    assert GOOD.count(old) == 1
    found = problems(GOOD.replace(old, new))
    assert any(reason in one for one in found), found
    at = next(one for one in found if reason in one)
    assert f":{line}: " in at or f"line {line}," in at


TAGGED = """
[[columns]]
name = "{name}"
type = "{kind}"
from = "{source}"
required = true
tag = "{tag}"
"""


def tagged(name, tag, source="id", kind="string"):
    return TAGGED.format(name=name, tag=tag, source=source, kind=kind)


def test_a_table_has_one_foreign_key():
    keys = tagged("a", "fk-a", "user_id") + tagged("b", "fk-b", "external_user_id")
    assert any("may have one foreign key" in one for one in problems(GOOD + keys))


def test_email_events_and_summaries_exclude_each_other():
    both = tagged("b", "email-event/brand") + tagged("c", "email-summary/brand")
    found = problems(GOOD + both)
    assert any("exclude each other" in one for one in found)
    assert any("needs the tag email-event/send-id" in one for one in found)


def test_a_consent_table_has_no_foreign_key():
    tags = tagged("e", "email-opt/email", "email_address") + tagged("f", "fk-x")
    assert any("may have no foreign key" in one for one in problems(GOOD + tags))


def test_an_event_type_is_one_of_amperitys_words():
    tags = tagged("word", "email-event/event-type") + "constant = 'Opt-in'\n"
    found = problems(GOOD + tags)
    assert any("'Opt-in' is none of the values of" in one for one in found)
