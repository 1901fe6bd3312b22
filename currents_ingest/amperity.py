"""Amperity's words: types, reserved names, semantic tags and what each demands.

Source: Amperity docs, "Feeds", "Semantic tags", "Add email engagement", "Spark SQL".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from currents_ingest.contracts import NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from currents_ingest.contracts import ColumnType

AmperityType = Literal["string", "integer", "float", "decimal", "boolean", "datetime"]

COLUMN_TYPES: dict[AmperityType, ColumnType] = {
    "string": "string",
    "integer": "int64",
    "float": "double",
    "decimal": "decimal(38,6)",
    "boolean": "boolean",
    "datetime": "timestamp",
}

NAMES: dict[ColumnType, str] = {
    "string": "String",
    "json": "String",
    "int64": "Integer",
    "double": "Float",
    "decimal(38,6)": "Decimal(38,6)",
    "boolean": "Boolean",
    "timestamp": "Datetime",
}
"""How Amperity's feed editor names what a column is."""

RESERVED = frozenset(
    """
    alter and as between by case cast constraint create cross cube current_date
    current_time current_timestamp current_user deallocate delete describe distinct
    drop else end escape except execute exists extract false for from full group
    grouping having in inner insert intersect into is join left like localtime
    localtimestamp natural normalize not null on or order outer prepare recursive
    right rollup select table then true uescape union unnest using values when where
    with
    """.split()  # noqa: SIM905 (forty lines else)
)
"""Words that Amperity's SQL keeps for itself."""

_FOREIGN_KEY = re.compile(r"fk-[a-z0-9-]+")


@dataclass(frozen=True, slots=True)
class Tag:
    """What a semantic tag asks of its column."""

    type: AmperityType
    required: bool = False
    """A table with tags of its family needs it."""
    words: frozenset[str] = frozenset()
    """The only values it may have, spelt so; empty: any."""


EVENT_TYPES = frozenset(
    {"Sent", "Open", "Click", "Unsubscribe", "Optin", "Bounce", "Converted"}
)
_PERIODS = (
    *(f"last-{days}-days" for days in (1, 3, 5, 7, 14, 30)),
    *(f"last-{months}-months" for months in (3, 6, 9, 12)),
    "lifetime",
)
_MOST_RECENT = (
    "bounce",
    "email-click",
    "email-open",
    "email-optin",
    "email-optout",
    "email-send",
)
TAGS: Mapping[str, Tag] = {
    "email-event/brand": Tag("string", required=True),
    "email-event/email": Tag("string", required=True),
    "email-event/event-datetime": Tag("datetime", required=True),
    "email-event/event-type": Tag("string", required=True, words=EVENT_TYPES),
    "email-event/send-id": Tag("string", required=True),
    "email-event/region": Tag("string"),
    "email-event/campaign-id": Tag("string"),
    "email-event/campaign-name": Tag("string"),
    "email-event/treatment-id": Tag("string"),
    "email-event/treatment-name": Tag("string"),
    "email-opt/email": Tag("string", required=True),
    "email-opt/is-email-opted-in": Tag("boolean", required=True),
    "email-opt/brand": Tag("string"),
    "email-opt/email-frequency": Tag("string"),
    "email-opt/email-program": Tag("string"),
    "email-opt/language-preference": Tag("string"),
    "email-opt/region": Tag("string"),
    "sms-opt/phone": Tag("string", required=True),
    "sms-opt/is-sms-opted-in": Tag("boolean", required=True),
    "sms-opt/brand": Tag("string"),
    "sms-opt/sms-frequency": Tag("string"),
    "sms-opt/language-preference": Tag("string"),
    "sms-opt/region": Tag("string"),
    "email-summary/brand": Tag("string", required=True),
    "email-summary/email": Tag("string", required=True),
    "email-summary/region": Tag("string"),
    **{
        f"email-summary/email-{what}-{period}": Tag("integer")
        for what in ("clicks", "opens")
        for period in _PERIODS
    },
    **{
        f"email-summary/email-{what}-rate-lifetime": Tag("decimal")
        for what in ("click", "open")
    },
    **{
        f"email-summary/first-email-{what}-datetime": Tag("datetime")
        for what in ("send", "open", "click")
    },
    **{
        f"email-summary/most-recent-{what}-datetime": Tag("datetime")
        for what in _MOST_RECENT
    },
    **{
        f"email-summary/engagement-{what}-last-15-months": Tag("string")
        for what in ("frequency", "status")
    },
}
"""Tags that are checked. Foreign keys are ``fk-`` and a namespace."""

_OPT = frozenset({"email-opt", "sms-opt"})


def family(tag: str) -> str:
    """Return ``email-event`` of ``email-event/brand``, ``fk`` of any foreign key."""
    return "fk" if _FOREIGN_KEY.fullmatch(tag) else tag.split("/", maxsplit=1)[0]


def wrong_name(name: str) -> str | None:
    """Say why Amperity cannot take a column name, or None."""
    if name.startswith("_"):
        return f"{name} begins with an underscore, which Amperity keeps for itself"
    if not NAME.fullmatch(name):
        return f"{name} may hold letters, digits and underscores only"
    if name.lower() in RESERVED:
        return f"{name} is a reserved word of Spark SQL"
    return None


def wrong_tag(tag: str, kind: AmperityType) -> str | None:
    """Say why a column of a type cannot have a tag, or None."""
    if family(tag) == "fk":
        return None
    if tag not in TAGS:
        return f"there is no semantic tag {tag}"
    if TAGS[tag].type != kind:
        return f"the tag {tag} needs a {TAGS[tag].type} column, and this is {kind}"
    return None


def wrong_tags(tags: Sequence[str]) -> Iterator[str]:
    """Say what is wrong with the tags of one table taken together."""
    families = {family(tag) for tag in tags}
    if {"email-event", "email-summary"} <= families:
        yield "email-event/ and email-summary/ tags exclude each other"
    keys = [tag for tag in tags if family(tag) == "fk"]
    if len(keys) > 1:
        yield f"a table may have one foreign key, and this has {', '.join(keys)}"
    if families & _OPT and keys:
        yield "a table with email-opt/ or sms-opt/ tags may have no foreign key"
    for tag in sorted({tag for tag in tags if tags.count(tag) > 1}):
        yield f"two columns have the tag {tag}"
    for tag, rule in TAGS.items():
        if rule.required and family(tag) in families and tag not in tags:
            yield f"a table with {family(tag)}/ tags needs the tag {tag}"
