"""Reading profiles back: what `POST /users/export/ids` answers.

Source: Braze docs, "POST /users/export/ids".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from currents_ingest.sandbox.profiles import find_alias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from currents_ingest.sandbox.profiles import Profile, Store

MAX_IDS = 50
_LISTS = frozenset(["user_aliases", "custom_events", "purchases", "push_tokens"])
_SINGLE = ("device_id", "braze_id", "email_address", "phone")


def export(store: Store, sent: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return status and answer.

    Each profile is told once, in the order asked for; a field without value is null,
    an empty list or an empty object.
    """
    if message := _error(sent):
        return 400, {"message": message}
    fields = sent["fields_to_export"]
    unknown: list[str] = []
    users: dict[str, Profile] = {}
    for name, profiles in _asked(store, sent):
        users |= {profile["braze_id"]: profile for profile in profiles}
        if not profiles:
            unknown.append(name)
    return 201, {
        "message": "success",
        "users": [shown(user, fields) for user in users.values()],
        "invalid_user_ids": unknown,
    }


def shown(profile: Profile, fields: list[str]) -> dict[str, Any]:
    """Return *fields* of a profile; subscription groups are never exported."""
    return {
        name: profile.get(name, [] if name in _LISTS else None)
        for name in fields
        if name != "subscription_groups"
    }


def _error(sent: Mapping[str, Any]) -> str:
    ids, aliases = sent.get("external_ids", []), sent.get("user_aliases", [])
    single = [name for name in _SINGLE if sent.get(name)]
    if not (_are(ids, str) and _are(aliases, dict)):
        return "'external_ids' and 'user_aliases' must be arrays of ids"
    if len(ids) + len(aliases) > MAX_IDS:
        return f"At most {MAX_IDS} ids are allowed"
    if len(single) + bool(ids or aliases) != 1:
        return "Exactly one kind of identifier must be given"
    fields = sent.get("fields_to_export")
    return "" if fields and _are(fields, str) else "'fields_to_export' is required"


def _are(items: object, kind: type) -> bool:
    return isinstance(items, list) and all(isinstance(item, kind) for item in items)


def _asked(
    store: Store, sent: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[Profile, ...]]]:
    """Yield each identifier asked for, with its profiles."""
    for external_id in sent.get("external_ids", []):
        yield external_id, _one(store.by_external_id.get(external_id))
    for alias in sent.get("user_aliases", []):
        yield str(alias.get("alias_name")), _one(find_alias(store, alias))
    if braze_id := sent.get("braze_id"):
        yield str(braze_id), _one(store.profiles.get(str(braze_id)))
    if email := sent.get("email_address"):
        yield str(email), store.by_email.get(str(email).lower(), ())
    if phone := sent.get("phone"):
        yield str(phone), store.by_phone.get(str(phone), ())
    if device := sent.get("device_id"):
        yield str(device), ()


def _one(profile: Profile | None) -> tuple[Profile, ...]:
    return () if profile is None else (profile,)
