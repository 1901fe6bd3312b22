"""Named cohorts: who is in which, as rows that join and leave.

A member is known by cohort, kind of identifier and id, in this order, so that a
cohort's members lie together wherever rows are sorted. The snapshot has one cell for
each, the membership: true, or false of those who left.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import orjson
import polars as pl

from currents_ingest.audiences import cells
from currents_ingest.audiences.mapping import (
    COHORT,
    ID,
    OBJECT,
    PART,
    PERSON,
    SEPARATOR,
    WHAT,
    fragment,
    identity,
    said,
    split,
)
from currents_ingest.audiences.tables import ROW

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from currents_ingest.audience_config import Audience
    from currents_ingest.audiences.columns import Layout
    from currents_ingest.audiences.mapping import Mapped
    from currents_ingest.config import Settings

_MEMBERSHIP = "member"
_ARRAYS = {
    "external_id": "user_ids",
    "device_id": "device_ids",
    "user_alias": "aliases",
}
"""What the cohort API calls each kind of identifier."""


def effective(settings: Settings, name: str, audience: Audience) -> Audience:
    """Return an audience as it is sent: a cohort to the partner API, if there is a key.

    Without one it is kept in the attribute that its settings name, if they do.
    """
    if audience.kind != "cohort":
        return audience
    partner = os.environ.get(settings.braze.partner_key_env, "").strip()
    route = "" if partner else audience.without_partner
    several = audience.cohort_column or audience.cohort_file
    change = {
        "mode": "mirror",
        "without_partner": route,
        "membership": audience.membership if route else _MEMBERSHIP,
        "cohort": "" if several else audience.cohort or name,
        "source": _pattern(audience),
    }
    return audience.model_copy(update=change)


def _pattern(audience: Audience) -> str:
    """Return where files of several cohorts lie: those that name one."""
    if not audience.cohort_file or "*" in audience.source:
        return audience.source
    names = audience.cohort_file.replace("{cohort}", "*")
    return f"{audience.source.rstrip('/')}/{names}"


def of_file(audience: Audience, part: str) -> str | None:
    """Return what a file's name calls its cohort; None: it names none."""
    asked = re.escape(audience.cohort_file).replace(r"\*", ".*").replace(r"\?", ".")
    named = re.compile(asked.replace(r"\{cohort\}", "(.+?)"))
    for one in re.split("[!/]", part):
        if found := named.fullmatch(one):
            return found[1]
    return None


def name_of(audience: Audience, key: str) -> str:
    """Return a cohort's name in Braze; empty: it is left out.

    Args:
        audience: Its settings, as ``effective`` returns them.
        key: What the export calls it; empty where it calls none.
    """
    return audience.cohort if not key else audience.cohorts.get(key, key)


def ids_of(
    audience: Audience, keys: Iterable[str], known: Mapping[str, tuple[str, str]]
) -> dict[str, str]:
    """Return cohorts' ids: fixed when a cohort is first sent, no two alike.

    Args:
        audience: Its settings, as ``effective`` returns them.
        keys: What the export calls them.
        known: Id and name of those that were sent before.
    """
    found = {key: one for key, (one, _) in known.items()}
    for key in keys:
        if key in found:
            continue
        name = name_of(audience, key)
        plain = wanted = audience.cohort_id.replace("{name}", name)
        taken, number = set(found.values()), 2
        while wanted in taken:
            wanted, number = f"{plain}-{number}", number + 1
        found[key] = wanted
    return found


