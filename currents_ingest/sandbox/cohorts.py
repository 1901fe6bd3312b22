"""Partner cohorts: who is in which, changed by differences only.

Source: Braze docs, "Cohort import API" (partner documentation).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from currents_ingest.sandbox.profiles import find_alias
from currents_ingest.sandbox.values import instant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from currents_ingest.sandbox.profiles import Profile, Store

    Cohorts = dict[tuple[str, str], "Cohort"]
    """By partner and cohort_id."""

MAX_CHANGES = 1000
"""Ids in one request: user_ids, device_ids and aliases of all changes together."""
_KINDS = ("user_ids", "device_ids", "aliases")


@dataclass(slots=True)
class Cohort:
    """A named list of people."""

    name: str
    created_at: str
    members: dict[str, None] = field(default_factory=dict)
    """By braze_id."""


def definition_error(sent: Mapping[str, Any]) -> str:
    """Return why a cohort cannot be created or renamed so, or ""."""
    for key in ("cohort_id", "name", "created_at"):
        if not (isinstance(sent.get(key), str) and sent[key]):
            return f"'{key}' must be a non-empty string"
    if instant(sent["created_at"]) is None:
        return "'created_at' must be an ISO 8601 time"
    return ""


def define(cohorts: Cohorts, partner: str, sent: Mapping[str, Any]) -> None:
    """Create a cohort, or rename the one with this id; its members stay."""
    key = partner, sent["cohort_id"]
    if key in cohorts:
        cohorts[key].name = sent["name"]
    else:
        cohorts[key] = Cohort(sent["name"], sent["created_at"])


def changes_error(cohorts: Cohorts, partner: str, sent: Mapping[str, Any]) -> str:
    """Return why the changes of a request cannot be made, or ""."""
    if (partner, str(sent.get("cohort_id"))) not in cohorts:
        return "'cohort_id' is not the id of a cohort"
    changes = sent.get("cohort_changes")
    if not isinstance(changes, list) or not all(map(_is_change, changes)):
        return (
            "'cohort_changes' must be an array of objects with user_ids and/or "
            "device_ids arrays, or an aliases object"
        )
    number = sum(len(change.get(kind, ())) for change in changes for kind in _KINDS)
    if number > MAX_CHANGES:
        return f"'cohort_changes' may hold at most {MAX_CHANGES} ids"
    return ""


def _is_change(change: object) -> bool:
    return (
        isinstance(change, dict)
        and any(kind in change for kind in _KINDS)
        and all(isinstance(change.get(kind, []), list) for kind in _KINDS)
        and isinstance(change.get("should_remove", False), bool)
    )


def change(cohort: Cohort, store: Store, changes: Sequence[Mapping[str, Any]]) -> None:
    """Apply changes in order; ids that no profile has vanish without a word."""
    for one in changes:
        for profile in _people(store, one):
            if one.get("should_remove", False):
                cohort.members.pop(profile["braze_id"], None)
            else:
                cohort.members[profile["braze_id"]] = None


def _people(store: Store, one: Mapping[str, Any]) -> Iterator[Profile]:
    """Yield known people; a device_id never finds an identified user, so no one."""
    ids = (store.by_external_id.get(str(number)) for number in one.get("user_ids", ()))
    aliases = (find_alias(store, alias) for alias in one.get("aliases", ()))
    yield from (profile for profile in [*ids, *aliases] if profile is not None)


def membership(cohorts: Cohorts, store: Store) -> list[dict[str, Any]]:
    """Return every cohort with its members: external ids, or else aliases, sorted."""
    return [
        {
            "partner": partner,
            "cohort_id": cohort_id,
            "name": cohort.name,
            "created_at": cohort.created_at,
            **_names([store.profiles[number] for number in cohort.members]),
        }
        for (partner, cohort_id), cohort in sorted(
            cohorts.items(), key=lambda item: item[0]
        )
    ]


def _names(profiles: Sequence[Profile]) -> dict[str, Any]:
    known = [p["external_id"] for p in profiles if "external_id" in p]
    aliases = [a for p in profiles if "external_id" not in p for a in p["user_aliases"]]
    return {
        "user_ids": sorted(known),
        "aliases": sorted(aliases, key=lambda a: (a["alias_label"], a["alias_name"])),
    }
