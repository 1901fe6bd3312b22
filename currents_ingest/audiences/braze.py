"""What Braze takes, as data: its hosts, profile fields, names and limits."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from currents_ingest.errors import SettingsError
from currents_ingest.schemas import BRAZE, schemas_root

if TYPE_CHECKING:
    from collections.abc import Mapping

    from currents_ingest.audience_config import Audience, Braze

PRIMARY = ("external_id", "user_alias", "braze_id")
"""Identifiers of which an object may have one. Source: Braze docs, /users/track."""
ALIAS = ("alias_name", "alias_label")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileField:
    """A field that every profile has."""

    kind: str
    max_chars: int = 0
    billable: bool = False
    subscription: bool = False
    """Changes who may be sent what; refused unless allowed."""
    csv: bool = False
    """The dashboard's import takes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What ``schemas/braze/profile.toml`` says."""

    fields: Mapping[str, ProfileField]
    names: Mapping[str, str]
    """Amperity's name to Braze's."""
    look_alikes: Mapping[str, str]
    left_out: frozenset[str]
    rejected: frozenset[str]
    controls: frozenset[str]
    """Names in an object that are no attributes."""
    limits: Mapping[str, int]
    reserved: Mapping[str, frozenset[str]]
    """Property names that events and purchases must not have."""
    ecommerce: Mapping[str, tuple[str, ...]]
    """Properties without which Braze drops an event, by its name."""


@cache
def facts() -> Facts:
    """Read them, once."""
    raw = _toml("profile.toml")
    return Facts(
        fields={name: ProfileField(**one) for name, one in raw["fields"].items()},
        names=raw["names"],
        look_alikes=raw["look_alikes"],
        left_out=frozenset(raw["left_out"]["names"]),
        rejected=frozenset(raw["rejected"]["names"]),
        controls=frozenset(raw["controls"]["names"]),
        limits=raw["limits"],
        reserved={kind: frozenset(names) for kind, names in raw["reserved"].items()},
        ecommerce={
            name: tuple(needed) for name, needed in raw["ecommerce"]["required"].items()
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where an audience's objects go, and how many at once."""

    path: str
    array: str
    """Name of the array that they go into."""
    most: int
    """Objects in a request."""
    room: int
    """Bytes of objects in a request."""
    pace: str
    """Requests in a time, as in 3000/3s."""


def endpoint(braze: Braze, audience: Audience) -> Endpoint:
    """Return an audience's endpoint.

    Source: Braze docs, "/users/track"; "Cohort import API" (partner documentation):
    1,000 ids of all kinds, 250,000 requests an hour beside the workspace's own limits.
    """
    if audience.to_partner:
        return Endpoint(
            path=f"/partners/{braze.partner}/cohorts/users",
            array="cohort_changes",
            most=1000,
            room=braze.request_size - 1000,
            pace="250000/1h",
        )
    return Endpoint(
        path="/users/track/bulk" if braze.bulk else "/users/track",
        array="attributes" if audience.kind == "cohort" else audience.kind,
        most=braze.most,
        room=braze.room,
        pace=braze.pace,
    )


def rest_url(settings: Braze) -> str:
    """Return the REST endpoint, without a slash at its end.

    Raises:
        SettingsError: Neither instance nor url is set, both are, or Braze has no
            such instance.
    """
    known = _toml("instances.toml")
    if bool(settings.instance) == bool(settings.url):
        raise SettingsError(("set either braze.instance (such as US-03) or braze.url",))
    if settings.url:
        return settings.url.rstrip("/")
    if url := known.get(settings.instance.upper()):
        return str(url)
    told = ", ".join(known)
    problem = (
        f"braze.instance: {settings.instance!r} is none of {told}; braze.url takes "
        "the REST endpoint of a new one"
    )
    raise SettingsError((problem,))


def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads((schemas_root() / BRAZE / name).read_text("utf-8"))
