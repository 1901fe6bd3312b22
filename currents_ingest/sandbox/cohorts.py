"""Partner cohorts: who is in which, changed by differences only.

Source: Braze docs, "Cohort import API" (partner documentation).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from currents_ingest.sandbox.profiles import devices_of, find_alias, find_device
from currents_ingest.sandbox.values import instant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from currents_ingest.sandbox.profiles import Profile, Store

    Cohorts = dict[tuple[str, str], "Cohort"]
    """By partner and cohort_id."""

MAX_CHANGES = 1000
"""Ids in one request: user_ids, device_ids and aliases of all changes together."""
_KINDS = ("user_ids", "device_ids", "aliases")
_CHANGE = (
    "'cohort_changes' must be an array of objects with user_ids and/or device_ids "
    "arrays, or an aliases object"
)


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
        return _CHANGE
    if number_of(changes) > MAX_CHANGES:
        return f"'cohort_changes' may hold at most {MAX_CHANGES} ids"
    return ""


def _is_change(change: object) -> bool:
    return (
        isinstance(change, dict)
        and any(kind in change for kind in _KINDS)
        and all(isinstance(change.get(kind, []), list) for kind in _KINDS)
        and all(map(_is_id, change.get("user_ids", [])))
        and all(map(_is_id, change.get("device_ids", [])))
        and all(map(_is_alias, change.get("aliases", [])))
        and isinstance(change.get("should_remove", False), bool)
    )


def _is_id(one: object) -> bool:
    return isinstance(one, str) and bool(one)


def _is_alias(one: object) -> bool:
    names = ("alias_name", "alias_label")
    return isinstance(one, dict) and all(_is_id(one.get(name)) for name in names)


def number_of(changes: Sequence[Mapping[str, Any]]) -> int:
    """Return how many ids of all kinds a request brings."""
    return sum(len(change.get(kind, ())) for change in changes for kind in _KINDS)


def contradictions(changes: Sequence[Mapping[str, Any]]) -> int:
    """Return how many ids a request both adds and removes.

    Braze documents no outcome, so a sender must not rely on one.
    """
    added, removed = (
        {
            (kind, str(one))
            for change in changes
            if change.get("should_remove", False) is leaves
            for kind in _KINDS
            for one in change.get(kind, ())
        }
        for leaves in (False, True)
    )
    return len(added & removed)


def change(cohort: Cohort, store: Store, changes: Sequence[Mapping[str, Any]]) -> None:
    """Apply changes in order; ids that no profile has vanish without a word."""
    for one in changes:
        for profile in _people(store, one):
            if one.get("should_remove", False):
                cohort.members.pop(profile["braze_id"], None)
            else:
                cohort.members[profile["braze_id"]] = None


def _people(store: Store, one: Mapping[str, Any]) -> Iterator[Profile]:
    """Yield known people; a device_id finds only who has no external_id."""
    found = chain(
        map(store.by_external_id.get, one.get("user_ids", ())),
        (find_device(store, device) for device in one.get("device_ids", ())),
        (find_alias(store, alias) for alias in one.get("aliases", ())),
    )
    yield from (profile for profile in found if profile is not None)


def membership(cohorts: Cohorts, store: Store) -> list[dict[str, Any]]:
    """Return every cohort with its members, sorted.

    Each member is told once: by external id, else by aliases, else by devices.
    """
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
    others = [p for p in profiles if "external_id" not in p]
    aliases = [a for p in others for a in p.get("user_aliases", ())]
    nameless = [p for p in others if "user_aliases" not in p]
    return {
        "user_ids": sorted(known),
        "device_ids": sorted(chain.from_iterable(map(devices_of, nameless))),
        "aliases": sorted(aliases, key=lambda a: (a["alias_label"], a["alias_name"])),
    }