def map_members(
    frame: pl.DataFrame, layout: Layout, audience: Audience, part: str
) -> Mapped:
    """Map rows to members; who has no id, or is in no cohort, is skipped and counted.

    Args:
        frame: A chunk's, with PART and ROW.
        layout: What becomes of its columns.
        audience: Its settings, as ``effective`` returns them.
        part: Name of the part.
    """
    schema = frame.schema
    kinds = (audience.identifier, *audience.otherwise)
    persons = (layout.identity, *layout.otherwise)
    given = pl.any_horizontal(
        pl.all_horizontal(said(one, schema).is_not_null() for one in columns)
        for columns in persons
    )
    member = pl.coalesce(
        pl.concat_str(pl.lit(kind[0]), identity(columns, kind, schema))
        for kind, columns in zip(kinds, persons, strict=True)
    )
    if layout.columns:
        cohort = said(layout.columns[0], schema)
    else:
        cohort = pl.lit(of_file(audience, part) if audience.cohort_file else "")
    out = [key for key, name in audience.cohorts.items() if not name]
    rows = frame.select(
        member=member, given=given, cohort=cohort, part=PART, row=ROW
    ).filter(~pl.col("cohort").is_in(out).fill_null(value=False))
    nobodys = rows.filter(pl.col("given") & pl.col("cohort").is_not_null())
    odd = pl.col("member").is_null() | pl.col("cohort").str.contains(SEPARATOR)
    found = nobodys.select(
        pl.when(~odd)
        .then(pl.concat_str("cohort", "member", separator=SEPARATOR))
        .alias(ID),
        pl.col("part").alias(PART),
        pl.col("row").alias(ROW),
        pl.lit("true").alias(audience.membership),
        pl.when(odd)
        .then(pl.lit(f"no {' or '.join(kinds)} that Braze takes"))
        .alias("__reason__"),
    )
    whole = found.with_columns(pl.col(ID).alias(PERSON))
    return replace(split(whole), skipped=len(rows) - len(nobodys))


def of_these(old: pl.DataFrame | None, keys: Iterable[str]) -> pl.DataFrame | None:
    """Keep of a snapshot's rows those of some cohorts."""
    if old is None:
        return None
    return old.filter(_cohort(ID).is_in(list(keys)))


def with_changes(
    send: pl.DataFrame, audience: Audience, known: Mapping[str, tuple[str, str]]
) -> pl.DataFrame:
    """Add the object of each member that joins or leaves, and its cohort.

    Args:
        send: ID, PERSON, WHAT and the membership.
        audience: Its settings, as ``effective`` returns them.
        known: Id and name of cohorts that were sent before.
    """
    member = pl.col(PERSON).str.splitn(SEPARATOR, 2).struct.field("field_1")
    kind, person = member.str.slice(0, 1), member.str.slice(1)
    named = send.with_columns(
        _cohort(PERSON).alias(COHORT), pl.col(WHAT).replace("changed", "new")
    )
    write = _change if audience.to_partner else _attribute
    ids = ids_of(audience, named[COHORT].unique().sort(), known)
    told = pl.coalesce(
        pl.when(kind == one[0]).then(write(one, person, audience, ids))
        for one in _ARRAYS
    )
    return named.with_columns(told.alias(OBJECT))


def _change(
    kind: str, person: pl.Expr, audience: Audience, _: Mapping[str, str]
) -> pl.Expr:
    """Write a change of one id, as the cohort API takes it."""
    leaves = pl.col(audience.membership) == "false"
    return pl.concat_str(
        pl.lit(f'{{"{_ARRAYS[kind]}":['),
        _alias(person) if kind == "user_alias" else cells.quoted(person),
        pl.when(leaves).then(pl.lit('],"should_remove":true}')).otherwise(pl.lit("]}")),
    )


def _alias(person: pl.Expr) -> pl.Expr:
    return fragment("user_alias", person).str.strip_prefix('"user_alias":')


def _attribute(
    kind: str, person: pl.Expr, audience: Audience, ids: Mapping[str, str]
) -> pl.Expr:
    """Write an object of ``/users/track``; like the cohort API, it creates nobody."""
    only = audience.update_existing_only
    flag = orjson.dumps(True if only is None else only).decode()
    name = orjson.dumps(audience.membership).decode()
    member = pl.col(audience.membership)
    if audience.without_partner == "array":
        texts = [orjson.dumps(one).decode() for one in ids.values()]
        cohort = pl.col(COHORT).replace_strict(list(ids), texts, return_dtype=pl.String)
        verb = pl.when(member == "true").then(pl.lit("add")).otherwise(pl.lit("remove"))
        member = pl.concat_str(pl.lit('{"'), verb, pl.lit('":['), cohort, pl.lit("]}"))
    return pl.concat_str(
        pl.lit("{"),
        fragment(kind, person),
        pl.lit(f',"_update_existing_only":{flag},{name}:'),
        member,
        pl.lit("}"),
    )


def _cohort(column: str) -> pl.Expr:
    return pl.col(column).str.splitn(SEPARATOR, 2).struct.field("field_0")
